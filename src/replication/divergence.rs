//! Whether all nodes have the same state, and whose is wrong if they have not.
//!
//! Equal logs, applied in order, give equal states; the chain checksum proves the one, and this the other. What could
//! come between are the things that no checksum of the log sees: a bit that flips in memory, a record applied wrongly.
//!
//! **One question at a time.** About once a second a leader names an LSN that it has appended, to every follower: the
//! *question*. It stands in a frame after which no follower can be past that LSN, so each comes by it (or stands there)
//! and keeps the hash of its state at that very moment, until its next ACK. The leader does the same. So states are
//! compared at exactly equal LSNs, however far apart in time nodes apply, and nobody keeps more than one hash. A
//! follower that is far behind when the next question comes is asked that one instead: it is compared once it has
//! caught up.
//!
//! **The verdict** ([`judge`]) goes by the majority of *all* nodes, answered or not:
//!
//! | a majority has one hash | some answer differs from the leader's | verdict |
//! |---|---|---|
//! | yes | any | who has it is right, who has another is *outvoted* |
//! | no | no | nobody is known to be wrong |
//! | no | yes | *disputed*: the leader, and each follower that differs from it |
//!
//! An outvoted node stops serving, a leader too: what it would answer is wrong by the word of a majority. A disputed
//! one goes on and says so, since no one can tell who is right and stopping both would turn one flipped bit into an
//! outage. It looks at itself instead, at every entry it holds (see `keyspace::check`), and a node that finds that its
//! memory holds something else than what was put there needs no majority to know that it is wrong.
//!
//! What is said names two LSNs: the last at which the state was known to be right, and the first at which it was not.
//! The record that went wrong lies between them, or the bit flipped in that time.
//!
//! Left out: which entry differs. And nothing of this is kept on disk: a start makes the state anew, from files with
//! checksums of their own, and the first question after it compares that one.

use std::fmt;

use crate::ids::Lsn;

/// What is wrong with a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another node has another state, and no majority says who is right.
    Disputed,
    /// A majority has another state.
    Outvoted,
    /// Entries in memory are not those that were put there: the hash of all entries is not the one that was kept.
    Memory,
}

impl Fault {
    /// Whether a node with it answers nothing from its state.
    pub fn stops_serving(self) -> bool {
        match self {
            Fault::Disputed => false,
            Fault::Outvoted | Fault::Memory => true,
        }
    }

    /// One word, for `status`.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Disputed => "disputed",
            Fault::Outvoted => "outvoted",
            Fault::Memory => "memory",
        }
    }
}

/// What the answers to a question say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    leader: u128,
    majority: Option<u128>,
    differs: bool,
}

/// Judges the leader's hash and those of the followers that have answered, in a cluster of so many nodes.
pub fn judge(leader: u128, answers: &[u128], nodes: usize) -> Judgement {
    let all = || std::iter::once(&leader).chain(answers);
    let has_majority = |hash: &&u128| all().filter(|other| other == hash).count() > nodes / 2;
    let majority = all().find(has_majority).copied();
    Judgement { leader, majority, differs: answers.iter().any(|hash| *hash != leader) }
}

impl Judgement {
    /// Whether further answers could tell more than "somebody is wrong".
    pub fn is_open(&self) -> bool {
        self.differs && self.majority.is_none()
    }

    /// Of the leader.
    pub fn of_leader(&self) -> Option<Fault> {
        match self.majority {
            Some(majority) => (self.leader != majority).then_some(Fault::Outvoted),
            None => self.differs.then_some(Fault::Disputed),
        }
    }

    /// Of a follower that answered this.
    pub fn of_follower(&self, hash: u128) -> Option<Fault> {
        match self.majority {
            Some(majority) => (hash != majority).then_some(Fault::Outvoted),
            None => (hash != self.leader).then_some(Fault::Disputed),
        }
    }
}

/// What is known of one node's state.
///
/// Invariants: without a fault `differs` is 0; with one it is above `right`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What is wrong, if anything is known to be.
    pub fault: Option<Fault>,
    /// The last LSN at which it was right; 0: not known of any.
    pub right: Lsn,
    /// The first LSN behind it at which it was not.
    pub differs: Lsn,
}

impl Standing {
    /// Whether the node answers nothing from its state.
    pub fn stops_serving(&self) -> bool {
        self.fault.is_some_and(Fault::stops_serving)
    }

    /// The state at an LSN was judged. Returns whether the fault is another than before.
    ///
    /// A node that stopped serving stays stopped: if its hash is right again, then by an entry that was overwritten,
    /// and what happened once is for its operator to look at.
    pub fn on_judged(&mut self, fault: Option<Fault>, at: Lsn) -> bool {
        if self.stops_serving() {
            return false;
        }
        let changed = self.fault != fault;
        self.fault = fault;
        match fault {
            None => (self.right, self.differs) = (self.right.max(at), Lsn::ZERO),
            Some(_) if self.differs == Lsn::ZERO => self.differs = at.max(self.right.next()),
            Some(_) => {}
        }
        changed
    }

    /// The same, as a leader tells it of the follower that it has judged.
    pub fn on_told(&mut self, right: Lsn, differs: Lsn, outvoted: bool) -> bool {
        if self.stops_serving() {
            return false;
        }
        self.right = self.right.max(right);
        if differs <= self.right {
            return right > Lsn::ZERO && self.on_judged(None, right);
        }
        self.on_judged(Some(if outvoted { Fault::Outvoted } else { Fault::Disputed }), differs)
    }
}

/// The two LSNs that an operator looks between.
impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Standing { right, differs, .. } = self;
        match (*right > Lsn::ZERO, *differs > Lsn::ZERO) {
            (_, false) => write!(f, "last known right at LSN {right}"),
            (true, true) => write!(f, "right at LSN {right}, wrong at LSN {differs}"),
            (false, true) => write!(f, "wrong at LSN {differs}, and not known to be right before"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way in which up to six followers answer one of three hashes, or not at all.
    fn for_all_answers(mut check: impl FnMut(u128, &[Option<u128>])) {
        for followers in 0..=6u32 {
            for code in 0..4u32.pow(followers) {
                let digits = (0..followers).map(|place| code / 4u32.pow(place) % 4);
                let answers: Vec<Option<u128>> =
                    digits.map(|digit| (digit > 0).then_some(u128::from(digit))).collect();
                check(1, &answers);
            }
        }
    }

    #[test]
    fn the_table_holds_for_all_answers_of_up_to_seven_nodes() {
        for_all_answers(|leader, answers| {
            let nodes = answers.len() + 1;
            let given: Vec<u128> = answers.iter().flatten().copied().collect();
            let count = |hash: u128| {
                usize::from(hash == leader) + given.iter().filter(|other| **other == hash).count()
            };
            let majority = [1, 2, 3].into_iter().find(|hash| 2 * count(*hash) > nodes);
            let differs = given.iter().any(|hash| *hash != leader);
            let judgement = judge(leader, &given, nodes);
            let expected = |hash: u128, is_disputed: bool| match majority {
                Some(majority) => (hash != majority).then_some(Fault::Outvoted),
                None => is_disputed.then_some(Fault::Disputed),
            };
            assert_eq!(judgement.of_leader(), expected(leader, differs), "{answers:?}");
            for hash in &given {
                assert_eq!(judgement.of_follower(*hash), expected(*hash, *hash != leader), "{answers:?}");
            }
            assert_eq!(judgement.is_open(), differs && majority.is_none(), "{answers:?}");
        });
    }

    #[test]
    fn never_does_a_majority_stop_serving() {
        for_all_answers(|leader, answers| {
            let given: Vec<u128> = answers.iter().flatten().copied().collect();
            let judgement = judge(leader, &given, answers.len() + 1);
            let verdicts = given.iter().map(|hash| judgement.of_follower(*hash));
            let stopped = verdicts.chain([judgement.of_leader()]).flatten().filter(|f| f.stops_serving());
            assert!(stopped.count() * 2 < answers.len() + 1, "{answers:?}");
        });
    }

    #[test]
    fn two_nodes_that_differ_both_say_so_and_go_on() {
        let judgement = judge(1, &[2], 2);
        assert_eq!(
            (judgement.of_leader(), judgement.of_follower(2)),
            (Some(Fault::Disputed), Some(Fault::Disputed))
        );
        assert!(!Fault::Disputed.stops_serving());
    }

    #[test]
    fn a_leader_that_two_followers_contradict_is_outvoted() {
        let judgement = judge(1, &[2, 2], 3);
        assert_eq!((judgement.of_leader(), judgement.of_follower(2)), (Some(Fault::Outvoted), None));
    }

    #[test]
    fn a_standing_names_the_last_lsn_that_was_right_and_the_first_that_was_not() {
        let mut standing = Standing::default();
        assert!(!standing.on_judged(None, Lsn(10)));
        assert!(standing.on_judged(Some(Fault::Disputed), Lsn(20)));
        assert!(!standing.on_judged(Some(Fault::Disputed), Lsn(30)));
        assert_eq!(standing.to_string(), "right at LSN 10, wrong at LSN 20");
        assert!(standing.on_judged(None, Lsn(40)), "a dispute may end");
        assert_eq!(standing.to_string(), "last known right at LSN 40");
        assert!(standing.on_judged(Some(Fault::Outvoted), Lsn(50)));
        assert!(!standing.on_judged(None, Lsn(60)), "what stopped serving stays stopped");
        assert_eq!(standing.to_string(), "right at LSN 40, wrong at LSN 50");
    }

    #[test]
    fn a_follower_takes_what_its_leader_tells_as_often_as_it_does() {
        let mut standing = Standing::default();
        assert!(!standing.on_told(Lsn::ZERO, Lsn::ZERO, false), "nothing was compared yet");
        assert_eq!(standing, Standing::default());
        assert!(!standing.on_told(Lsn(10), Lsn::ZERO, false));
        for first in [true, false] {
            assert_eq!(standing.on_told(Lsn(10), Lsn(20), false), first);
        }
        assert!(standing.on_told(Lsn(10), Lsn(20), true));
        assert_eq!(
            (standing.fault, standing.right, standing.differs),
            (Some(Fault::Outvoted), Lsn(10), Lsn(20))
        );
        assert!(!standing.on_told(Lsn(30), Lsn::ZERO, false));
        assert!(standing.stops_serving());
    }
}
