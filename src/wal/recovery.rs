//! The verdict of recovery: one pure, total table over what a scan found at the end of a segment.
//!
//! A crash leaves a tail: bytes above the last LSN that is known to be durable may be there, be gone, or be
//! there in part, in any order. Everything at or below that LSN was on this disk once, so if it does not
//! read now, that is damage, and cutting it off would silently take back what was acknowledged.
//!
//! The base of the log, behind which it begins, is judged as if it were a segment that ends there: either the next
//! segment continues it, or the log is empty, or something is missing. A segment that begins below the base must
//! reach it and agree with it. See `start`.
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

/// How what is judged lies to the base of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtBase {
    /// It is the base itself, taken for a segment that ends there, and the node's own record says that the log
    /// begins behind it.
    Installed,
    /// It is the base itself, and the node's own record says no such thing: the log goes on from further below.
    Chosen,
    /// A segment that begins behind the base.
    Behind,
    /// A segment that begins at or below the base and agrees with it.
    Agrees,
    /// What the log, or the node's own record, says of the base is something else.
    Differs,
    /// A segment that begins at or below the base and ends before it.
    NotReached,
}

/// All that the verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub base: AtBase,
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
    /// The snapshot that the log should continue is not believed. Nothing is touched; another one may fit.
    DisbelieveBase,
    /// Nothing is touched and the node does not start.
    Refuse(&'static str),
}

/// The table. Every case has its line; the first that fits decides.
pub(super) fn decide(facts: Facts) -> Verdict {
    use AtBase::{Chosen, Differs, Installed, NotReached};
    use Behind::{Bytes, Contradiction, CutOff, Zeros};
    use NextLsn::{KnownDurable, Unclaimed};
    let facts = match crate::sabotage::is(crate::sabotage::Variant::MiddleDamageCut) {
        true => Facts { next_lsn: NextLsn::Unclaimed, later: Later::None, ..facts },
        false => facts,
    };
    match (facts.base, facts.later, facts.next_lsn, facts.behind) {
        // No crash writes a record with a valid chain under a wrong LSN or of an unknown type.
        (_, _, _, Contradiction) => Verdict::Refuse(
            "the record there is whole, but has another LSN or a type that this version does not know",
        ),
        // The log proves itself, record by record; the snapshot says what it says.
        (Differs, _, _, _) | (Installed | Chosen, Later::Disagrees, _, _) => Verdict::DisbelieveBase,
        (Installed | Chosen, Later::Skips, _, _) => Verdict::Refuse(
            "it is the oldest segment there is, and no snapshot covers what was before it; earlier segments, or the \
             snapshot in their place, are missing",
        ),
        // Segments exist only behind a durable predecessor, so these two are never a torn tail.
        (_, Later::Disagrees, _, _) => {
            Verdict::Refuse("the next segment does not agree with this one about where it begins")
        }
        (_, Later::Skips, _, _) => {
            Verdict::Refuse("the records between this point and the next segment are missing")
        }
        // New segments are begun only when a cut has been completed.
        (_, Later::Continues, _, CutOff) => {
            Verdict::Refuse("records that a cut took back are followed by a segment written after it")
        }
        (Installed | Chosen, Later::None, KnownDurable, _) | (Chosen, Later::None, _, _) => {
            Verdict::Refuse("the segments that held the records from there on are missing")
        }
        (_, Later::None, KnownDurable, Zeros) => Verdict::Refuse("records that were durable are zeros now"),
        (_, Later::None, KnownDurable, Bytes) => {
            Verdict::Refuse("records that were durable do not match their checksum any more")
        }
        // What a cut took back claims nothing behind the cut, so something written later does.
        (_, Later::None, KnownDurable, CutOff) => {
            Verdict::Refuse("records that a cut took back stand where later ones were durable")
        }
        // What the base covers was durable, so one of the lines above has fitted, unless a claim was overlooked.
        (NotReached, _, _, _) => Verdict::Refuse("the log ends before the snapshot that it should continue"),
        // The next LSN is judged where it is: in the next segment.
        (_, Later::Continues, _, Zeros) => Verdict::GoesOn,
        (_, Later::Continues, _, Bytes) => Verdict::GoesOnOverLitter,
        (_, Later::None, Unclaimed, Zeros) => Verdict::EndsClean,
        (_, Later::None, Unclaimed, Bytes) => Verdict::CutTail,
        (_, Later::None, Unclaimed, CutOff) => Verdict::CompleteCut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASES: [AtBase; 6] = [
        AtBase::Installed,
        AtBase::Chosen,
        AtBase::Behind,
        AtBase::Agrees,
        AtBase::Differs,
        AtBase::NotReached,
    ];
    const NEXTS: [NextLsn; 2] = [NextLsn::KnownDurable, NextLsn::Unclaimed];
    const BEHINDS: [Behind; 4] = [Behind::Zeros, Behind::Bytes, Behind::CutOff, Behind::Contradiction];
    const LATERS: [Later; 4] = [Later::None, Later::Continues, Later::Skips, Later::Disagrees];

    fn all_facts() -> impl Iterator<Item = Facts> {
        BASES.into_iter().flat_map(|base| {
            NEXTS.into_iter().flat_map(move |next_lsn| {
                BEHINDS.into_iter().flat_map(move |behind| {
                    LATERS.into_iter().map(move |later| Facts { base, next_lsn, behind, later })
                })
            })
        })
    }

    fn ends_the_log(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::EndsClean | Verdict::CutTail | Verdict::CompleteCut)
    }

    fn goes_on(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::GoesOn | Verdict::GoesOnOverLitter)
    }

    #[test]
    fn the_table_is_total_and_each_verdict_is_reached() {
        let verdicts: Vec<Verdict> = all_facts().map(decide).collect();
        assert_eq!(verdicts.len(), 192);
        let count = |wanted| verdicts.iter().filter(|&&verdict| verdict == wanted).count();
        // Ends: behind the base, in a segment that agrees with it, or at an installed one.
        assert_eq!(count(Verdict::EndsClean), 3);
        assert_eq!(count(Verdict::CutTail), 3);
        assert_eq!(count(Verdict::CompleteCut), 3);
        // Goes on: the same, and at a chosen base; whether the next LSN was durable is judged there.
        assert_eq!(count(Verdict::GoesOn), 8);
        assert_eq!(count(Verdict::GoesOnOverLitter), 8);
        // A base that differs, 24 times; the next segment differs from the base itself, 12 times.
        assert_eq!(count(Verdict::DisbelieveBase), 36);
        assert_eq!(verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Refuse(_))).count(), 131);
    }

    #[test]
    fn a_log_never_ends_before_an_lsn_that_was_durable() {
        for facts in all_facts().filter(|facts| facts.next_lsn == NextLsn::KnownDurable) {
            let verdict = decide(facts);
            assert!(!ends_the_log(verdict), "{facts:?} gives {verdict:?}");
        }
    }

    #[test]
    fn a_log_never_ends_before_a_segment_that_is_still_there() {
        for facts in all_facts().filter(|facts| facts.later != Later::None) {
            let verdict = decide(facts);
            assert!(!ends_the_log(verdict), "{facts:?} gives {verdict:?}");
        }
    }

    #[test]
    fn a_log_never_ends_below_its_base_nor_at_one_that_was_not_installed() {
        for facts in all_facts() {
            let verdict = decide(facts);
            match facts.base {
                AtBase::Chosen => assert!(!ends_the_log(verdict), "{facts:?} gives {verdict:?}"),
                AtBase::NotReached | AtBase::Differs => {
                    assert!(!ends_the_log(verdict) && !goes_on(verdict), "{facts:?} gives {verdict:?}");
                }
                AtBase::Installed | AtBase::Behind | AtBase::Agrees => {}
            }
        }
    }

    #[test]
    fn only_a_disagreement_about_the_base_makes_a_snapshot_unbelievable() {
        for facts in all_facts().filter(|&facts| decide(facts) == Verdict::DisbelieveBase) {
            let base_alone = matches!(facts.base, AtBase::Installed | AtBase::Chosen);
            let named = facts.base == AtBase::Differs || base_alone && facts.later == Later::Disagrees;
            assert!(named, "{facts:?}");
        }
    }

    #[test]
    fn a_torn_tail_never_keeps_a_node_from_starting() {
        for base in [AtBase::Behind, AtBase::Agrees] {
            for behind in [Behind::Zeros, Behind::Bytes] {
                let verdict =
                    decide(Facts { base, next_lsn: NextLsn::Unclaimed, behind, later: Later::None });
                assert!(ends_the_log(verdict), "{base:?}, {behind:?} gives {verdict:?}");
            }
        }
    }
}
