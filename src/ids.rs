//! The small numbers everything else is about: log sequence numbers, terms, chain checksums and identities.
//!
//! They are newtypes so that an LSN cannot be passed where a term is meant. None of them knows how it
//! is stored or sent; `wire` and `wal` do.

use std::fmt;

/// A log sequence number. The first record of a log has LSN 1; `Lsn::ZERO` means "before every record".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position before the first record.
    pub const ZERO: Lsn = Lsn(0);

    /// The LSN after this one.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0.checked_add(1).expect("the LSN space of 2^64 is exhausted"))
    }

    /// The LSN before this one; `Lsn::ZERO` has none.
    #[must_use]
    pub fn prev(self) -> Lsn {
        Lsn(self.0.checked_sub(1).expect("LSN 0 has no predecessor"))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A term: a promotion (later an election) raises the high half and zeroes the low one, a fixed leader's
/// restart raises the low one. So no number of restarts outranks a promotion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// How often leadership was given by a promotion.
    pub promotion: u32,
    /// How often the leader of this promotion was started again.
    pub start: u32,
}

impl Term {
    /// The term before every leader.
    pub const ZERO: Term = Term { promotion: 0, start: 0 };

    /// The term as the u64 that is stored and sent.
    pub fn as_u64(self) -> u64 {
        (u64::from(self.promotion) << 32) | u64::from(self.start)
    }

    /// The term of a stored or received u64.
    pub fn from_u64(raw: u64) -> Term {
        Term { promotion: (raw >> 32) as u32, start: raw as u32 }
    }

    /// The term a fixed leader takes when it starts. `None` after 2^32 - 1 starts of one promotion.
    pub fn restarted(self) -> Option<Term> {
        Some(Term { promotion: self.promotion, start: self.start.checked_add(1)? })
    }

    /// The term a promotion takes above this one. `None` after 2^32 - 1 promotions.
    pub fn promoted(self) -> Option<Term> {
        Some(Term { promotion: self.promotion.checked_add(1)?, start: 0 })
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.promotion, self.start)
    }
}

/// The chain checksum at an LSN: CRC-32 over the bytes of every record up to and including it.
/// Two equal logs have equal chain checksums at every LSN. The chain before LSN 1 is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chain(pub u32);

impl Chain {
    /// The chain before the first record.
    pub const ZERO: Chain = Chain(0);

    /// The chain after one more record.
    #[must_use]
    pub fn extend(self, record_bytes: &[u8]) -> Chain {
        let before = match crate::sabotage::is(crate::sabotage::Variant::ChecksumNotChained) {
            true => 0,
            false => self.0,
        };
        let mut hasher = crc32fast::Hasher::new_with_initial(before);
        hasher.update(record_bytes);
        Chain(hasher.finalize())
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A client's session: the LSN of the record that opened it, and a number drawn by the leader that wrote that record.
/// The log alone would do as long as an LSN is given out once. Where it is not (a forced promotion gives up records
/// that were told), the number keeps a client of the old history out of a session of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Where it was opened.
    pub lsn: Lsn,
    /// Tells two sessions of one LSN apart. It is no secret.
    pub nonce: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.lsn, self.nonce)
    }
}

/// The place of a write in its client's session, as records carry it: within one log the LSN names the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteNumber {
    /// Where the session was opened.
    pub session: Lsn,
    /// 1, 2, 3, ... within the session.
    pub number: u64,
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Not set yet.
            pub const NONE: $name = $name([0; 16]);

            /// Whether the id is still to be set.
            pub fn is_none(self) -> bool {
                self == Self::NONE
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

random_id!(
    /// The identity of a cluster: drawn by its first leader, adopted once by an empty follower.
    ClusterId
);
random_id!(
    /// The identity of a node: drawn at random with its data directory, never derived from an address.
    NodeId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_restarts_outranks_a_promotion() {
        let restarted_often = Term { promotion: 3, start: u32::MAX };
        assert_eq!(restarted_often.restarted(), None);
        assert!(restarted_often.promoted().unwrap() > restarted_often);
        assert_eq!(Term::from_u64(restarted_often.as_u64()), restarted_often);
    }

    #[test]
    fn the_chain_depends_on_every_record_before() {
        let split = Chain::ZERO.extend(b"first").extend(b"second");
        assert_ne!(split, Chain::ZERO.extend(b"second"));
        assert_ne!(split, Chain::ZERO.extend(b"second").extend(b"first"));
    }
}
