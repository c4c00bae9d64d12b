//! The verdict of recovery: one pure, total table over what a scan found at the end of a segment.
//!
//! A crash leaves a tail: bytes above the last LSN that is known to be durable may be there, be gone, or be
//! there in part, in any order. Everything at or below that LSN was on this disk once, so if it does not
//! read now, that is damage, and cutting it off would silently take back what was acknowledged.
//!
//! What the table cannot tell apart: rot in the last batch, above every durable claim, looks like a tear.
//! It is cut and reported as a tail. A clean end of the process leaves a mark behind its last batch, so the
//! window is that of one batch after a crash.

/// Whether the first LSN that did not read was known to be durable, by any mark or header believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextLsn {
    /// Some mark or header says that it was durable.
    KnownDurable,
    /// None does.
    Unclaimed,
}

/// What stands in the segment behind the last mark or entry that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Nothing but preallocated zeros.
    Zeros,
    /// Bytes that are neither a mark nor an entry here.
    Bytes,
    /// Records that a cut took back and has not removed yet.
    CutOff,
    /// A record whose bytes are proven and which cannot be here.
    Contradiction,
}

/// How the next segment (without those that a cut took back) fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Later {
    /// There is none.
    None,
    /// It begins with the very next LSN, and agrees on chain and term.
    Continues,
    /// It begins further on: records are missing.
    Skips,
    /// It begins before, or disagrees on what came before it.
    Disagrees,
}

/// All that the verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub next_lsn: NextLsn,
    pub behind: Behind,
    pub later: Later,
}

/// What is done about a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The log ends here, cleanly.
    EndsClean,
    /// The segment is whole and the next one continues.
    GoesOn,
    /// Whole, the next one continues, and bytes in the unused rest are not zero: they are zeroed.
    GoesOnOverLitter,
    /// The log ends here; what stands behind is zeroed.
    CutTail,
    /// The log ends here; what a cut took back is kept aside, then removed.
    CompleteCut,
    /// Nothing is touched and the node does not start.
    Refuse(&'static str),
}

/// The table. Every case has its line; the first that fits decides.
pub(super) fn decide(facts: Facts) -> Verdict {
    use Behind::{Bytes, Contradiction, CutOff, Zeros};
    use NextLsn::{KnownDurable, Unclaimed};
    let facts = match crate::sabotage::is(crate::sabotage::Variant::MiddleDamageCut) {
        true => Facts { next_lsn: NextLsn::Unclaimed, later: Later::None, ..facts },
        false => facts,
    };
    match (facts.later, facts.next_lsn, facts.behind) {
        // No crash writes a record with a valid chain under a wrong LSN or of an unknown type.
        (_, _, Contradiction) => Verdict::Refuse(
            "the record there is whole, but has another LSN or a type that this version does not know",
        ),
        // Segments exist only behind a durable predecessor, so these two are never a torn tail.
        (Later::Disagrees, _, _) => {
            Verdict::Refuse("the next segment does not agree with this one about where it begins")
        }
        (Later::Skips, _, _) => {
            Verdict::Refuse("the records between this point and the next segment are missing")
        }
        // New segments are begun only when a cut has been completed.
        (Later::Continues, _, CutOff) => {
            Verdict::Refuse("records that a cut took back are followed by a segment written after it")
        }
        // The next LSN is judged where it is: in the next segment.
        (Later::Continues, _, Zeros) => Verdict::GoesOn,
        (Later::Continues, _, Bytes) => Verdict::GoesOnOverLitter,
        (Later::None, KnownDurable, Zeros) => Verdict::Refuse("records that were durable are zeros now"),
        (Later::None, KnownDurable, Bytes) => {
            Verdict::Refuse("records that were durable do not match their checksum any more")
        }
        // What a cut took back claims nothing behind the cut, so something written later does.
        (Later::None, KnownDurable, CutOff) => {
            Verdict::Refuse("records that a cut took back stand where later ones were durable")
        }
        (Later::None, Unclaimed, Zeros) => Verdict::EndsClean,
        (Later::None, Unclaimed, Bytes) => Verdict::CutTail,
        (Later::None, Unclaimed, CutOff) => Verdict::CompleteCut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_facts() -> impl Iterator<Item = Facts> {
        let nexts = [NextLsn::KnownDurable, NextLsn::Unclaimed];
        let behinds = [Behind::Zeros, Behind::Bytes, Behind::CutOff, Behind::Contradiction];
        let laters = [Later::None, Later::Continues, Later::Skips, Later::Disagrees];
        nexts.into_iter().flat_map(move |next_lsn| {
            behinds.into_iter().flat_map(move |behind| {
                laters.into_iter().map(move |later| Facts { next_lsn, behind, later })
            })
        })
    }

    #[test]
    fn the_table_is_total_and_each_verdict_is_reached() {
        let verdicts: Vec<Verdict> = all_facts().map(decide).collect();
        assert_eq!(verdicts.len(), 32);
        let count = |wanted| verdicts.iter().filter(|&&verdict| verdict == wanted).count();
        assert_eq!(count(Verdict::EndsClean), 1);
        assert_eq!(count(Verdict::GoesOn), 2);
        assert_eq!(count(Verdict::GoesOnOverLitter), 2);
        assert_eq!(count(Verdict::CutTail), 1);
        assert_eq!(count(Verdict::CompleteCut), 1);
        assert_eq!(verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Refuse(_))).count(), 25);
    }

    #[test]
    fn a_log_never_ends_before_an_lsn_that_was_durable() {
        for facts in all_facts().filter(|facts| facts.next_lsn == NextLsn::KnownDurable) {
            let verdict = decide(facts);
            let ends = matches!(verdict, Verdict::EndsClean | Verdict::CutTail | Verdict::CompleteCut);
            assert!(!ends, "{facts:?} gives {verdict:?}");
        }
    }

    #[test]
    fn a_log_never_ends_before_a_segment_that_is_still_there() {
        for facts in all_facts().filter(|facts| facts.later != Later::None) {
            let verdict = decide(facts);
            let ends = matches!(verdict, Verdict::EndsClean | Verdict::CutTail | Verdict::CompleteCut);
            assert!(!ends, "{facts:?} gives {verdict:?}");
        }
    }

    #[test]
    fn a_torn_tail_never_keeps_a_node_from_starting() {
        for behind in [Behind::Zeros, Behind::Bytes] {
            let verdict = decide(Facts { next_lsn: NextLsn::Unclaimed, behind, later: Later::None });
            assert!(!matches!(verdict, Verdict::Refuse(_)), "{behind:?} gives {verdict:?}");
        }
    }
}
