//! What a lost, damaged or older disk takes with it, and what may be lost because of that.
//!
//! A promise rests on disks. A disk that was replaced, put back to an older state, or (with `--durability=os`)
//! lost its power no longer holds what its node said it does, and nobody can hold the node to it: neither to the
//! records nor to the terms it promised. So each such event is kept, with exactly what went, and a loss of a write
//! is excused by nothing but an event that took that write, or the promise that protected it.

use std::collections::BTreeMap;
use std::rc::Rc;

use kvstore::ids::{Chain, Lsn, NodeId};

use crate::host::{Host, Told};
use crate::mirror::{Entry, Mirror};
use crate::oracle::{Acked, Oracle, Promotion};
use crate::world::World;

/// One disk that lost something.
#[derive(Debug)]
pub struct Loss {
    pub site: usize,
    /// The node keeps its identity and comes back with an older state: what it does again in terms it has forgotten
    /// is a second history of those.
    same_node: Option<NodeId>,
    /// It led.
    led: bool,
    /// It knows that it lost something: it repairs, and may not lead before it has done so.
    known: bool,
    /// The highest term that it had promised, and the one it knows now.
    term: u64,
    back_to: u64,
    records: BTreeMap<u64, Chain>,
}

impl Loss {
    /// Of everything that was on this host's disk, what `left` does not have is gone.
    fn of(host: &Host, before: &[Rc<Entry>], left: &Mirror, back_to: u64, same_node: Option<NodeId>) -> Loss {
        let gone = before.iter().filter(|entry| !left.holds(entry.lsn, entry.chain));
        let seen = host.seen.as_ref();
        Loss {
            site: host.site,
            same_node,
            known: false,
            led: seen.is_some_and(|seen| seen.leads),
            term: host.told.term.max(seen.map_or(0, |seen| seen.term.as_u64())),
            back_to,
            records: gone.map(|entry| (entry.lsn, entry.chain)).collect(),
        }
    }

    fn took(&self, lsn: u64, chain: Chain) -> bool {
        self.records.get(&lsn) == Some(&chain)
    }

    fn forgot(&self, term: u64) -> bool {
        self.back_to < term && term <= self.term
    }
}

impl Oracle {
    /// Whether the disk of this host held that record and lost it.
    pub fn lost_at(&self, site: usize, lsn: u64, chain: Chain) -> bool {
        self.losses.iter().any(|loss| loss.site == site && loss.took(lsn, chain))
    }

    /// The highest term that the disk of this host has ever forgotten; none if it never lost anything.
    pub fn highest_term_lost(&self, site: usize) -> Option<u64> {
        self.losses.iter().filter(|loss| loss.site == site).map(|loss| loss.term).max()
    }

    /// Whether any disk did.
    pub fn lost_somewhere(&self, write: &Acked) -> bool {
        self.losses.iter().any(|loss| loss.took(write.lsn, write.chain))
    }

    /// Whether two histories of this leader's term may exist, because it began it again.
    pub fn may_fork(&self, leader: NodeId, term: u64) -> bool {
        self.losses.iter().any(|loss| loss.same_node == Some(leader) && loss.forgot(term))
    }

    /// The same, of the leader on this host.
    pub fn began_twice(&self, site: usize, term: u64) -> bool {
        self.losses.iter().any(|loss| loss.site == site && loss.same_node.is_some() && loss.forgot(term))
    }

    /// Whether that may have happened at all.
    pub fn a_leader_began_a_term_twice(&self) -> bool {
        self.losses.iter().any(|loss| loss.same_node.is_some() && loss.back_to < loss.term)
    }

    /// With `insync`: the candidate lost the write itself; or its leader did, and then took it from the others by
    /// a cut that nobody could know to be wrong; or the term of the write is one that its leader began twice.
    pub fn in_sync_excused(&self, promotion: &Promotion, write: &Acked) -> bool {
        self.losses.iter().any(|loss| {
            loss.site == promotion.site && !loss.known && loss.took(write.lsn, write.chain)
                || loss.led && loss.took(write.lsn, write.chain)
                || loss.same_node.is_some() && loss.forgot(write.term)
        })
    }

    /// With `quorum`: one of the copies is gone; or a node of the majority forgot that it had promised a higher
    /// term, and went on with the old leader; or the term of the write is one that its leader began twice.
    pub fn quorum_excused(&self, promotion: &Promotion, write: &Acked) -> bool {
        self.lost_somewhere(write)
            || self.losses.iter().any(|loss| {
                loss.forgot(promotion.term) && write.term < promotion.term
                    || loss.same_node.is_some() && loss.forgot(write.term)
            })
    }

    /// Whether a leader came back with an older disk: it leads without having all that was acknowledged.
    pub fn a_leader_lost_its_disk(&self) -> bool {
        self.losses.iter().any(|loss| loss.led && !loss.records.is_empty())
    }
}

impl World {
    /// Whether some other host holds every acknowledged write on its disk, so that this one's may go.
    pub fn is_spare(&self, site: usize) -> bool {
        if self.core.borrow().knobs.is_elected() {
            return self.may_lose(site);
        }
        let holds_all = |host: &&Host| {
            let mirror = host.mirror.borrow();
            let mut writes = self.oracle.acked.iter().filter(|write| !write.given_up);
            writes.all(|write| mirror.holds(write.lsn, write.chain) && mirror.synced >= write.lsn)
        };
        let mut others = self.hosts.iter().filter(|host| host.site != site && !host.rotten);
        others.any(|host| host.process.is_some() && holds_all(&host))
    }

    /// A disk loses what is not in `left`; the host has nothing to answer for any more but that.
    pub fn disk_loses(&mut self, site: usize, left: &Mirror, back_to: u64, same_node: Option<NodeId>) {
        let before = self.hosts[site].mirror.borrow().entries.clone();
        let elected = self.core.borrow().knobs.is_elected();
        // Whoever comes back leads no term of an elected cluster twice: nothing is excused by that.
        let same_node = same_node.filter(|_| !elected);
        let loss = Loss::of(&self.hosts[site], &before, left, back_to, same_node);
        self.oracle.elections.forget_votes(site, back_to);
        if !elected && (loss.led || same_node.is_some()) {
            // Replies on their way are of a history that this leader does not continue.
            for dialogue in self.dialogues.values_mut().filter(|dialogue| dialogue.site == site) {
                dialogue.sent.iter_mut().for_each(|sent| sent.by_leader = false);
            }
            self.oracle.orders.retain(|(_, leader), _| *leader != site);
        }
        self.oracle.losses.push(loss);
        let host = &mut self.hosts[site];
        host.told = Default::default();
        host.told.term = back_to;
        host.heard = (0, 0);
        host.left = 0;
        host.at_risk = false;
    }

    /// A process has started on a disk that may have lost something: what is gone is compared with what was there.
    pub fn note_losses(&mut self, site: usize, before: &[Rc<Entry>]) {
        if self.hosts[site].repairs_rot() {
            self.note_repair(site, before);
        } else if self.hosts[site].at_risk {
            self.note_power_loss(site, before);
        }
    }

    /// The same in the middle of a load in slices: the block that was damaged is met only then.
    pub fn note_repair_in_turn(&mut self, site: usize) {
        if !self.hosts[site].repairs_rot() {
            return;
        }
        let before = self.hosts[site].mirror.borrow().entries.clone();
        let last = self.hosts[site].process.as_ref().expect("it repairs").node.positions().0;
        let mut mirror = self.hosts[site].mirror.borrow_mut();
        mirror.cut(last.0);
        mirror.shrunk_to = None;
        drop(mirror);
        self.note_repair(site, &before);
    }

    /// A follower has found its log damaged, and keeps what is whole. META is not: it is held to the terms it has
    /// promised, and it knows that it lacks something, so the loss excuses no promotion of its own.
    fn note_repair(&mut self, site: usize, before: &[Rc<Entry>]) {
        self.core.borrow_mut().stats.count("node: repairs a damaged log");
        let host = &mut self.hosts[site];
        let term = host.told.term;
        let mut loss = Loss::of(host, before, &host.mirror.borrow(), term, None);
        loss.known = true;
        self.oracle.losses.push(loss);
        host.told = Told { term, ..Told::default() };
        (host.rotten, host.at_risk, host.left) = (false, false, 0);
        host.seen = None;
        host.heard = (0, 0);
    }

    /// With `--durability=os`: the machine lost its power, and a restart has found what is left.
    fn note_power_loss(&mut self, site: usize, before: &[Rc<Entry>]) {
        let host = &mut self.hosts[site];
        host.at_risk = false;
        // The newest mark may be gone even if all records are there.
        host.told.mark_commit = 0;
        let loss = Loss::of(host, before, &host.mirror.borrow(), host.told.term, None);
        if loss.records.is_empty() {
            return;
        }
        self.core.borrow_mut().stats.count("disk: power loss took what only the page cache had");
        let last = host.mirror.borrow().last();
        // Its term is in META, which is synced with this policy too.
        host.told.lsn = host.told.lsn.min(last);
        host.told.read_lsn = host.told.read_lsn.min(last);
        host.told.chain = host.mirror.borrow().get(host.told.lsn).map_or(Chain::ZERO, |entry| entry.chain);
        if let Some(seen) = &mut host.seen {
            seen.commit = Lsn(seen.commit.0.min(last));
        }
        self.oracle.losses.push(loss);
    }
}
