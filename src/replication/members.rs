//! Who votes: the members of an elected cluster.
//!
//! The list is fixed when the cluster is formed and is the same, to the byte, in every member's record: it has one
//! order, that of the node ids. So two lists can be compared, and whoever counts a majority counts the same one.
//!
//! Left out: changing it. A change will be a record of the log; what counts then is still a list like this one.

use std::ops::Deref;

use crate::ids::NodeId;
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

    #[test]
    fn any_two_majorities_share_a_member() {
        for count in 1..=MEMBERS_MAX {
            let members = (1..=count).map(|id| member(id as u8, &format!("host:{id}"))).collect();
            let majority = Members::new(members).expect("they differ").majority();
            assert!(2 * majority > count && 2 * (majority - 1) <= count, "{majority} of {count}");
        }
    }
}
