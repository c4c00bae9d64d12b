//! The state made anew in the running process: after a cut, and when a leader's snapshot does not come to its end.

use super::load::{LoadError, Loader, Slice};
use super::{FatalReason, Node};
use crate::ids::Lsn;
use crate::log_warn;
use crate::snapshot::{SnapshotInfo, SnapshotReader};
use crate::time::Time;

/// There is nothing to make the state from.
pub(super) struct NoSource;

impl Node {
    /// The newest snapshot from which the state at `keep` can be made, read to its end. `Err`: there is none, and the
    /// log does not begin at the beginning either.
    pub(super) fn source_for(&mut self, keep: Lsn) -> Result<Option<SnapshotInfo>, NoSource> {
        let floor = self.wal.first_lsn().prev();
        if keep < floor {
            return Err(NoSource);
        }
        for info in self.snapshots.kept().to_vec() {
            if info.id.e > keep || info.id.s < floor {
                continue;
            }
            let disk = self.disk.as_mut();
            let checked =
                SnapshotReader::open(disk, &info.name, Some(info.cluster_id)).and_then(|mut reader| {
                    let result = reader.verify(disk);
                    reader.close(disk);
                    result
                });
            match checked {
                Ok(()) => return Ok(Some(info)),
                Err(error) => {
                    log_warn!("snapshot", "the snapshot of LSN {} is not used: {error}", info.id);
                    self.snapshots.disbelieve(info.id);
                }
            }
        }
        if floor == Lsn::ZERO { Ok(None) } else { Err(NoSource) }
    }

    /// Makes the state anew, up to the end of the log that was cut, or to what is committed of it.
    pub(super) fn rebuild_state(&mut self, source: Option<&SnapshotInfo>) -> Result<(), FatalReason> {
        // What a transfer has loaded so far goes too: it cannot go on over another state.
        self.drop_install("the state is made anew");
        self.keyspace.clear();
        self.forget_unapplied(self.wal.last_lsn());
        let to = self.state_target();
        let disk = self.disk.as_mut();
        let slice = Slice { clock: self.clock.as_ref(), until: Time(u64::MAX), bytes: u64::MAX };
        let done = Loader::begin(disk, &self.wal, &mut self.keyspace, source, to).and_then(|mut loader| {
            while !loader.step(disk, &mut self.wal, &mut self.keyspace, &slice)? {}
            loader.close(disk);
            Ok(())
        });
        match done {
            Ok(()) => {}
            Err(LoadError::Log(error)) => return Err(error.into()),
            // It was whole a moment ago, and the log is cut: the next start tries what is left.
            Err(LoadError::Snapshot(error)) => return Err(FatalReason::Snapshot(error)),
        }
        self.state_is_given_up = false;
        self.applied = to;
        self.complete_at = source.map_or(Lsn::ZERO, |info| info.id.e);
        Ok(())
    }
}
