//! What an operator asks of snapshots and is told: `kv_client snapshot`, and their part of `status`.

use serde_json::{Value, json};

use super::snapshot::Phase;
use super::{FatalReason, Node};
use crate::conn::{ConnId, Io};
use crate::ids::Lsn;
use crate::limits::{CLIENT_SESSION_SIZE_MAX, SNAPSHOT_LOG_BYTES_MIN};
use crate::snapshot::SnapshotInfo;
use crate::wire::client::Status;

impl Node {
    /// Bytes of log that a restart would read.
    pub(super) fn log_bytes_since_snapshot(&self) -> u64 {
        let s = self.snapshots.kept().first().map_or(Lsn::ZERO, |newest| newest.id.s);
        self.wal.log_bytes_from(s.next())
    }

    pub(super) fn log_bytes_wanted(&self) -> u64 {
        let twice = self.snapshots.kept().first().map_or(0, |newest| 2 * newest.bytes);
        self.config.snapshot.log_bytes.unwrap_or(twice.max(SNAPSHOT_LOG_BYTES_MIN))
    }

    /// Bytes that a snapshot of what is here now will have, about.
    pub(super) fn snapshot_bytes_expected(&self) -> u64 {
        let sessions = (self.keyspace.sessions().len() * CLIENT_SESSION_SIZE_MAX) as u64;
        // Entries have six bytes beside their data, blocks twelve; and what is written meanwhile.
        self.keyspace.data_bytes() * 33 / 32 + self.keyspace.len() * 6 + sessions + (64 << 10)
    }

    /// The operator asks for one.
    pub(super) fn on_snapshot(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        wait: bool,
    ) -> Result<(), FatalReason> {
        if let Some(why) = self.snapshot_refusal() {
            self.reply(io, conn, Status::Refused, why.as_bytes());
            return Ok(());
        }
        // With nothing in flight this is the state that a new one would have.
        let newest = self.snapshots.kept().first();
        if let Some(newest) =
            newest.filter(|newest| newest.id.s == self.applied && newest.id.e == self.applied)
        {
            let text = published_document(newest, "the newest snapshot holds all there is");
            self.reply(io, conn, Status::Ok, text.as_bytes());
            return Ok(());
        }
        if let Err(error) = self.begin_snapshot()? {
            self.reply(io, conn, Status::Refused, error.as_bytes());
            return Ok(());
        }
        if wait {
            self.begin_command(conn);
            self.snapshots.waiters.push(conn);
        } else {
            let text = json!({"s": self.applied.0, "message": "begun"}).to_string();
            self.reply(io, conn, Status::Ok, text.as_bytes());
        }
        Ok(())
    }

    /// Whether none is being made.
    pub(super) fn snapshot_is_idle(&self) -> bool {
        matches!(self.snapshots.phase, Phase::Idle)
    }

    /// Why none can begin now.
    pub(super) fn snapshot_refusal(&self) -> Option<String> {
        match &self.snapshots.phase {
            _ if self.shutdown.is_some() => Some("this node is about to end".to_owned()),
            _ if !self.is_complete() => Some(self.incomplete_text()),
            _ if self.state_is_wrong() => Some(self.wrong_state_text()),
            _ if self.applied == Lsn::ZERO => {
                Some("there is nothing to keep yet: the log is empty".to_owned())
            }
            Phase::Idle => None,
            Phase::Scanning(scan) => Some(format!(
                "a snapshot of LSN {} is being made already, {} % done; wait for its end",
                scan.s,
                self.scan_percent()
            )),
            Phase::Settling { scan, .. } => {
                Some(format!("a snapshot of LSN {} is being written to the disk; wait for its end", scan.s))
            }
            Phase::Waiting(finished) => Some(format!(
                "a snapshot up to LSN {} is written and waits for that LSN to be committed; committed is {}",
                finished.info().id.e,
                self.effective_commit()
            )),
        }
    }

    fn scan_percent(&self) -> u64 {
        let slots = self.keyspace.slot_count();
        u64::from(self.keyspace.next_to_check().unwrap_or(slots)) * 100 / u64::from(slots).max(1)
    }

    /// For `status`.
    pub(super) fn snapshot_document(&self) -> Value {
        let snapshots = &self.snapshots;
        let newest = snapshots.kept().first();
        let (state, s, e, bytes, progress, eta_s) = match &snapshots.phase {
            Phase::Scanning(scan) => {
                let percent = self.scan_percent();
                let took_ns = self.now.since(scan.began);
                let eta_s = (percent > 0).then(|| took_ns * (100 - percent) / percent / 1_000_000_000);
                ("running", Some(scan.s), None, Some(scan.writer.bytes()), percent, eta_s)
            }
            Phase::Settling { scan, e, until } => {
                let eta_s = until.since(self.now).div_ceil(1_000_000_000);
                ("running", Some(scan.s), Some(*e), Some(scan.writer.bytes()), 100, Some(eta_s))
            }
            Phase::Waiting(finished) => {
                let info = finished.info();
                ("running", Some(info.id.s), Some(info.id.e), Some(info.bytes), 100, None)
            }
            Phase::Idle => {
                let state = if newest.is_some() { "done" } else { "idle" };
                let id = newest.map(|info| info.id);
                let bytes = newest.map(|info| info.bytes);
                (state, id.map(|id| id.s), id.map(|id| id.e), bytes, if id.is_some() { 100 } else { 0 }, None)
            }
        };
        json!({
            "state": state,
            "s": s.map(|lsn| lsn.0),
            "e": e.map(|lsn| lsn.0),
            "bytes": bytes,
            "progress": progress,
            "eta_s": eta_s,
            "waits_for_commit": matches!(snapshots.phase, Phase::Waiting(_)),
            "kept": snapshots.kept().iter().map(|info| json!({
                "s": info.id.s.0, "e": info.id.e.0, "bytes": info.bytes, "entries": info.entries,
            })).collect::<Vec<Value>>(),
            "made": self.counters.snapshots,
            "log_bytes_since": self.log_bytes_since_snapshot(),
            "log_bytes_next": self.log_bytes_wanted(),
            "last_error": snapshots.last_error,
        })
    }
}

/// What the operator is told of a snapshot that is there.
pub(super) fn published_document(info: &SnapshotInfo, message: &str) -> String {
    json!({
        "s": info.id.s.0,
        "e": info.id.e.0,
        "bytes": info.bytes,
        "entries": info.entries,
        "file": info.name,
        "message": format!("{}: {message}, {} entries, {} bytes", info.name, info.entries, info.bytes),
    })
    .to_string()
}
