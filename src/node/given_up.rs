//! Up to where closed segments may go without a copy in the archive: see `archive`.
//!
//! An LSN alone does not say that: behind a cut, and where a snapshot has replaced the log, the same LSNs are other
//! records, which nobody gave up. So it counts in the log of one generation only.

use crate::ids::Lsn;

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GivenUp {
    generation: u64,
    lsn: Lsn,
}

impl GivenUp {
    /// Everything up to `lsn`, in the log of this generation.
    pub fn in_log(generation: u64, lsn: Lsn) -> GivenUp {
        GivenUp { generation, lsn }
    }

    /// The last LSN given up of the log of this generation.
    pub fn of_log(self, generation: u64) -> Lsn {
        if self.generation == generation { self.lsn } else { Lsn::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise a log that a snapshot has put in the place of another loses segments without a copy or a word.
    #[test]
    fn what_was_given_up_of_one_log_is_not_given_up_of_the_next() {
        let given_up = GivenUp::in_log(4, Lsn(302));
        assert_eq!(given_up.of_log(4), Lsn(302));
        assert_eq!((given_up.of_log(5), given_up.of_log(3)), (Lsn::ZERO, Lsn::ZERO));
    }
}
