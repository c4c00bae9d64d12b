//! What the clients of a run did, and what they were told.
//!
//! Every value is written once, so a value names its write. Keys are fresh every [`EPOCH_NS`]: the history of one key
//! is short enough for a search over all its orders, and begins with nothing.

/// After so long the clients go on to new keys.
pub const EPOCH_NS: u64 = 200_000_000;
/// Keys of an epoch: few, so that several clients are at one key at the same time.
pub const SLOTS: u64 = 16;

/// A key: its epoch and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub u64);

impl Key {
    /// The key of that epoch and slot.
    pub fn of(epoch: u64, slot: u64) -> Key {
        Key(epoch * SLOTS + slot)
    }

    /// Its bytes at the node.
    pub fn bytes(self) -> Vec<u8> {
        format!("failover-{}-{}", self.0 / SLOTS, self.0 % SLOTS).into_bytes()
    }
}

/// What was asked, and what the answer told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A write of this value.
    Put(u64),
    /// A removal; whether there was something, if that was told.
    Delete(Option<bool>),
    /// A read: the value, or that there is none.
    Get(Option<u64>),
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was answered at this time, at this LSN, in this term.
    Answered { at: u64, lsn: u64, term: u64 },
    /// Nobody knows whether it was executed.
    Unknown,
    /// The cluster said that it was not executed.
    Refused,
}

/// One call of one client. Times are nanoseconds since the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Whose. A client makes one call at a time.
    pub client: usize,
    /// On which key.
    pub key: Key,
    /// What.
    pub what: What,
    /// When it began.
    pub from: u64,
    /// How it ended.
    pub end: End,
}

impl Call {
    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self.what, What::Get(_))
    }

    /// When the answer came, and its LSN.
    pub fn answered(&self) -> Option<(u64, u64)> {
        match self.end {
            End::Answered { at, lsn, .. } => Some((at, lsn)),
            End::Unknown | End::Refused => None,
        }
    }
}

/// A value as it is stored: 64 bytes, of which the first 16 are its number.
pub fn value_bytes(value: u64) -> Vec<u8> {
    format!("{value:016x}{:048}", 0).into_bytes()
}

/// The number of a stored value; `None` for bytes that no client of a run wrote.
pub fn value_of(bytes: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(bytes.get(..16)?).ok()?;
    let value = u64::from_str_radix(digits, 16).ok()?;
    (value_bytes(value) == bytes).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_what_is_damaged_does_not() {
        for value in [0, 7, u64::MAX] {
            assert_eq!(value_of(&value_bytes(value)), Some(value));
        }
        let mut bytes = value_bytes(7);
        bytes[40] = b'x';
        assert_eq!(value_of(&bytes), None);
        assert_eq!(value_of(b""), None);
    }
}
