//! Runs that are aimed: some rules of an election are needed only when several things meet within milliseconds, and
//! random faults bring them together once in ten thousand runs. So a share of the runs of elected clusters has no
//! random faults, and tries one such encounter again and again, each time with other moments drawn from the seed.
//!
//! | aimed at | what is made to meet |
//! |---|---|
//! | the end of a lease | the leader's clock is as slow as is borne, the others' as fast; it hears nobody any more |
//! | a restart | a candidate that does not hear the leader; the member that did is started anew, deaf to it |
//! | a stalled read | the leader stands still for longer than a timeout, between two sockets it reads in one turn |
//! | a hand-over | the leader that hands over hears nobody any more, and the next one leads |
//! | an older term | a leader alone with its last writes; the next one dies with its first record; the first is back |
//! | two changes | two leaders that change the members from one list: `aim_change.rs` |
//!
//! Meanwhile each member is asked for one key, by a client of its own who never goes elsewhere, and whoever leads is
//! given writes of it by another: what is read of one leader behind a write of the next shows at once. What must hold
//! is what must hold in all runs, and nothing here looks at a rule.

use std::collections::BTreeSet;

use kvstore::node::{FeedLimits, SnapshotConfig};
use kvstore::replication::election::reads::ReadMode;
use kvstore::replication::election::timing::{CLOCK_RATE_ERROR_PERCENT, ElectionTiming};

use crate::aim_change::{self, Step};
use crate::client::Ask;
use crate::core::{Event, MS};
use crate::elected::Elected;
use crate::host::Stop;
use crate::knobs::{FaultWeights, Knobs};
use crate::mirror::Kind;
use crate::mishaps::Mishaps;
use crate::world::World;

/// What a run is aimed at: see the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    LeaseEnd,
    Restart,
    StalledRead,
    HandOver,
    OlderTerm,
    TwoChanges,
}

const AIMS: [(Aim, &str); 6] = [
    (Aim::LeaseEnd, "aimed: the end of a lease"),
    (Aim::Restart, "aimed: a restart of who heard the leader"),
    (Aim::StalledRead, "aimed: a stalled read"),
    (Aim::HandOver, "aimed: a hand-over to a leader that the old one does not hear"),
    (Aim::OlderTerm, "aimed: an older term's records"),
    (Aim::TwoChanges, "aimed: two leaders change one list"),
];

/// Members of the cluster of such a run, but one.
const MEMBERS: usize = 3;
/// Encounters of a run, about; one takes a few election timeouts.
const TIMEOUTS_PER_RUN: u64 = 30;
/// Probes in an election timeout.
const PROBES_PER_TIMEOUT: u64 = 60;

/// An encounter under way.
#[derive(Debug, Default)]
pub struct Encounter {
    /// How many there were; names the key that is read and written.
    number: u64,
    under_way: Option<Stage>,
    /// Links that are cut, by direction.
    cuts: BTreeSet<(usize, usize)>,
    probes_until: u64,
    /// No probe writes on this host.
    only_read: Option<usize>,
}

/// What comes next, and the leader of the beginning.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// The member that hears the leader is started anew.
    RestartOf { leader: usize, voter: usize },
    /// The next leader has its first record on its disk.
    NextLeader { leader: usize },
    /// See there.
    Change(Step),
    /// All links work again.
    Over,
}

impl Knobs {
    /// A quiet run for this aim. `pick`: one of these.
    pub fn aim_at(&mut self, aim: u64, pick: &mut impl FnMut(&[u64]) -> u64) {
        let (aim, _) = AIMS[aim as usize];
        self.aim = Some(aim);
        self.members = if aim == Aim::TwoChanges { aim_change::MEMBERS } else { MEMBERS };
        (self.hosts, self.joiners, self.loss_ppm) = (self.members, 0, 0);
        self.clients = self.probes() + 1;
        let timeout_ms = pick(&[200, 500]);
        self.elected = Some(Elected { timeout_ms, reads: ReadMode::Lease });
        self.heartbeat_ms = ElectionTiming::from_ms(timeout_ms).heartbeat_ms(self.heartbeat_ms);
        self.chaos_ns = TIMEOUTS_PER_RUN * timeout_ms * MS;
        self.weights = FaultWeights::default();
        self.mishaps = Mishaps::none();
        self.operator_every_ns = 0;
        (self.net_delay_min_ns, self.net_delay_max_ns) = (5_000, pick(&[60_000, MS]));
        (self.net_slow_ppm, self.single_bytes_ppm, self.flip_ppm) = (0, 0, 0);
        (self.chunk_max, self.socket_buffer) = (1 << 20, 64 << 10);
        (self.sync_ns, self.slow_disk_ppm, self.stall_ppm) = (pick(&[20_000, 100_000]), 0, 0);
        (self.late_flush_ppm, self.short_write_ppm, self.large_ppm) = (0, 0, 0);
        // One record a frame: what a follower has is told in small steps.
        self.feed = FeedLimits { frame_bytes: 200, high_water: 1_000, low_water: 400 };
        self.snapshot = SnapshotConfig { log_bytes: Some(u64::MAX), ..self.snapshot };
        (self.removal, self.transfers) = (false, false);
        if aim == Aim::Restart {
            // The candidate's log must not fall behind while it hears nobody.
            self.read_ppm = 1_000_000;
        }
        if aim == Aim::LeaseEnd {
            self.clock_rate_spread_ppm = 2 * CLOCK_RATE_ERROR_PERCENT * 10_000;
        }
    }

    /// Clients that are bound to one host: one that reads and one that writes, for each.
    pub fn probes(&self) -> usize {
        if self.aim.is_some() { 2 * self.members } else { 0 }
    }

    /// Whether the lists of members in the logs differ from that of the forming.
    pub fn changes_members(&self) -> bool {
        self.joiners > 0 || self.aim == Some(Aim::TwoChanges)
    }

    /// The rate of a host's clock, where a run is aimed at that.
    pub fn aimed_rate_ppm(&self, site: usize) -> Option<u64> {
        let slow = site == SLOW_SITE;
        let half = self.clock_rate_spread_ppm / 2;
        (self.aim == Some(Aim::LeaseEnd)).then_some(if slow { 1_000_000 - half } else { 1_000_000 + half })
    }
}

/// The host whose clock is slow where that matters: it is made the leader.
const SLOW_SITE: usize = 0;

impl World {
    pub fn timeout_ns(&self) -> u64 {
        self.core.borrow().knobs.elected.map_or(0, |elected| elected.timeout_ms * MS)
    }

    /// The next step of an encounter, or the next encounter.
    pub fn aim_step(&mut self) {
        let Some(aim) = self.core.borrow().knobs.aim.filter(|_| self.healed_at.is_none()) else { return };
        let tenths = match self.encounter.under_way.take() {
            None => self.meet(aim),
            Some(Stage::RestartOf { leader, voter }) => self.restart_voter(leader, voter),
            Some(Stage::Change(step)) => self.change_goes_on(step),
            Some(Stage::NextLeader { .. } | Stage::Over) => self.part(),
        };
        let mut core = self.core.borrow_mut();
        let timeout_ns = core.knobs.elected.map_or(0, |elected| elected.timeout_ms * MS);
        core.after(timeout_ns / 10 * tenths, Event::Aim);
    }

    /// An encounter begins, if somebody leads whom all others follow. Returns when to look again, in tenths of the
    /// election timeout.
    fn meet(&mut self, aim: Aim) -> u64 {
        if aim == Aim::TwoChanges && self.seats_all() {
            return 10;
        }
        let Some(leader) = self.elected_leader().filter(|leader| self.all_follow(*leader)) else { return 3 };
        if aim == Aim::LeaseEnd && leader != SLOW_SITE {
            self.command(leader, Ask::Transfer { to: Some(SLOW_SITE) });
            return 10;
        }
        self.encounter.only_read = None;
        let name = AIMS.iter().find(|(one, _)| *one == aim).expect("each has a name").1;
        self.core.borrow_mut().stats.count(name);
        self.encounter.number += 1;
        let others: Vec<usize> = (0..self.members()).filter(|site| *site != leader).collect();
        let (any, later) = {
            let mut core = self.core.borrow_mut();
            (core.rng.below(others.len() as u64) as usize, core.rng.below(8))
        };
        match aim {
            Aim::LeaseEnd => {
                others.iter().for_each(|other| self.cut_both(leader, *other));
                self.stage(Stage::Over, 20)
            }
            Aim::Restart => {
                self.cut_both(leader, others[any]);
                self.encounter.only_read = Some(leader);
                self.stage(Stage::RestartOf { leader, voter: others[1 - any] }, 16 + later)
            }
            Aim::StalledRead => {
                let timeout_ns = self.timeout_ns();
                let mut core = self.core.borrow_mut();
                let for_ns = core.between(timeout_ns * 3 / 2, timeout_ns * 5 / 2);
                self.hosts[leader].stops_in_turn = Some(Stop { for_ns, behind: 1 });
                drop(core);
                self.stage(Stage::Over, 35)
            }
            Aim::HandOver => {
                self.command(leader, Ask::Transfer { to: Some(others[any]) });
                self.stage(Stage::Over, 15)
            }
            Aim::OlderTerm => {
                others.iter().for_each(|other| self.cut_both(leader, *other));
                self.stage(Stage::NextLeader { leader }, 40)
            }
            Aim::TwoChanges => self.begin_to_change(leader, &others, any),
        }
    }

    /// What comes next, in so many tenths of a timeout. Until then there are probes.
    pub fn stage(&mut self, next: Stage, tenths: u64) -> u64 {
        self.encounter.under_way = Some(next);
        let now = self.core.borrow().now;
        let was_quiet = self.encounter.probes_until < now;
        self.encounter.probes_until = now + self.timeout_ns() / 10 * tenths;
        if was_quiet {
            self.core.borrow_mut().after(0, Event::Probe);
        }
        tenths
    }

    /// All members run, and are in the term of this leader.
    fn all_follow(&self, leader: usize) -> bool {
        let term = |site: usize| self.hosts[site].seen.as_ref().map(|seen| seen.term);
        let ready = |site: usize| self.hosts[site].process.is_some() && !self.hosts[site].paused;
        (0..self.members()).all(|site| ready(site) && term(site) == term(leader))
    }

    pub fn cut_both(&mut self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// The link between these two works again, whatever else does not.
    pub fn join_both(&mut self, one: usize, other: usize) {
        for link in [(one, other), (other, one)] {
            if self.encounter.cuts.remove(&link) {
                self.core.borrow_mut().unblock(link.0, link.1);
            }
        }
    }

    /// What comes next.
    pub fn under_way(&self) -> Option<Stage> {
        self.encounter.under_way
    }

    /// Something else comes next, at the time that was said.
    pub fn set_stage(&mut self, next: Stage) {
        self.encounter.under_way = Some(next);
    }

    fn cut_one_way(&mut self, from: usize, to: usize) {
        if self.encounter.cuts.insert((from, to)) {
            let mut core = self.core.borrow_mut();
            core.net.cut(from, to, true);
            core.trace(|| format!("host {from} does not reach host {to}"));
        }
    }

    /// All links work again, and who was down starts.
    pub fn part(&mut self) -> u64 {
        for (from, to) in std::mem::take(&mut self.encounter.cuts) {
            self.core.borrow_mut().unblock(from, to);
        }
        for site in 0..self.members() {
            self.hosts[site].away = false;
            self.start(site);
        }
        20
    }

    /// The member that heard the leader is started anew, and does not hear it any more.
    fn restart_voter(&mut self, leader: usize, voter: usize) -> u64 {
        if self.hosts[voter].process.is_none() {
            return self.part();
        }
        self.core.borrow_mut().stats.count("process: kill");
        self.end_process(voter, false);
        self.cut_both(leader, voter);
        let mut core = self.core.borrow_mut();
        let later = core.between(MS / 10, 5 * MS);
        core.after(later, Event::Start(voter));
        drop(core);
        self.stage(Stage::Over, 12)
    }

    /// A turn of this host has ended. True: its process is gone.
    pub fn aim_after_turn(&mut self, site: usize) -> bool {
        let aim = self.core.borrow().knobs.aim;
        let handed_over = std::mem::take(&mut self.core.borrow_mut().hand_over_left);
        if aim == Some(Aim::HandOver) && handed_over == Some(site) && self.encounter.under_way.is_some() {
            (0..self.members())
                .filter(|other| *other != site)
                .for_each(|other| self.cut_one_way(other, site));
        }
        self.change_after_turn(site);
        let Some(Stage::NextLeader { leader }) = self.encounter.under_way else { return false };
        if site == leader || !self.leads(site) || !self.begins_its_term(site) {
            return false;
        }
        self.core.borrow_mut().stats.count("process: kill");
        self.end_process(site, false);
        self.hosts[site].away = true;
        self.encounter.under_way = Some(Stage::Over);
        for other in (0..self.members()).filter(|other| *other != site) {
            self.join_both(leader, other);
        }
        true
    }

    /// The newest record on this leader's disk is the first one of its term.
    fn begins_its_term(&self, site: usize) -> bool {
        let mirror = self.hosts[site].mirror.borrow();
        let newest = mirror.get(mirror.synced);
        mirror.synced == mirror.last() && newest.is_some_and(|entry| matches!(entry.kind, Kind::Term))
    }

    /// Each member is asked for the key of this encounter, and whoever leads is given a write of it.
    pub fn probe(&mut self) {
        if self.healed_at.is_some() || self.core.borrow().now > self.encounter.probes_until {
            return;
        }
        let key = format!("aim{}", self.encounter.number).into_bytes();
        self.ask_for_second_change();
        let members = self.members();
        for site in 0..members {
            self.probe_with(site, site, Ask::Get { key: key.clone(), local: false });
            if self.leads(site) && self.encounter.only_read != Some(site) {
                let writer = &mut self.clients[members + site];
                writer.next_id += 1;
                let ask = Ask::Put { key: key.clone(), id: writer.next_id, size: 100 };
                self.probe_with(members + site, site, ask);
            }
        }
        let every = self.timeout_ns() / PROBES_PER_TIMEOUT;
        let mut core = self.core.borrow_mut();
        let next = core.between(every / 2, every * 3 / 2);
        core.after(next, Event::Probe);
    }

    fn probe_with(&mut self, client: usize, site: usize, ask: Ask) {
        self.clients[client].target = site;
        self.ask(client, ask);
        self.client_writes(client);
    }

    /// Whether this client acts on its own and goes where it is sent.
    pub fn is_bound(&self, client: usize) -> bool {
        client < self.core.borrow().knobs.probes()
    }

    /// The second phase begins: who was bound to a host forgets it.
    pub fn end_aim(&mut self) {
        if self.core.borrow().knobs.aim.is_none() {
            return;
        }
        self.part();
        self.encounter = Encounter::default();
        self.core.borrow_mut().knobs.read_ppm = 500_000;
        let probes = self.core.borrow().knobs.probes();
        (0..probes).for_each(|client| self.client_lost(client));
    }
}
