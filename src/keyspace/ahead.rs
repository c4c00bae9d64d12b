//! Looking ahead: the memory that a group of records will touch, fetched for all of them at once.
//!
//! To find a key is to read a line of the index, then a slot, then the entry, and each read needs the one
//! before. With 100,000 keys hardly any of them is in a processor's own cache. Three nodes on two processors
//! spent half of their time in those three reads, 230 ns in each, at 800 writes in flight.
//!
//! Reads for *different* keys do not wait for each other. So a group is walked once for each kind of read, in
//! loops so short that a processor that executes out of order has ten and more of them under way. What is read
//! here is thrown away: applying a record looks its key up as ever, in memory that is near by then. So nothing
//! depends on it, whatever the records before it in the group do to the index.
//!
//! Prefetch instructions would do the same without filling the reorder buffer, but are `unsafe` to call.

use super::table::KeyHash;
use super::{Applied, Keyspace};
use crate::wire::Record;

/// Records of a group, at most: more than a processor has reads under way, and few enough that the first
/// entry is still in its first-level cache (48 KiB) when the last one arrives.
pub const AHEAD_MAX: usize = 32;

/// Bytes of a cache line.
const LINE_SIZE: usize = 64;

/// Cache lines of an entry that are fetched. Where more follow, the processor sees that they are read in order.
const LINES_MAX: usize = 4;

/// A group of records whose keys are hashed and whose memory is near.
#[derive(Debug)]
pub struct Ahead<'r> {
    records: &'r [Record<'r>],
    hashes: [KeyHash; AHEAD_MAX],
}

impl Keyspace {
    /// Fetches what applying these records will touch. They are at most [`AHEAD_MAX`].
    pub fn look_ahead<'r>(&self, records: &'r [Record<'r>]) -> Ahead<'r> {
        assert!(records.len() <= AHEAD_MAX, "a group of {} records", records.len());
        let mut hashes = [KeyHash(0); AHEAD_MAX];
        for (hash, record) in hashes.iter_mut().zip(records) {
            *hash = self.hash_of(&record.effect);
        }
        // One record has nothing to overlap with: its reads are those of its own lookup.
        if records.len() > 1 {
            self.fetch(&hashes[..records.len()]);
        }
        Ahead { records, hashes }
    }

    /// Applies the n-th record of a group that this keyspace looked ahead for.
    pub fn apply_ahead(&mut self, ahead: &Ahead<'_>, index: usize) -> Applied {
        self.apply_hashed(&ahead.records[index], ahead.hashes[index])
    }

    fn fetch(&self, hashes: &[KeyHash]) {
        self.index.touch(hashes);
        let mut slots = [None; AHEAD_MAX];
        for (slot, hash) in slots.iter_mut().zip(hashes) {
            // Any slot under this hash will do: the key itself is not compared, it is not here yet.
            *slot = self.index.find(*hash, |_| true);
        }
        let mut entries: [&[u8]; AHEAD_MAX] = [&[]; AHEAD_MAX];
        for (entry, slot) in entries.iter_mut().zip(slots.into_iter().flatten()) {
            *entry = self.slab.get(slot).unwrap_or_default();
        }
        // What `black_box` is given the compiler must read, although nobody wants it.
        // A byte of every cache line, the one of the end too: an entry begins anywhere in its first line.
        let lines = entries.iter().take(hashes.len()).map(|entry| {
            let starts = entry.iter().step_by(LINE_SIZE).take(LINES_MAX);
            starts.fold(entry.last().copied().unwrap_or(0), |sum, byte| sum ^ byte)
        });
        std::hint::black_box(lines.fold(0, |sum, byte| sum ^ byte));
    }
}
