//! When a read may be answered.

use super::quorum_clock::QuorumClock;
use crate::ids::Lsn;
use crate::sabotage::{Variant, is};
use crate::time::Time;

/// How reads are made linearizable, or that they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// At once while the lease holds, else like `Quorum`.
    Lease,
    /// When a majority has echoed a frame that was sent after the read came.
    Quorum,
    /// From what this node has applied, on any node: may be stale.
    Local,
}

impl ReadMode {
    /// Every mode.
    pub const ALL: [ReadMode; 3] = [ReadMode::Lease, ReadMode::Quorum, ReadMode::Local];

    /// The mode of this word.
    pub fn from_name(name: &str) -> Option<ReadMode> {
        ReadMode::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// The flag's word.
    pub fn name(self) -> &'static str {
        match self {
            ReadMode::Lease => "lease",
            ReadMode::Quorum => "quorum",
            ReadMode::Local => "local",
        }
    }
}

/// What a linearizable read on a leader waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVerdict {
    /// Nothing.
    Now,
    /// The leader's own `TERM` record is not committed and applied: what those before it committed is not known.
    AfterTermRecord,
    /// A majority must echo a frame that is sent from now on.
    AfterRound,
}

/// Decides about a read that came at `arrived`. Both readings of the clock were made after the request was read from
/// its socket, so that a pause before it is in both; `applied` is what is applied and committed here.
pub fn judge(
    mode: ReadMode,
    (arrived, now): (Time, Time),
    quorum: &QuorumClock,
    (term_lsn, applied): (Lsn, Lsn),
) -> ReadVerdict {
    if mode == ReadMode::Local {
        return ReadVerdict::Now;
    }
    if applied < term_lsn && !is(Variant::ReadBeforeTermRecord) {
        return ReadVerdict::AfterTermRecord;
    }
    let by_lease = mode == ReadMode::Lease && quorum.lease_holds(now);
    let by_round = quorum.majority_since(now).is_some_and(|since| since >= arrived);
    if by_lease || by_round { ReadVerdict::Now } else { ReadVerdict::AfterRound }
}

#[cfg(test)]
mod tests {
    use super::super::timing::ElectionTiming;
    use super::*;

    const MS: u64 = 1_000_000;

    fn leader_heard_at(sent_ms: u64) -> QuorumClock {
        let mut quorum = QuorumClock::new(ElectionTiming::from_ms(500), Time(0), 2);
        quorum.sent(0, 1, Time(sent_ms * MS));
        quorum.echoed(0, 1);
        quorum
    }

    fn judged(mode: ReadMode, arrived_ms: u64, now_ms: u64) -> ReadVerdict {
        let times = (Time(arrived_ms * MS), Time(now_ms * MS));
        judge(mode, times, &leader_heard_at(1_000), (Lsn(5), Lsn(5)))
    }

    #[test]
    fn a_read_is_answered_within_the_lease_or_after_a_round_that_began_later() {
        assert_eq!(judged(ReadMode::Lease, 1_100, 1_449), ReadVerdict::Now);
        assert_eq!(judged(ReadMode::Lease, 1_100, 1_450), ReadVerdict::AfterRound);
        assert_eq!(judged(ReadMode::Quorum, 1_001, 1_002), ReadVerdict::AfterRound);
        assert_eq!(judged(ReadMode::Quorum, 1_000, 1_002), ReadVerdict::Now);
        assert_eq!(
            judged(ReadMode::Lease, 900, 9_000),
            ReadVerdict::Now,
            "the round proves it without a lease"
        );
    }

    #[test]
    fn no_lease_and_no_round_answers_before_the_term_record_is_applied() {
        let quorum = leader_heard_at(1_000);
        for mode in [ReadMode::Lease, ReadMode::Quorum] {
            let verdict = judge(mode, (Time(900 * MS), Time(1_001 * MS)), &quorum, (Lsn(5), Lsn(4)));
            assert_eq!(verdict, ReadVerdict::AfterTermRecord);
        }
        let local = judge(ReadMode::Local, (Time(0), Time(9_000 * MS)), &quorum, (Lsn(5), Lsn(4)));
        assert_eq!(local, ReadVerdict::Now);
    }

    #[test]
    fn a_lease_that_was_given_up_answers_nothing_but_a_round_does() {
        let mut quorum = leader_heard_at(1_000);
        quorum.give_up_lease();
        let at = |arrived_ms| {
            let times = (Time(arrived_ms * MS), Time(1_101 * MS));
            judge(ReadMode::Lease, times, &quorum, (Lsn(5), Lsn(5)))
        };
        assert_eq!((at(1_100), at(1_000)), (ReadVerdict::AfterRound, ReadVerdict::Now));
    }
}
