//! What must hold after every turn, whatever broke. Every check compares what nodes say with what their
//! disks were told to write; none of them believes a node.

use std::collections::{BTreeMap, BTreeSet};

use kvstore::ids::{Chain, NodeId};
use kvstore::node::Observed;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Status;

use crate::client::{Ask, Dialogue, Got, Sent};
use crate::core::Core;
use crate::host::{Host, read_log_of};
use crate::mem_disk::Keep;
use crate::mirror::Kind;
use crate::socks::Emitted;

/// A write that a client was told to be done.
#[derive(Clone, Debug)]
pub struct Acked {
    pub lsn: u64,
    pub chain: Chain,
    pub term: u64,
    /// The leader's term and newest round when it answered.
    round: (u64, u64),
    /// Who was in sync then, by site.
    in_sync: Vec<usize>,
    /// Lost, and the promise in force allowed it.
    pub given_up: bool,
}

/// A change of leader by a promotion.
#[derive(Clone, Debug)]
struct Promotion {
    term: u64,
    site: usize,
    forced: bool,
}

/// Replies of one leader in one term, in the order in which clients got them.
#[derive(Debug, Default)]
struct Order {
    /// Time of completion, and the highest LSN completed by then.
    done: Vec<(u64, u64)>,
}

/// See the head of this file.
#[derive(Default)]
pub struct Oracle {
    records: BTreeMap<(u64, u64, NodeId), Chain>,
    committed: BTreeMap<u64, BTreeSet<u32>>,
    hashes: BTreeMap<(u64, u32), u128>,
    pub acked: Vec<Acked>,
    answered: BTreeSet<(u64, u32)>,
    seen_ids: BTreeSet<u64>,
    refused_ids: BTreeSet<u64>,
    orders: BTreeMap<(u64, usize), Order>,
    promotions: Vec<Promotion>,
    /// Sites that were asked to lead by force, or to discard, in this run.
    pub forced: BTreeSet<usize>,
    pub discarding: BTreeSet<usize>,
    pub wiped: BTreeSet<usize>,
    /// A cut below a commit LSN happened before the second phase.
    pub discards_in_chaos: bool,
    acks_seen: u64,
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
        let seen = process.node.observe();
        let emitted = std::mem::take(&mut process.socks.emitted);
        let told = process.socks.told;
        if !crashed && seen.last.0 < host.mirror.borrow().last() {
            host.mirror.borrow_mut().cut(seen.last.0);
        }
        self.take_fresh(host);
        if seen.leads || host.seen.as_ref().is_some_and(|before| before.leads) {
            self.note_committed(host, seen.commit.0);
        }
        if !crashed {
            self.check_positions(core, host, &seen);
        }
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
        for reply in emitted {
            self.on_emitted(core, hosts, site, &seen, dialogues, &reply, shrunk.is_some());
        }
        if promoted {
            self.on_promoted(core, hosts, site, &seen);
        }
        let host = &mut hosts[site];
        if !crashed {
            if host.seen.as_ref().is_some_and(|before| before.leads) && !seen.leads {
                core.stats.count("role: stopped leading");
            }
            if !seen.leads && seen.round.1 > 0 {
                host.heard = (seen.round.0.as_u64(), seen.round.1);
            }
            host.seen = Some(seen);
        }
    }

    fn take_fresh(&mut self, host: &Host) {
        let fresh = std::mem::take(&mut host.mirror.borrow_mut().fresh);
        for entry in fresh {
            let key = (entry.lsn, entry.term.as_u64(), entry.leader);
            let known = *self.records.entry(key).or_insert(entry.chain);
            assert!(
                known == entry.chain,
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
        assert!(seen.applied <= seen.durable, "host {site} applied beyond its disk");
        assert!(seen.term.as_u64() >= host.told.term, "host {site}: term went back to {}", seen.term);
        host.told.term = seen.term.as_u64();
        let cuts = process.node.counters.cuts;
        if let Some(before) = &host.seen {
            let may_discard = before.discard_allowed || self.discarding.contains(&site);
            if let Some(keep) = mirror.shrunk_to {
                core.stats.count("node: cut");
                if keep < before.commit.0 {
                    assert!(
                        may_discard,
                        "host {site} cut to LSN {keep}, below its commit LSN {}",
                        before.commit
                    );
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
        host.cuts = cuts;
        if seen.commit.0 > 0 && !seen.leads {
            let chain = mirror.get(seen.commit.0).map(|entry| entry.chain.0);
            let known = self.committed.get(&seen.commit.0);
            assert!(
                chain.is_some_and(|chain| known.is_some_and(|known| known.contains(&chain))),
                "host {site} takes LSN {} for committed, and no leader committed that record",
                seen.commit
            );
        }
        if let Some(entry) = mirror.get(seen.applied.0) {
            let hash = process.node.keyspace().state_hash();
            let known = *self.hashes.entry((entry.lsn, entry.chain.0)).or_insert(hash);
            assert!(known == hash, "host {site}: the state at LSN {} differs between nodes", entry.lsn);
        }
        for sock in process.socks.slots.iter().flatten() {
            assert!(
                sock.output.len() <= 24 << 20,
                "host {site}: {} bytes wait on one connection",
                sock.output.len()
            );
        }
    }

    /// A reply was handed to the network.
    #[allow(clippy::too_many_arguments)]
    fn on_emitted(
        &mut self,
        core: &mut Core,
        hosts: &mut [Host],
        site: usize,
        seen: &Observed,
        dialogues: &mut BTreeMap<usize, Dialogue>,
        reply: &Emitted,
        shrunk: bool,
    ) {
        let dialogue = dialogues.get_mut(&reply.conn).expect("replies go to clients");
        let sent = dialogue.sent.get_mut(dialogue.emitted).expect("no reply without a request");
        dialogue.emitted += 1;
        sent.by_leader = seen.leads && seen.term.as_u64() == reply.term;
        let sent = sent.clone();
        core.trace(|| format!("host {site} answers {:?}: {:?} at LSN {}", sent.ask, reply.status, reply.lsn));
        match (&sent.ask, reply.status) {
            (Ask::Put { .. }, Status::Ok) | (Ask::Delete { .. }, Status::Ok | Status::NotFound)
                if !shrunk =>
            {
                self.on_acked(core, hosts, site, seen, &sent, reply);
            }
            (Ask::Get { key }, Status::Ok | Status::NotFound) if !shrunk => {
                let mirror = hosts[site].mirror.borrow();
                assert!(reply.lsn <= mirror.last(), "host {site} serves a read at LSN {}", reply.lsn);
                let expected = mirror.value_at(key, reply.lsn);
                let value = if reply.status == Status::Ok { reply.value_id } else { None };
                assert!(
                    value == expected,
                    "host {site}: read of {} at LSN {} gives {value:?}, the log says {expected:?}",
                    String::from_utf8_lossy(key),
                    reply.lsn
                );
                core.stats.count(if sent.by_leader {
                    "client: read checked"
                } else {
                    "client: follower read checked"
                });
            }
            (Ask::Put { id, .. } | Ask::Delete { id, .. }, status) => self.on_refused(core, *id, status),
            (Ask::Promote { .. }, Status::Refused) => core.stats.count("role: promotion refused"),
            (Ask::Promote { force: true }, Status::Ok) => {
                core.trace(|| format!("host {site}: {}", reply.text));
            }
            _ => {}
        }
    }

    fn on_refused(&mut self, core: &mut Core, id: u64, status: Status) {
        match status {
            Status::OutcomeUnknown => core.stats.count("client: outcome unknown"),
            Status::DiskFull => core.stats.count("node: disk full refused a write"),
            _ => core.stats.count("client: refused write"),
        }
        if status != Status::OutcomeUnknown {
            assert!(!self.seen_ids.contains(&id), "write {id} is in a log and was answered {status:?}");
            self.refused_ids.insert(id);
        }
    }

    fn on_acked(
        &mut self,
        core: &mut Core,
        hosts: &mut [Host],
        site: usize,
        seen: &Observed,
        sent: &Sent,
        reply: &Emitted,
    ) {
        let host = &hosts[site];
        let lsn = reply.lsn;
        let entry = host.mirror.borrow().get(lsn).cloned();
        let Some(entry) = entry else { panic!("host {site} acknowledges LSN {lsn}, which it never wrote") };
        let right = match (&sent.ask, &entry.kind) {
            (Ask::Put { key, id, .. }, Kind::Put { key: k, id: i }) => key == k && id == i,
            (Ask::Delete { key, .. }, Kind::Delete { key: k }) => {
                let existed = host.mirror.borrow().value_at(key, lsn - 1).is_some();
                assert!(
                    existed == (reply.status == Status::Ok),
                    "host {site}: DELETE at LSN {lsn} says {:?}",
                    reply.status
                );
                key == k
            }
            _ => false,
        };
        assert!(
            right,
            "host {site} acknowledges {:?} at LSN {lsn}, where the log has {:?}",
            sent.ask, entry.kind
        );
        assert!(self.answered.insert((lsn, entry.chain.0)), "LSN {lsn} was given to two writes");
        core.stats.count("client: acknowledged write");
        let site_of = |address: &String| (0..hosts.len()).find(|site| Host::address(*site) == *address);
        let members = seen.peers.iter().filter(|(.., in_sync)| *in_sync);
        let mut in_sync: Vec<usize> = members.filter_map(|(address, ..)| site_of(address)).collect();
        in_sync.push(site);
        let mut acked = Acked {
            lsn,
            chain: entry.chain,
            term: reply.term,
            round: (seen.round.0.as_u64(), seen.round.1),
            in_sync,
            given_up: false,
        };
        self.check_promise(core, hosts, &acked);
        for promotion in self.promotions.clone() {
            if promotion.term > acked.term && !hosts[promotion.site].mirror.borrow().holds(lsn, acked.chain) {
                self.must_allow(core, &promotion, &acked, false);
                acked.given_up = true;
            }
        }
        self.acks_seen += 1;
        if self.acks_seen.is_multiple_of(core.knobs.fork_check_every) {
            for member in acked.in_sync.iter().copied().filter(|member| *member == site) {
                prove_on_copy(core, &hosts[member], lsn, acked.chain);
            }
        }
        self.acked.push(acked);
    }

    /// At the moment of the reply, the policy in force holds.
    fn check_promise(&self, core: &Core, hosts: &[Host], acked: &Acked) {
        let has = |site: usize| {
            let mirror = hosts[site].mirror.borrow();
            mirror.holds(acked.lsn, acked.chain) && mirror.synced >= acked.lsn
        };
        let excused = !self.wiped.is_empty()
            || self.promotions.iter().any(|promotion| promotion.forced && promotion.term >= acked.term)
            || !self.discarding.is_empty();
        let leader = *acked.in_sync.last().expect("the leader is in it");
        assert!(has(leader), "host {leader} acknowledged LSN {} without having it on disk", acked.lsn);
        if excused {
            return;
        }
        if core.knobs.ack == AckPolicy::InSync {
            for site in &acked.in_sync {
                assert!(
                    has(*site),
                    "LSN {} was acknowledged and host {site}, in sync, does not have it",
                    acked.lsn
                );
            }
        }
        if core.knobs.ack == AckPolicy::Quorum
            && hosts[leader].seen.as_ref().is_some_and(|seen| seen.peers.len() + 1 == hosts.len())
        {
            let holders = (0..hosts.len()).filter(|site| has(*site)).count();
            assert!(holders > hosts.len() / 2, "LSN {} was acknowledged with {holders} copies", acked.lsn);
        }
        // In the turn of the reply somebody may have left the set behind it.
        let before =
            hosts[leader].seen.as_ref().map_or(0, |seen| seen.peers.iter().filter(|peer| peer.2).count() + 1);
        assert!(
            acked.in_sync.len().max(before) >= core.knobs.min_insync,
            "LSN {} was acknowledged with too few in sync",
            acked.lsn
        );
    }

    /// A host leads by promotion: what it lacks is lost, and the promise must allow that.
    fn on_promoted(&mut self, core: &mut Core, hosts: &[Host], site: usize, seen: &Observed) {
        core.stats.count("role: leads after a promotion");
        let forced = self.forced.contains(&site);
        let promotion = Promotion { term: seen.term.as_u64(), site, forced };
        let mirror = hosts[site].mirror.borrow();
        let before = hosts[site].seen.as_ref().expect("it was seen before");
        let mut acked = std::mem::take(&mut self.acked);
        for write in acked.iter_mut().filter(|write| !write.given_up && write.term < promotion.term) {
            if !mirror.holds(write.lsn, write.chain) {
                let told = before.in_sync && hosts[site].heard > write.round;
                self.must_allow(core, &promotion, write, told);
                write.given_up = true;
            }
        }
        self.acked = acked;
        self.promotions.push(promotion);
    }

    fn must_allow(&self, core: &mut Core, promotion: &Promotion, write: &Acked, told_in_sync: bool) {
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
            AckPolicy::Quorum => {
                assert!(
                    !self.wiped.is_empty(),
                    "LSN {lsn}, acknowledged by a majority, is lost: host {site} leads in {term}"
                );
            }
            AckPolicy::InSync => {
                let was_in_sync = write.in_sync.contains(site) && !self.wiped.contains(site);
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

    /// A client got a reply.
    pub fn on_got(&mut self, core: &mut Core, site: usize, sent: &Sent, got: &Got) {
        if !sent.by_leader || !matches!(got.status, Status::Ok | Status::NotFound) {
            return;
        }
        let write = match sent.ask {
            Ask::Put { .. } | Ask::Delete { .. } => true,
            Ask::Get { .. } => false,
            _ => return,
        };
        let order = self.orders.entry((got.term, site)).or_default();
        let before = order.done.partition_point(|(time, _)| *time < sent.at);
        let floor = before.checked_sub(1).map_or(0, |index| order.done[index].1);
        assert!(
            if write { got.lsn > floor } else { got.lsn >= floor },
            "{:?} was served at LSN {} after LSN {floor} had been seen",
            sent.ask,
            got.lsn
        );
        let highest = order.done.last().map_or(0, |(_, lsn)| *lsn).max(got.lsn);
        order.done.push((core.now, highest));
    }

    /// A process has started: everything that was told before is there.
    pub fn after_start(&mut self, core: &mut Core, host: &mut Host) {
        let seen = host.process.as_ref().expect("it has started").node.observe();
        let site = host.site;
        let mirror = host.mirror.borrow();
        core.stats.count("check: restart compared with what was told");
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
            if mirror.last() < before.commit.0 {
                assert!(
                    before.discard_allowed || self.discarding.contains(&site),
                    "host {site}: a cut below commit was completed"
                );
            }
            host.told.lsn = host.told.lsn.min(mirror.last());
            host.told.chain = mirror.get(host.told.lsn).map_or(Chain::ZERO, |entry| entry.chain);
        }
        if seen.leads {
            core.stats.count("role: leads after a start");
        }
        drop(mirror);
        host.seen = Some(seen);
    }
}

/// Crashes a copy of this disk, keeping nothing that was not synced, and reads its log.
pub fn prove_on_copy(core: &mut Core, host: &Host, lsn: u64, chain: Chain) {
    let copy = host.mem.fork();
    copy.crash(Keep::None);
    let log = read_log_of(copy)
        .unwrap_or_else(|why| panic!("host {}: a copy of its disk after a power loss: {why}", host.site));
    assert!(
        log.holds(lsn, chain),
        "host {} told LSN {lsn}; after a power loss its log ends at {}",
        host.site,
        log.last()
    );
    core.stats.count("check: acknowledgement proved on a copy of the disk");
}
