//! Raft's properties, and those of leases, looked at after every step. What is violated panics with its name.

use std::collections::{BTreeMap, BTreeSet};

use kvstore::ids::{Lsn, NodeId, Term};
use kvstore::replication::election::ballot::Phase;

use super::log::Entry;
use super::messages::Told;
use super::node::Node;

#[derive(Debug, Default)]
pub struct Checks {
    leaders: BTreeMap<Term, usize>,
    votes: BTreeMap<(usize, Term), NodeId>,
    pre_votes: BTreeMap<(NodeId, Term), BTreeSet<usize>>,
    /// What leaders have committed, and so acknowledged, and in which term.
    committed: Vec<(Entry, Term)>,
    /// When each leader last heard each member, and since when it leads: real time.
    heard_ns: BTreeMap<usize, (u64, BTreeMap<usize, u64>)>,
    pub reads: u64,
    pub elections: u64,
}

impl Checks {
    pub fn committed(&self) -> Lsn {
        Lsn(self.committed.len() as u64)
    }

    /// What a node did in this step.
    pub fn on_told(&mut self, node: &Node, told: Told, members: usize, now_ns: u64) {
        match told {
            Told::Voted(term, candidate) => {
                let before = self.votes.insert((node.index, term), candidate);
                assert!(
                    before.is_none_or(|before| before == candidate),
                    "election safety: node {} voted for two candidates in term {term}",
                    node.index
                );
            }
            Told::WouldVote(term, candidate) => {
                self.pre_votes.entry((candidate, term)).or_default().insert(node.index);
            }
            Told::Stood(term, phase) => {
                let pre_votes = self.pre_votes.get(&(node.id, term)).map_or(0, BTreeSet::len);
                assert!(
                    phase == Phase::HandOver || pre_votes + 1 > members / 2,
                    "terms do not grow: node {} raised its term to {term} with {pre_votes} pre-vote(s)",
                    node.index
                );
            }
            Told::Leads(term) => self.on_leads(node, term, now_ns),
            Told::Committed(lsn) => self.on_committed(node, lsn),
            Told::Applied(lsn, entry) => self.on_applied(node, lsn, entry),
            Told::Heard(member) => {
                let (_, heard) = self.heard_ns.get_mut(&node.index).expect("who is answered leads");
                heard.insert(member, now_ns);
            }
        }
    }

    fn on_leads(&mut self, node: &Node, term: Term, now_ns: u64) {
        self.elections += 1;
        let before = self.leaders.insert(term, node.index);
        assert_eq!(before, None, "election safety: a second leader in term {term}: node {}", node.index);
        // The votes of an old term may arrive late: such a leader owes nothing to later ones, and commits nothing.
        let earlier = |(_, (_, committed_in)): &(usize, &(Entry, Term))| *committed_in < term;
        for (index, (entry, _)) in self.committed.iter().enumerate().filter(earlier) {
            let lsn = Lsn(index as u64 + 1);
            assert_eq!(
                node.log.entry(lsn),
                Some(*entry),
                "leader completeness: node {} leads in term {term} and LSN {lsn} was committed",
                node.index
            );
        }
        self.heard_ns.insert(node.index, (now_ns, BTreeMap::new()));
    }

    fn on_committed(&mut self, node: &Node, lsn: Lsn) {
        for at in 1..=lsn.0 {
            let entry = node.log.entry(Lsn(at)).expect("a leader commits what it has");
            match self.committed.get(at as usize - 1) {
                Some((known, _)) => {
                    assert_eq!(*known, entry, "state machine safety: LSN {at} committed twice")
                }
                None => self.committed.push((entry, node.term())),
            }
        }
    }

    fn on_applied(&mut self, node: &Node, lsn: Lsn, entry: Entry) {
        let committed = self.committed.get(lsn.0 as usize - 1).map(|(entry, _)| entry);
        assert_eq!(
            committed,
            Some(&entry),
            "state machine safety: node {} applied LSN {lsn}, and this is what is committed there",
            node.index
        );
    }

    /// A read was answered that must show what was committed then.
    pub fn on_read(&mut self, node: &Node, must_see: Lsn, how: &str) {
        self.reads += 1;
        assert!(
            node.applied >= must_see,
            "stale read: node {} answered by {how} from LSN {}, and {must_see} was acknowledged",
            node.index,
            node.applied
        );
    }

    /// A leader that no majority has heard does not stay: `limit_ns` allows for its clock and its ticks.
    pub fn check_quorum(&self, node: &Node, members: usize, now_ns: u64, limit_ns: u64) {
        if node.leader().is_none() {
            return;
        }
        let (since, heard) = &self.heard_ns[&node.index];
        let mut newest: Vec<u64> = heard.values().copied().collect();
        newest.sort_unstable_by(|a, b| b.cmp(a));
        let by_majority = newest.get((members / 2).wrapping_sub(1)).copied().unwrap_or(0);
        let silent_ns = now_ns - by_majority.max(*since);
        assert!(
            members == 1 || silent_ns <= limit_ns,
            "check-quorum: node {} leads, and no majority has answered it for {} ms",
            node.index,
            silent_ns / 1_000_000
        );
    }

    /// Two logs that have a record of one term at an LSN are equal up to there.
    pub fn log_matching(&self, nodes: &[Node]) {
        for (index, a) in nodes.iter().enumerate() {
            for b in &nodes[..index] {
                let shorter = a.log.last().min(b.log.last()).0;
                let same_term = |lsn: &u64| {
                    a.log.entry(Lsn(*lsn)).map(|entry| entry.term)
                        == b.log.entry(Lsn(*lsn)).map(|entry| entry.term)
                };
                let Some(shared) = (1..=shorter).rev().find(same_term) else { continue };
                assert_eq!(
                    a.log.chain(Lsn(shared)),
                    b.log.chain(Lsn(shared)),
                    "log matching: nodes {} and {} at LSN {shared}",
                    a.index,
                    b.index
                );
            }
        }
    }
}
