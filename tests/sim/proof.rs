//! What is told to be on a disk is on it: the power fails on a copy of that disk, now, and its log is read by the
//! product's own recovery. And what an ACK says to be equal is equal.

use kvstore::ids::Chain;
use kvstore::node::Observed;

use crate::core::{Core, Shared};
use crate::host::{Host, read_log_of};
use crate::mem_disk::{Keep, MemDisk};
use crate::oracle::Oracle;

/// One out of so many ACKs is proved: reading a log takes as long as some hundred turns.
const ACKS_PER_PROOF: u64 = 400;

/// An ACK, or another word about its disk, is handed to the network by this node in this moment.
pub fn now_and_then(core: &Shared, mem: &MemDisk, site: usize, lsn: u64, chain: Chain) {
    let mut core = core.borrow_mut();
    core.acks_told += 1;
    // A disk that has failed proves nothing: what it lost is found by the restart.
    if core.acks_told.is_multiple_of(ACKS_PER_PROOF) && !mem.has_crashed() {
        on_copy(&mut core, mem, site, lsn, chain);
        core.stats.count("check: ACK proved on a copy of the disk");
    }
}

/// Crashes a copy of this disk and reads its log. What was not synced is lost, or some of it, by turns.
pub fn on_copy(core: &mut Core, mem: &MemDisk, site: usize, lsn: u64, chain: Chain) {
    let copy = mem.fork();
    core.proofs += 1;
    // Not from the generator of the run: a proof must not change what happens.
    if core.knobs.mishaps.os_durability {
        copy.kill_process();
    } else {
        let some = Keep::Random(core.now ^ core.proofs);
        copy.crash(if core.proofs.is_multiple_of(2) { Keep::None } else { some });
    }
    let log = read_log_of(copy)
        .unwrap_or_else(|why| panic!("host {site}: a copy of its disk after a power loss: {why}"));
    assert!(
        log.holds(lsn, chain),
        "host {site} told LSN {lsn}; after a power loss its log ends at {}",
        log.last()
    );
}

impl Oracle {
    /// "Every record up to here equals yours": compared with the log of the node that hears it.
    pub fn check_acks(
        &self,
        core: &mut Core,
        hosts: &[Host],
        site: usize,
        seen: &Observed,
        acks: &[(usize, u64, Chain)],
    ) {
        for (conn, lsn, chain) in acks.iter().filter(|(_, lsn, _)| *lsn > 0) {
            let ends = core.net.conns[*conn].ends;
            let leader =
                ends.iter().map(|end| end.site).find(|other| *other != site).expect("it has two ends");
            // One that was deposed meanwhile may have cut what it sent.
            let Some(leader) = hosts.get(leader) else { continue };
            if !leader.seen.as_ref().is_some_and(|theirs| theirs.leads && theirs.term == seen.term) {
                continue;
            }
            if let Some(entry) = leader.mirror.borrow().get(*lsn) {
                // Two histories of one name: the leader finds that out from the checksum that came along.
                assert!(
                    entry.chain == *chain || self.may_fork(entry.leader, entry.term.as_u64()),
                    "host {site} acknowledges LSN {lsn} to host {}, where another record has it",
                    leader.site
                );
                core.stats.count("check: ACK compared with the leader's log");
            }
        }
    }
}
