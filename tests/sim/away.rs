//! Followers that are away for longer than their leader's log goes back, so that a snapshot has to bring them back; and
//! what befalls them, the leader, and the link between the two while it does. And snapshots that rot.

use kvstore::snapshot::{RECEIVED_NAME, parse_snapshot_name};
use kvstore::wal::parse_segment_name;

use crate::client::Ask;
use crate::core::{Event, MS};
use crate::host::Host;
use crate::world::World;

/// So often it is looked whether the leader's log has gone on without it.
const STEP_NS: u64 = 100 * MS;
/// One that is still covered by the log after so many looks comes back all the same.
const STEPS_MAX: u64 = 60;

/// A link that fails until there are other snapshots does so for this long at most. A follower waits a minute.
const LINK_FAILS_NS_MAX: u64 = 4_000 * MS;

/// What comes in between when the follower is back.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// The link to the leader fails for a moment.
    Link,
    /// It fails until the leader has made other snapshots, and then the leader's process dies.
    LinkForLong,
    /// What the leader sends arrives in the next session only.
    Late,
    /// A part of that: the leader has lost the connection.
    LeaderLoses,
    /// The leader's process dies.
    LeaderDies,
    /// The follower's does.
    Dies,
    /// Somebody else is promoted.
    Promotion,
}

const TROUBLES: [Trouble; 10] = [
    Trouble::Link,
    Trouble::Link,
    Trouble::Link,
    Trouble::LeaderDies,
    Trouble::Dies,
    Trouble::Promotion,
    Trouble::LinkForLong,
    Trouble::LinkForLong,
    Trouble::Late,
    Trouble::Late,
];

/// The first LSN that a log on this disk holds, if it holds any.
fn log_begins(host: &Host) -> Option<u64> {
    let names = host.mem.names();
    names.iter().filter_map(|name| parse_segment_name(name)).map(|lsn| lsn.0).min()
}

impl World {
    /// A follower goes down until the log does not reach back to it; sometimes another one with it.
    pub fn go_away(&mut self, site: usize) {
        let both = self.core.borrow_mut().chance(250_000);
        let other = (site + 1) % self.hosts.len();
        for site in [site].into_iter().chain(both.then_some(other)) {
            let host = &self.hosts[site];
            let running = host.process.as_ref().is_some_and(|process| !process.node.is_loading());
            if !running || self.leads(site) || host.away || host.mirror.borrow().last() == 0 {
                continue;
            }
            let mut core = self.core.borrow_mut();
            core.stats.count("process: away for long");
            let power = core.chance(300_000);
            core.after(STEP_NS, Event::Away { site, steps: 0 });
            drop(core);
            self.hosts[site].away = true;
            self.end_process(site, power);
        }
    }

    /// Is it time to come back?
    pub fn away_step(&mut self, site: usize, steps: u64) {
        if !self.hosts[site].away {
            return;
        }
        let last = self.hosts[site].mirror.borrow().last();
        let leaders = (0..self.hosts.len()).filter(|other| self.leads(*other));
        let passed = leaders.filter_map(|other| log_begins(&self.hosts[other])).any(|first| first > last + 1);
        if !passed && steps < STEPS_MAX {
            return self.core.borrow_mut().after(STEP_NS, Event::Away { site, steps: steps + 1 });
        }
        self.hosts[site].away = false;
        let mut core = self.core.borrow_mut();
        if passed {
            core.stats.count("process: away for longer than the log goes back");
            // None, one, or several, at any moment from the first dial to the records behind the snapshot.
            self.hosts[site].troubles.clear();
            for _ in 0..core.rng.below(4) {
                let trouble = TROUBLES[core.rng.below(TROUBLES.len() as u64) as usize];
                if core.chance(700_000) {
                    let most = [1, 2, 5, 20][core.rng.below(4) as usize];
                    let turns = core.rng.below(most);
                    self.hosts[site].troubles.push((trouble, turns));
                } else {
                    let delay = core.between(MS, 1_000 * MS);
                    core.after(delay, Event::Trouble { site, trouble });
                }
            }
            if core.chance(300_000) {
                let ops = core.between(0, 60);
                let mem = &self.hosts[site].mem;
                mem.crash_before(mem.op_count() + ops);
                let incarnation = self.hosts[site].incarnation + 1;
                core.after(3_000 * MS, Event::CrashNow { host: site, incarnation, power: true });
            }
        }
        drop(core);
        self.start(site);
    }

    /// A turn of this host has ended; a snapshot may be on its way to it. True: its process is gone.
    pub fn trouble_in_transfer(&mut self, site: usize) -> bool {
        let host = &mut self.hosts[site];
        let Some((trouble, turns)) = host.troubles.last_mut() else { return false };
        if self.healed_at.is_some() || !host.mem.names().iter().any(|name| name == RECEIVED_NAME) {
            return false;
        }
        let begun = host.process.as_ref().is_some_and(|process| process.node.bytes_received() > 0);
        if *turns > 0 || matches!(trouble, Trouble::LinkForLong) && !begun {
            *turns = turns.saturating_sub(1);
            return false;
        }
        let trouble = *trouble;
        host.troubles.pop();
        self.core.borrow_mut().stats.count("process: trouble in a transfer");
        self.trouble(site, trouble);
        self.hosts[site].process.is_none()
    }

    /// Something comes in between.
    pub fn trouble(&mut self, site: usize, trouble: Trouble) {
        let leader = (0..self.hosts.len()).find(|other| *other != site && self.leads(*other));
        let Some(leader) = leader.filter(|_| self.healed_at.is_none()) else { return };
        self.core.borrow_mut().trace(|| format!("{trouble:?} while host {site} comes back"));
        match trouble {
            Trouble::Late => self.hold_what_leader_sends(site, leader),
            Trouble::LeaderLoses => self.leader_loses_connections(site, leader),
            Trouble::Link | Trouble::LinkForLong => {
                let mut core = self.core.borrow_mut();
                let for_long = matches!(trouble, Trouble::LinkForLong);
                let for_ns = if for_long {
                    core.between(800 * MS, LINK_FAILS_NS_MAX)
                } else {
                    core.between(MS, 800 * MS)
                };
                if for_long {
                    core.after(for_ns, Event::Trouble { site, trouble: Trouble::LeaderDies });
                }
                core.reset_between(site, leader);
                core.stats.count("net: reset");
                core.block(site, leader, for_ns);
                core.block(leader, site, for_ns);
            }
            Trouble::LeaderDies | Trouble::Dies => {
                let victim = if matches!(trouble, Trouble::Dies) { site } else { leader };
                if self.hosts[victim].process.is_some() {
                    self.core.borrow_mut().stats.count("process: kill");
                    self.end_process(victim, false);
                }
            }
            Trouble::Promotion => {
                let running = |other: &usize| *other != leader && self.hosts[*other].process.is_some();
                let best = (0..self.hosts.len())
                    .filter(running)
                    .max_by_key(|other| self.hosts[*other].mirror.borrow().last());
                if let Some(best) = best {
                    self.command(best, Ask::Promote { force: false });
                }
            }
        }
    }

    /// A bit flips in the newest snapshot of a follower, or in all of them.
    pub fn rot_snapshot(&mut self, site: usize) {
        if !self.may_decay(site) || self.hosts[site].rotten {
            return;
        }
        let names = self.hosts[site].mem.names();
        let mut files: Vec<String> =
            names.into_iter().filter(|name| parse_snapshot_name(name).is_some()).collect();
        if files.is_empty() {
            return;
        }
        self.end_process(site, true);
        let mut core = self.core.borrow_mut();
        let all = core.chance(400_000) || files.len() == 1;
        if !all {
            files = files.split_off(files.len() - 1);
        }
        for file in files {
            let host = &self.hosts[site];
            // What a power loss has left of it; the rest of the preallocation means nothing.
            let Some(raw) = host.mem.raw(&file).filter(|raw| raw.len() > 80) else { continue };
            let bytes =
                u64::from_be_bytes(raw[72..80].try_into().expect("8 bytes")).clamp(1, raw.len() as u64);
            let (at, bit) = (core.rng.below(bytes), core.rng.below(8) as u8);
            host.mem.corrupt(&file, at, bit);
            core.trace(|| format!("host {site}: bit {bit} of byte {at} of {file} flips"));
        }
        core.stats.count(if all {
            "disk: bit rot in all snapshots"
        } else {
            "disk: bit rot in the newest snapshot"
        });
        self.hosts[site].snapshots_rot = Some(all);
        // With all of the log no snapshot is needed.
        self.hosts[site].rotten = all && log_begins(&self.hosts[site]) != Some(1);
    }
}
