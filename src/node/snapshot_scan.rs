//! The scan of a snapshot: all slots, in slices at the end of turns, while writes go on.
//!
//! Every entry is also taken out of the hash that was kept of all (see `keyspace::check`). So at its end a scan has
//! proved that what it wrote is what was applied, or that it is not: then the file is given up, before it has its name,
//! and the node has a state that is known to be wrong.

use super::pace::Pace;
use super::snapshot::Phase;
use super::{FatalReason, Node};
use crate::conn::Io;
use crate::ids::Lsn;
use crate::limits::SNAPSHOT_SLOTS_PER_STEP;
use crate::snapshot::SnapshotWriter;
use crate::time::Time;

/// A scan under way. Which slot is next stands in the keyspace.
#[derive(Debug)]
pub(super) struct Scan {
    pub writer: SnapshotWriter,
    pub s: Lsn,
    pub began: Time,
    pub(super) pace: Pace,
}

impl Node {
    pub(super) fn scan_slice(
        &mut self,
        io: &mut dyn Io,
        mut scan: Scan,
        had_work: bool,
    ) -> Result<(), FatalReason> {
        let begin = self.clock.now();
        let budget_ns = scan.pace.slice_ns(self.now, begin.since(self.now), had_work);
        let until = Time(begin.0 + budget_ns);
        let bytes_max = scan.writer.bytes() + self.config.snapshot.slice_bytes;
        let mut result = Ok(());
        let mut at = begin;
        while at < until && self.keyspace.next_to_check().is_some() && scan.writer.bytes() < bytes_max {
            if scan.writer.is_full() {
                if !scan.pace.may_write() {
                    break;
                }
                match scan.writer.write_some(self.disk.as_mut()) {
                    Ok(bytes) => scan.pace.wrote(bytes),
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
            self.scan_slots(&mut scan);
            at = self.clock.now();
        }
        if self.keyspace.next_to_check().is_none() && result.is_ok() {
            result = self.add_client_sessions(&mut scan);
        }
        scan.pace.used_ns(self.now, self.clock.now().since(begin));
        if let Err(error) = result {
            scan.writer.abandon(self.disk.as_mut());
            return self.snapshot_failed(io, error);
        }
        if self.keyspace.next_to_check().is_some() {
            self.snapshots.phase = Phase::Scanning(scan);
            return Ok(());
        }
        let until = self.now.after_ms(self.config.snapshot.settle_ms);
        self.snapshots.phase = Phase::Settling { scan, e: self.applied, until };
        let good = self.keyspace.end_check();
        if !self.on_scanned(good) {
            self.give_up_snapshot(io);
        }
        Ok(())
    }

    /// A few slots, or fewer if the buffer is full.
    fn scan_slots(&mut self, scan: &mut Scan) {
        for _ in 0..SNAPSHOT_SLOTS_PER_STEP {
            if scan.writer.is_full() || self.keyspace.next_to_check().is_none() {
                return;
            }
            if let Some((key, value)) = self.keyspace.check_next() {
                scan.writer.add(key, value);
            }
        }
    }

    /// What is being made is of a state that is wrong.
    pub(super) fn give_up_snapshot(&mut self, io: &mut dyn Io) {
        if !self.snapshot_is_idle() {
            self.abandon_snapshot();
            let why = self.wrong_state_text();
            self.answer_snapshot_waiters(io, &why);
        }
    }

    /// Whether one is made for the sake of its scan. Not of the LSN of the newest: it would be the same file.
    pub(super) fn scans_now(&self) -> bool {
        let newest_s = self.snapshots.kept().first().map(|newest| newest.id.s);
        self.checks.wants_scan && newest_s != Some(self.applied) && self.snapshot_refusal().is_none()
    }
}
