//! The bytes of one entry: `[key_len u16][key][value]`, in one piece.
//!
//! The length stands in front of the key rather than in the slab's slot: a lookup reads the key's cache line
//! anyway, a slot stays at 8 bytes instead of 16, and the bytes as they lie there are the unambiguous
//! encoding that the state hash is taken over, so that hashing an entry copies nothing.

use xxhash_rust::xxh3::xxh3_128;

use crate::limits::KEY_SIZE_MAX;

/// Bytes in front of the key.
const PREFIX_SIZE: usize = 2;

const _: () = assert!(KEY_SIZE_MAX <= u16::MAX as usize, "the prefix holds the length of every key");

/// Bytes that an entry takes.
pub(super) fn size(key: &[u8], value: &[u8]) -> usize {
    PREFIX_SIZE + key.len() + value.len()
}

/// The entry's bytes, in an allocation of their own.
pub(super) fn encode(key: &[u8], value: &[u8]) -> Box<[u8]> {
    // The capacity is exact, so turning the vector into a box does not move it.
    let mut bytes = Vec::with_capacity(size(key, value));
    bytes.extend_from_slice(&key_prefix(key));
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    bytes.into_boxed_slice()
}

/// The entry's bytes, where there is room for exactly so many.
pub(super) fn encode_into(out: &mut [u8], key: &[u8], value: &[u8]) {
    let (prefix, rest) = out.split_at_mut(PREFIX_SIZE);
    prefix.copy_from_slice(&key_prefix(key));
    let (key_out, value_out) = rest.split_at_mut(key.len());
    key_out.copy_from_slice(key);
    value_out.copy_from_slice(value);
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

/// Puts another value of the same size into an entry.
pub(super) fn overwrite(entry: &mut [u8], value: &[u8]) {
    let value_at = PREFIX_SIZE + key_len(entry);
    entry[value_at..].copy_from_slice(value);
}

/// The bytes behind the length of the key.
pub(super) fn data_mut(entry: &mut [u8]) -> &mut [u8] {
    &mut entry[PREFIX_SIZE..]
}

/// What an entry adds to the totals of a keyspace. All of it is a sum, so that the order of changes leaves no
/// trace and what was added can be taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Entries.
    pub entries: u64,
    /// Bytes of keys and values.
    pub data_bytes: u64,
    /// Wrapping sum of the entries' XXH3-128.
    pub hash: u128,
}

impl Totals {
    /// Returns what was added to the hash.
    #[inline]
    pub(super) fn add(&mut self, entry: &[u8]) -> u128 {
        let hash = xxh3_128(entry);
        self.entries += 1;
        self.data_bytes += data_size(entry);
        self.hash = self.hash.wrapping_add(hash);
        hash
    }

    /// Returns what was taken from the hash.
    #[inline]
    pub(super) fn take_away(&mut self, entry: &[u8]) -> u128 {
        let hash = xxh3_128(entry);
        self.entries -= 1;
        self.data_bytes -= data_size(entry);
        self.hash = self.hash.wrapping_sub(hash);
        hash
    }
}

fn key_len(entry: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([entry[0], entry[1]]))
}

fn key_prefix(key: &[u8]) -> [u8; PREFIX_SIZE] {
    u16::try_from(key.len()).expect("a record's key was checked against KEY_SIZE_MAX").to_be_bytes()
}

fn data_size(entry: &[u8]) -> u64 {
    (entry.len() - PREFIX_SIZE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_between_key_and_value_is_part_of_the_hash() {
        let sum_of = |pairs: &[(&[u8], &[u8])]| {
            let mut totals = Totals::default();
            for (key, value) in pairs {
                totals.add(&encode(key, value));
            }
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
    fn both_ways_of_writing_an_entry_write_the_same() {
        for (key, value) in [(&b"key"[..], &b"value"[..]), (b"k", b"")] {
            let mut bytes = vec![0xee; size(key, value)];
            encode_into(&mut bytes, key, value);
            assert_eq!(bytes, *encode(key, value));
        }
    }

    #[test]
    fn totals_return_to_zero() {
        let mut totals = Totals::default();
        let entries = [encode(b"a", b"1"), encode(b"bb", &[7; 1000])];
        let added: Vec<u128> = entries.iter().map(|entry| totals.add(entry)).collect();
        assert_eq!((totals.entries, totals.data_bytes), (2, 1004));
        let taken: Vec<u128> = entries.iter().map(|entry| totals.take_away(entry)).collect();
        assert_eq!(added, taken);
        assert_eq!(totals, Totals::default());
    }
}
