//! Backups for a client: a snapshot and the log behind it, sent a part at a time (the bytes are those of
//! [`crate::backup`]).
//!
//! ```text
//! BACKUP begin   -> a snapshot is made, or the one that is being made is waited for; or the newest is taken
//!                <- what will come: S, E, the last LSN, bytes
//! BACKUP next    -> read now, and nothing ahead of it
//!                <- a part of the file
//! ...
//!                <- no bytes: that was all
//! ```
//!
//! Every role makes them. The client asks for each part, so its pace is its own and a part is all the memory that a
//! backup takes. Meanwhile the file of the snapshot stays, and the log behind S: of the latter, up to `--pin-log-bytes`
//! that came on top since. There is one at a time. It ends with its connection, after [`BACKUP_SILENCE_MS`] without a
//! question, at that bound, and when the log is cut or replaced under it.

use serde_json::json;

use super::retention::PinId;
use super::{Conn, FatalReason, Node};
use crate::backup::{TailHeader, TailWriter};
use crate::conn::{ConnId, Io};
use crate::ids::Lsn;
use crate::limits::{BACKUP_PART_SIZE, BACKUP_SILENCE_MS};
use crate::snapshot::{SnapshotId, SnapshotInfo};
use crate::time::Time;
use crate::wal::Cursor;
use crate::wire::client::{BackupStep, Status};
use crate::wire::{Reader, Record};
use crate::{log_info, log_warn};

/// The backup under way, if there is one.
#[derive(Debug, Default)]
pub(super) enum Backup {
    #[default]
    None,
    /// The connection waits for the snapshot that is being made.
    Waiting(ConnId),
    Sending(Box<Sending>),
    /// It was given up, and its connection is told so when it asks.
    GivenUp(ConnId, String),
}

#[derive(Debug)]
pub(super) struct Sending {
    conn: ConnId,
    info: SnapshotInfo,
    /// The last record of it.
    last: Lsn,
    /// Keeps the log behind S.
    pin: PinId,
    /// Bytes of log behind S when it began.
    bytes_before: u64,
    generation: u64,
    /// Bytes of the snapshot that were sent.
    snapshot_sent: u64,
    tail: Tail,
    sent: u64,
    began: Time,
    heard: Time,
}

#[derive(Debug)]
enum Tail {
    Ahead,
    Begun(TailWriter, Cursor),
    Done,
}

impl Backup {
    fn conn(&self) -> Option<ConnId> {
        match self {
            Backup::None => None,
            Backup::Waiting(conn) | Backup::GivenUp(conn, _) => Some(*conn),
            Backup::Sending(sending) => Some(sending.conn),
        }
    }
}

impl Node {
    pub(super) fn on_backup(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        step: BackupStep,
    ) -> Result<(), FatalReason> {
        if step == BackupStep::Next {
            self.next_part(io, conn);
            return Ok(());
        }
        if let Some(why) = self.backup_refusal(conn) {
            self.reply(io, conn, Status::Refused, why.as_bytes());
            return Ok(());
        }
        self.end_backup();
        let newest = self.snapshots.kept().first().cloned();
        let is_fresh = |info: &SnapshotInfo| info.id.s == self.applied && info.id.e == self.applied;
        match newest.filter(|info| step == BackupStep::BeginNewest || is_fresh(info)) {
            Some(info) => {
                let (status, text) = self.begin_sending(conn, info)?;
                self.reply(io, conn, status, text.as_bytes());
            }
            None => {
                if self.snapshot_is_idle()
                    && let Err(why) = self.begin_snapshot()?
                {
                    self.reply(io, conn, Status::Refused, why.as_bytes());
                    return Ok(());
                }
                self.begin_command(conn);
                self.backup = Backup::Waiting(conn);
            }
        }
        Ok(())
    }

    /// Why none can begin now.
    fn backup_refusal(&self, conn: ConnId) -> Option<String> {
        match &self.backup {
            Backup::Waiting(_) => Some("a backup waits for its snapshot already".to_owned()),
            Backup::Sending(other) if other.conn != conn => Some(format!(
                "a backup up to LSN {} is on its way to another client, {} bytes were sent; wait for its end",
                other.last, other.sent
            )),
            _ if self.snapshot_is_idle() => self.repair_text().or_else(|| self.snapshot_refusal()),
            _ => self.repair_text(),
        }
    }

    /// The snapshot that a backup waits for has its name.
    pub(super) fn begin_waiting_backup(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let (Backup::Waiting(conn), Some(info)) = (&self.backup, self.snapshots.kept().first()) else {
            return Ok(());
        };
        let (conn, info) = (*conn, info.clone());
        self.backup = Backup::None;
        let (status, text) = self.begin_sending(conn, info)?;
        self.finish_command(io, conn, status, &text);
        Ok(())
    }

    /// It does not get one.
    pub(super) fn refuse_waiting_backup(&mut self, io: &mut dyn Io, why: &str) {
        if let Backup::Waiting(conn) = self.backup {
            self.backup = Backup::None;
            self.finish_command(io, conn, Status::Refused, why);
        }
    }

    /// What the client is told.
    fn begin_sending(&mut self, conn: ConnId, info: SnapshotInfo) -> Result<(Status, String), FatalReason> {
        let s = info.id.s;
        if self.wal.chain_at(self.disk.as_mut(), s)? != Some(info.chain) {
            let first = self.wal.first_lsn();
            let why = format!(
                "the log does not go on from the snapshot of LSN {}: it begins at LSN {first}; make another one",
                info.id
            );
            return Ok((Status::Refused, why));
        }
        // What is committed is durable, so it can be read, and is not cut.
        let last = self.effective_commit().max(info.id.e);
        let pin = self.pin_log(s);
        let log_bytes = self.pinned_bytes(pin);
        log_info!(
            "backup",
            "begins: snapshot of LSN {}, {} bytes, and the log up to LSN {last}",
            info.id,
            info.bytes
        );
        let text = json!({
            "s": s.0,
            "e": info.id.e.0,
            "last": last.0,
            "snapshot_bytes": info.bytes,
            "log_bytes": if last == s { 0 } else { log_bytes },
        });
        self.backup = Backup::Sending(Box::new(Sending {
            conn,
            info,
            last,
            pin,
            bytes_before: log_bytes,
            generation: self.wal.generation(),
            snapshot_sent: 0,
            tail: Tail::Ahead,
            sent: 0,
            began: self.now,
            heard: self.now,
        }));
        Ok((Status::Ok, text.to_string()))
    }

    fn next_part(&mut self, io: &mut dyn Io, conn: ConnId) {
        let mut sending = match std::mem::take(&mut self.backup) {
            Backup::Sending(sending) if sending.conn == conn => sending,
            Backup::GivenUp(its, why) if its == conn => {
                return self.reply(io, conn, Status::Refused, why.as_bytes());
            }
            other => {
                self.backup = other;
                let why = "this connection has no backup under way; begin one";
                return self.reply(io, conn, Status::Refused, why.as_bytes());
            }
        };
        sending.heard = self.now;
        let part = self.read_part(&mut sending);
        match &part {
            Ok(part) => {
                sending.sent += part.len() as u64;
                self.reply(io, conn, Status::Ok, part);
            }
            Err(why) => {
                log_warn!("backup", "up to LSN {} is given up: {why}", sending.last);
                self.reply(io, conn, Status::Refused, why.as_bytes());
            }
        }
        let is_over = part.map_or(true, |part| part.is_empty());
        self.backup = Backup::Sending(sending);
        if is_over {
            self.end_backup();
        }
    }

    /// The bytes that come next; none at the end. `Err`: why there is no more of it.
    fn read_part(&mut self, sending: &mut Sending) -> Result<Vec<u8>, String> {
        if sending.generation != self.wal.generation() {
            return Err("the log was cut or replaced meanwhile; begin again".to_owned());
        }
        let left = sending.info.bytes - sending.snapshot_sent;
        if left > 0 {
            let mut part = vec![0; left.min(BACKUP_PART_SIZE as u64) as usize];
            self.read_snapshot(&sending.info, sending.snapshot_sent, &mut part)?;
            sending.snapshot_sent += part.len() as u64;
            return Ok(part);
        }
        let mut part = Vec::new();
        let (mut tail, mut cursor) = match std::mem::replace(&mut sending.tail, Tail::Done) {
            Tail::Done => return Ok(part),
            Tail::Begun(tail, cursor) => (tail, cursor),
            Tail::Ahead => {
                let SnapshotInfo { cluster_id, id, chain, crc, .. } = sending.info;
                let header = TailHeader { cluster_id, s: id.s, chain, last: sending.last, snapshot_crc: crc };
                (TailWriter::begin(header, &mut part), Cursor::default())
            }
        };
        if let Some(from) = tail.next() {
            self.read_records(&mut tail, &mut cursor, from, &mut part)?;
        }
        if tail.next().is_some() {
            sending.tail = Tail::Begun(tail, cursor);
        } else {
            tail.finish(&mut part);
        }
        Ok(part)
    }

    fn read_snapshot(&mut self, info: &SnapshotInfo, offset: u64, part: &mut [u8]) -> Result<(), String> {
        let disk = self.disk.as_mut();
        let read = disk.open(&info.name).and_then(|file| {
            let result = disk.read_exact_at(file, offset, part);
            disk.close(file);
            result
        });
        read.map_err(|error| format!("{} cannot be read at byte {offset}: {error}", info.name))
    }

    /// As many of the next records as a part has room for.
    fn read_records(
        &mut self,
        tail: &mut TailWriter,
        cursor: &mut Cursor,
        from: Lsn,
        part: &mut Vec<u8>,
    ) -> Result<(), String> {
        let mut records = Vec::new();
        let range = self.wal.read(self.disk.as_mut(), cursor, from, BACKUP_PART_SIZE, &mut records);
        range.map_err(|error| format!("the log cannot be read: {error}"))?;
        let mut reader = Reader::new(&records);
        while reader.left() > 0 && tail.next().is_some() {
            let record = Record::decode(&mut reader).expect("the log hands out records that it has decoded");
            tail.add(&record, part);
        }
        Ok(())
    }

    /// Whether the file of this snapshot is needed.
    pub(super) fn backup_reads(&self, id: SnapshotId) -> bool {
        matches!(&self.backup, Backup::Sending(sending) if sending.info.id == id)
    }

    /// The connection is gone, and its backup with it.
    pub(super) fn backup_lost(&mut self, conn: ConnId, why: &str) {
        if self.backup.conn() == Some(conn) {
            if !matches!(self.backup, Backup::GivenUp(..)) {
                log_info!("backup", "its client is gone: {why}");
            }
            self.end_backup();
        }
    }

    /// Lets go of what was kept for it.
    fn end_backup(&mut self) {
        let Backup::Sending(sending) = std::mem::take(&mut self.backup) else { return };
        self.unpin_log(sending.pin);
        let (last, bytes) = (sending.last, sending.sent);
        if matches!(sending.tail, Tail::Done) {
            let took_ms = self.now.since(sending.began) / 1_000_000;
            log_info!("backup", "up to LSN {last} was sent: {bytes} bytes, after {took_ms} ms");
        } else {
            log_info!("backup", "up to LSN {last} ended after {bytes} bytes");
        }
    }

    /// A backup costs a bounded time of silence, and a bounded part of the disk.
    pub(super) fn backup_timers(&mut self) {
        let Backup::Sending(sending) = &self.backup else { return };
        let bound = self.config.pin.log_bytes;
        let why = if self.now.since(sending.heard) > BACKUP_SILENCE_MS * 1_000_000 {
            format!("the backup was given up: its client was silent for {BACKUP_SILENCE_MS} ms")
        } else if self.pinned_bytes(sending.pin).saturating_sub(sending.bytes_before) > bound {
            format!("the backup was given up: the log kept for it has reached --pin-log-bytes={bound}")
        } else {
            return;
        };
        log_warn!("backup", "{why}");
        let conn = sending.conn;
        self.end_backup();
        if matches!(self.conns.get(conn), Some(Conn::Client(_))) {
            self.backup = Backup::GivenUp(conn, why);
        }
    }

    /// When [`Node::backup_timers`] has something to do.
    pub(super) fn backup_deadline(&self) -> Option<Time> {
        let Backup::Sending(sending) = &self.backup else { return None };
        Some(sending.heard.after_ms(BACKUP_SILENCE_MS + 1))
    }
}
