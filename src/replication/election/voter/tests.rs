//! One test per rule, and all of them over everything a small voter can be.

use super::*;

const NOW: Time = Time(1_000);
const ME: NodeId = NodeId([1; 16]);
const CANDIDATE: NodeId = NodeId([2; 16]);
const OTHER: NodeId = NodeId([3; 16]);

fn term(promotion: u32) -> Term {
    Term { promotion, start: 0 }
}

fn ballot(phase: Phase, promotion: u32) -> Ballot {
    Ballot { phase, term: term(promotion), candidate: CANDIDATE, last_term: term(3), last_lsn: Lsn(9) }
}

/// A voter of term 4 that would vote for the candidate.
fn voter() -> VoterView {
    VoterView {
        term: term(4),
        vote: NodeId::NONE,
        refuse_until: Time(0),
        leads_with_quorum: false,
        last_term: term(3),
        last_lsn: Lsn(9),
        heard_commit: Lsn(9),
        candidate_was_removed: false,
        incomplete: false,
    }
}

const PHASES: [Phase; 3] = [Phase::Pre, Phase::Real, Phase::HandOver];

fn refused(ballot: &Ballot, voter: &VoterView) -> (Refusal, Option<Term>) {
    match decide(NOW, ballot, voter) {
        Decision::Refuse { reason, adopt_term } => (reason, adopt_term),
        granted => panic!("{granted:?} to {ballot:?} of {voter:?}"),
    }
}

#[test]
fn a_vote_names_what_must_be_durable_and_a_pre_vote_changes_nothing() {
    let vote = TermVote { term: term(5), vote: CANDIDATE };
    assert_eq!(decide(NOW, &ballot(Phase::Real, 5), &voter()), Decision::Grant(vote));
    assert_eq!(decide(NOW, &ballot(Phase::HandOver, 5), &voter()), Decision::Grant(vote));
    assert_eq!(decide(NOW, &ballot(Phase::Pre, 5), &voter()), Decision::WouldGrant);
    let vote = TermVote { term: term(4), vote: CANDIDATE };
    assert_eq!(
        decide(NOW, &ballot(Phase::Real, 4), &voter()),
        Decision::Grant(vote),
        "its term, not voted yet"
    );
}

#[test]
fn one_vote_per_term_and_the_same_one_again() {
    let voted = |vote| VoterView { vote, ..voter() };
    for phase in PHASES {
        assert_eq!(refused(&ballot(phase, 4), &voted(OTHER)), (Refusal::VotedAlready, None));
        assert_eq!(refused(&ballot(phase, 4), &voted(ME)), (Refusal::VotedAlready, None));
    }
    assert_eq!(decide(NOW, &ballot(Phase::Real, 4), &voted(CANDIDATE)), Decision::AlreadyGranted);
    assert_eq!(decide(NOW, &ballot(Phase::Pre, 4), &voted(CANDIDATE)), Decision::WouldGrant);
    assert!(
        matches!(decide(NOW, &ballot(Phase::Real, 5), &voted(OTHER)), Decision::Grant(_)),
        "a higher term"
    );
    // A vote that was carried into this term by whatever means is no excuse for a worse log.
    let ahead = VoterView { last_lsn: Lsn(10), ..voted(CANDIDATE) };
    assert_eq!(refused(&ballot(Phase::Real, 4), &ahead).0, Refusal::OlderLog);
}

#[test]
fn a_lower_term_is_refused() {
    for phase in PHASES {
        assert_eq!(refused(&ballot(phase, 3), &voter()), (Refusal::StaleTerm, None));
    }
}

#[test]
fn who_was_removed_gets_no_vote_and_raises_no_term() {
    let voter = VoterView { candidate_was_removed: true, ..voter() };
    for phase in PHASES {
        assert_eq!(refused(&ballot(phase, 9), &voter), (Refusal::NotMember, None));
    }
}

#[test]
fn who_hears_a_leader_refuses_real_votes_too_and_stays_in_its_term() {
    let hears = VoterView { refuse_until: Time(NOW.0 + 1), ..voter() };
    let leads = VoterView { leads_with_quorum: true, ..voter() };
    for phase in [Phase::Pre, Phase::Real] {
        assert_eq!(refused(&ballot(phase, 9), &hears), (Refusal::HearsLeader, None));
        assert_eq!(refused(&ballot(phase, 9), &leads), (Refusal::HearsLeader, None));
    }
    let over = VoterView { refuse_until: NOW, ..voter() };
    assert!(matches!(decide(NOW, &ballot(Phase::Real, 5), &over), Decision::Grant(_)));
}

#[test]
fn a_hand_over_skips_the_refusal_time_alone_and_only_for_the_next_term() {
    let hears = VoterView { refuse_until: Time(NOW.0 + 1), ..voter() };
    assert!(matches!(decide(NOW, &ballot(Phase::HandOver, 5), &hears), Decision::Grant(_)));
    assert_eq!(refused(&ballot(Phase::HandOver, 6), &hears), (Refusal::HearsLeader, None));
    let leads = VoterView { leads_with_quorum: true, ..voter() };
    assert_eq!(refused(&ballot(Phase::HandOver, 5), &leads), (Refusal::HearsLeader, None));
    let ahead = VoterView { last_lsn: Lsn(10), ..hears };
    assert_eq!(refused(&ballot(Phase::HandOver, 5), &ahead), (Refusal::OlderLog, Some(term(5))));
}

#[test]
fn an_older_log_gets_no_vote_but_a_real_one_raises_the_term() {
    let worse = [
        VoterView { last_lsn: Lsn(10), ..voter() },
        VoterView { last_term: term(4), last_lsn: Lsn(2), ..voter() },
    ];
    for voter in worse {
        assert_eq!(refused(&ballot(Phase::Real, 5), &voter), (Refusal::OlderLog, Some(term(5))));
        assert_eq!(refused(&ballot(Phase::Pre, 5), &voter), (Refusal::OlderLog, None));
    }
    let shorter_but_newer = VoterView { last_term: term(2), last_lsn: Lsn(50), ..voter() };
    assert!(matches!(decide(NOW, &ballot(Phase::Real, 5), &shorter_but_newer), Decision::Grant(_)));
}

#[test]
fn a_log_that_ends_below_a_commit_that_was_heard_of_gets_no_vote() {
    let voter = VoterView { last_lsn: Lsn(2), heard_commit: Lsn(10), ..voter() };
    assert_eq!(refused(&ballot(Phase::Real, 5), &voter), (Refusal::BelowCommit, Some(term(5))));
    assert_eq!(may_campaign(Lsn(9), Lsn(10), false), Err(NoCandidate::BelowCommit(Lsn(10))));
    assert_eq!(may_campaign(Lsn(10), Lsn(10), false), Ok(()));
}

#[test]
fn a_node_that_repairs_neither_votes_nor_campaigns() {
    let voter = VoterView { incomplete: true, ..voter() };
    for phase in PHASES {
        assert_eq!(refused(&ballot(phase, 5), &voter).0, Refusal::Incomplete);
    }
    assert_eq!(may_campaign(Lsn(10), Lsn(10), true), Err(NoCandidate::Incomplete));
}

#[test]
fn leadership_is_taken_over_only_in_the_term_that_gave_it_up() {
    assert!(may_take_over(term(4), term(4)));
    assert!(!may_take_over(term(4), term(5)) && !may_take_over(term(4), term(3)));
}

#[test]
fn an_answer_says_for_how_long_a_leader_is_the_reason() {
    let hears = VoterView { refuse_until: Time(NOW.0 + 1_500_000), ..voter() };
    let decision = decide(NOW, &ballot(Phase::Pre, 5), &hears);
    assert_eq!(refuses_for_ms(NOW, &decision, &hears), 2);
    assert_eq!(refuses_for_ms(NOW, &Decision::WouldGrant, &hears), 0);
}

/// Every combination of small values: what each decision promises holds whatever else is the case.
#[test]
fn no_voter_grants_what_it_must_not() {
    let mut granted = 0;
    for bits in 0..1_u32 << 14 {
        let pick = |shift: u32, count: u32| bits >> shift & (count - 1);
        let voter = VoterView {
            term: term(4),
            vote: [NodeId::NONE, ME, CANDIDATE, OTHER][pick(0, 4) as usize],
            refuse_until: Time(NOW.0 + u64::from(pick(2, 2))),
            leads_with_quorum: pick(3, 2) == 1,
            last_term: term(2 + pick(4, 2)),
            last_lsn: Lsn(8 + u64::from(pick(5, 4))),
            heard_commit: Lsn(8 + u64::from(pick(7, 4))),
            candidate_was_removed: pick(9, 2) == 1,
            incomplete: pick(10, 2) == 1,
        };
        for phase in PHASES {
            let ballot = Ballot {
                phase,
                term: term(3 + pick(11, 4)),
                candidate: CANDIDATE,
                last_term: term(2 + pick(13, 2)),
                last_lsn: Lsn(9),
            };
            let decision = decide(NOW, &ballot, &voter);
            if let Decision::Refuse { adopt_term, .. } = decision {
                assert!(adopt_term.is_none_or(|term| term > voter.term && phase != Phase::Pre));
                continue;
            }
            granted += 1;
            assert!(!voter.candidate_was_removed && !voter.incomplete && !voter.leads_with_quorum);
            assert!(ballot.term >= voter.term && ballot.last_lsn >= voter.heard_commit);
            assert!((ballot.last_term, ballot.last_lsn) >= (voter.last_term, voter.last_lsn));
            assert!(phase == Phase::HandOver || NOW >= voter.refuse_until);
            let free = [NodeId::NONE, CANDIDATE].contains(&voter.vote);
            assert!(ballot.term > voter.term || free);
            let vote = TermVote { term: ballot.term, vote: CANDIDATE };
            assert_eq!(
                decision == Decision::Grant(vote),
                phase != Phase::Pre && decision != Decision::AlreadyGranted
            );
            assert!(
                decision != Decision::AlreadyGranted || (voter.term, voter.vote) == (ballot.term, CANDIDATE)
            );
        }
    }
    assert!(granted > 500, "{granted}");
}
