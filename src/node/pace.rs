//! How much of a turn the making of a snapshot, or of a copy for the archive, may take, and how fast it may write.
//!
//! Under load a slice takes a share of what the turn took, so that a snapshot costs throughput a tenth and no request
//! a noticeable wait. While nobody asks for anything it takes 2 ms at a time, and the loop does not sleep. A client
//! that waits for each answer leaves turns without work between its requests: only when nothing came for
//! [`SNAPSHOT_IDLE_AFTER_MS`] the node counts as idle.
//!
//! Bytes are counted too: the writeback of what was written is begun at once and nobody waits for it, so writing
//! faster than the disk takes it would pile up until the next `fdatasync` pays for all.

use crate::limits::{
    SNAPSHOT_IDLE_AFTER_MS, SNAPSHOT_RATE_IDLE, SNAPSHOT_RATE_LOADED, SNAPSHOT_SLICE_IDLE_US,
    SNAPSHOT_SLICE_LOADED_US, SNAPSHOT_TURN_SHARE, SNAPSHOT_WRITE_SIZE,
};
use crate::time::Time;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Pace {
    /// Time that may be used, in nanoseconds: below zero after a step that took longer than it should.
    credit_ns: i64,
    /// Bytes that may be written. A write may begin above zero.
    bytes: i64,
    filled_at: Time,
    last_work: Time,
    rate: u64,
    hurries: bool,
}

impl Pace {
    /// The pace of a snapshot that begins now, on a node that had work at `last_work`.
    pub fn new(now: Time, last_work: Time) -> Pace {
        Pace { credit_ns: 0, bytes: 1, filled_at: now, last_work, rate: SNAPSHOT_RATE_LOADED, hurries: false }
    }

    /// A turn that took so long ends. Returns how long the slice may take now.
    pub fn slice_ns(&mut self, now: Time, turn_ns: u64, had_work: bool) -> u64 {
        if had_work {
            self.last_work = now;
        }
        let is_idle = self.is_idle(now);
        self.fill(now, is_idle);
        if is_idle {
            return SNAPSHOT_SLICE_IDLE_US * 1_000;
        }
        if had_work {
            let most = (SNAPSHOT_SLICE_LOADED_US * 1_000) as i64;
            // At least something, so that a snapshot ends however short the turns are.
            let share = (turn_ns / SNAPSHOT_TURN_SHARE).clamp(1_000, most as u64) as i64;
            self.credit_ns = (self.credit_ns + share).min(most);
        }
        u64::try_from(self.credit_ns).unwrap_or(0)
    }

    /// Whether bytes may be written under load as fast as without: what is behind must not fall further behind.
    pub fn hurry(&mut self, hurries: bool) {
        self.hurries = hurries;
    }

    /// A slice took so long.
    pub fn used_ns(&mut self, now: Time, ns: u64) {
        if !self.is_idle(now) {
            self.credit_ns = self.credit_ns.saturating_sub_unsigned(ns);
        }
    }

    /// Whether bytes may be written now.
    pub fn may_write(&self) -> bool {
        self.bytes > 0
    }

    /// So many were.
    pub fn wrote(&mut self, bytes: usize) {
        self.bytes -= bytes as i64;
    }

    /// When a slice may do something, if no request comes earlier.
    pub fn due(&self, now: Time) -> Time {
        let idle_at = self.last_work.after_ms(SNAPSHOT_IDLE_AFTER_MS);
        let short_by = u64::try_from(1 - self.bytes).unwrap_or(0);
        let bytes_at = Time(self.filled_at.0 + short_by.saturating_mul(1_000_000_000).div_ceil(self.rate));
        now.max(idle_at).max(if self.may_write() { now } else { bytes_at })
    }

    fn is_idle(&self, now: Time) -> bool {
        now >= self.last_work.after_ms(SNAPSHOT_IDLE_AFTER_MS)
    }

    fn fill(&mut self, now: Time, is_idle: bool) {
        let is_fast = is_idle || self.hurries;
        self.rate = if is_fast { SNAPSHOT_RATE_IDLE } else { SNAPSHOT_RATE_LOADED };
        let more = u128::from(now.since(self.filled_at)) * u128::from(self.rate) / 1_000_000_000;
        // What little time brings in is not lost: it is counted when it makes a byte.
        if more > 0 {
            let most = 2 * SNAPSHOT_WRITE_SIZE as i64;
            self.bytes = self.bytes.saturating_add(i64::try_from(more).unwrap_or(most)).min(most);
            self.filled_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_load_a_slice_is_a_tenth_of_the_turn_and_200_us_at_most() {
        let mut pace = Pace::new(Time(0), Time(0));
        assert_eq!(pace.slice_ns(Time(1), 100_000, true), 10_000);
        pace.used_ns(Time(1), 60_000);
        assert_eq!(pace.slice_ns(Time(2), 100_000, true), 0, "a slice that took too long is paid back first");
        assert_eq!(pace.slice_ns(Time(3), 90_000_000, true), SNAPSHOT_SLICE_LOADED_US * 1_000 - 40_000);
        assert_eq!(pace.slice_ns(Time(4), 90_000_000, true), SNAPSHOT_SLICE_LOADED_US * 1_000);
    }

    #[test]
    fn a_node_is_idle_only_after_a_while_without_work() {
        let mut pace = Pace::new(Time(0), Time(0));
        assert_eq!(pace.slice_ns(Time(1), 50_000, false), 0);
        assert_eq!(pace.due(Time(1)), Time(0).after_ms(SNAPSHOT_IDLE_AFTER_MS));
        let later = Time(0).after_ms(SNAPSHOT_IDLE_AFTER_MS);
        assert_eq!(pace.slice_ns(later, 50_000, false), SNAPSHOT_SLICE_IDLE_US * 1_000);
        assert_eq!(pace.due(later), later, "an idle loop does not sleep meanwhile");
    }

    #[test]
    fn bytes_come_with_time_and_a_writer_waits_for_them() {
        let mut pace = Pace::new(Time(0), Time(0));
        pace.wrote(SNAPSHOT_WRITE_SIZE);
        assert!(!pace.may_write());
        let due = pace.due(Time(1));
        assert!(due > Time(1).after_ms(4) && due < Time(1).after_ms(30), "{due:?}");
        let _slice_ns = pace.slice_ns(due, 0, false);
        assert!(pace.may_write());
    }
}
