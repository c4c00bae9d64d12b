//! Hosts that stay broken for good in the second phase. A cluster must come to rest with those that are left: the
//! hosts that could serve are chosen, only what connects them is healed, and the rest keeps its trouble to the end.

use kvstore::node::Observed;
use kvstore::replication::commit::AckPolicy;

use crate::core::{Event, MS};
use crate::mem_disk::{EIO, OpKind};
use crate::world::World;

/// In so many of a million runs something stays broken, if enough is left without it.
const PARTIAL_PPM: u64 = 500_000;

/// What is the matter with a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// No process, and none is started.
    Down,
    /// A process that is there and never runs again: connections to it stay open.
    Paused,
    /// No other host reaches it, nor it them.
    CutOff,
    /// What it sends arrives, and nothing reaches it.
    Deaf,
    /// It hears everything, and nothing that it sends arrives.
    Mute,
    /// Each sync of its disk fails, so each life of its process is short.
    NoSync,
    /// Its disk is full.
    Full,
    /// A member whose directory was emptied: nothing is the matter with it but that it is another node now.
    Out,
}

const KINDS: [(Broken, &str); 7] = [
    (Broken::Down, "broken for good: down"),
    (Broken::Paused, "broken for good: paused"),
    (Broken::CutOff, "broken for good: cut off"),
    (Broken::Deaf, "broken for good: deaf"),
    (Broken::Mute, "broken for good: mute"),
    (Broken::NoSync, "broken for good: disk that does not sync"),
    (Broken::Full, "broken for good: full disk"),
];

impl World {
    /// What is the matter with this host, if it is one of those that stay broken.
    pub fn broken(&self, site: usize) -> Option<Broken> {
        self.heal.broken.get(&site).copied()
    }

    /// Whether nothing of this host is healed.
    pub fn stays_broken(&self, site: usize) -> bool {
        self.broken(site).is_some_and(|broken| broken != Broken::Out)
    }

    /// The hosts that are to serve.
    pub fn serving(&self) -> impl Iterator<Item = usize> + use<'_> {
        (0..self.hosts.len()).filter(|site| self.broken(*site).is_none() && self.is_to_serve(*site))
    }

    /// Draws whether the run ends with everything healed, or which hosts stay broken.
    pub fn choose_broken(&mut self) {
        let (hosts, members) = (self.hosts.len(), self.members());
        self.heal.broken.extend(self.oracle.out.iter().map(|site| (*site, Broken::Out)));
        let out = self.oracle.out.len() as u64;
        self.core.borrow_mut().stats.add("broken for good: out, its directory was emptied", out);
        // So many members, and all replicas, are not needed.
        let mut spare = {
            let mut core = self.core.borrow_mut();
            let by_majority = matches!(core.knobs.ack, AckPolicy::Quorum | AckPolicy::Majority);
            let majority = if by_majority { members / 2 + 1 } else { 1 };
            let spare = members - self.oracle.out.len() - majority.max(core.knobs.min_insync);
            // Forming takes all members, and one that is about to get its state has no vote.
            let votes = |site: usize| {
                let host = &self.hosts[site];
                let whole = |seen: &Observed| seen.complete && seen.repair_until.0 == 0;
                self.oracle.out.contains(&site) || !host.rotten && host.seen.as_ref().is_some_and(whole)
            };
            let formed = self.oracle.elections.have_begun() && (0..members).all(votes);
            let formed = formed || !core.knobs.is_elected();
            let changes = core.knobs.changes_members();
            if changes || spare + hosts - members == 0 || !formed || !core.chance(PARTIAL_PPM) {
                core.stats.count("second phase: everything is healed");
                return;
            }
            spare
        };
        // It may have been on its way up; who led in the highest term knows the most.
        let elected = self.core.borrow().knobs.is_elected();
        let chosen = (!elected).then(|| self.choose_leader());
        self.heal.chosen = chosen;
        let mut core = self.core.borrow_mut();
        core.stats.count("second phase: some stay broken");
        let mut others: Vec<usize> =
            (0..hosts).filter(|site| Some(*site) != chosen && !self.oracle.out.contains(site)).collect();
        for _ in 0..core.between(1, (spare + hosts - members) as u64) {
            let site = others.swap_remove(core.rng.below(others.len() as u64) as usize);
            if site < members {
                let Some(left) = spare.checked_sub(1) else { continue };
                spare = left;
            }
            // An elected leader with a full disk goes on leading, refuses writes and serves reads (D9).
            // What a failed sync loses was acknowledged, where the page cache is enough.
            let kinds = match (elected, core.knobs.has_power_for_good()) {
                (true, true) => &KINDS[..KINDS.len() - 2],
                (true, false) => &KINDS[..KINDS.len() - 1],
                (false, _) => &KINDS[..],
            };
            let (kind, name) = kinds[core.rng.below(kinds.len() as u64) as usize];
            core.stats.count(name);
            core.trace(|| format!("host {site} stays broken: {kind:?}"));
            self.heal.broken.insert(site, kind);
        }
    }

    /// Makes the trouble of the chosen hosts what it will be to the end.
    pub fn break_for_good(&mut self) {
        for (site, kind) in self.heal.broken.clone() {
            let (hosts, sites) = (self.hosts.len(), self.core.borrow().net.alive.len());
            self.hosts[site].mem.heal();
            self.hosts[site].mem.set_capacity(None);
            let mut core = self.core.borrow_mut();
            for other in (0..sites).filter(|other| *other != site) {
                let (heard, hears) = match kind {
                    Broken::CutOff => (false, false),
                    Broken::Deaf => (true, false),
                    Broken::Mute => (false, true),
                    _ => (true, true),
                };
                // One that believes to lead, or comes to, would keep the clients that reach it: with fixed roles it
                // may. So none does. An elected one must lose its office, which it may only by what it is asked.
                let client = other >= hosts && !core.knobs.is_elected();
                core.net.cut(other, site, !hears || client);
                core.net.cut(site, other, !heard);
            }
            drop(core);
            match kind {
                Broken::Down => self.end_if_running(site),
                Broken::Paused => {
                    self.hosts[site].paused = true;
                    self.hosts[site].next_turn = None;
                }
                Broken::Full => {
                    let used = self.hosts[site].mem.used();
                    self.hosts[site].mem.set_capacity(Some(used));
                    self.wake_broken(site);
                }
                Broken::NoSync => {
                    self.hosts[site].mem.fail_always(OpKind::Sync, EIO);
                    self.wake_broken(site);
                }
                Broken::CutOff | Broken::Deaf | Broken::Mute => self.wake_broken(site),
                Broken::Out => {}
            }
        }
    }

    fn end_if_running(&mut self, site: usize) {
        if self.hosts[site].process.is_some() {
            self.end_process(site, false);
        }
    }

    fn wake_broken(&mut self, site: usize) {
        self.hosts[site].paused = false;
        match self.hosts[site].process {
            Some(_) => self.wake(site),
            None => self.core.borrow_mut().after(10 * MS, Event::Start(site)),
        }
    }

    /// Whether this host may be started.
    pub fn may_start(&self, site: usize) -> bool {
        !matches!(self.broken(site), Some(Broken::Down | Broken::Paused)) && !self.hosts[site].away
    }

    /// A disk that does not sync lets a process begin, and no further.
    pub fn after_broken_start(&mut self, site: usize) {
        if self.broken(site) == Some(Broken::NoSync) {
            self.hosts[site].mem.fail_always(OpKind::Sync, EIO);
        }
    }
}
