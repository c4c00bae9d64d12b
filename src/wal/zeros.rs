//! Zeros ahead of the log: bytes of a file that were written before become durable sooner than those that were only
//! allocated (`disk::blocks` has the numbers), so somebody should write them first.
//!
//! - Zeros are written behind the end of the active segment alone, from the next whole block on, and into the spare
//!   file, which holds nothing yet. What they overwrite reads as zeros already, so nothing waits for them and no crash
//!   shows whether they were written. If they cannot be, it is the append's business to fail there.
//! - A busy log has them written a step per turn, as it comes near: [`ZEROS_AHEAD`] bytes in front of its end, and the
//!   spare file, which is begun when the segment is half full, twice as fast as the second half fills. An idle one has
//!   the rest of both written. A log that is faster than that runs on into allocated space, and is slower there.
//! - What a restart finds in its active segment is not known to be written: it is written again behind the end.
//!
//! Without syncs ([`Durability::Os`]) it would all be for nothing, and nothing is done.

use crate::disk::{BLOCK_SIZE, Disk};
use crate::limits::{ZEROS_AHEAD, ZEROS_PER_TURN};

use super::{Durability, Wal};

/// Up to which byte of a file zeros were written ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Zeros(u64);

impl Zeros {
    /// The disk has no use for them.
    const UNWANTED: Zeros = Zeros(u64::MAX);
}

impl Wal {
    /// Whether an idle node should call [`Wal::write_zeros`].
    pub fn wants_zeros(&self) -> bool {
        self.next_zeros(true).is_some()
    }

    /// Writes some zeros ahead, if the log wants them now. `idle`: whatever is left.
    pub fn write_zeros(&mut self, disk: &mut dyn Disk, idle: bool) {
        let Some((target, offset, len)) = self.next_zeros(idle) else { return };
        let (file, zeros) = match (target, &mut self.spare) {
            (Target::Active, _) => (self.active.expect("it has an end"), &mut self.zeros),
            (Target::Spare, spare) => {
                let spare = spare.as_mut().expect("it was looked at");
                (spare.file, &mut spare.zeros)
            }
        };
        *zeros = if disk.zero_ahead(file, offset, len) { Zeros(offset + len) } else { Zeros::UNWANTED };
    }

    /// Which bytes are to be zeroed next.
    fn next_zeros(&self, idle: bool) -> Option<(Target, u64, u64)> {
        let segment = self.segments.last().filter(|_| self.config.durability == Durability::Fsync)?;
        let block = BLOCK_SIZE as u64;
        let whole = |bytes: u64| bytes - bytes % block;
        let step = |from: u64, to: u64, size: u64| {
            let to = to.min(whole(size));
            (from < to).then(|| (from, ZEROS_PER_TURN.min(whole(size) - from)))
        };
        let want = if idle { segment.size } else { segment.end + ZEROS_AHEAD };
        let behind = match crate::sabotage::is(crate::sabotage::Variant::ZerosOverTheLog) {
            true => whole(segment.end),
            false => segment.end.next_multiple_of(block),
        };
        let from = self.zeros.0.max(behind);
        if let Some((offset, len)) = step(from, want, segment.size) {
            return Some((Target::Active, offset, len));
        }
        let spare = self.spare?;
        let filled = segment.end.saturating_sub(segment.size / 2).saturating_mul(2);
        let want = if idle { spare.bytes } else { filled + ZEROS_AHEAD };
        let (offset, len) = step(spare.zeros.0, want, spare.bytes)?;
        Some((Target::Spare, offset, len))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Active,
    Spare,
}
