//! Which disks of a cluster that elects its leader may lose what they promised.
//!
//! Raft rests on disks that keep what they were told to keep. One that does not is a member that may vote twice in a
//! term, or for a log without what it once acknowledged, and no protocol saves a write that a majority of the disks
//! has lost. So the run takes from a disk only what leaves Raft its ground; then nothing excuses a loss.
//!
//! - *A barrier stays.* A member loses something (by rot, by a write in the wrong place, by an older copy of its
//!   directory, by an empty one) only while so many others are whole that each majority has one of them. Each of these
//!   holds, durably, every committed record and all that is durable on the victim's disk, and a record of the highest
//!   term that the victim knows. Who would be elected with the help of what the victim has forgotten needs a
//!   vote of the barrier too, and gets none: its log ends before theirs.
//! - *One after the other.* The next disk loses something when the one before is whole again: it runs, repairs nothing,
//!   and holds every committed record and one of the term that it had forgotten. A barrier of two victims at
//!   once could be each of the other's.
//! - *A member whose directory was emptied is out.* It has another id, so it is nobody's vote (D17), and it is never
//!   whole again. So many may be out as leave a majority. In the end nothing is expected of them but that.
//! - *A read replica* is no part of any majority: its disk may lose everything at any time.

use kvstore::ids::Chain;

use crate::host::Host;
use crate::world::World;

impl World {
    /// So many members have a say in every election and every commit.
    pub fn majority(&self) -> usize {
        self.members() / 2 + 1
    }

    /// The number of members; behind them stand the read replicas.
    pub fn members(&self) -> usize {
        self.core.borrow().knobs.members
    }

    /// Whether this host is a read replica.
    pub fn is_replica(&self, site: usize) -> bool {
        let core = self.core.borrow();
        site >= core.knobs.members + core.knobs.joiners
    }

    /// Whether the disk of this host may lose something now.
    pub fn may_lose(&self, site: usize) -> bool {
        if self.is_replica(site) {
            return true;
        }
        if self.core.borrow().knobs.joiners > 0 {
            return false;
        }
        let members = self.members();
        let others = || (0..members).filter(|other| *other != site && !self.oracle.out.contains(other));
        let barrier = others().filter(|other| self.stands_behind(*other, site)).count();
        self.is_whole(site)
            && others().all(|other| self.is_whole(other))
            && barrier > members - self.majority()
    }

    /// The same, if it never comes back as a member.
    pub fn may_be_out(&self, site: usize) -> bool {
        let spare = self.members() - self.majority();
        // Before its first record it may not know yet that it is a member.
        let is_member = self.hosts[site].mirror.borrow().last() > 0;
        self.is_replica(site) || self.oracle.out.len() < spare && is_member && self.may_lose(site)
    }

    /// Whether this host has got back whatever its disk has lost.
    fn is_whole(&self, site: usize) -> bool {
        let host = &self.hosts[site];
        let Some(forgot) = self.oracle.highest_term_lost(site) else { return !host.rotten };
        let repairs = host.seen.as_ref().is_none_or(|seen| !seen.complete || seen.repair_until.0 > 0);
        !host.rotten && host.process.is_some() && !repairs && self.holds_all(host, forgot)
    }

    /// Whether this member holds what the other one may have promised.
    fn stands_behind(&self, site: usize, victim: usize) -> bool {
        let (host, victim) = (&self.hosts[site], &self.hosts[victim]);
        let term = victim.told.term.max(victim.seen.as_ref().map_or(0, |seen| seen.term.as_u64()));
        // A leader tells nobody what its own disk holds, and counts it.
        let theirs = victim.mirror.borrow();
        let end = theirs.get(theirs.synced).map(|entry| (entry.lsn, entry.chain));
        !host.rotten && end.is_none_or(|(lsn, chain)| has(host, lsn, chain)) && self.holds_all(host, term)
    }

    /// Whether this disk has every committed record, and one of this term or a later one.
    fn holds_all(&self, host: &Host, term: u64) -> bool {
        let mirror = host.mirror.borrow();
        let newest = mirror.get(mirror.synced).map_or(0, |entry| entry.term.as_u64());
        drop(mirror);
        newest >= term && self.oracle.last_committed().is_none_or(|(lsn, chain)| has(host, lsn, chain))
    }
}

/// Whether this disk has that record, and with it the history before it.
fn has(host: &Host, lsn: u64, chain: Chain) -> bool {
    let mirror = host.mirror.borrow();
    mirror.synced >= lsn && mirror.holds(lsn, chain)
}
