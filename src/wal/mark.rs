//! The mark: the first bytes of every batch, local to this node and outside of the record chain.
//!
//! ```text
//!  0  crc32         u32   over salt, first LSN of the segment and byte offset, then bytes 4..48
//!  4  length        u32   0x8000_0000 | 40
//!  8  durable LSN   u64   known to be on this disk when the batch was written
//! 16  commit LSN    u64   known to be committed then
//! 24  generation    u64   of the log
//! 32  next LSN      u64   of the first record behind the mark
//! 40  chain         u32   before that record
//! 44  entry bytes   u32   of the batch; an entry further on belongs to none
//! ```
//!
//! The durable LSN is what recovery judges damage by, so a false one is dear: too low and damage is taken for
//! a torn tail. Therefore the checksum begins with the segment's salt, which no client is ever told, and with
//! the mark's own place: bytes that a client put into a value, or that a disk put elsewhere, are no mark.
//!
//! A mark stays true for as long as its generation lasts: what it calls durable was durable, and is taken
//! back only by a cut, which begins a new generation.

use crate::ids::{Chain, Lsn};
use crate::wire::Reader;

/// Bytes of a mark.
pub const MARK_SIZE: usize = 48;
/// The bit in a length field that tells a mark from an entry. Records are far smaller than 2^31 bytes.
pub(super) const MARK_BIT: u32 = 0x8000_0000;
/// The length field of a mark.
pub(super) const MARK_LENGTH: u32 = MARK_BIT | (MARK_SIZE as u32 - 8);

/// What the checksums of a segment's marks begin with.
#[derive(Clone, Copy, Debug)]
pub(super) struct MarkSeed {
    pub salt: u64,
    pub first_lsn: Lsn,
}

/// What a batch says about the log before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub durable_lsn: Lsn,
    pub commit_lsn: Lsn,
    pub generation: u64,
    pub next_lsn: Lsn,
    pub chain: Chain,
    pub entry_bytes: u32,
}

impl MarkSeed {
    fn crc(&self, offset: u64, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for word in [self.salt, self.first_lsn.0, offset] {
            hasher.update(&word.to_be_bytes());
        }
        hasher.update(bytes);
        hasher.finalize()
    }
}

impl Mark {
    /// The bytes of the mark as they must be at `offset` of the segment. On the stack: one is written per batch.
    pub fn encode(&self, seed: MarkSeed, offset: u64) -> [u8; MARK_SIZE] {
        let mut out = [0; MARK_SIZE];
        out[4..8].copy_from_slice(&MARK_LENGTH.to_be_bytes());
        let words = [self.durable_lsn.0, self.commit_lsn.0, self.generation, self.next_lsn.0];
        for (field, word) in out[8..40].chunks_exact_mut(8).zip(words) {
            field.copy_from_slice(&word.to_be_bytes());
        }
        out[40..44].copy_from_slice(&self.chain.0.to_be_bytes());
        out[44..].copy_from_slice(&self.entry_bytes.to_be_bytes());
        let crc = seed.crc(offset, &out[4..]);
        out[..4].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// The mark at `offset` of the segment, if these [`MARK_SIZE`] bytes are one.
    pub fn decode(bytes: &[u8], seed: MarkSeed, offset: u64) -> Option<Mark> {
        let mut reader = Reader::new(bytes);
        let crc = reader.u32("crc").ok()?;
        let length = reader.u32("length").ok()?;
        if length != MARK_LENGTH || bytes.len() != MARK_SIZE || seed.crc(offset, &bytes[4..]) != crc {
            return None;
        }
        let mark = Mark {
            durable_lsn: Lsn(reader.u64("durable LSN").ok()?),
            commit_lsn: Lsn(reader.u64("commit LSN").ok()?),
            generation: reader.u64("generation").ok()?,
            next_lsn: Lsn(reader.u64("next LSN").ok()?),
            chain: Chain(reader.u32("chain").ok()?),
            entry_bytes: reader.u32("entry bytes").ok()?,
        };
        let believable = mark.durable_lsn < mark.next_lsn
            || crate::sabotage::is(crate::sabotage::Variant::MarkClaimsTooMuch);
        believable.then_some(mark)
    }
}

/// How far marks and headers of each generation are believed.
///
/// What an older generation knew to be durable behind the cut that ended it was taken back by that cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claims {
    pub generation: u64,
    pub cut_lsn: Lsn,
}

impl Claims {
    /// How much of `lsn`, said in `generation`, still holds.
    pub fn believe(&self, generation: u64, lsn: Lsn) -> Lsn {
        if generation == self.generation { lsn } else { lsn.min(self.cut_lsn) }
    }

    /// Whether a record at `lsn`, written in `generation`, was cut off since.
    pub fn was_cut(&self, generation: u64, lsn: Lsn) -> bool {
        generation < self.generation && lsn > self.cut_lsn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: MarkSeed = MarkSeed { salt: 0x1234_5678_9abc_def0, first_lsn: Lsn(5) };

    fn mark() -> Mark {
        let (durable_lsn, commit_lsn, next_lsn) = (Lsn(7), Lsn(6), Lsn(9));
        Mark { durable_lsn, commit_lsn, generation: 3, next_lsn, chain: Chain(11), entry_bytes: 70 }
    }

    fn encoded() -> Vec<u8> {
        mark().encode(SEED, 4096).to_vec()
    }

    #[test]
    fn a_mark_is_read_at_its_own_place_and_nowhere_else() {
        assert_eq!(encoded().len(), MARK_SIZE);
        assert_eq!(Mark::decode(&encoded(), SEED, 4096), Some(mark()));
        assert_eq!(Mark::decode(&encoded(), SEED, 4097), None);
        let other_segment = MarkSeed { first_lsn: Lsn(6), ..SEED };
        assert_eq!(Mark::decode(&encoded(), other_segment, 4096), None);
        let forged = MarkSeed { salt: 0, ..SEED };
        assert_eq!(Mark::decode(&encoded(), forged, 4096), None);
    }

    #[test]
    fn every_flipped_bit_of_a_mark_is_noticed() {
        for bit in 0..MARK_SIZE * 8 {
            let mut bytes = encoded();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&bytes, SEED, 4096), None, "bit {bit}");
        }
    }

    #[test]
    fn an_older_generation_is_believed_up_to_the_cut() {
        let claims = Claims { generation: 4, cut_lsn: Lsn(10) };
        assert_eq!(claims.believe(4, Lsn(15)), Lsn(15));
        assert_eq!(claims.believe(3, Lsn(15)), Lsn(10));
        assert!(claims.was_cut(3, Lsn(11)) && !claims.was_cut(3, Lsn(10)) && !claims.was_cut(4, Lsn(11)));
    }
}
