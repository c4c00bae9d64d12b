//! The bytes of one entry: `[key_len u16][key][value]`, in one heap allocation of exactly that size.
//!
//! The length stands in front of the key rather than in the slab's slot: a lookup reads the key's cache line
//! anyway, a slot stays at 16 bytes instead of 24, and the bytes as they lie there are the unambiguous
//! encoding that the state hash is taken over, so that hashing an entry copies nothing.

use xxhash_rust::xxh3::xxh3_128;

use crate::limits::KEY_SIZE_MAX;

/// Bytes in front of the key.
const PREFIX_SIZE: usize = 2;

const _: () = assert!(KEY_SIZE_MAX <= u16::MAX as usize, "the prefix holds the length of every key");

/// The entry's bytes.
pub(super) fn encode(key: &[u8], value: &[u8]) -> Box<[u8]> {
    let key_len = u16::try_from(key.len()).expect("a record's key was checked against KEY_SIZE_MAX");
    // The capacity is exact, so turning the vector into a box does not move it.
    let mut bytes = Vec::with_capacity(PREFIX_SIZE + key.len() + value.len());
    bytes.extend_from_slice(&key_len.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    bytes.into_boxed_slice()
}

/// Key and value of an entry.
pub(super) fn decode(entry: &[u8]) -> (&[u8], &[u8]) {
    entry[PREFIX_SIZE..].split_at(key_len(entry))
}

/// The value of an entry if it is this key's.
pub(super) fn value_of<'a>(entry: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let (own_key, value) = decode(entry);
    (own_key == key).then_some(value)
}

/// Puts another value of the same size into an entry; `false`, and nothing is changed, if the sizes differ.
pub(super) fn overwrite(entry: &mut [u8], value: &[u8]) -> bool {
    let value_at = PREFIX_SIZE + key_len(entry);
    if entry.len() - value_at != value.len() {
        return false;
    }
    entry[value_at..].copy_from_slice(value);
    true
}

/// What an entry adds to the totals of a keyspace. All of it is a sum, so that the order of changes leaves no
/// trace and what was added can be taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Entries.
    pub entries: u64,
    /// Bytes of keys and values.
    pub data_bytes: u64,
    /// Bytes the allocator hands out for them.
    pub heap_bytes: u64,
    /// Wrapping sum of the entries' XXH3-128.
    pub hash: u128,
}

impl Totals {
    pub(super) fn add(&mut self, entry: &[u8]) {
        self.entries += 1;
        self.data_bytes += data_size(entry);
        self.heap_bytes += heap_size(entry);
        self.hash = self.hash.wrapping_add(xxh3_128(entry));
    }

    pub(super) fn take_away(&mut self, entry: &[u8]) {
        self.entries -= 1;
        self.data_bytes -= data_size(entry);
        self.heap_bytes -= heap_size(entry);
        self.hash = self.hash.wrapping_sub(xxh3_128(entry));
    }
}

fn key_len(entry: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([entry[0], entry[1]]))
}

fn data_size(entry: &[u8]) -> u64 {
    (entry.len() - PREFIX_SIZE) as u64
}

/// What malloc takes for an entry: 64-bit glibc puts 8 bytes in front, rounds up to 16 and gives at least 32.
/// (From 128 KiB on it may map whole pages; a page more or less does not show there.)
fn heap_size(entry: &[u8]) -> u64 {
    (entry.len() as u64 + 8).next_multiple_of(16).max(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_between_key_and_value_is_part_of_the_hash() {
        let sum_of = |pairs: &[(&[u8], &[u8])]| {
            let mut totals = Totals::default();
            pairs.iter().for_each(|(key, value)| totals.add(&encode(key, value)));
            totals.hash
        };
        assert_ne!(sum_of(&[(b"ab", b"c")]), sum_of(&[(b"a", b"bc")]));
        assert_ne!(sum_of(&[(b"a", b"1"), (b"b", b"2")]), sum_of(&[(b"a", b"2"), (b"b", b"1")]));
        assert_eq!(sum_of(&[(b"a", b"1"), (b"b", b"2")]), sum_of(&[(b"b", b"2"), (b"a", b"1")]));
    }

    #[test]
    fn the_largest_key_and_the_empty_value_survive() {
        let key = vec![0xff; KEY_SIZE_MAX];
        let entry = encode(&key, b"");
        assert_eq!(decode(&entry), (&key[..], &b""[..]));
        assert_eq!(value_of(&entry, &key), Some(&b""[..]));
        assert_eq!(value_of(&entry, &key[1..]), None);
    }

    #[test]
    fn only_a_value_of_the_same_size_is_written_in_place() {
        let mut entry = encode(b"key", b"old");
        assert!(!overwrite(&mut entry, b"longer"));
        assert_eq!(decode(&entry), (&b"key"[..], &b"old"[..]));
        assert!(overwrite(&mut entry, b"new"));
        assert_eq!(decode(&entry), (&b"key"[..], &b"new"[..]));
    }

    #[test]
    fn totals_return_to_zero() {
        let mut totals = Totals::default();
        let entries = [encode(b"a", b"1"), encode(b"bb", &[7; 1000])];
        entries.iter().for_each(|entry| totals.add(entry));
        assert_eq!((totals.entries, totals.data_bytes, totals.heap_bytes), (2, 1004, 32 + 1024));
        entries.iter().for_each(|entry| totals.take_away(entry));
        assert_eq!(totals, Totals::default());
    }
}
