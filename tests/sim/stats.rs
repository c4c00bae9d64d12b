//! Counts of what really happened. A fault that never fires tests nothing.

use std::collections::BTreeMap;

/// Everything that the CI set must have seen.
pub const EXPECTED: &[&str] = &[
    "disk: ENOSPC",
    "disk: crash point reached",
    "disk: bit rot",
    "disk: short write",
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
    "process: start",
    "process: refused a damaged log",
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
    "node: disk full refused a write",
    "node: session",
    "node: reads went back",
    "client: acknowledged write",
    "client: read checked",
    "client: follower read checked",
    "client: outcome unknown",
    "client: refused write",
    "client: stopped reading",
    "client: redirected",
    "check: acknowledgement proved on a copy of the disk",
    "check: restart compared with what was told",
    "check: write given up by a promotion or discard",
];

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

    /// The table, and what never fired.
    pub fn print(&self) -> Vec<&'static str> {
        for (what, times) in &self.0 {
            println!("  {times:>12}  {what}");
        }
        let expected = EXPECTED.iter().chain(crate::mishaps::EXPECTED).copied();
        expected.filter(|what| !self.0.contains_key(what)).collect()
    }
}
