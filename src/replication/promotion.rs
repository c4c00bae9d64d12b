//! Who may lead when an operator asks: fence, compare, then lead.
//!
//! A promotion asks every peer twice: a *probe* that changes nothing, so that a promotion that would be
//! refused does not stop a healthy leader; then the *fence*, which makes the new term durable at each peer
//! and so ends the old leader's sessions. After both, the answers go through [`judge`].

use crate::ids::{Lsn, Term};

/// Where a log ends, and what its node knows to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Term of the last record.
    pub last_term: Term,
    /// The last LSN, on disk.
    pub last_lsn: Lsn,
    /// The highest commit LSN known.
    pub commit_lsn: Lsn,
}

impl Position {
    /// Whether a log at this position holds something that one at `other` lacks.
    pub fn has_more_than(&self, other: &Position) -> bool {
        (self.last_term, self.last_lsn) > (other.last_term, other.last_lsn)
            || self.commit_lsn > other.last_lsn
    }
}

/// What one peer answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not yet.
    Waiting,
    /// It cannot be reached or did not answer in time; why.
    Silent(String),
    /// It answered.
    Position {
        /// Whether it accepts the term (a probe: would).
        accepted: bool,
        /// The highest term it knows.
        term: Term,
        /// Where its log ends.
        position: Position,
        /// Whether it led until now.
        leads: bool,
        /// It repairs: term and LSN up to which it once held everything.
        repair: Option<(Term, Lsn)>,
        /// Whether its state is exact, so that it could be promoted.
        complete: bool,
    },
}

/// One peer and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAnswer {
    /// Where it was dialled.
    pub address: String,
    /// Whether it is the leader this node last followed.
    pub is_old_leader: bool,
    /// What it said.
    pub answer: Answer,
}

/// What may be given up, or why the promotion is refused: one sentence each, for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objections(pub Vec<String>);

impl Objections {
    /// The sentences as one line.
    pub fn text(&self) -> String {
        self.0.join("; ")
    }
}

/// Everything that speaks against this node leading. Empty: it may lead. With `--force` the same sentences
/// say what may be lost.
pub fn judge(me: &Position, in_sync_when_last_heard: bool, answers: &[PeerAnswer]) -> Objections {
    let mut objections = Vec::new();
    if !in_sync_when_last_heard {
        objections.push(
            "this node was not in sync when it last heard its leader: acknowledged writes behind its last LSN \
             may exist on other nodes only"
                .to_owned(),
        );
    }
    objections.extend(answers.iter().filter_map(|peer| objection(me, peer)));
    Objections(objections)
}

fn objection(me: &Position, peer: &PeerAnswer) -> Option<String> {
    let address = &peer.address;
    match &peer.answer {
        Answer::Waiting | Answer::Silent(_) if peer.is_old_leader => None,
        Answer::Waiting => {
            Some(format!("{address} is silent (no answer in time): what it holds is not known"))
        }
        Answer::Silent(why) => Some(format!("{address} is silent ({why}): what it holds is not known")),
        Answer::Position { accepted: false, term, .. } => {
            Some(format!("{address} refused the term: it knows term {term} already; ask again"))
        }
        Answer::Position { position, repair: Some((term, until)), .. }
            if (*term, *until) > (me.last_term, me.last_lsn) || position.commit_lsn > me.last_lsn =>
        {
            Some(format!(
                "{address} repairs: its log was damaged or set back, it held records up to LSN {until} and holds \
                 them to {}; the others may be nowhere but in the files it kept aside",
                position.last_lsn
            ))
        }
        Answer::Position { position, leads, complete, .. } if position.has_more_than(me) => {
            let theirs = position.last_lsn.max(position.commit_lsn);
            // Of another term: where the logs part is not known, and may be long before the end of the one here.
            let lost = if position.last_term == me.last_term {
                format!("records {} to {theirs}", me.last_lsn.next())
            } else {
                format!(
                    "its records of term {}, from where the two logs part up to LSN {theirs},",
                    position.last_term
                )
            };
            let standing = if *leads { "leads and has" } else { "has" };
            let instead = match complete {
                true => format!("promote {address} instead"),
                false => format!("promote {address} instead, once its state is restored"),
            };
            Some(format!(
                "{address} {standing} more (last LSN {} of term {}, commit LSN {}; here last LSN {} of term {}): \
                 {lost} would be lost; {instead}",
                position.last_lsn, position.last_term, position.commit_lsn, me.last_lsn, me.last_term
            ))
        }
        Answer::Position { .. } => None,
    }
}

/// The term to lead in: a promotion above every term known anywhere.
pub fn term_to_lead_in(mine: Term, answers: &[PeerAnswer]) -> Option<Term> {
    let known = answers.iter().filter_map(|peer| match peer.answer {
        Answer::Position { term, .. } => Some(term),
        _ => None,
    });
    known.fold(mine, Term::max).promoted()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(term: u32, last: u64, commit: u64) -> Position {
        Position {
            last_term: Term { promotion: 0, start: term },
            last_lsn: Lsn(last),
            commit_lsn: Lsn(commit),
        }
    }

    fn answered(position: Position) -> PeerAnswer {
        let answer = Answer::Position {
            accepted: true,
            term: position.last_term,
            position,
            leads: false,
            repair: None,
            complete: true,
        };
        PeerAnswer { address: "127.0.0.1:9003".into(), is_old_leader: false, answer }
    }

    #[test]
    fn equal_or_shorter_peers_do_not_object() {
        assert_eq!(
            judge(&at(1, 9, 5), true, &[answered(at(1, 9, 9)), answered(at(1, 3, 3))]),
            Objections::default()
        );
    }

    #[test]
    fn the_better_node_is_named() {
        let text = judge(&at(1, 9, 5), true, &[answered(at(1, 12, 5))]).text();
        assert!(text.contains("records 10 to 12 would be lost; promote 127.0.0.1:9003"), "{text}");
        // A longer log of an older term is not more, unless it knows more to be committed.
        assert_eq!(judge(&at(2, 9, 5), true, &[answered(at(1, 12, 9))]), Objections::default());
        let older = judge(&at(2, 9, 5), true, &[answered(at(1, 12, 10))]).text();
        assert!(older.contains("its records of term 0.1, from where the two logs part"), "{older}");
    }

    #[test]
    fn of_another_term_more_may_be_lost_than_what_is_behind_the_end_here() {
        // The logs may part at LSN 5: then 6 to 9 of the other are lost too, and were acknowledged.
        let text = judge(&at(1, 9, 9), true, &[answered(at(2, 12, 12))]).text();
        let lost = "its records of term 0.2, from where the two logs part up to LSN 12, would be lost";
        assert!(text.contains(lost) && !text.contains("records 10 to 12"), "{text}");
    }

    #[test]
    fn what_a_repairing_peer_once_held_counts_as_if_it_were_there() {
        let repairing = |until| {
            let mut peer = answered(at(1, 4, 4));
            let Answer::Position { repair, .. } = &mut peer.answer else { unreachable!() };
            *repair = Some((at(1, 0, 0).last_term, Lsn(until)));
            peer
        };
        assert_eq!(judge(&at(1, 9, 9), true, &[repairing(9)]), Objections::default());
        assert!(judge(&at(1, 9, 9), true, &[repairing(10)]).text().contains("held records up to LSN 10"));
        assert_eq!(judge(&at(2, 9, 9), true, &[repairing(10)]), Objections::default());
    }

    #[test]
    fn only_the_old_leader_may_be_silent() {
        let silent = |is_old_leader| PeerAnswer {
            address: "127.0.0.1:9001".into(),
            is_old_leader,
            answer: Answer::Silent("connection refused".into()),
        };
        assert_eq!(judge(&at(1, 9, 9), true, &[silent(true)]), Objections::default());
        assert!(judge(&at(1, 9, 9), true, &[silent(false)]).text().contains("connection refused"));
    }

    #[test]
    fn a_node_that_was_out_of_sync_objects_to_itself() {
        assert!(judge(&at(1, 9, 9), false, &[]).text().contains("not in sync"));
    }

    #[test]
    fn the_term_is_above_every_known_one() {
        let mut peer = answered(at(1, 1, 1));
        if let Answer::Position { term, .. } = &mut peer.answer {
            *term = Term { promotion: 4, start: 9 };
        }
        let term = term_to_lead_in(Term { promotion: 0, start: 3 }, &[peer]);
        assert_eq!(term, Some(Term { promotion: 5, start: 0 }));
    }
}
