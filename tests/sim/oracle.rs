//! What must hold after every turn, whatever broke. Every check compares what nodes say with what their
//! disks were told to write; none of them believes a node.

use std::collections::{BTreeMap, BTreeSet};

use kvstore::ids::{Chain, NodeId};
use kvstore::node::Observed;
use kvstore::replication::commit::AckPolicy;

use crate::client::Dialogue;
use crate::core::Core;
use crate::histories::Histories;
use crate::host::Host;
use crate::mirror::Kind;

/// A write that a client was told to be done.
#[derive(Clone, Debug)]
pub struct Acked {
    pub lsn: u64,
    pub chain: Chain,
    pub term: u64,
    /// The leader's term and newest round when it answered.
    pub round: (u64, u64),
    /// Who was in sync then, by site.
    pub in_sync: Vec<usize>,
    /// Lost, and the promise in force allowed it.
    pub given_up: bool,
}

/// A change of leader by a promotion.
#[derive(Clone, Debug)]
pub struct Promotion {
    pub term: u64,
    pub site: usize,
    pub forced: bool,
}

/// Replies of one leader in one term, in the order in which clients got them.
#[derive(Debug, Default)]
pub struct Order {
    /// Time of completion, and the highest LSN completed by then.
    pub done: Vec<(u64, u64)>,
}

/// See the head of this file.
#[derive(Default)]
pub struct Oracle {
    records: BTreeMap<(u64, u64, NodeId), Chain>,
    committed: BTreeMap<u64, BTreeSet<u32>>,
    hashes: BTreeMap<(u64, u32), u128>,
    pub acked: Vec<Acked>,
    pub answered: BTreeSet<(u64, u32)>,
    pub seen_ids: BTreeSet<u64>,
    pub refused_ids: BTreeSet<u64>,
    pub orders: BTreeMap<(u64, usize), Order>,
    pub promotions: Vec<Promotion>,
    /// Sites that were asked to lead by force, or to discard, in this run.
    pub forced: BTreeSet<usize>,
    pub discarding: BTreeSet<usize>,
    /// A bit has flipped in some node's memory in this run.
    pub memory_failed: bool,
    /// Members of an elected cluster whose directory was emptied: each is another node now.
    pub out: BTreeSet<usize>,
    /// Disks that lost something.
    pub losses: Vec<crate::losses::Loss>,
    /// A cut below a commit LSN happened before the second phase.
    pub discards_in_chaos: bool,
    pub acks_seen: u64,
    pub histories: Histories,
    pub elections: crate::elected::Elections,
    pub numbers: crate::numbered::Numbers,
}

impl Oracle {
    /// The checks after a turn of a host. `crashed`: it did not end; only what left it counts.
    pub fn after_turn(
        &mut self,
        core: &mut Core,
        hosts: &mut [Host],
        site: usize,
        dialogues: &mut BTreeMap<usize, Dialogue>,
        crashed: bool,
    ) {
        let host = &mut hosts[site];
        let Some(process) = &mut host.process else { return };
        let mut seen = process.node.observe();
        if process.node.is_loading() {
            // Its role is still to come: until then it counts as what it was. Who is elected begins as a follower.
            seen.leads = !core.knobs.is_elected() && host.seen.as_ref().is_some_and(|before| before.leads);
            seen.complete = host.seen.as_ref().is_some_and(|before| before.complete);
        }
        let emitted = std::mem::take(&mut process.socks.emitted);
        let acks = std::mem::take(&mut process.socks.acks);
        self.elections.on_votes(site, std::mem::take(&mut process.socks.votes));
        let told = process.socks.told;
        let told_commit = std::mem::take(&mut process.socks.told_commit);
        if !crashed {
            host.mirror.borrow_mut().install();
        }
        if !crashed && seen.last.0 < host.mirror.borrow().last() {
            host.mirror.borrow_mut().cut(seen.last.0);
        }
        self.take_fresh(host);
        if seen.leads || host.seen.as_ref().is_some_and(|before| before.leads) {
            // An elected leader applies what is committed, also beyond its own disk.
            let applied = if core.knobs.is_elected() { seen.applied.0 } else { 0 };
            self.note_committed(host, seen.commit.0.max(applied));
        }
        if core.knobs.is_elected() {
            // With the disks of the others it may be ahead of its own, and say so before it has applied anything.
            self.note_committed(host, told_commit);
        }
        if !crashed {
            self.check_positions(core, host, &seen);
            if core.knobs.is_elected() {
                self.elections.after_turn(core, host, &seen);
            }
            check_loaded(core, host, &seen, true);
        }
        let committed = host.seen.as_ref().map_or(0, |before| before.commit.0);
        if !crashed && core.knobs.is_elected() && seen.leads && seen.commit.0 > committed {
            crate::quorums::check_commit(core, hosts, site, &seen);
        }
        let host = &mut hosts[site];
        let shrunk = host.mirror.borrow_mut().shrunk_to.take();
        {
            let mirror = host.mirror.borrow();
            host.told.lsn = host.told.lsn.max(told).min(mirror.last());
            host.told.chain = mirror.get(host.told.lsn).map_or(Chain::ZERO, |entry| entry.chain);
            host.told.mark_commit = mirror.mark_commit.1;
        }
        if let Some(process) = &mut host.process {
            process.socks.told = 0;
        }
        let promoted = !crashed && seen.leads && host.seen.as_ref().is_some_and(|before| !before.leads);
        self.check_acks(core, hosts, site, &seen, &acks);
        for reply in emitted {
            self.on_emitted(core, hosts, site, &seen, dialogues, &reply, shrunk.is_some());
        }
        let told = &mut hosts[site].told;
        told.read_lsn = told.read_lsn.max(std::mem::take(&mut told.read_newest));
        told.local_lsn = told.local_lsn.max(std::mem::take(&mut told.local_newest));
        if promoted {
            self.on_promoted(core, hosts, site, &seen);
        }
        let host = &mut hosts[site];
        host.insync_left = host.process.as_ref().map_or(0, |process| process.node.counters.insync_left);
        if !crashed {
            if host.seen.as_ref().is_some_and(|before| before.leads) && !seen.leads {
                core.stats.count("role: stopped leading");
            }
            if !seen.leads && seen.round.1 > 0 {
                host.heard = (seen.round.0.as_u64(), seen.round.1);
            }
            if seen.repair_until.0 > 0 && host.seen.as_ref().is_some_and(|before| before.repair_until.0 == 0)
            {
                core.stats.count("node: repairs what its leader has heard of");
            }
            let generation = seen.generation;
            host.seen = Some(seen);
            self.check_archive(core, host, generation);
        }
    }

    /// Whether some leader committed this record.
    pub fn was_committed(&self, lsn: u64, chain: Chain) -> bool {
        self.committed.get(&lsn).is_some_and(|known| known.contains(&chain.0))
    }

    /// The hash of the state that nodes had there.
    pub fn hash_at(&self, lsn: u64, chain: Chain) -> Option<u128> {
        self.hashes.get(&(lsn, chain.0)).copied()
    }

    fn take_fresh(&mut self, host: &Host) {
        let fresh = std::mem::take(&mut host.mirror.borrow_mut().fresh);
        if let Some(first) = fresh.first() {
            let mut mirror = host.mirror.borrow_mut();
            let begin = (first.lsn - 1).min(mirror.synced_before).min(mirror.last());
            mirror.batch_max = mirror.batch_max.max(mirror.bytes_behind(begin));
        }
        let mut mirror = host.mirror.borrow_mut();
        mirror.synced_before = mirror.synced;
        drop(mirror);
        for entry in fresh {
            let key = (entry.lsn, entry.term.as_u64(), entry.leader);
            let known = *self.records.entry(key).or_insert(entry.chain);
            assert!(
                known == entry.chain || self.may_fork(entry.leader, entry.term.as_u64()),
                "host {}: LSN {} of term {} differs between nodes: chain {} and {known}",
                host.site,
                entry.lsn,
                entry.term,
                entry.chain
            );
            if let Kind::Put { id, .. } = &entry.kind {
                assert!(
                    !self.refused_ids.contains(id),
                    "write {id} was refused and is in a log at LSN {}",
                    entry.lsn
                );
                self.seen_ids.insert(*id);
            }
        }
    }

    /// The last record of an elected cluster that a leader has taken for committed.
    pub fn last_committed(&self) -> Option<(u64, Chain)> {
        let (lsn, chains) = self.committed.last_key_value()?;
        Some((*lsn, Chain(*chains.first()?)))
    }

    fn note_committed(&mut self, host: &Host, commit: u64) {
        let mirror = host.mirror.borrow();
        for lsn in (1..=commit).rev() {
            let Some(entry) = mirror.get(lsn) else { continue };
            if !self.committed.entry(lsn).or_default().insert(entry.chain.0) {
                break;
            }
        }
    }

    fn check_positions(&mut self, core: &mut Core, host: &mut Host, seen: &Observed) {
        let site = host.site;
        let process = host.process.as_ref().expect("it had a turn");
        let mirror = host.mirror.borrow();
        assert!(
            seen.durable.0 <= mirror.synced,
            "host {site} believes LSN {} durable, synced is {}",
            seen.durable,
            mirror.synced
        );
        // What a majority has is committed, also where the disk of an elected leader is not in it, even if it has lost
        // its office meanwhile.
        let limit = if core.knobs.is_elected() { seen.last } else { seen.durable };
        assert!(seen.applied <= limit, "host {site} applied LSN {} beyond its disk", seen.applied);
        assert!(seen.term.as_u64() >= host.told.term, "host {site}: term went back to {}", seen.term);
        host.told.term = seen.term.as_u64();
        let cuts = process.node.counters.cuts;
        if let Some(before) = &host.seen {
            let may_discard = before.discard_allowed || self.discarding.contains(&site);
            if let Some(keep) = mirror.shrunk_to {
                core.stats.count("node: cut");
                if keep < before.commit.0 && began_anew(before, seen, keep) {
                    core.stats.count("node: began anew, its state may be of no log");
                } else if keep < before.commit.0 {
                    assert!(
                        may_discard,
                        "host {site} cut to LSN {keep}, below its commit LSN {}",
                        before.commit
                    );
                    crate::promises::check_discard(core, host, keep, before.last.0);
                    core.stats.count("node: cut below commit allowed");
                    self.discards_in_chaos = true;
                    self.discarding.remove(&site);
                }
            } else {
                assert!(
                    seen.commit >= before.commit,
                    "host {site}: commit LSN went back from {} to {}",
                    before.commit,
                    seen.commit
                );
            }
            if seen.applied < before.applied {
                assert!(cuts > host.cuts, "host {site}: reads went back without a cut");
                core.stats.count("node: reads went back");
            }
        }
        if cuts > host.cuts && mirror.shrunk_to.is_some_and(|keep| keep < host.told.lsn) {
            host.told.lsn = mirror.shrunk_to.unwrap_or(0);
        }
        if let Some(keep) = mirror.shrunk_to.filter(|_| cuts > host.cuts) {
            host.told.read_lsn = host.told.read_lsn.min(keep);
        }
        host.cuts = cuts;
        drop(mirror);
        // A read replica is in no set: they stand behind the members.
        let judged = match core.knobs.is_elected() {
            // Whose place in the list of followers changes is not judged.
            true if core.knobs.changes_members() => 0,
            true => core.knobs.members - 1,
            false => seen.peers.len(),
        };
        check_waits(&mut host.waits, seen, site, judged);
        let mirror = host.mirror.borrow();
        if seen.commit.0 > 0 && !seen.leads {
            let chain = mirror.get(seen.commit.0).map(|entry| entry.chain.0);
            let known = self.committed.get(&seen.commit.0);
            assert!(
                chain.is_some_and(|chain| known.is_some_and(|known| known.contains(&chain))),
                "host {site} takes LSN {} for committed, and no leader committed that record",
                seen.commit
            );
        }
        let judged = seen.complete && host.flip.is_none();
        if let Some(entry) = mirror.get(seen.applied.0).filter(|_| judged) {
            let hash = process.node.keyspace().state_hash();
            let known = *self.hashes.entry((entry.lsn, entry.chain.0)).or_insert(hash);
            assert!(known == hash, "host {site}: the state at LSN {} differs between nodes", entry.lsn);
        }
        crate::bounds::check(core, host, seen);
    }

    /// A host leads by promotion: what it lacks is lost, and the promise must allow that.
    fn on_promoted(&mut self, core: &mut Core, hosts: &[Host], site: usize, seen: &Observed) {
        core.stats.count("role: leads after a promotion");
        let said = crate::promises::said_of_force(&hosts[site]);
        let promotion = Promotion { term: seen.term.as_u64(), site, forced: said.is_some() };
        let mirror = hosts[site].mirror.borrow();
        let before = hosts[site].seen.as_ref().expect("it was seen before");
        let mut acked = std::mem::take(&mut self.acked);
        for write in acked.iter_mut().filter(|write| !write.given_up && write.term < promotion.term) {
            if !mirror.holds(write.lsn, write.chain) {
                let told = before.in_sync && hosts[site].heard > write.round;
                // What was not said was not given up by force.
                let forced =
                    said.as_ref().is_some_and(|said| crate::promises::covers(core, said, hosts, site, write));
                self.must_allow(core, &Promotion { forced, ..promotion.clone() }, write, told);
                write.given_up = true;
            }
        }
        self.acked = acked;
        self.promotions.push(promotion);
    }

    pub fn must_allow(&self, core: &mut Core, promotion: &Promotion, write: &Acked, told_in_sync: bool) {
        core.stats.count("check: write given up by a promotion or discard");
        let forced = promotion.forced
            || self.promotions.iter().any(|other| other.forced && other.term >= write.term)
            || !self.discarding.is_empty();
        let Promotion { term, site, .. } = promotion;
        let lsn = write.lsn;
        if forced {
            return;
        }
        match core.knobs.ack {
            AckPolicy::Leader => {}
            // See `victims.rs`: what a disk lost is no excuse there.
            AckPolicy::Majority => {
                panic!(
                    "LSN {lsn}, acknowledged by a majority, is lost: host {site} was elected in {term} without it"
                )
            }
            AckPolicy::Quorum => {
                assert!(
                    self.quorum_excused(promotion, write),
                    "LSN {lsn}, acknowledged by a majority, is lost: host {site} leads in {term}"
                );
            }
            AckPolicy::InSync => {
                if self.in_sync_excused(promotion, write) {
                    core.stats.count("check: write excused by a lost disk");
                    return;
                }
                let was_in_sync = write.in_sync.contains(site);
                assert!(
                    !was_in_sync,
                    "LSN {lsn} is lost: host {site}, in sync when it was acknowledged, leads without it"
                );
                assert!(
                    !told_in_sync,
                    "LSN {lsn} is lost: host {site} was told to be in sync by a frame sent after the acknowledgement"
                );
            }
        }
    }

    /// A host cut what it knew to be committed, as its operator allowed.
    pub fn on_discard(&mut self, core: &mut Core, hosts: &[Host]) {
        for write in self.acked.iter_mut().filter(|write| !write.given_up) {
            if !hosts.iter().any(|host| host.mirror.borrow().holds(write.lsn, write.chain)) {
                write.given_up = true;
                core.stats.count("check: write given up by a promotion or discard");
            }
        }
    }

    /// A process has started: everything that was told before is there.
    pub fn after_start(&mut self, core: &mut Core, hosts: &mut [Host], site: usize) {
        let host = &mut hosts[site];
        host.waits.clear();
        let left = std::mem::take(&mut host.left);
        let process = host.process.as_ref().expect("it has started");
        let mut seen = process.node.observe();
        if process.node.is_loading() {
            seen.leads = !core.knobs.is_elected() && host.seen.as_ref().is_some_and(|before| before.leads);
            seen.complete = host.seen.as_ref().is_some_and(|before| before.complete);
        }
        check_loaded(core, host, &seen, false);
        let mirror = host.mirror.borrow();
        core.stats.count("check: restart compared with what was told");
        if left > 0 {
            core.stats.count("check: orderly end lost nothing");
            let last = mirror.last();
            assert!(last >= left, "host {site} ended in order at LSN {left}, and starts with {last}");
        }
        assert!(
            seen.term.as_u64() >= host.told.term,
            "host {site}: term {} after a restart, {:?}",
            seen.term,
            host.told
        );
        let generation = host.seen.as_ref().map_or(seen.generation, |before| before.generation);
        if seen.generation == generation {
            let held = host.told.lsn == 0 || mirror.holds(host.told.lsn, host.told.chain);
            assert!(
                held,
                "host {site} told LSN {} before it ended, and has {} records now",
                host.told.lsn,
                mirror.last()
            );
            let floor = host.told.mark_commit.min(mirror.last());
            assert!(
                seen.commit.0 >= floor,
                "host {site}: commit LSN {} after a restart, its mark said {floor}",
                seen.commit
            );
        } else {
            core.stats.count("node: cut");
            let before = host.seen.as_ref().expect("it had a generation");
            if mirror.last() < before.commit.0 && !began_anew(before, &seen, mirror.last()) {
                assert!(
                    before.discard_allowed || self.discarding.contains(&site),
                    "host {site}: a cut below commit was completed"
                );
                crate::promises::check_discard(core, host, mirror.last(), before.last.0);
            }
            host.told.lsn = host.told.lsn.min(mirror.last());
            host.told.read_lsn = host.told.read_lsn.min(mirror.last());
            host.told.chain = mirror.get(host.told.lsn).map_or(Chain::ZERO, |entry| entry.chain);
        }
        if seen.leads {
            core.stats.count("role: leads after a start");
        }
        drop(mirror);
        // The turn of a promotion may have been the last one of its process.
        if seen.leads && host.seen.as_ref().is_some_and(|before| !before.leads) {
            self.on_promoted(core, hosts, site, &seen);
        }
        hosts[site].printed.clear();
        let generation = seen.generation;
        hosts[site].seen = Some(seen);
        self.check_archive(core, &hosts[site], generation);
    }
}

/// A state before the end of its snapshot, and a leader that may not have the records between: all is fetched again,
/// and the node says so.
fn began_anew(before: &Observed, seen: &Observed, keep: u64) -> bool {
    keep == 0 && !before.complete && seen.repair_until >= before.commit
}

/// A state that came from a snapshot is what the log says at its LSN, key by key: one of its own, or a leader's.
fn check_loaded(core: &mut Core, host: &mut Host, seen: &Observed, in_slices: bool) {
    let process = host.process.as_ref().expect("it runs");
    let counters = &process.node.counters;
    let installed = counters.snapshots_installed > host.installs;
    if !process.node.is_loading()
        && let Some(all) = host.snapshots_rot.take()
    {
        match (all, counters.loaded_from_snapshot) {
            (false, 1) => core.stats.count("node: started from the older snapshot"),
            (true, 0) => core.stats.count("node: survived damage of all its snapshots"),
            _ => {}
        }
    }
    // The state of an installed snapshot is none before its end.
    if host.load_checked && !installed || process.node.is_loading() || !seen.complete {
        return;
    }
    host.load_checked = true;
    host.installs = counters.snapshots_installed;
    if counters.loaded_from_snapshot == 0 && !installed {
        return;
    }
    let (mirror, keyspace, lsn) = (host.mirror.borrow(), process.node.keyspace(), seen.applied.0);
    for (key, value) in (0..keyspace.slot_count()).filter_map(|slot| keyspace.entry(slot)) {
        let id = value.get(..8).map(|raw| u64::from_be_bytes(raw.try_into().expect("8 bytes")));
        assert!(
            mirror.value_at(key, lsn) == id,
            "host {}: {} has another value in the state loaded at LSN {lsn} than in the log",
            host.site,
            String::from_utf8_lossy(key)
        );
    }
    assert!(
        mirror.keys_at(lsn) as u64 == keyspace.len(),
        "host {}: keys at LSN {lsn} are missing",
        host.site
    );
    if installed {
        return core.stats.count("check: state of an installed snapshot is that of the log");
    }
    core.stats.count("check: state from a snapshot is that of the log");
    core.stats.count("snapshot: state loaded at a start");
    if in_slices {
        core.stats.count("snapshot: state loaded in slices");
    }
}

/// How a follower's place in the in-sync set looks from outside.
#[derive(Clone, Copy)]
pub struct Wait {
    target: u64,
    /// Turns since the target was set, and how many passed before that since the one before it.
    turns: u64,
    turns_before: u64,
    in_sync: bool,
}

/// A follower leaves the in-sync set only if its leader had turns to hear it in. The turns that the leader
/// itself missed do not count: its own stall must not empty the set.
///
/// Seen from outside a wait begins with the end of a turn, for the leader in its middle: its target is lower, is
/// reached earlier, and the wait it then begins may be one that is counted here to the target before. So turns
/// count from there.
fn check_waits(waits: &mut Vec<Wait>, seen: &Observed, site: usize, judged: usize) {
    if !seen.leads || waits.len() != judged || judged == 0 {
        let fresh = Wait { target: 0, turns: 0, turns_before: 0, in_sync: true };
        *waits = vec![fresh; if seen.leads { judged } else { 0 }];
    }
    for (wait, (address, match_lsn, in_sync)) in waits.iter_mut().zip(&seen.peers) {
        wait.turns += 1;
        let behind_commit = match_lsn.0 < seen.commit.0 || seen.repairing.contains(address);
        if wait.in_sync && !in_sync && !behind_commit {
            let turns = wait.turns_before + wait.turns;
            assert!(
                turns >= 4,
                "host {site}: {address} left the in-sync set after {turns} turns of its leader"
            );
        }
        let back = !wait.in_sync && *in_sync;
        wait.in_sync = *in_sync;
        if back || match_lsn.0 >= wait.target {
            wait.turns_before = if back { 0 } else { wait.turns };
            (wait.target, wait.turns) = (seen.last.0, 0);
        }
    }
}
