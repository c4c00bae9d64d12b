//! The search for an order, on histories whose answer is known: a check that never says no checks nothing.

use crate::search::{Call, Content, Op, Verdict, search};

const EMPTY: Content = Content::Known(None);

fn call(lane: usize, from: u64, to: u64, op: Op) -> Call {
    Call { lane, from, to: Some(to), op }
}

fn open(lane: usize, from: u64, op: Op) -> Call {
    Call { lane, from, to: None, op }
}

fn has_order(begin: Content, calls: &[Call]) -> bool {
    match search(calls, begin, 100_000) {
        Verdict::Linearizable => true,
        Verdict::Not { .. } => false,
        Verdict::Undecided => panic!("{calls:?} is small"),
    }
}

#[test]
fn a_read_behind_a_write_sees_it() {
    let read = |told| [call(1, 0, 1, Op::Write(7)), call(2, 2, 3, Op::Read(told))];
    assert!(has_order(EMPTY, &read(Some(7))));
    assert!(!has_order(EMPTY, &read(None)));
    assert!(!has_order(EMPTY, &read(Some(8))));
}

#[test]
fn a_read_beside_a_write_may_see_it_or_not() {
    let read = |told| [call(1, 0, 10, Op::Write(7)), call(2, 2, 3, Op::Read(told))];
    assert!(has_order(EMPTY, &read(Some(7))));
    assert!(has_order(EMPTY, &read(None)));
}

#[test]
fn two_reads_behind_each_other_do_not_go_back_in_time() {
    let reads = |first, second| {
        [call(1, 0, 10, Op::Write(7)), call(2, 1, 2, Op::Read(first)), call(3, 3, 4, Op::Read(second))]
    };
    assert!(has_order(EMPTY, &reads(None, Some(7))));
    assert!(!has_order(EMPTY, &reads(Some(7), None)));
}

#[test]
fn a_stale_read_is_found() {
    let calls = [call(1, 0, 1, Op::Write(1)), call(1, 2, 3, Op::Write(2)), call(2, 4, 5, Op::Read(Some(1)))];
    assert!(!has_order(EMPTY, &calls));
    let Verdict::Not { ordered, stuck, .. } = search(&calls, EMPTY, 100) else { panic!("it has no order") };
    assert_eq!(
        (ordered, stuck),
        (1, vec![calls[1]]),
        "the value that is read must not be overwritten before"
    );
}

#[test]
fn two_readers_must_agree_on_the_order_of_two_writes() {
    let calls = |a: [u64; 2], b: [u64; 2]| {
        [
            call(1, 0, 100, Op::Write(1)),
            call(2, 0, 100, Op::Write(2)),
            call(3, 1, 2, Op::Read(Some(a[0]))),
            call(3, 3, 4, Op::Read(Some(a[1]))),
            call(4, 1, 2, Op::Read(Some(b[0]))),
            call(4, 3, 4, Op::Read(Some(b[1]))),
        ]
    };
    assert!(has_order(EMPTY, &calls([1, 2], [1, 2])));
    assert!(!has_order(EMPTY, &calls([1, 2], [2, 1])));
}

#[test]
fn a_write_without_an_answer_may_have_happened_late_or_not_at_all() {
    let lost = open(1, 0, Op::Write(7));
    assert!(has_order(EMPTY, &[lost, call(2, 5, 6, Op::Read(None))]));
    assert!(has_order(EMPTY, &[lost, call(2, 5, 6, Op::Read(None)), call(2, 7, 8, Op::Read(Some(7)))]));
    // But once, and not before it was asked for.
    assert!(!has_order(EMPTY, &[lost, call(2, 5, 6, Op::Read(Some(7))), call(2, 7, 8, Op::Read(None))]));
    let later = open(1, 9, Op::Write(7));
    assert!(!has_order(EMPTY, &[later, call(2, 5, 6, Op::Read(Some(7)))]));
}

#[test]
fn calls_of_one_connection_take_effect_in_their_order() {
    let (first, second) = (call(1, 0, 50, Op::Write(1)), call(1, 0, 50, Op::Write(2)));
    let end = |value| call(2, 60, 61, Op::Read(Some(value)));
    assert!(has_order(EMPTY, &[first, second, end(2)]));
    assert!(!has_order(EMPTY, &[first, second, end(1)]));
    // An unanswered call in front may be left out, and is not made up for later.
    let lost = open(1, 0, Op::Write(3));
    assert!(has_order(EMPTY, &[lost, second, end(2)]));
    assert!(!has_order(EMPTY, &[lost, second, end(3)]));
}

#[test]
fn a_removal_tells_whether_there_was_something() {
    let calls = |existed| [call(1, 0, 1, Op::Write(1)), call(1, 2, 3, Op::Remove(Some(existed)))];
    assert!(has_order(EMPTY, &calls(true)));
    assert!(!has_order(EMPTY, &calls(false)));
    let twice = [call(1, 0, 9, Op::Remove(Some(true))), call(2, 0, 9, Op::Remove(Some(true)))];
    assert!(!has_order(EMPTY, &twice));
    assert!(has_order(Content::Known(Some(4)), &[twice[0], call(2, 0, 9, Op::Remove(Some(false)))]));
}

#[test]
fn a_history_that_begins_in_the_middle_takes_any_first_value_but_keeps_to_it() {
    let reads = |first, second| [call(1, 0, 1, Op::Read(first)), call(1, 2, 3, Op::Read(second))];
    assert!(has_order(Content::Anything, &reads(Some(4), Some(4))));
    assert!(!has_order(Content::Anything, &reads(Some(4), Some(5))));
    // What is written in it cannot have been there before.
    let written = call(2, 5, 6, Op::Write(4));
    assert!(!has_order(Content::Anything, &[call(1, 0, 1, Op::Read(Some(4))), written]));
}

#[test]
fn a_search_that_runs_out_of_steps_says_so() {
    let writes: Vec<Call> = (0..30).map(|lane| call(lane, 0, 100, Op::Write(lane as u64))).collect();
    let mut calls = writes.clone();
    calls.push(call(99, 200, 201, Op::Read(None)));
    assert_eq!(search(&calls, EMPTY, 1_000), Verdict::Undecided);
    assert_eq!(search(&writes, EMPTY, 1_000), Verdict::Linearizable);
}

/// Every order of some calls, tried one by one.
fn has_order_by_trying(calls: &[Call], done: &mut Vec<usize>, content: Option<u64>) -> bool {
    let left = || (0..calls.len()).filter(|index| !done.contains(index));
    if left().all(|index| calls[index].to.is_none()) {
        return true;
    }
    let candidates: Vec<usize> = left()
        .filter(|&index| left().all(|other| calls[other].to.is_none_or(|to| to >= calls[index].from)))
        .filter(|&index| {
            // In its lane, nothing with an end is in front of it, and nothing behind it is done.
            let lane = |other: &usize| calls[*other].lane == calls[index].lane;
            left().filter(lane).all(|other| other >= index || calls[other].to.is_none())
                && done.iter().copied().filter(|other| lane(other)).all(|other| other < index)
        })
        .collect();
    candidates.into_iter().any(|index| {
        let next = match calls[index].op {
            Op::Write(value) => Some(value),
            Op::Remove(told) if told.is_none_or(|existed| existed == content.is_some()) => None,
            Op::Read(told) if told == content => content,
            _ => return false,
        };
        done.push(index);
        let found = has_order_by_trying(calls, done, next);
        done.pop();
        found
    })
}

#[test]
fn the_search_agrees_with_trying_every_order() {
    let mut rng = kvstore::rng::Rng::new(4711);
    let (mut yes, mut no) = (0, 0);
    for _ in 0..20_000 {
        let mut clock = [0_u64; 3];
        let calls: Vec<Call> = (0..7)
            .map(|number| {
                let lane = rng.below(3) as usize;
                let from = clock[lane] + rng.below(4);
                let to = from + rng.below(8);
                clock[lane] = to;
                let op = match rng.below(5) {
                    0 | 1 => Op::Write(number),
                    2 => Op::Remove(Some(rng.below(2) == 0)),
                    _ => Op::Read(rng.below(7).checked_sub(2)),
                };
                match op {
                    // In a lane of its own: the search does not hold it to that of others.
                    Op::Write(_) if rng.below(4) == 0 => open(10 + number as usize, from, op),
                    _ => call(lane, from, to, op),
                }
            })
            .collect();
        let expected = has_order_by_trying(&calls, &mut Vec::new(), None);
        assert_eq!(has_order(EMPTY, &calls), expected, "{calls:?}");
        if expected { yes += 1 } else { no += 1 }
    }
    assert!(yes > 500 && no > 500, "{yes} with an order, {no} without");
}
