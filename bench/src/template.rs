//! Requests that are built once and only patched afterwards: a copy and sixteen digits per operation.

/// Bytes of every key.
pub const KEY_SIZE: usize = 16;
/// Different keys, at most: what the digits of a key can count.
pub const KEYS_MAX: u64 = 1_000_000_000_000;

const KEY_PREFIX: &[u8; 4] = b"key:";

/// The bytes of a key.
pub fn key(index: u64) -> [u8; KEY_SIZE] {
    let mut key = [b'0'; KEY_SIZE];
    key[..KEY_PREFIX.len()].copy_from_slice(KEY_PREFIX);
    write_digits(&mut key[KEY_PREFIX.len()..], index);
    key
}

/// A value that does not compress away, the same at every run.
pub fn value(size: usize) -> Vec<u8> {
    let mut random = Random::new(1);
    (0..size).map(|_| b'!' + (random.below(90)) as u8).collect()
}

fn write_digits(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// A request with a place for the key.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    digits_at: usize,
}

impl Template {
    /// Takes a request that was built for [`key`] of 0, which must be in it once.
    pub fn new(bytes: Vec<u8>) -> Template {
        let placeholder = key(0);
        let found = bytes.windows(KEY_SIZE).position(|window| window == placeholder);
        let key_at = found.expect("the request was built for the placeholder key");
        Template { bytes, digits_at: key_at + KEY_PREFIX.len() }
    }

    /// Appends the request for a key; returns where it starts.
    pub fn append(&self, out: &mut Vec<u8>, key_index: u64) -> usize {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let digits = start + self.digits_at;
        write_digits(&mut out[digits..digits + KEY_SIZE - KEY_PREFIX.len()], key_index);
        start
    }
}

/// xorshift64*: three shifts and a multiplication, so that drawing a key is no part of what is measured.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for every seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`. (The bias of the multiplication is limit / 2^32 at most, or none.)
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((u128::from(bits) * u128::from(limit)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_becomes_the_request_for_any_key() {
        let build = |key: &[u8]| [b"<", key, b"> value"].concat();
        let template = Template::new(build(&key(0)));
        let mut out = b"earlier".to_vec();
        assert_eq!(template.append(&mut out, 987_654), 7);
        assert_eq!(out[7..], build(b"key:000000987654"));
    }

    #[test]
    fn keys_are_drawn_evenly() {
        let mut random = Random::new(7);
        let mut seen = [0u32; 10];
        (0..100_000).for_each(|_| seen[random.below(10) as usize] += 1);
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
    }
}
