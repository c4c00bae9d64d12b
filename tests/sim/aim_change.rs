//! Two leaders that change the members from one list: what a change before the first commit of a term leads to.
//!
//! A leader that is cut off has a change in its log that nobody else knows of. The next one knows the list before, and
//! changes that: the two lists differ by two members, and of an even number may have majorities without a common node.
//! Raft's rule against it is that the next leader commits a record of its own term first, by the list before; one of
//! those who have it is then in every majority of the first one's list, and does not vote for it any more.
//!
//! | | who is there | what happens |
//! |---|---|---|
//! | 1 | the first leader, alone | it removes another member, in its own log |
//! | 2 | the other three | one is elected; from then on it reaches one other, and is asked to remove the first |
//! | 3 | the first and the one that the second did not reach | a majority of the first one's list: it leads again |
//!
//! As it should be, the second leader refuses until it leads no more, and what the first one appended is committed in
//! the third step. Who breaks the rule commits the second change by two of three, and `quorums.rs` finds the first
//! leader electable without it. Between two encounters the operator adds the member again that was removed.

use crate::aim::Stage;
use crate::client::Ask;
use crate::lists::of_log;
use crate::world::World;

/// Members of the cluster of such a run: an even number.
pub const MEMBERS: usize = 4;

/// How far an encounter is.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The first leader is alone, and removes this member.
    First { leader: usize, removed: usize },
    /// The second one does not reach `left_out`, and is asked to remove the first.
    Second { first: usize, second: usize, left_out: usize },
    /// The first one and `left_out` hear each other.
    FirstAgain { first: usize },
}

impl World {
    /// Before an encounter: who was removed by the last one is added. True if somebody was.
    pub fn seats_all(&mut self) -> bool {
        let Some(leader) = self.elected_leader() else { return false };
        let list = of_log(&self.core.borrow(), &self.hosts[leader]);
        let Some(site) = (0..MEMBERS).find(|site| !list.has(*site)) else { return false };
        self.command(leader, Ask::ChangeMembers { add: true, site });
        true
    }

    /// The first leader is cut off, and removes one of the others. Returns when to look again, as all of these.
    pub fn begin_to_change(&mut self, leader: usize, others: &[usize], any: usize) -> u64 {
        let removed = others[any % others.len()];
        others.iter().for_each(|other| self.cut_both(leader, *other));
        self.command(leader, Ask::ChangeMembers { add: false, site: removed });
        self.stage(Stage::Change(Step::First { leader, removed }), 40)
    }

    /// A turn of this host has ended; it may have been elected.
    pub fn change_after_turn(&mut self, site: usize) {
        let Some(Stage::Change(Step::First { leader, removed })) = self.under_way() else { return };
        if site == leader || !self.leads(site) {
            return;
        }
        // Who votes for the first one by its own list must be in that.
        let others = (0..MEMBERS).filter(|other| ![leader, site, removed].contains(other));
        let left_out = others.max().expect("four members, three of them excluded at most");
        self.cut_both(site, left_out);
        (0..MEMBERS).filter(|other| ![leader, site, left_out].contains(other)).for_each(|heard| {
            self.cut_both(heard, left_out);
        });
        self.core.borrow_mut().stats.count("aimed: a second leader, from the list before a change");
        self.set_stage(Stage::Change(Step::Second { first: leader, second: site, left_out }));
    }

    /// With every probe: the second leader is asked to remove the first one.
    pub fn ask_for_second_change(&mut self) {
        if let Some(Stage::Change(Step::Second { first, second, .. })) = self.under_way() {
            self.command(second, Ask::ChangeMembers { add: false, site: first });
        }
    }

    /// The time of a step is over.
    pub fn change_goes_on(&mut self, step: Step) -> u64 {
        match step {
            Step::First { .. } => self.part(),
            Step::Second { first, left_out, .. } => {
                self.join_both(first, left_out);
                self.stage(Stage::Change(Step::FirstAgain { first }), 40)
            }
            Step::FirstAgain { first } => {
                if self.leads(first) {
                    self.core
                        .borrow_mut()
                        .stats
                        .count("aimed: the first leader of two that change leads again");
                }
                self.part()
            }
        }
    }
}
