//! What a leader keeps for a follower that gets a snapshot, and what happens when that is too much.
//!
//! Kept are the file of the snapshot and the log behind its S (then behind the follower's match LSN), until the
//! follower has caught up, also over a lost connection: [`TRANSFER_RESUME_MS`] long. Without that a catch-up under load
//! would not end: the log would be gone again when the snapshot has arrived. It costs disk, at most
//! `--pin-log-bytes`. What happens there is the operator's choice, `--pin-overflow`:
//!
//! - `slow`: from half of that on, a client's connection gets one request in [`SLOW_WINDOW_MS`] while the log grows
//!   faster than the transfer goes on; at the bound writes are answered BUSY. It ends when the follower has caught up,
//!   or is lost: one without a connection never slows anybody, and loses what is kept for it at the bound.
//! - `drop`: nothing is kept for it any more, and a transfer under way ends. It is offered a newer snapshot.

use super::Node;
use super::leader::{Link, Peer};
use super::retention::PinId;
use crate::conn::Io;
use crate::limits::{SLOW_WINDOW_MS, TRANSFER_RESUME_MS};
use crate::log_warn;
use crate::snapshot::SnapshotId;
use crate::time::Time;

/// What happens when the log kept for a follower reaches its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinOverflow {
    /// Writers wait for the follower.
    Slow,
    /// The follower loses what was kept for it.
    Drop,
}

/// What the log may cost while a follower catches up with a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct PinConfig {
    /// Bytes of log kept, at most.
    pub log_bytes: u64,
    /// What happens then.
    pub overflow: PinOverflow,
}

impl Default for PinConfig {
    fn default() -> PinConfig {
        PinConfig { log_bytes: crate::limits::PIN_LOG_BYTES_DEFAULT, overflow: PinOverflow::Slow }
    }
}

/// What stays where it is for a follower that was offered a snapshot, until it has caught up.
#[derive(Debug)]
pub(super) struct Kept {
    pin: PinId,
    pub(super) snapshot: SnapshotId,
    /// Bytes of log behind S when it was offered. They are there for the older snapshot anyway, and after a start a
    /// segment counts as full: only what came on top is kept for the follower.
    bytes_before: u64,
    lost_at: Option<Time>,
}

impl Kept {
    /// When nothing is kept any more for a follower that is gone.
    pub fn lapses_at(&self) -> Option<Time> {
        self.lost_at.map(|lost_at| lost_at.after_ms(TRANSFER_RESUME_MS))
    }
}

/// What a follower that is catching up means for writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slowness {
    /// One request per connection in a window of time.
    Slowed,
    /// Writes are answered BUSY.
    Stopped,
}

impl Node {
    pub(super) fn keep_for(&mut self, index: usize, snapshot: SnapshotId) {
        self.keep_nothing_for(index);
        let pin = self.pin_log(snapshot.s);
        let bytes_before = self.pinned_bytes(pin);
        if let Some(leader) = self.leader_mut() {
            leader.peers[index].kept = Some(Kept { pin, snapshot, bytes_before, lost_at: None });
        }
    }

    pub(super) fn keep_nothing_for(&mut self, index: usize) {
        let kept = self.leader_mut().and_then(|leader| leader.peers[index].kept.take());
        if let Some(kept) = kept {
            self.unpin_log(kept.pin);
        }
    }

    /// Whether the file of a snapshot is needed by a transfer under way, or by one that may go on.
    pub(super) fn is_being_sent(&self, id: SnapshotId) -> bool {
        let needs = |peer: &Peer| {
            let arrived = matches!(peer.link, Link::Streaming(_));
            peer.kept.as_ref().is_some_and(|kept| kept.snapshot == id && !arrived)
        };
        self.backup_reads(id) || self.leader().is_some_and(|leader| leader.peers.iter().any(needs))
    }

    /// Who has caught up, is gone for long, or has too much kept for it.
    pub(super) fn watch_kept(&mut self, io: &mut dyn Io) {
        self.slowness = None;
        for index in 0..self.leader().map_or(0, |leader| leader.peers.len()) {
            let now = self.now;
            let Some(leader) = self.leader_mut() else { return };
            let peer = &mut leader.peers[index];
            let match_lsn = peer.progress.match_lsn();
            let is_back = peer.progress.in_sync() || !peer.votes() && peer.progress.keeps_up();
            let Some(kept) = &mut peer.kept else { continue };
            let pin = kept.pin;
            let caught_up = match &peer.link {
                Link::Streaming(stream) => {
                    kept.lost_at = None;
                    stream.behind.is_none() && is_back
                }
                Link::Sending(_) => {
                    kept.lost_at = None;
                    false
                }
                _ => {
                    let lost_at = *kept.lost_at.get_or_insert(now);
                    now >= lost_at.after_ms(TRANSFER_RESUME_MS)
                }
            };
            if caught_up {
                self.keep_nothing_for(index);
                continue;
            }
            if matches!(self.leader().map(|leader| &leader.peers[index].link), Some(Link::Streaming(_))) {
                self.move_pin(pin, match_lsn);
            }
            self.bound_kept(io, index, pin);
        }
    }

    /// Compares what is kept for a follower with its bound.
    fn bound_kept(&mut self, io: &mut dyn Io, index: usize, pin: PinId) {
        let PinConfig { log_bytes: bound, overflow } = self.config.pin;
        let pinned = self.pinned_bytes(pin);
        let Some(leader) = self.leader() else { return };
        let peer = &leader.peers[index];
        let pinned = pinned.saturating_sub(peer.kept.as_ref().map_or(0, |kept| kept.bytes_before));
        let (address, connected) = (peer.address.clone(), peer.conn().is_some());
        let half = bound / 2;
        let slow_from = match &peer.link {
            // As much of the second half as the follower has of the snapshot.
            Link::Sending(transfer) => half + half / 100 * transfer.percent(),
            _ => half,
        };
        if pinned <= slow_from {
            return;
        }
        if overflow == PinOverflow::Slow && connected {
            self.slowness = Some(if pinned > bound { Slowness::Stopped } else { Slowness::Slowed });
            return;
        }
        if pinned <= bound {
            return;
        }
        log_warn!(
            "replication",
            "{pinned} bytes of log were kept for follower {address}, which gets a snapshot: that is more than \
             --pin-log-bytes={bound}, and nothing is kept for it any more. It begins anew with a newer snapshot; raise \
             --pin-log-bytes, or let writers wait for it with --pin-overflow=slow"
        );
        self.counters.transfers_dropped += 1;
        let sending =
            matches!(&self.leader().map(|leader| &leader.peers[index].link), Some(Link::Sending(_)));
        self.keep_nothing_for(index);
        if sending {
            self.peer_refused(io, index, "its snapshot was dropped at --pin-log-bytes");
        }
    }

    /// The number of the window in which a client's connection gets one request, while writers are slowed.
    pub(super) fn slow_window(&self) -> Option<u64> {
        self.slowness.map(|_| self.now.0 / (SLOW_WINDOW_MS * 1_000_000))
    }

    /// When the next window begins.
    pub(super) fn slow_window_end(&self) -> Option<Time> {
        self.slow_window().map(|window| Time((window + 1) * SLOW_WINDOW_MS * 1_000_000))
    }

    /// Whether writes are refused until a follower has caught up.
    pub(super) fn is_stopped_by_pin(&self) -> bool {
        self.slowness == Some(Slowness::Stopped)
    }
}
