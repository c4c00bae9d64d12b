//! Every reply, when it leaves the node and when a client gets it: is it true, is the promise in force kept,
//! and does what a leader serves have an order?

use std::collections::BTreeMap;

use kvstore::node::Observed;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Status;

use crate::client::{Ask, Dialogue, Got, Sent};
use crate::core::Core;
use crate::host::Host;
use crate::lists::{List, Seat};
use crate::mirror::Kind;
use crate::oracle::{Acked, Oracle};
use crate::socks::Emitted;

impl Oracle {
    /// A reply was handed to the network.
    #[allow(clippy::too_many_arguments)]
    pub fn on_emitted(
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
        let existed = || {
            let key = match &sent.ask {
                Ask::Delete { key, .. } => key,
                _ => return false,
            };
            hosts[site].mirror.borrow().value_at(key, reply.lsn.saturating_sub(1)).is_some()
        };
        // What is told wrong has no order.
        let flip = hosts[site].flip.as_ref();
        let excused = flip.is_some_and(|flip| flip.excuses(sent, reply.status, existed));
        let by_leader = match core.knobs.is_elected() {
            true => crate::elected::is_ordered(core, site, sent),
            false => seen.leads && seen.term.as_u64() == reply.term,
        };
        sent.by_leader = by_leader && !excused;
        let sent = sent.clone();
        let host = &hosts[site];
        // What came while the process stood still, behind a poll, was under way since that poll, as it sees it.
        let stop = host.stops.iter().find(|(from, to)| (*from..=*to).contains(&sent.at));
        let asked_ns = core.now + host.ahead.get() - stop.map_or(sent.at, |(from, _)| *from);
        let host_ns = u128::from(asked_ns) * u128::from(host.clock.rate_ppm) / 1_000_000;
        crate::receipts::check(core, site, &sent, reply, host_ns as u64);
        core.trace(|| format!("host {site} answers {:?}: {:?} at LSN {}", sent.ask, reply.status, reply.lsn));
        match (&sent.ask, reply.status) {
            (Ask::Put { .. } | Ask::Delete { .. }, Status::Ok | Status::NotFound) if shrunk || excused => {}
            (Ask::Put { .. }, Status::Ok) | (Ask::Delete { .. }, Status::Ok | Status::NotFound) => {
                self.on_acked(core, hosts, site, seen, &sent, reply);
            }
            (Ask::Get { key, .. }, Status::Ok | Status::NotFound) if !shrunk => {
                let stale = core.knobs.is_elected() && !by_leader;
                check_read(&mut hosts[site], key, reply, stale, excused);
                core.stats.count(if sent.by_leader {
                    "client: read checked"
                } else {
                    "client: follower read checked"
                });
            }
            // Refused here, it is asked for again elsewhere: `numbered.rs`.
            (Ask::Put { .. } | Ask::Delete { .. }, _) if sent.by.is_some() => {}
            (Ask::Put { id, .. } | Ask::Delete { id, .. }, status) => self.on_refused(core, *id, status),
            (Ask::Get { .. }, Status::Diverged) => core.stats.count("state: read refused"),
            (Ask::Get { .. }, Status::Repairing) => core.stats.count("node: read refused while it repairs"),
            (Ask::Promote { .. }, Status::Refused) => core.stats.count("role: promotion refused"),
            (Ask::ChangeMembers { add, .. }, status) => core.stats.count(match (status, add) {
                (Status::Ok, true) => "role: member added",
                (Status::Ok, false) => "role: member removed",
                (Status::OutcomeUnknown, _) => "role: change of unknown outcome",
                _ => "role: change refused",
            }),
            (Ask::Transfer { .. }, status) => core.stats.count(match status {
                Status::Ok => "role: handed over",
                Status::OutcomeUnknown => "role: handed over, or nobody leads",
                _ => "role: hand-over refused",
            }),
            (Ask::Promote { force: true }, Status::Ok) => {
                core.trace(|| format!("host {site}: {}", reply.text));
            }
            _ => {}
        }
    }

    fn on_refused(&mut self, core: &mut Core, id: u64, status: Status) {
        match status {
            Status::OutcomeUnknown => core.stats.count("client: outcome unknown"),
            Status::Busy => core.stats.count("node: BUSY refused a write"),
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
        let is_again = sent.by.is_some_and(|by| self.is_told_again(core, site, by, reply, &entry));
        assert!(self.answered.insert((lsn, entry.chain.0)) || is_again, "LSN {lsn} was given to two writes");
        if !is_again {
            core.stats.count("client: acknowledged write");
        }
        let site_of = |address: &String| (0..hosts.len()).find(|site| Host::address(*site) == *address);
        let members = seen.peers.iter().filter(|(.., in_sync)| *in_sync);
        let mut in_sync: Vec<usize> = members.filter_map(|(address, ..)| site_of(address)).collect();
        in_sync.push(site);
        let mut acked = Acked {
            lsn,
            chain: entry.chain,
            // A number that is asked again is answered as by the leader of the first time, and promised by this one.
            term: if core.knobs.is_elected() { term_of_answer(host, seen) } else { reply.term },
            round: (seen.round.0.as_u64(), seen.round.1),
            in_sync,
            given_up: false,
        };
        // A fixed leader answers again what was committed, also while too few are in sync for something new.
        if core.knobs.is_elected() || sent.by.is_none_or(|by| by.tries == 1) {
            self.check_promise(core, hosts, &acked);
        }
        if is_again {
            return;
        }
        for promotion in self.promotions.clone() {
            if promotion.term > acked.term && !hosts[promotion.site].mirror.borrow().holds(lsn, acked.chain) {
                self.must_allow(core, &promotion, &acked, false);
                acked.given_up = true;
            }
        }
        self.acks_seen += 1;
        if self.acks_seen.is_multiple_of(core.knobs.fork_check_every) {
            // Every node whose word this rests on.
            let by_majority = core.knobs.ack == AckPolicy::Majority;
            let word_of = |member: &&usize| {
                let (host, mirror) = (&hosts[**member], hosts[**member].mirror.borrow());
                let has = mirror.holds(lsn, acked.chain) && (mirror.synced >= lsn || !by_majority);
                !host.rotten && !host.at_risk && has
            };
            let all: Vec<usize> = (0..hosts.len()).collect();
            for member in if by_majority { &all } else { &acked.in_sync }.iter().filter(word_of) {
                if by_majority || core.knobs.ack == AckPolicy::InSync || *member == site {
                    let host = &hosts[*member];
                    crate::proof::on_copy(core, &host.mem, host.site, lsn, acked.chain);
                    core.stats.count("check: acknowledgement proved on a copy of the disk");
                }
            }
        }
        self.acked.push(acked);
    }

    /// At the moment of the reply, the policy in force holds.
    fn check_promise(&self, core: &Core, hosts: &[Host], acked: &Acked) {
        let has = |site: usize| {
            let mirror = hosts[site].mirror.borrow();
            mirror.holds(acked.lsn, acked.chain) && mirror.synced >= acked.lsn
                || self.lost_at(site, acked.lsn, acked.chain)
        };
        let excused =
            self.promotions.iter().any(|promotion| promotion.forced && promotion.term >= acked.term)
                || !self.discarding.is_empty();
        let leader = *acked.in_sync.last().expect("the leader is in it");
        let may_lead_its_disk = core.knobs.ack == AckPolicy::Majority;
        assert!(
            has(leader) || may_lead_its_disk,
            "host {leader} acknowledged LSN {} without having it on disk",
            acked.lsn
        );
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
        let all_are_followers =
            || hosts[leader].seen.as_ref().is_some_and(|seen| seen.peers.len() + 1 == hosts.len());
        let by_majority = core.knobs.ack == AckPolicy::Majority
            || core.knobs.ack == AckPolicy::Quorum && all_are_followers();
        if by_majority {
            // With fixed roles they are all. What is answered now may be committed by the list before.
            let next = crate::lists::about_to_be_logged(core, &hosts[leader]);
            let lists: Vec<List> =
                crate::lists::newest_two(core, &hosts[leader]).into_iter().chain(next).collect();
            // Who is there instead of a lost member has promised nothing in its name.
            let other_node = |seat: &Seat| core.knobs.is_elected() && seat.lost_at.is_some();
            let is_copy = |seat: &&Seat| match other_node(seat) {
                true => self.lost_at(seat.site, acked.lsn, acked.chain),
                false => has(seat.site),
            };
            let copies = |list: &List| list.seats().iter().filter(is_copy).count();
            let holders = lists.iter().map(copies).max().unwrap_or(0);
            assert!(
                lists.iter().any(|list| copies(list) >= list.majority()),
                "LSN {} was acknowledged with {holders} copies",
                acked.lsn
            );
        }
        // In the turn of the reply somebody may have left the set behind it.
        let left = hosts[leader].process.as_ref().map_or(0, |process| process.node.counters.insync_left);
        let still_leads = hosts[leader].process.as_ref().is_some_and(|process| process.node.observe().leads);
        assert!(
            !still_leads || left > hosts[leader].insync_left || acked.in_sync.len() >= core.knobs.min_insync,
            "LSN {} was acknowledged with too few in sync",
            acked.lsn
        );
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
        // One order for all that elected leaders serve; else one for each leader and term.
        let place = if core.knobs.is_elected() { (0, 0) } else { (got.term, site) };
        let order = self.orders.entry(place).or_default();
        let before = order.done.partition_point(|(time, _)| *time < sent.began());
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
}

/// The term in which this host, which leads or led when the turn began, has answered.
fn term_of_answer(host: &Host, seen: &Observed) -> u64 {
    let before = host.seen.as_ref().filter(|before| before.leads);
    before.map_or(seen.term, |before| before.term).as_u64()
}

/// A read is of what the log says at its LSN, and goes back only across a cut. A `stale` one goes back with a restart
/// too: what is committed is told to a node, and kept on no disk but as a lower bound.
fn check_read(host: &mut Host, key: &[u8], reply: &Emitted, stale: bool, excused: bool) {
    let (site, mirror) = (host.site, host.mirror.borrow());
    let floor = if stale { host.told.local_lsn } else { host.told.read_lsn };
    assert!(
        reply.lsn >= floor,
        "host {site} serves a read at LSN {} behind one at LSN {floor}, and cut nothing",
        reply.lsn
    );
    assert!(reply.lsn <= mirror.last(), "host {site} serves a read at LSN {}", reply.lsn);
    let expected = mirror.value_at(key, reply.lsn);
    let value = if reply.status == Status::Ok { reply.value_id } else { None };
    assert!(
        value == expected || excused,
        "host {site}: read of {} at LSN {} gives {value:?}, the log says {expected:?}",
        String::from_utf8_lossy(key),
        reply.lsn
    );
    let newest = if stale { &mut host.told.local_newest } else { &mut host.told.read_newest };
    *newest = reply.lsn.max(*newest);
}
