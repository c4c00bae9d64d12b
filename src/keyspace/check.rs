//! The state hash recomputed from every entry, while changes go on: whether the entries in memory are those that
//! were applied.
//!
//! The hash of a state is kept, not computed: a change takes its old entry out of the sum and puts the new one in. So
//! a bit that flips in an entry changes no hash by itself. It shows once somebody reads that entry's bytes again: the
//! change that overwrites it takes something out that was never put in, and from then on the sum is another than on
//! every other node; or a check that visits all slots, this one.
//!
//! A check takes long, and the node serves meanwhile. So the sum is split in two: what the slots visited so far hold,
//! and the *rest*, which is the sum of all at the beginning. A visit takes its entry's hash out of the rest; a change
//! of a slot that is still to be visited changes the rest as it changes the sum, one of a visited slot does not. Both
//! parts are exact at every moment, so at the end, when nothing is left to visit, the rest is zero. If it is not, then
//! some entry is not what was put there, with a chance of 2^-128 to the contrary. No entry is missed or counted twice:
//! entries do not move, and slots are only added behind.
//!
//! One case is left to the next check: a bit that flips behind the visit of its slot. A change costs one comparison
//! more, of its slot with the first one that was not visited.

use xxhash_rust::xxh3::xxh3_128;

use super::{Keyspace, entry};
use crate::ids::SessionId;
use crate::sabotage::{Variant, is};

/// Behind every slot: nothing is to be visited. Never the number of a slot.
const NO_SLOT: u32 = u32::MAX;

/// A check under way, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    /// The first slot that was not visited.
    next: u32,
    /// The wrapping sum of what the slots from there on should hold.
    rest: u128,
}

impl Default for Check {
    fn default() -> Check {
        Check { next: NO_SLOT, rest: 0 }
    }
}

impl Check {
    #[inline]
    pub(super) fn on_added(&mut self, slot: u32, hash: u128) {
        if slot >= self.next {
            self.rest = self.rest.wrapping_add(hash);
        }
    }

    #[inline]
    pub(super) fn on_taken(&mut self, slot: u32, hash: u128) {
        if slot >= self.next {
            self.rest = self.rest.wrapping_sub(hash);
        }
    }
}

impl Keyspace {
    /// Begins a check, in the place of one under way. It visits the entries; client sessions are few, and its end looks
    /// at all of them.
    pub fn begin_check(&mut self) {
        self.check = Check { next: 0, rest: self.totals.hash };
    }

    /// The slot to visit next; `None` if all were visited, or if no check is under way.
    pub fn next_to_check(&self) -> Option<u32> {
        (self.check.next < self.slot_count()).then_some(self.check.next)
    }

    /// Visits the next slot. Returns key and value of the entry there, if there is one.
    pub fn check_next(&mut self) -> Option<(&[u8], &[u8])> {
        let slot = self.next_to_check().expect("who visits a slot has looked whether there is one");
        self.check.next += 1;
        let entry = self.slab.get(slot)?;
        self.check.rest = self.check.rest.wrapping_sub(xxh3_128(entry));
        Some(entry::decode(entry))
    }

    /// Ends the check, every slot of which was visited: whether entries and client sessions are those that the hash was
    /// kept of. The 4,096 sessions that there may be are 2 MiB to hash, about a third of a millisecond.
    pub fn end_check(&mut self) -> bool {
        assert!(self.check.next == self.slot_count(), "slot {} was not visited", self.check.next);
        let sessions = is(Variant::SessionsNotHashed) || self.sessions.is_as_applied();
        std::mem::take(&mut self.check).rest == 0 && sessions
    }

    /// Flips a bit of a key's entry, counted from the first of the key on, behind the keyspace's back, as a fault of
    /// the memory would: for tests. False: there is no such key.
    pub fn flip_bit(&mut self, key: &[u8], bit: usize) -> bool {
        let Some(slot) = self.find(self.hash(key), key) else { return false };
        let data = entry::data_mut(self.slab.used_mut(slot));
        let bit = bit % (data.len() * 8);
        data[bit / 8] ^= 1 << (bit % 8);
        true
    }

    /// Flips a bit of what a numbered write of this session was answered, counted from the oldest answer that is
    /// remembered, as [`Keyspace::flip_bit`] does with an entry: for tests. False: there is no such answer.
    pub fn flip_answer(&mut self, session: SessionId, index: usize) -> bool {
        self.sessions.flip_answer(session, index)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::*;
    use crate::ids::{Lsn, WriteNumber};
    use crate::wire::{Effect, Record};

    fn apply(keyspace: &mut Keyspace, effect: Effect<'_>) {
        let _applied = keyspace.apply(&Record { lsn: Lsn(1), effect });
    }

    fn put(keyspace: &mut Keyspace, key: u64, value: u64) {
        apply(keyspace, Effect::Put { key: &key.to_be_bytes(), value: &value.to_be_bytes() });
    }

    fn filled(keys: u64) -> Keyspace {
        let mut keyspace = Keyspace::new([1, 2]);
        (0..keys).for_each(|key| put(&mut keyspace, key, key));
        keyspace
    }

    /// Runs a check with `between` before every visit, and returns its result.
    fn checked(keyspace: &mut Keyspace, mut between: impl FnMut(&mut Keyspace, u32)) -> bool {
        keyspace.begin_check();
        while let Some(slot) = keyspace.next_to_check() {
            between(keyspace, slot);
            keyspace.check_next();
        }
        keyspace.end_check()
    }

    #[test]
    fn a_check_is_exact_whatever_changes_meanwhile() {
        let mut random = numbers();
        for round in 0..20 {
            let mut keyspace = filled(700);
            let good = checked(&mut keyspace, |keyspace, _| {
                for _ in 0..random(4) {
                    let key = random(3_000) as u64;
                    match random(3) {
                        0 => {
                            apply(keyspace, Effect::Delete { key: &key.to_be_bytes() });
                        }
                        _ => put(keyspace, key, random(1_000_000) as u64),
                    }
                }
            });
            assert!(good, "round {round}");
            assert!(keyspace.slot_count() > 1_024, "slots were added behind the check");
            keyspace.invariants();
        }
    }

    #[test]
    fn a_flipped_bit_that_stays_is_found_by_the_first_check_that_visits_it() {
        for slot in [0u64, 1, 350, 699] {
            let mut keyspace = filled(700);
            assert!(checked(&mut keyspace, |_, _| ()));
            assert!(keyspace.flip_bit(&slot.to_be_bytes(), 77));
            assert!(!checked(&mut keyspace, |_, _| ()), "slot {slot}");
        }
    }

    #[test]
    fn a_flipped_bit_that_is_overwritten_before_the_visit_is_found_and_for_good() {
        let mut keyspace = filled(700);
        assert!(keyspace.flip_bit(&500u64.to_be_bytes(), 64));
        put(&mut keyspace, 500, 1);
        let other = {
            let mut other = filled(700);
            put(&mut other, 500, 1);
            other.state_hash()
        };
        assert_ne!(
            keyspace.state_hash(),
            other,
            "the kept hash differs from that of a node without the fault"
        );
        assert_eq!(keyspace.recompute_hash(), other, "although the entries are equal again");
        assert!(!checked(&mut keyspace, |_, _| ()));
        assert!(!checked(&mut keyspace, |_, _| ()), "a check repairs nothing");
    }

    #[test]
    fn a_bit_that_flips_while_a_check_runs_is_found_by_it_or_by_the_next() {
        for (flipped, visited) in [(100, 99), (100, 100), (100, 101)] {
            let mut keyspace = filled(700);
            let good = checked(&mut keyspace, |keyspace, slot| {
                if slot == visited {
                    assert!(keyspace.flip_bit(&u64::from(flipped).to_be_bytes(), 3));
                }
            });
            assert_eq!(good, flipped < visited, "slot {flipped} when {visited} was next");
            assert!(!checked(&mut keyspace, |_, _| ()));
        }
    }

    #[test]
    fn a_flipped_answer_is_found_by_the_first_check_and_for_good_once_its_session_is_used() {
        let by = |number| WriteNumber { session: Lsn(1), number };
        let used = || {
            let mut keyspace = Keyspace::new([1, 2]);
            let effects = [
                Effect::Session { nonce: 7 },
                Effect::PutNumbered { key: b"k", value: b"v", by: by(1) },
                Effect::DeleteNumbered { key: b"gone", by: by(2) },
            ];
            for (effect, lsn) in effects.into_iter().zip(1..) {
                let _applied = keyspace.apply(&Record { lsn: Lsn(lsn), effect });
            }
            keyspace
        };
        let id = SessionId { lsn: Lsn(1), nonce: 7 };
        for answer in [0, 1] {
            let mut keyspace = used();
            assert!(checked(&mut keyspace, |_, _| ()));
            assert!(keyspace.flip_answer(id, answer));
            assert!(!checked(&mut keyspace, |_, _| ()), "answer {answer}");
            let mut other = used();
            for keyspace in [&mut keyspace, &mut other] {
                let effect = Effect::PutNumbered { key: b"k", value: b"w", by: by(3) };
                let _applied = keyspace.apply(&Record { lsn: Lsn(4), effect });
            }
            assert_ne!(keyspace.state_hash(), other.state_hash(), "it shows on other nodes");
            assert!(!checked(&mut keyspace, |_, _| ()), "and here");
        }
        assert!(!used().flip_answer(id, 2));
    }

    #[test]
    fn an_empty_keyspace_is_checked_at_once_and_a_cleared_one_has_no_check_under_way() {
        let mut keyspace = Keyspace::new([1, 2]);
        assert!(checked(&mut keyspace, |_, _| panic!("there is nothing to visit")));
        let mut keyspace = filled(10);
        keyspace.begin_check();
        keyspace.clear();
        assert_eq!(keyspace.next_to_check(), None);
    }
}
