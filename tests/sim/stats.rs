//! Counts of what really happened. A fault that never fires tests nothing.

use std::collections::BTreeMap;

/// Everything that the CI set must have seen.
pub const EXPECTED: &[&str] = &[
    "disk: ENOSPC",
    "disk: crash point reached",
    "disk: bit rot",
    "disk: short write",
    "disk: flush beside the loop",
    "disk: flush failed",
    "disk: flush waited for",
    "disk: late flush",
    "disk: slow",
    "disk: stall",
    "disk: sync failed",
    "net: bit flipped",
    "net: blocked link",
    "net: connection refused",
    "net: half open",
    "net: late bytes of a closed connection",
    "net: leader cut off from a candidate",
    "net: link flaps",
    "net: one-way partition",
    "net: reset",
    "net: single bytes",
    "net: socket full",
    "process: continue",
    "process: ended by a fatal reason",
    "process: kill",
    "process: orderly end",
    "process: pause",
    "process: power loss",
    "process: power loss under a flush",
    "process: killed under a flush",
    "process: start",
    "process: wiped",
    "operator: follow",
    "operator: follow --discard",
    "operator: promote",
    "operator: promote --force",
    "role: leads after a promotion",
    "role: leads after a start",
    "role: stopped leading",
    "role: promotion refused",
    "node: cut",
    "node: cut below commit allowed",
    "node: fenced a connection",
    "node: in-sync set left",
    "node: output above high water",
    "node: disk full refused a write",
    "node: session",
    "node: reads went back",
    "node: repairs a damaged log",
    "node: repairs what its leader has heard of",
    "node: read refused while it repairs",
    "second phase: everything is healed",
    "second phase: some stay broken",
    "broken for good: down",
    "broken for good: paused",
    "broken for good: cut off",
    "broken for good: deaf",
    "broken for good: mute",
    "broken for good: disk that does not sync",
    "broken for good: full disk",
    "client: acknowledged write",
    "client: read checked",
    "client: follower read checked",
    "client: outcome unknown",
    "client: refused write",
    "client: stopped reading",
    "client: redirected",
    "client: number used again",
    "client: numbers missing",
    "client: session opened",
    "client: session refused",
    "check: a number is answered as by another leader",
    "check: a number is answered as the first time",
    "state: a scan finds a flipped bit",
    "state: disputed",
    "state: outvoted",
    "state: read refused",
    "snapshot: published",
    "snapshot: segments removed",
    "snapshot: state loaded at a start",
    "snapshot: state loaded in slices",
    "check: state from a snapshot is that of the log",
    "transfer: installed",
    "transfer: refused by the follower",
    "transfer: dropped at the bound",
    "check: ACK compared with the leader's log",
    "check: ACK proved on a copy of the disk",
    "check: acknowledgement proved on a copy of the disk",
    "check: forced promotion said what it gave up",
    "check: discard said what it gave up, and kept it aside",
    "check: history of a key put in order",
    "check: receipt asked for",
    "check: receipt of a slow write",
    "check: receipt with a reply",
    "check: restart compared with what was told",
    "check: write given up by a promotion or discard",
];

/// What must have happened so often at least: a check that is met a few times in a set finds nothing.
pub const FLOORS: &[(&str, u64)] = &[
    ("check: state of an installed snapshot is that of the log", 150),
    ("archive: a segment is copied", 10_000),
    ("check: state restored from an archive is that of the log", 300),
    ("check: state restored from an archive is the one that nodes had", 200),
    ("disk: a fault of an archive", 300),
    ("disk: an archive is not there", 100),
    ("disk: bit rot in all snapshots", 5),
    ("disk: bit rot in the newest snapshot", 5),
    ("net: bytes of a transfer arrive in the session after it", 5),
    ("node: started from the older snapshot", 5),
    ("node: survived damage of all its snapshots", 5),
    ("process: away for longer than the log goes back", 300),
    ("transfer: dropped at the bound", 10),
    ("transfer: gone on with", 8),
    ("transfer: installed", 150),
];

/// How the names of what breaks begin. What a node does about it is not counted among them.
pub const FAULTS: &[&str] = &["disk: ", "memory: ", "net: ", "process: ", "operator: ", "broken for good: "];

/// Counters by name.
#[derive(Clone, Debug, Default)]
pub struct Stats(pub BTreeMap<&'static str, u64>);

impl Stats {
    /// It happened.
    pub fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    /// It happened so often.
    pub fn add(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &Stats) {
        other.0.iter().for_each(|(what, times)| self.add(what, *times));
    }

    /// How often this happened.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// How often anything happened whose name begins like this.
    pub fn sum(&self, begins: &[&str]) -> u64 {
        self.like(begins).map(|(_, times)| times).sum()
    }

    /// How many different things did.
    pub fn kinds(&self, begins: &[&str]) -> usize {
        self.like(begins).count()
    }

    fn like<'a>(&'a self, begins: &'a [&str]) -> impl Iterator<Item = (&'a &'static str, &'a u64)> {
        self.0.iter().filter(|(what, _)| begins.iter().any(|begin| what.starts_with(begin)))
    }

    /// The table.
    pub fn print(&self) {
        for (what, times) in &self.0 {
            println!("  {times:>12}  {what}");
        }
    }

    /// What never fired, or too seldom, of what the CI set must have seen.
    pub fn missing(&self, elected: bool) -> Vec<&'static str> {
        if elected {
            return crate::elected::EXPECTED
                .iter()
                .copied()
                .filter(|what| !self.0.contains_key(what))
                .collect();
        }
        let rare = FLOORS.iter().filter(|(what, least)| self.of(what) < *least).map(|(what, _)| *what);
        let expected = EXPECTED.iter().chain(crate::mishaps::EXPECTED).copied();
        expected.filter(|what| !self.0.contains_key(what)).chain(rare).collect()
    }
}
