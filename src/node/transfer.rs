//! The leader's side of a snapshot transfer: for a follower that needs what the log does not hold any more.
//!
//! ```text
//! OPEN_REPLY, match LSN below the log's beginning
//!     -> SNAPSHOT_OFFER      the newest published snapshot; what it needs is *kept* from now on
//!     <- SNAPSHOT_ACK        at which byte to begin: not 0 where an earlier transfer of the same file broke off
//!     -> SNAPSHOT_CHUNK ...  one per turn while the output buffer is low: memory is bounded, whatever the file's size
//!     <- SNAPSHOT_ACK ...    one for each chunk; it counts as a sign of life
//!     <- SNAPSHOT_ACK        installed: match LSN S
//!     -> APPEND_ENTRIES      from S+1, as for any follower that is behind
//! ```
//!
//! What stays where it is meanwhile, and what that may cost, stands in `keep`.
//!
//! The file is opened for each chunk: three calls more per MiB, and no handle that outlives a session.

use super::fatal::{fence, malformed};
use super::leader::Link;
use super::{Node, Role, Stop};
use crate::conn::{ConnId, Io};
use crate::ids::{Chain, Lsn};
use crate::limits::{SNAPSHOT_CHUNK_SIZE_MAX, TRANSFER_SILENCE_MS};
use crate::log_info;
use crate::snapshot::{SnapshotId, SnapshotInfo};
use crate::time::Time;
use crate::wire::peer::{SnapshotAck, SnapshotChunk, SnapshotOffer, SnapshotTag};

/// How often a follower is sent a snapshot that it finds damaged.
const DAMAGED_TIMES_MAX: u32 = 2;

/// A snapshot on its way to a follower.
#[derive(Debug)]
pub struct Transfer {
    /// The session's connection.
    pub conn: ConnId,
    pub(super) tag: SnapshotTag,
    name: String,
    chain: Chain,
    /// Bytes of the file.
    pub bytes: u64,
    /// The next byte to send, once the follower said where to begin.
    next: Option<u64>,
    /// Bytes the follower has.
    pub acked: u64,
    began: Time,
    last_sent: Time,
    pub(super) last_heard: Time,
    /// Bytes that waited to be written when this was last looked at.
    pub(super) waiting_bytes: usize,
}

impl Transfer {
    /// How much of it the follower has.
    pub fn percent(&self) -> u64 {
        self.acked * 100 / self.bytes.max(1)
    }

    /// For `status`.
    pub(super) fn document(&self) -> serde_json::Value {
        serde_json::json!({
            "s": self.tag.s.0,
            "e": self.tag.e.0,
            "bytes": self.bytes,
            "sent_bytes": self.next,
            "received_bytes": self.acked,
            "percent": self.percent(),
        })
    }

    /// Whether the follower is to be taken for gone. It has longer than in a session that stands: it gives up its old
    /// state in one go, and makes a large file durable.
    pub(super) fn is_silent(&self, now: Time) -> bool {
        now.since(self.last_heard) > TRANSFER_SILENCE_MS * 1_000_000
    }

    pub(super) fn deadline(&self, heartbeat_ms: u64) -> Time {
        let silence = self.last_heard.after_ms(TRANSFER_SILENCE_MS + 1);
        if self.wants_heartbeats() { silence.min(self.last_sent.after_ms(heartbeat_ms)) } else { silence }
    }

    /// All is sent, and the follower is at work with it.
    fn wants_heartbeats(&self) -> bool {
        self.next == Some(self.bytes)
    }

    fn chunk_bytes(&self) -> u64 {
        self.next.map_or(0, |next| self.bytes - next).min(SNAPSHOT_CHUNK_SIZE_MAX as u64)
    }
}

impl Node {
    /// The follower's match LSN lies below the log. `Err`: why there is nothing for it, in words.
    pub(super) fn offer_snapshot(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        index: usize,
        match_lsn: Lsn,
    ) -> Result<(), String> {
        let needs = format!(
            "it needs the log from LSN {}, and it begins at {} here",
            match_lsn.next(),
            self.wal.first_lsn()
        );
        let (now, last, loop_now) = (self.now, self.wal.last_lsn(), self.loop_clock.now());
        let Some(leader) = self.leader() else { return Err(needs) };
        if !leader.peers[index].takes_snapshots {
            return Err(format!("{needs}; its version of the program takes no snapshot: update it"));
        }
        let Some(info) = self.snapshot_for(index) else {
            let port = self.config.port;
            return Err(format!(
                "{needs}, and no snapshot from which it goes on: `kv_client --port {port} snapshot` makes one"
            ));
        };
        self.keep_for(index, info.id);
        let tag = SnapshotTag { s: info.id.s, e: info.id.e, crc: info.crc };
        let term = self.meta.get().term;
        SnapshotOffer { term, tag, bytes: info.bytes, entries: info.entries }
            .encode(io.output(conn).bytes_mut());
        let Role::Leader(leader) = &mut self.role else { return Err(needs) };
        let peer = &mut leader.peers[index];
        peer.link = Link::Sending(Transfer {
            conn,
            tag,
            name: info.name,
            chain: info.chain,
            bytes: info.bytes,
            next: None,
            acked: 0,
            began: now,
            last_sent: now,
            last_heard: now,
            waiting_bytes: 0,
        });
        peer.progress.on_session(match_lsn, last, loop_now);
        peer.progress.leave();
        peer.session_stands();
        if let Some(quorum) = &mut leader.quorum {
            quorum.session(index);
        }
        let peer = &leader.peers[index];
        self.counters.sessions += 1;
        log_info!(
            "replication",
            "follower {} is offered the snapshot of LSN {}, {} bytes: {needs}",
            peer.address,
            info.id,
            info.bytes
        );
        Ok(())
    }

    /// The one it was offered before, if that is still there, so that it can go on; else the newest. The log goes on
    /// behind either.
    fn snapshot_for(&self, index: usize) -> Option<SnapshotInfo> {
        let first = self.wal.first_lsn();
        let before = self.leader()?.peers[index].kept.as_ref().map(|kept| kept.snapshot);
        let damaged = self.leader()?.peers[index].damaged.filter(|(_, times)| *times >= DAMAGED_TIMES_MAX);
        let mut fitting = self
            .snapshots
            .kept()
            .iter()
            .filter(|info| info.id.s.next() >= first && damaged.is_none_or(|(id, _)| id != info.id));
        let again = fitting.clone().find(|info| Some(info.id) == before);
        again.or_else(|| fitting.next()).cloned()
    }

    /// A follower found damage in what it was sent. Once may be the way; twice is the file, and it gets another one.
    pub(super) fn note_damaged_snapshot(&mut self, index: usize) {
        let Some(leader) = self.leader_mut() else { return };
        let peer = &mut leader.peers[index];
        let Link::Sending(Transfer { tag, .. }) = &peer.link else { return };
        let id = SnapshotId { s: tag.s, e: tag.e };
        let times = peer.damaged.filter(|(known, _)| *known == id).map_or(0, |(_, times)| times);
        peer.damaged = Some((id, times + 1));
    }

    pub(super) fn on_snapshot_ack(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let ack = SnapshotAck::decode(body).map_err(malformed("SNAPSHOT_ACK"))?;
        let (now, term) = (self.now, self.meta.get().term);
        let is_its = |link: &Link| matches!(link, Link::Sending(t) if t.conn == conn && t.tag == ack.tag);
        let found = self.leader_mut().and_then(|leader| {
            let index = leader.peers.iter().position(|peer| is_its(&peer.link))?;
            Some((index, &mut leader.peers[index]))
        });
        let Some((index, peer)) = found.filter(|_| ack.term == term) else {
            self.counters.dead_session_frames += 1;
            return Ok(());
        };
        let Link::Sending(transfer) = &mut peer.link else { return Ok(()) };
        if ack.offset < transfer.acked || ack.offset > transfer.next.unwrap_or(transfer.bytes) {
            let sent = transfer.next.unwrap_or(0);
            return fence(format!(
                "SNAPSHOT_ACK of byte {} with {} acknowledged and {sent} sent",
                ack.offset, transfer.acked
            ));
        }
        if transfer.next.is_none() && ack.offset > 0 {
            let (address, bytes) = (&peer.address, transfer.bytes);
            log_info!("replication", "follower {address} goes on at byte {} of {bytes}", ack.offset);
        }
        transfer.next.get_or_insert(ack.offset);
        let rose = ack.offset > transfer.acked;
        (transfer.acked, transfer.last_heard) = (ack.offset, now);
        peer.last_ack = Some(now);
        let Some(installed) = ack.installed else {
            if rose {
                peer.backoff.on_success();
                peer.down_told = false;
            }
            self.echoed(io, index, ack.offset);
            return Ok(());
        };
        if ack.offset != transfer.bytes || installed != (transfer.tag.s, transfer.chain) {
            return fence(format!(
                "SNAPSHOT_ACK that snapshot {} is installed at LSN {}, byte {}",
                transfer.tag, installed.0, ack.offset
            ));
        }
        let took_ms = now.since(transfer.began) / 1_000_000;
        log_info!(
            "replication",
            "follower {} has the snapshot of {} bytes after {took_ms} ms: the log goes on from LSN {}",
            peer.address,
            transfer.bytes,
            installed.0.next()
        );
        self.counters.snapshots_sent += 1;
        self.write_batch_for_reading()?;
        self.begin_stream(io, conn, index, (installed.0, Lsn::ZERO));
        self.advance_commit(io);
        Ok(())
    }

    /// A chunk to each follower that gets a snapshot and whose buffer is low.
    pub(super) fn feed_transfers(&mut self, io: &mut dyn Io) {
        let (now, term, low_water) = (self.now, self.meta.get().term, self.config.feed.low_water);
        let size_max = self.config.feed.frame_bytes as u64;
        let Role::Leader(leader) = &mut self.role else { return };
        let (disk, mut unreadable) = (self.disk.as_mut(), None);
        for (index, peer) in leader.peers.iter_mut().enumerate() {
            let Link::Sending(transfer) = &mut peer.link else { continue };
            let (Some(offset), size @ 1..) = (transfer.next, transfer.chunk_bytes().min(size_max)) else {
                continue;
            };
            let out = io.output(transfer.conn);
            if out.len() > low_water {
                continue;
            }
            let head = (term, transfer.tag, offset);
            let read = disk.open(&transfer.name).and_then(|file| {
                let result = SnapshotChunk::encode_with(out.bytes_mut(), head, size as usize, |room| {
                    disk.read_exact_at(file, offset, room)
                });
                disk.close(file);
                result
            });
            match read {
                Ok(()) => {
                    transfer.next = Some(offset + size);
                    transfer.last_sent = now;
                    if let Some(quorum) = &mut leader.quorum {
                        quorum.sent(index, offset + size, now);
                    }
                }
                Err(error) => {
                    unreadable = Some((index, format!("{} at byte {offset}: {error}", transfer.name)))
                }
            }
        }
        if let Some((index, why)) = unreadable {
            self.keep_nothing_for(index);
            self.peer_refused(io, index, &format!("the snapshot cannot be read for it: {why}"));
        }
    }

    /// Whether a transfer could go on now.
    pub(super) fn wants_chunk(&self, link: &Link, output_len: impl Fn(ConnId) -> usize) -> bool {
        let Link::Sending(transfer) = link else { return false };
        transfer.chunk_bytes() > 0 && output_len(transfer.conn) <= self.config.feed.low_water
    }

    /// While the follower is at work with the last bytes it hears that its leader lives.
    pub(super) fn transfer_heartbeats(&mut self, io: &mut dyn Io) {
        let (now, term, interval_ms) = (self.now, self.meta.get().term, self.config.heartbeat_ms);
        let Some(leader) = self.leader_mut() else { return };
        for peer in &mut leader.peers {
            let Link::Sending(transfer) = &mut peer.link else { continue };
            if transfer.wants_heartbeats() && now >= transfer.last_sent.after_ms(interval_ms) {
                SnapshotChunk { term, tag: transfer.tag, offset: transfer.bytes, bytes: &[] }
                    .encode(io.output(transfer.conn).bytes_mut());
                transfer.last_sent = now;
            }
        }
    }
}
