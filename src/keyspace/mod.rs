//! The state that the log describes: a map from keys to values in memory, changed by effects alone.
//!
//! Pure: no clock, no file, no randomness but the seed that is passed in. Two keyspaces that applied the same
//! records hold the same entries and have the same [`Keyspace::state_hash`], whatever their seeds and whatever
//! order changes of different keys came in; an effect never reads state to decide anything.
//!
//! An entry costs its bytes, 2 for the length of the key, up to 7 to the next multiple of 8, 8 for its slot and 11
//! to 22 in the index (above 2 KiB: what malloc adds, and 24). No change takes longer than its own bytes and one
//! bounded step of growth: neither the index nor the slots nor the entries ever move as a whole (see `index`, `slab`
//! and `arena`).
//!
//! On its way a lookup reads the directory and the lists of chunks (all small, so cached), one or two cache
//! lines of one table, one slot, and the entry: three reads that each wait for the one before. Whoever has
//! several records to apply lets those waits overlap ([`Keyspace::look_ahead`]). Hashes are SipHash-1-3 under a
//! secret seed, so nobody can choose keys that collide.
//!
//! Beside the entries stand the client sessions, a small table (see `sessions`).
//!
//! Left out on purpose: no expiry, no order of keys (nothing asks for ranges yet), and memory for slots, tables and
//! small entries is kept for later keys after a mass deletion, until [`Keyspace::clear`].

mod ahead;
mod arena;
mod boxed;
mod bulk;
mod check;
mod entry;
mod index;
mod sessions;
mod slab;
mod table;

pub use ahead::{AHEAD_MAX, Ahead};
pub use index::Growth;
pub use sessions::Sessions;

use siphasher::sip::SipHasher13;

use crate::ids::{Lsn, SessionId};
use crate::sabotage::{Variant, is};
use crate::wire::{Answer, ClientSession, Effect, Record};
use arena::PIECE_SIZE_MAX;
use check::Check;
use entry::Totals;
use index::{Index, TABLE_PLACES};
use slab::Slab;
use table::KeyHash;

/// What an effect met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Applied {
    /// Whether the key was there before. `false` for effects that name no key.
    pub existed: bool,
}

/// All entries of a node.
///
/// Invariants: every entry in the slab is in the index once, under the hash of its key, and nothing else is;
/// no key is there twice; the totals are those of the entries.
pub struct Keyspace {
    hasher: SipHasher13,
    index: Index,
    slab: Slab,
    totals: Totals,
    check: Check,
    sessions: Sessions,
    table_places: usize,
}

impl Keyspace {
    /// An empty keyspace. The seed should be drawn at random at each start and told to nobody; it has no
    /// influence on anything that two nodes compare.
    pub fn new(seed: [u64; 2]) -> Keyspace {
        Keyspace::with_table_places(seed, TABLE_PLACES)
    }

    /// With small tables a few hundred keys go through every step of growth.
    fn with_table_places(seed: [u64; 2], table_places: usize) -> Keyspace {
        Keyspace {
            hasher: SipHasher13::new_with_keys(seed[0], seed[1]),
            index: Index::new(table_places),
            slab: Slab::new(),
            totals: Totals::default(),
            check: Check::default(),
            sessions: Sessions::default(),
            table_places,
        }
    }

    /// Changes the state. Sizes were checked when the record was decoded or the request was taken.
    pub fn apply(&mut self, record: &Record<'_>) -> Applied {
        self.apply_hashed(record, self.hash_of(&record.effect))
    }

    fn apply_hashed(&mut self, record: &Record<'_>, hash: KeyHash) -> Applied {
        debug_assert_eq!(hash, self.hash_of(&record.effect), "the hash of another effect's key");
        let existed = match record.effect {
            Effect::Put { key, value } => self.put(hash, key, value),
            Effect::Delete { key } => self.delete(hash, key),
            Effect::Term { .. } | Effect::Members { .. } => false,
            Effect::PutNumbered { key, value, by } => {
                let existed = self.put(hash, key, value);
                self.sessions.executed(by, Answer { lsn: record.lsn, found: true });
                existed
            }
            Effect::DeleteNumbered { key, by } => {
                let existed = self.delete(hash, key);
                self.sessions.executed(by, Answer { lsn: record.lsn, found: existed });
                existed
            }
            Effect::Session { nonce } => {
                self.sessions.open(SessionId { lsn: record.lsn, nonce });
                false
            }
        };
        Applied { existed }
    }

    /// The client sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        // The value is taken out where keys are compared: no second way to the same entry.
        let mut value = None;
        self.index.find(self.hash(key), |slot| {
            value = self.slab.get(slot).and_then(|entry| entry::value_of(entry, key));
            value.is_some()
        });
        value
    }

    /// Keys.
    pub fn len(&self) -> u64 {
        self.totals.entries
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all keys and values.
    pub fn data_bytes(&self) -> u64 {
        self.totals.data_bytes
    }

    /// Bytes held for them and for keys to come: entries, slots, index, what malloc adds. Takes no time: it is kept,
    /// not counted.
    pub fn memory_bytes(&self) -> u64 {
        self.slab.memory_bytes() + self.index.memory_bytes() + self.sessions.memory_bytes()
    }

    /// A hash of all entries and client sessions: the wrapping sum of the XXH3-128 of each. Equal states have equal
    /// hashes on all nodes; unequal ones differ but by a chance of 2^-128. (It finds faults, not forgers.)
    pub fn state_hash(&self) -> u128 {
        self.with_sessions(self.totals.hash, self.sessions.hash())
    }

    /// [`Keyspace::state_hash`], computed anew from every entry and session.
    pub fn recompute_hash(&self) -> u128 {
        self.with_sessions(self.recompute_totals().hash, self.sessions.recompute_hash())
    }

    fn with_sessions(&self, entries: u128, sessions: u128) -> u128 {
        if is(Variant::SessionsNotHashed) { entries } else { entries.wrapping_add(sessions) }
    }

    /// Slots there are. Entries stay where they are, so a scan of all slots that lets changes happen in between
    /// meets every entry that lives through all of it exactly once. Slots may be added meanwhile, at the end.
    pub fn slot_count(&self) -> u32 {
        self.slab.slot_count()
    }

    /// Key and value of the entry in a slot; `None` if it holds none.
    pub fn entry(&self, slot: u32) -> Option<(&[u8], &[u8])> {
        self.slab.get(slot).map(entry::decode)
    }

    /// Makes an empty keyspace ready for so many entries of so many bytes together: its index as large as they need, in
    /// one step as long as its memory, and one piece of memory for all of them. For loads, not between requests.
    /// Without it the index splits its way there, and writes every element about twice, and each page is a fault.
    pub fn reserve(&mut self, entries: u64, bytes: u64) {
        if !self.is_empty() {
            return;
        }
        self.index = Index::with_room_for(entries, self.table_places);
        // Larger entries go elsewhere: the room for them would be none of theirs.
        let are_small = bytes / entries.max(1) <= PIECE_SIZE_MAX as u64;
        self.slab.reserve(if are_small { bytes } else { 0 });
    }

    /// Puts entries, in order. Faster than one by one: the index lines of all of them are asked for before the first
    /// is needed, so that the processor waits for many cache misses at once. A few hundred entries are a good number.
    pub fn load<'a>(&mut self, entries: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone) {
        let hashes: Vec<KeyHash> = entries.clone().map(|(key, _)| self.hash(key)).collect();
        self.index.touch(&hashes);
        for ((key, value), hash) in entries.zip(hashes) {
            self.put(hash, key, value);
        }
    }

    /// Takes client sessions from a snapshot whose scan ended at `e`: they are as they were there.
    pub fn load_sessions(&mut self, e: Lsn, sessions: impl Iterator<Item = ClientSession>) {
        sessions.for_each(|session| self.sessions.load(e, session));
    }

    /// Forgets every entry and session, and gives its memory back, one by one: for rebuilds, not between requests.
    pub fn clear(&mut self) {
        self.index = Index::new(self.table_places);
        self.slab = Slab::new();
        self.totals = Totals::default();
        self.check = Check::default();
        self.sessions = Sessions::default();
    }

    /// How the index grew and stands.
    pub fn growth(&self) -> Growth {
        self.index.growth()
    }

    /// Panics unless everything fits together. Visits every entry: for tests.
    pub fn invariants(&self) {
        self.slab.invariants();
        self.index.invariants();
        self.sessions.invariants();
        assert_eq!(self.totals, self.recompute_totals(), "totals kept and computed anew");
        let mut indexed = vec![false; self.slot_count() as usize];
        for (hash, slot) in self.index.elements() {
            let (key, _) = self.entry(slot).expect("the index names slots in use");
            assert_eq!(hash, self.hash(key), "slot {slot} stands under the hash of another key");
            assert_eq!(self.find(hash, key), Some(slot), "the key of slot {slot} is there twice");
            assert!(!std::mem::replace(&mut indexed[slot as usize], true), "slot {slot} is indexed twice");
        }
        let indexed_count = indexed.iter().filter(|&&indexed| indexed).count() as u64;
        assert_eq!(indexed_count, self.len(), "an entry is not in the index");
    }

    fn put(&mut self, hash: KeyHash, key: &[u8], value: &[u8]) -> bool {
        if let Some(slot) = self.find(hash, key) {
            self.count_out(slot);
            self.slab.replace(slot, key, value);
            self.count_in(slot);
            return true;
        }
        let slot = self.slab.insert(key, value);
        self.count_in(slot);
        self.index.insert(hash, slot);
        false
    }

    fn delete(&mut self, hash: KeyHash, key: &[u8]) -> bool {
        let Some(slot) = self.find(hash, key) else { return false };
        self.index.remove(hash, slot);
        self.count_out(slot);
        self.slab.remove(slot);
        true
    }

    /// The entry that has just been written into a slot counts from now on.
    #[inline]
    fn count_in(&mut self, slot: u32) {
        let hash = self.totals.add(self.slab.used(slot));
        self.check.on_added(slot, hash);
    }

    /// The entry in a slot, as it lies there now, counts no longer.
    #[inline]
    fn count_out(&mut self, slot: u32) {
        let hash = self.totals.take_away(self.slab.used(slot));
        self.check.on_taken(slot, hash);
    }

    fn find(&self, hash: KeyHash, key: &[u8]) -> Option<u32> {
        let is_key = |slot| self.slab.get(slot).is_some_and(|entry| entry::value_of(entry, key).is_some());
        self.index.find(hash, is_key)
    }

    fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash((self.hasher.hash(key) >> 32) as u32)
    }

    /// The hash of the key that an effect changes.
    fn hash_of(&self, effect: &Effect<'_>) -> KeyHash {
        match effect {
            Effect::Put { key, .. }
            | Effect::Delete { key }
            | Effect::PutNumbered { key, .. }
            | Effect::DeleteNumbered { key, .. } => self.hash(key),
            Effect::Term { .. } | Effect::Session { .. } | Effect::Members { .. } => KeyHash(0),
        }
    }

    fn recompute_totals(&self) -> Totals {
        let mut totals = Totals::default();
        for (_, entry) in self.slab.entries() {
            totals.add(entry);
        }
        totals
    }
}

#[cfg(test)]
mod tests;
