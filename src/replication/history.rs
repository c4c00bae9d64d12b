//! The term history: a log summed up by where its terms begin.
//!
//! Within a term an LSN is assigned once and by one leader, so two logs that both hold a term agree as far
//! as both hold it. That makes the last LSN on which two logs agree (the *match LSN*) a matter of comparing
//! two short lists, and one chain checksum proves the comparison right.

use std::fmt;

use crate::ids::{Chain, Lsn, NodeId, Term};
use crate::limits::TERM_HISTORY_MAX;

/// Where a term begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermStart {
    /// The term.
    pub term: Term,
    /// Who leads in it.
    pub leader: NodeId,
    /// The LSN of its `TERM` record.
    pub first_lsn: Lsn,
    /// The chain checksum at that record.
    pub chain: Chain,
}

/// The terms of a log, oldest first. It reaches back further than the log, which may have lost its older segments,
/// and not always to the first term of all: only the newest [`TERM_HISTORY_MAX`] entries are kept.
///
/// Invariants: terms and first LSNs rise strictly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TermHistory {
    starts: Vec<TermStart>,
}

/// Two logs hold the same term, begun by the same leader at the same LSN, and differ in it all the same.
/// One of them is damaged; nothing may be cut on such evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The shared point.
    pub lsn: Lsn,
    /// The checksum here.
    pub mine: Chain,
    /// The checksum there.
    pub theirs: Chain,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Disagreement { lsn, mine, theirs } = self;
        write!(
            f,
            "chain checksums differ at shared LSN {lsn}: {mine} here, {theirs} there; one of the logs is damaged"
        )
    }
}

impl TermHistory {
    /// The history with these entries; `None` if terms or LSNs do not rise.
    pub fn from_starts(starts: Vec<TermStart>) -> Option<TermHistory> {
        let rising =
            |pair: &[TermStart]| pair[0].term < pair[1].term && pair[0].first_lsn < pair[1].first_lsn;
        let first_valid = starts.first().is_none_or(|start| start.first_lsn > Lsn::ZERO);
        (first_valid && starts.windows(2).all(rising)).then_some(TermHistory { starts })
    }

    /// The entries, oldest first.
    pub fn starts(&self) -> &[TermStart] {
        &self.starts
    }

    /// Whether `start` may be the next entry.
    pub fn accepts(&self, term: Term, first_lsn: Lsn) -> bool {
        self.starts.last().is_none_or(|last| last.term < term && last.first_lsn < first_lsn)
    }

    /// Adds the term that begins with a `TERM` record just appended.
    pub fn push(&mut self, start: TermStart) {
        assert!(
            self.accepts(start.term, start.first_lsn),
            "terms rise: {start:?} after {:?}",
            self.starts.last()
        );
        self.starts.push(start);
        self.trim(TERM_HISTORY_MAX);
    }

    /// Forgets all but the newest `max` entries. (At the limit that moves 10 MiB, 1 ms, per start of a leader.)
    pub fn trim(&mut self, max: usize) {
        self.starts.drain(..self.starts.len().saturating_sub(max));
    }

    /// Forgets what begins behind `keep`.
    pub fn cut(&mut self, keep: Lsn) {
        self.starts.retain(|start| start.first_lsn <= keep);
    }

    /// The term of the record at `lsn`, or `Term::ZERO` before every term.
    pub fn term_at(&self, lsn: Lsn) -> Term {
        let later = self.starts.partition_point(|start| start.first_lsn <= lsn);
        later.checked_sub(1).map_or(Term::ZERO, |index| self.starts[index].term)
    }

    /// The last entry.
    pub fn last(&self) -> Option<&TermStart> {
        self.starts.last()
    }

    /// The last LSN on which a log with this history that ends at `my_last` agrees with another one.
    ///
    /// The last entry that both have decides: a log that holds the first record of a term holds all that its leader
    /// held before, and the chain checksum there covers it. So the histories may begin at different points. Without a
    /// shared entry the answer is 0, which is never too much: the logs have nothing in common, or only what the
    /// older part of one history knew that was trimmed.
    pub fn match_lsn(
        &self,
        my_last: Lsn,
        theirs: &TermHistory,
        their_last: Lsn,
    ) -> Result<Lsn, Disagreement> {
        let Some((mine, other)) = self.last_shared(theirs) else { return Ok(Lsn::ZERO) };
        let (start, their_start) = (&self.starts[mine], &theirs.starts[other]);
        if start.chain != their_start.chain {
            return Err(Disagreement { lsn: start.first_lsn, mine: start.chain, theirs: their_start.chain });
        }
        Ok(self.end_of(mine, my_last).min(theirs.end_of(other, their_last)))
    }

    /// Where the last term stands that both hold, begun by the same leader at the same LSN: here, and there.
    fn last_shared(&self, theirs: &TermHistory) -> Option<(usize, usize)> {
        let (mut mine, mut other) = (self.starts.len(), theirs.starts.len());
        while let (Some(i), Some(j)) = (mine.checked_sub(1), other.checked_sub(1)) {
            let (a, b) = (&self.starts[i], &theirs.starts[j]);
            if (a.term, a.leader, a.first_lsn) == (b.term, b.leader, b.first_lsn) {
                return Some((i, j));
            }
            (mine, other) =
                (if a.term >= b.term { i } else { mine }, if b.term >= a.term { j } else { other });
        }
        None
    }

    fn end_of(&self, index: usize, last: Lsn) -> Lsn {
        self.starts.get(index + 1).map_or(last, |next| next.first_lsn.prev())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(term: u32, first_lsn: u64) -> TermStart {
        let term = Term { promotion: 0, start: term };
        TermStart { term, leader: NodeId([1; 16]), first_lsn: Lsn(first_lsn), chain: Chain(first_lsn as u32) }
    }

    fn history(starts: &[(u32, u64)]) -> TermHistory {
        TermHistory::from_starts(starts.iter().map(|&(term, lsn)| start(term, lsn)).collect()).unwrap()
    }

    #[test]
    fn equal_terms_match_as_far_as_both_hold_them() {
        let (short, long) = (history(&[(1, 1)]), history(&[(1, 1), (2, 8)]));
        assert_eq!(short.match_lsn(Lsn(5), &long, Lsn(20)), Ok(Lsn(5)));
        // The leader lost 8..10 of term 1 in a crash and began term 2 at 8.
        assert_eq!(short.match_lsn(Lsn(10), &long, Lsn(20)), Ok(Lsn(7)));
        assert_eq!(long.match_lsn(Lsn(20), &short, Lsn(10)), Ok(Lsn(7)));
    }

    #[test]
    fn an_empty_log_matches_at_zero() {
        assert_eq!(history(&[]).match_lsn(Lsn::ZERO, &history(&[(1, 1)]), Lsn(9)), Ok(Lsn::ZERO));
    }

    #[test]
    fn another_leader_in_the_same_term_ends_the_match() {
        let mut other = start(2, 8);
        other.leader = NodeId([2; 16]);
        let theirs = TermHistory::from_starts(vec![start(1, 1), other]).unwrap();
        assert_eq!(history(&[(1, 1), (2, 8)]).match_lsn(Lsn(9), &theirs, Lsn(9)), Ok(Lsn(7)));
    }

    #[test]
    fn differing_checksums_at_a_shared_point_are_reported() {
        let mut damaged = start(1, 1);
        damaged.chain = Chain(77);
        let theirs = TermHistory::from_starts(vec![damaged]).unwrap();
        let disagreement = history(&[(1, 1)]).match_lsn(Lsn(3), &theirs, Lsn(3)).unwrap_err();
        assert_eq!((disagreement.lsn, disagreement.theirs), (Lsn(1), Chain(77)));
    }

    #[test]
    fn term_of_an_lsn_is_the_nearest_start_at_or_below() {
        let history = history(&[(1, 1), (2, 8)]);
        let of = |lsn| history.term_at(Lsn(lsn)).start;
        assert_eq!([of(0), of(1), of(7), of(8), of(99)], [0, 1, 1, 2, 2]);
    }

    #[test]
    fn entries_that_do_not_rise_are_no_history() {
        assert_eq!(TermHistory::from_starts(vec![start(2, 1), start(1, 5)]), None);
        assert_eq!(TermHistory::from_starts(vec![start(1, 5), start(2, 5)]), None);
    }
}
