//! Which part of the log is kept although a snapshot covers it, and the removal of the rest.
//!
//! Segments go that lie wholly at or below S of the *older* of the two kept snapshots: should the newest turn out to
//! be damaged, the older one and more log have the same state (the order is that of `snapshot`: a segment goes only
//! after the newer one is durable, name and content). What stays besides:
//!
//! - what a connected follower has not acknowledged, as long as it is not further behind than `--retain-log-bytes`;
//! - what is *pinned*: everything behind an LSN, until whoever pinned it lets go;
//! - what waits for the archive, up to `--archive-log-bytes` (`archive`).
//!
//! One segment goes per turn, [`SPACING_MS`] apart: each costs a sync of the directory.

use super::leader::Link;
use super::{FatalReason, Node};
use crate::ids::Lsn;
use crate::limits::SNAPSHOTS_KEPT;
use crate::log_info;
use crate::time::Time;

/// Milliseconds between two removals.
const SPACING_MS: u64 = 20;

/// Names a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinId(u64);

/// Parts of the log that somebody needs.
#[derive(Debug, Default)]
pub struct Pins {
    next_id: u64,
    /// Each keeps what is behind its LSN.
    pins: Vec<(PinId, Lsn)>,
}

impl Pins {
    fn lowest(&self) -> Option<Lsn> {
        self.pins.iter().map(|(_, lsn)| *lsn).min()
    }
}

/// When segments go.
#[derive(Debug, Default)]
pub(super) struct Removal {
    /// Whether there may be something to remove.
    pub due: bool,
    pub next_at: Time,
}

impl Node {
    /// Keeps the records behind `lsn` in the log until the pin is moved or taken out.
    pub fn pin_log(&mut self, lsn: Lsn) -> PinId {
        let id = PinId(self.pins.next_id);
        self.pins.next_id += 1;
        self.pins.pins.push((id, lsn));
        id
    }

    /// The records up to `lsn` are not needed any more by this pin. It never moves back.
    pub fn move_pin(&mut self, id: PinId, lsn: Lsn) {
        let pin = self.pins.pins.iter_mut().find(|(known, _)| *known == id);
        if let Some((_, pinned)) = pin.filter(|(_, pinned)| *pinned < lsn) {
            *pinned = lsn;
            self.removal.due = true;
        }
    }

    /// The pin is not needed any more.
    pub fn unpin_log(&mut self, id: PinId) {
        self.pins.pins.retain(|(known, _)| *known != id);
        self.removal.due = true;
    }

    /// Bytes of log that a pin keeps; 0 if there is no such pin.
    pub fn pinned_bytes(&self, id: PinId) -> u64 {
        let pin = self.pins.pins.iter().find(|(known, _)| *known == id);
        pin.map_or(0, |(_, lsn)| self.wal.log_bytes_from(lsn.next()))
    }

    /// The LSN up to which whole segments may go; `None`: none may.
    fn removal_limit(&self) -> Option<Lsn> {
        let early = crate::sabotage::is(crate::sabotage::Variant::RemovalBeforePublish);
        let limit = match self.snapshots.unpublished_s().filter(|_| early) {
            Some(s) => s,
            None => self.snapshots.kept().get(SNAPSHOTS_KEPT - 1)?.id.s,
        };
        let pinned = self.pins.lowest().unwrap_or(limit);
        Some(self.needed_by_followers(limit).min(pinned))
    }

    /// As much of `limit` as connected followers have acknowledged.
    fn needed_by_followers(&self, limit: Lsn) -> Lsn {
        let peers = self.leader().map_or(&[][..], |leader| &leader.peers);
        let connected = peers.iter().filter(|peer| matches!(peer.link, Link::Streaming(_)));
        let is_near =
            |lsn: &Lsn| self.wal.log_bytes_from(lsn.next()) <= self.config.snapshot.retain_log_bytes;
        let lagging = connected.map(|peer| peer.progress.match_lsn()).filter(|lsn| *lsn < limit);
        lagging.filter(is_near).min().unwrap_or(limit)
    }

    /// Removes one segment, if one may go.
    pub(super) fn removal_step(&mut self) -> Result<(), FatalReason> {
        if !self.removal.due || self.now < self.removal.next_at {
            return Ok(());
        }
        let Some(limit) = self.removal_limit().map(|limit| self.archived_of(limit)) else {
            self.removal.due = false;
            return Ok(());
        };
        let removed = self.wal.remove_before(self.disk.as_mut(), limit, 1)?;
        self.removal.due = !removed.is_empty();
        self.removal.next_at = self.now.after_ms(SPACING_MS);
        for name in removed {
            self.counters.segments_removed += 1;
            log_info!("wal", "removed {name}; the log begins at LSN {} now", self.wal.first_lsn());
        }
        Ok(())
    }

    pub(super) fn removal_deadline(&self) -> Option<Time> {
        self.removal.due.then_some(self.removal.next_at)
    }
}
