//! The match LSN of two logs, against the logs themselves: several nodes lead, follow, lose their ends and are cut,
//! and what two short lists say of any two of them is what comparing every record says.

use kvstore::ids::{Chain, Lsn, NodeId, Term};
use kvstore::limits::TERM_HISTORY_MAX;
use kvstore::replication::history::{TermHistory, TermStart};
use proptest::prelude::*;

const NODES: usize = 3;

/// A record: which one of all that were ever made, and the term that begins with it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Made {
    id: u32,
    begins: Option<(Term, NodeId)>,
}

#[derive(Clone, Debug)]
enum Step {
    /// The node leads in a new term, and appends so many records to it.
    Lead { node: usize, records: usize },
    /// The node loses so many records off its end.
    Lose { node: usize, records: usize },
    /// A session: what differs is cut, and so many records follow.
    Feed { from: usize, to: usize, records: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..NODES, 0usize..5).prop_map(|(node, records)| Step::Lead { node, records }),
        1 => (0..NODES, 0usize..6).prop_map(|(node, records)| Step::Lose { node, records }),
        3 => (0..NODES, 0..NODES, 0usize..20).prop_map(|(from, to, records)| Step::Feed { from, to, records }),
    ]
}

fn shared_length(a: &[Made], b: &[Made]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn logs_after(steps: &[Step]) -> Vec<Vec<Made>> {
    let mut logs = vec![Vec::new(); NODES];
    let (mut id, mut promotion) = (0, 0);
    for step in steps {
        match *step {
            Step::Lead { node, records } => {
                promotion += 1;
                let begins = Some((Term { promotion, start: 0 }, NodeId([node as u8 + 1; 16])));
                for begins in std::iter::once(begins).chain(std::iter::repeat_n(None, records)) {
                    id += 1;
                    logs[node].push(Made { id, begins });
                }
            }
            Step::Lose { node, records } => {
                let left = logs[node].len().saturating_sub(records);
                logs[node].truncate(left);
            }
            Step::Feed { from, to, records } => {
                let shared = shared_length(&logs[from], &logs[to]);
                let fed: Vec<Made> = logs[from].iter().skip(shared).take(records).copied().collect();
                logs[to].truncate(shared);
                logs[to].extend(fed);
            }
        }
    }
    logs
}

/// As a node knows it whose older terms were trimmed down to `entries_max`.
fn history(log: &[Made], entries_max: usize) -> TermHistory {
    let (mut history, mut chain) = (TermHistory::default(), Chain::ZERO);
    for (index, made) in log.iter().enumerate() {
        chain = chain.extend(&made.id.to_be_bytes());
        if let Some((term, leader)) = made.begins {
            history.push(TermStart { term, leader, first_lsn: Lsn(index as u64 + 1), chain });
        }
    }
    history.trim(entries_max);
    history
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn the_match_of_two_histories_is_that_of_their_logs_wherever_they_begin(
        steps in prop::collection::vec(step(), 1..40),
        trims in (0usize..8, 0usize..8),
        (a, b) in (0..NODES, 0..NODES),
    ) {
        let logs = logs_after(&steps);
        let (a, b) = (&logs[a], &logs[b]);
        let shared = shared_length(a, b);
        let last_term = a[..shared].iter().rposition(|made| made.begins.is_some());
        let (mine, theirs) = (history(a, trims.0), history(b, trims.1));
        let lasts = (Lsn(a.len() as u64), Lsn(b.len() as u64));
        // What decides is the first record of the last term that both hold. Trimmed away, nothing can be said.
        let knows = |history: &TermHistory| {
            history.starts().iter().any(|start| last_term == Some(start.first_lsn.0 as usize - 1))
        };
        let expected = if knows(&mine) && knows(&theirs) { shared } else { 0 };
        prop_assert_eq!(mine.match_lsn(lasts.0, &theirs, lasts.1), Ok(Lsn(expected as u64)));
        prop_assert_eq!(theirs.match_lsn(lasts.1, &mine, lasts.0), Ok(Lsn(expected as u64)));
    }

    #[test]
    fn a_log_that_went_another_way_below_a_shared_term_is_reported(
        steps in prop::collection::vec(step(), 1..40),
        (a, b) in (0..NODES, 0..NODES),
        trim in 1usize..8,
    ) {
        let logs = logs_after(&steps);
        let (a, mut b) = (logs[a].clone(), logs[b].clone());
        let shared = shared_length(&a, &b);
        let Some(last_term) = a[..shared].iter().rposition(|made| made.begins.is_some()) else { return Ok(()) };
        b[last_term / 2].id ^= 1 << 31;
        let (mine, theirs) = (history(&a, usize::MAX), history(&b, trim));
        let lasts = (Lsn(a.len() as u64), Lsn(b.len() as u64));
        let kept = theirs.starts().iter().any(|start| start.first_lsn.0 as usize == last_term + 1);
        match mine.match_lsn(lasts.0, &theirs, lasts.1) {
            Err(disagreement) => prop_assert_eq!(disagreement.lsn, Lsn(last_term as u64 + 1)),
            Ok(found) => prop_assert!(!kept && found == Lsn::ZERO),
        }
    }
}

#[test]
fn a_history_keeps_its_newest_entries() {
    let start = |n: usize| TermStart {
        term: Term::from_u64(n as u64),
        leader: NodeId([1; 16]),
        first_lsn: Lsn(n as u64),
        chain: Chain(n as u32),
    };
    let full = (1..=TERM_HISTORY_MAX).map(start).collect();
    let mut history = TermHistory::from_starts(full).unwrap();
    for more in 1..=3 {
        history.push(start(TERM_HISTORY_MAX + more));
        assert_eq!(history.starts().len(), TERM_HISTORY_MAX);
        assert_eq!(
            (history.starts()[0], history.last()),
            (start(more + 1), Some(&start(TERM_HISTORY_MAX + more)))
        );
    }
    assert_eq!(history.term_at(Lsn(2)), Term::ZERO, "what was trimmed is not known");
}
