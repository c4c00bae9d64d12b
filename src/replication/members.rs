//! Who votes: the members of an elected cluster.
//!
//! A list has one order, that of the node ids, so two can be compared, and whoever counts a majority counts the same
//! one. The first is made when the cluster is formed. From then on it is changed by records of the log, each with the
//! whole list that is to count; see [`Membership`].

use std::ops::Deref;

use crate::ids::{Lsn, NodeId};
use crate::limits::{ADDRESS_SIZE_MAX, MEMBERS_MAX};

/// A node that votes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity: what a vote is counted by. A wiped node has another one, whatever its address.
    pub node_id: NodeId,
    /// Where the others dial it.
    pub address: String,
}

/// All of them, this node included; or none, where nobody is elected.
///
/// Invariants: at most [`MEMBERS_MAX`], by rising node id, each with an address of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members(Vec<Member>);

impl Members {
    /// The members in their order; `None` if two share an id or an address, if one lacks either, or if there are too
    /// many.
    pub fn new(mut members: Vec<Member>) -> Option<Members> {
        members.sort_by_key(|member| member.node_id);
        Members::from_sorted(members)
    }

    /// The same for a list that must be in order already, as one is that was stored or sent.
    pub fn from_sorted(members: Vec<Member>) -> Option<Members> {
        let rising = members.windows(2).all(|pair| pair[0].node_id < pair[1].node_id);
        let complete = |member: &Member| {
            !member.node_id.is_none() && (1..=ADDRESS_SIZE_MAX).contains(&member.address.len())
        };
        let apart = |(index, member): (usize, &Member)| {
            members[..index].iter().all(|earlier| earlier.address != member.address)
        };
        let valid = members.len() <= MEMBERS_MAX
            && rising
            && members.iter().all(complete)
            && members.iter().enumerate().all(apart);
        valid.then_some(Members(members))
    }

    /// How many are a majority: of any two majorities one member is in both.
    pub fn majority(&self) -> usize {
        self.0.len() / 2 + 1
    }

    /// Whether this node votes.
    pub fn contains(&self, node_id: NodeId) -> bool {
        self.position(node_id).is_some()
    }

    /// Where it stands in the list.
    pub fn position(&self, node_id: NodeId) -> Option<usize> {
        self.0.binary_search_by_key(&node_id, |member| member.node_id).ok()
    }

    /// The member with this id.
    pub fn get(&self, node_id: NodeId) -> Option<&Member> {
        self.position(node_id).map(|index| &self.0[index])
    }

    /// The member that is dialled at this address.
    pub fn at_address(&self, address: &str) -> Option<&Member> {
        self.0.iter().find(|member| member.address == address)
    }

    /// All but this node.
    pub fn others(&self, own: NodeId) -> impl Iterator<Item = &Member> {
        self.0.iter().filter(move |member| member.node_id != own)
    }
}

impl Deref for Members {
    type Target = [Member];

    fn deref(&self) -> &[Member] {
        &self.0
    }
}

/// The list that counts for a node: that of the newest record of its log that has one, committed or not.
///
/// Invariants:
/// - Two lists that follow each other differ by one member, so any majority of the one shares a node with any majority
///   of the other. That is what lets a node go by a list that is not committed.
/// - What counted before the newest record is known for as long as that record may be cut off the log. The one before
///   was committed when the leader appended it, and is never cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    list: Members,
    lsn: Lsn,
    step: Option<Box<Step>>,
}

/// How a list came from the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The record of the list before.
    pub before_lsn: Lsn,
    /// Whether the member was added; else it was removed.
    pub added: bool,
    /// Who.
    pub member: Member,
}

impl Membership {
    /// A list that is never taken back: made by the forming of the cluster (LSN 0), or by a record that is committed.
    pub fn settled(list: Members, lsn: Lsn) -> Membership {
        Membership { list, lsn, step: None }
    }

    /// The same with the step that led to it; `None` if it contradicts the list.
    pub fn with_step(list: Members, lsn: Lsn, step: Option<Step>) -> Option<Membership> {
        let fits = step
            .as_ref()
            .is_none_or(|step| step.before_lsn < lsn && list.contains(step.member.node_id) == step.added);
        let membership = Membership { list, lsn, step: step.map(Box::new) };
        (fits && (membership.step.is_none() || membership.before().is_some())).then_some(membership)
    }

    /// The record at `lsn` says that this list counts.
    pub fn changed(&self, lsn: Lsn, list: Members) -> Membership {
        let step = difference(&self.list, &list)
            .map(|(added, member)| Box::new(Step { before_lsn: self.lsn, added, member: member.clone() }));
        Membership { list, lsn, step }
    }

    /// The record of the list; 0: it is that of the forming.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The list.
    pub fn list(&self) -> &Members {
        &self.list
    }

    /// How it came from the one before, while that may still be asked for.
    pub fn step(&self) -> Option<&Step> {
        self.step.as_deref()
    }

    /// What counted before the newest record.
    pub fn before(&self) -> Option<Membership> {
        let Step { before_lsn, added, member } = self.step.as_deref()?;
        let mut list: Vec<Member> = self.list.iter().filter(|listed| *listed != member).cloned().collect();
        if !added {
            list.push(member.clone());
        }
        Some(Membership { list: Members::new(list)?, lsn: *before_lsn, step: None })
    }

    /// What counts where the log ends at `last`: a record behind that takes its list with it.
    pub fn at(&self, last: Lsn) -> Membership {
        let before = if self.lsn > last { self.before() } else { None };
        before.unwrap_or_else(|| self.clone())
    }
}

impl Deref for Membership {
    type Target = Members;

    fn deref(&self) -> &Members {
        &self.list
    }
}

/// Who is in one of two lists only, and whether in the second, if that is one member.
fn difference<'a>(from: &'a Members, to: &'a Members) -> Option<(bool, &'a Member)> {
    let gone = from.iter().filter(|member| !to.0.contains(member)).map(|member| (false, member));
    let come = to.iter().filter(|member| !from.0.contains(member)).map(|member| (true, member));
    let mut all = gone.chain(come);
    all.next().filter(|_| all.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u8, address: &str) -> Member {
        Member { node_id: NodeId([id; 16]), address: address.to_owned() }
    }

    #[test]
    fn members_have_one_order_whoever_lists_them() {
        let (a, b) = (member(1, "a:1"), member(2, "b:1"));
        let members = Members::new(vec![b.clone(), a.clone()]).expect("they differ");
        assert_eq!(members.to_vec(), [a.clone(), b.clone()]);
        assert_eq!(Members::from_sorted(vec![b.clone(), a.clone()]), None);
        assert_eq!(members.get(b.node_id), Some(&b));
        assert_eq!(members.at_address("a:1"), Some(&a));
        assert_eq!(members.others(a.node_id).collect::<Vec<_>>(), [&b]);
        assert!(!members.contains(NodeId([3; 16])));
    }

    #[test]
    fn one_id_or_one_address_is_one_member() {
        assert_eq!(Members::new(vec![member(1, "a:1"), member(1, "b:1")]), None);
        assert_eq!(Members::new(vec![member(1, "a:1"), member(2, "a:1")]), None);
        assert_eq!(Members::new(vec![member(0, "a:1")]), None);
        assert_eq!(Members::new(vec![member(1, "")]), None);
        assert_eq!(Members::new(vec![member(1, &"x".repeat(ADDRESS_SIZE_MAX + 1))]), None);
        let many = |count| (1..=count).map(|id| member(id, &format!("host:{id}"))).collect();
        assert!(Members::new(many(MEMBERS_MAX as u8)).is_some());
        assert_eq!(Members::new(many(MEMBERS_MAX as u8 + 1)), None);
    }

    fn list(ids: &[u8]) -> Members {
        Members::new(ids.iter().map(|id| member(*id, &format!("host:{id}"))).collect()).expect("they differ")
    }

    #[test]
    fn a_cut_behind_a_record_takes_its_list_back_and_no_other_does() {
        let formed = Membership::settled(list(&[1, 2, 3]), Lsn(0));
        let added = formed.changed(Lsn(10), list(&[1, 2, 3, 4]));
        assert_eq!((added.at(Lsn(9)), added.at(Lsn(10))), (formed, added.clone()));
        let removed = added.changed(Lsn(20), list(&[2, 3, 4]));
        assert_eq!(removed.at(Lsn(19)), Membership::settled(list(&[1, 2, 3, 4]), Lsn(10)));
        assert_eq!(removed.at(Lsn(5)).lsn(), Lsn(10), "what was committed is not taken back");
        let settled = Membership::settled(list(&[1, 2]), Lsn(20));
        assert_eq!(settled.at(Lsn(3)), settled);
    }

    #[test]
    fn a_step_that_contradicts_its_list_is_none() {
        let step = |added, id: u8| Step { before_lsn: Lsn(3), added, member: member(id, "other:9") };
        assert!(Membership::with_step(list(&[1, 2]), Lsn(9), Some(step(false, 3))).is_some());
        assert_eq!(Membership::with_step(list(&[1, 2]), Lsn(9), Some(step(true, 3))), None);
        assert_eq!(Membership::with_step(list(&[1, 2]), Lsn(9), Some(step(false, 2))), None);
        assert_eq!(Membership::with_step(list(&[1, 2]), Lsn(3), Some(step(false, 3))), None);
        let twice = Step { before_lsn: Lsn(3), added: false, member: member(3, "host:1") };
        assert_eq!(Membership::with_step(list(&[1, 2]), Lsn(9), Some(twice)), None, "two at one address");
    }

    #[test]
    fn majorities_of_lists_that_follow_each_other_share_a_member() {
        for count in 1..MEMBERS_MAX {
            let ids: Vec<u8> = (1..=count as u8 + 1).collect();
            let (small, large) = (list(&ids[..count]), list(&ids));
            assert!(small.majority() + large.majority() > large.len(), "{count}");
        }
    }

    #[test]
    fn any_two_majorities_share_a_member() {
        for count in 1..=MEMBERS_MAX {
            let members = (1..=count).map(|id| member(id as u8, &format!("host:{id}"))).collect();
            let majority = Members::new(members).expect("they differ").majority();
            assert!(2 * majority > count && 2 * (majority - 1) <= count, "{majority} of {count}");
        }
    }
}
