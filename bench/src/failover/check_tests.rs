//! The check, on histories that are wrong in each way it knows, and on right ones that look odd.

use super::*;

const KEY: Key = Key(5);

/// A call of a client from 10 * `at` to 10 * `at` + 5, answered at this LSN.
fn done(client: usize, at: u64, what: What, lsn: u64) -> Call {
    let end = End::Answered { at: 10 * at + 5, lsn, term: 1 };
    Call { client, key: KEY, what, from: 10 * at, end }
}

fn open(client: usize, at: u64, what: What) -> Call {
    Call { end: End::Unknown, ..done(client, at, what, 0) }
}

fn refused(client: usize, at: u64, what: What) -> Call {
    Call { end: End::Refused, ..done(client, at, what, 0) }
}

#[track_caller]
fn is_right(calls: &[Call]) {
    let violations = check(calls);
    assert!(violations.is_empty(), "{violations}");
}

/// It is wrong, and each of these words is said.
#[track_caller]
fn is_wrong(calls: &[Call], words: &[&str]) {
    let said = check(calls).to_string();
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn a_history_of_one_node_is_right() {
    is_right(&[
        done(0, 0, What::Get(None), 0),
        done(0, 1, What::Put(7), 1),
        done(1, 2, What::Get(Some(7)), 1),
        done(1, 3, What::Delete(Some(true)), 2),
        done(0, 4, What::Delete(Some(false)), 3),
        done(0, 5, What::Get(None), 3),
    ]);
}

#[test]
fn an_acknowledged_write_that_is_gone_is_lost() {
    let calls = [done(0, 0, What::Put(7), 1), done(9, 9, What::Get(None), 4)];
    is_wrong(&calls, &["LOST", "NOT LINEARIZABLE"]);
}

#[test]
fn a_stale_read_is_found_with_and_without_its_lsn() {
    let writes = [done(0, 0, What::Put(7), 1), done(0, 1, What::Put(8), 2)];
    let read = |lsn| [&writes[..], &[done(1, 2, What::Get(Some(7)), lsn)]].concat();
    is_wrong(&read(1), &["began when LSN 2 had been told", "NOT LINEARIZABLE"]);
    is_wrong(&read(2), &["left Some(8)", "NOT LINEARIZABLE"]);
}

#[test]
fn a_read_that_goes_back_in_time_is_found() {
    let write = Call { end: End::Answered { at: 95, lsn: 3, term: 1 }, ..done(0, 0, What::Put(7), 0) };
    let (seen, gone) = (done(1, 1, What::Get(Some(7)), 3), done(1, 3, What::Get(None), 2));
    is_right(&[write, seen]);
    is_wrong(&[write, seen, gone], &["began when LSN 3 had been told", "NOT LINEARIZABLE"]);
}

#[test]
fn an_lsn_that_is_given_twice_is_found() {
    let other = Call { key: Key(6), ..done(1, 0, What::Put(8), 1) };
    is_wrong(&[done(0, 0, What::Put(7), 1), other], &["LSN 1 was given to two writes"]);
}

#[test]
fn an_lsn_that_falls_although_time_goes_on_is_found() {
    let other = Call { key: Key(6), ..done(1, 1, What::Put(8), 3) };
    is_wrong(&[done(0, 0, What::Put(7), 4), other], &["has LSN 3, and began when LSN 4 had been told"]);
}

#[test]
fn a_term_that_falls_is_found() {
    let newer = Call { end: End::Answered { at: 5, lsn: 1, term: 2 }, ..done(0, 0, What::Put(7), 0) };
    is_wrong(&[newer, done(0, 1, What::Put(8), 2)], &["LSN 1 is of term 2, and LSN 2 of 1"]);
}

#[test]
fn a_refused_write_that_is_seen_is_found() {
    let calls = [refused(0, 0, What::Put(7)), done(1, 1, What::Get(Some(7)), 1)];
    is_wrong(&calls, &["whose write was refused"]);
    is_right(&calls[..1]);
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    is_wrong(&[done(1, 1, What::Get(Some(7)), 1)], &["written by nobody"]);
}

#[test]
fn a_removal_that_tells_the_wrong_thing_is_found() {
    let put = done(0, 0, What::Put(7), 1);
    is_wrong(&[put, done(0, 1, What::Delete(Some(false)), 2)], &["told false"]);
    is_wrong(&[done(0, 1, What::Delete(Some(true)), 2)], &["told true"]);
}

#[test]
fn a_write_without_an_answer_may_have_happened_once_or_not() {
    let lost = open(0, 0, What::Put(7));
    is_right(&[lost, done(1, 1, What::Get(None), 3)]);
    is_right(&[lost, done(1, 1, What::Get(None), 3), done(1, 2, What::Get(Some(7)), 4)]);
    let calls = [lost, done(1, 1, What::Get(Some(7)), 4), done(1, 2, What::Get(None), 4)];
    is_wrong(&calls, &["NOT LINEARIZABLE"]);
}

/// A repeated request that is executed twice brings its value back over a later one.
#[test]
fn a_write_that_happened_twice_is_found() {
    let calls = [
        open(0, 0, What::Put(7)),
        done(1, 1, What::Get(Some(7)), 1),
        done(1, 2, What::Put(8), 2),
        done(1, 3, What::Get(Some(7)), 3),
    ];
    is_wrong(&calls, &["must be above LSN 2 and not above 1", "NOT LINEARIZABLE"]);
}

#[test]
fn a_removal_without_an_answer_explains_an_absent_key() {
    let put = done(0, 0, What::Put(7), 1);
    is_right(&[put, open(1, 1, What::Delete(None)), done(2, 2, What::Get(None), 2)]);
    // But not one before it began.
    is_wrong(&[put, done(2, 1, What::Get(None), 2), open(1, 3, What::Delete(None))], &["NOT LINEARIZABLE"]);
}

/// A numbered write whose first answer was lost: it is told late that it happened early.
#[test]
fn a_write_that_is_answered_late_happened_where_its_lsn_says() {
    let late = Call { end: End::Answered { at: 95, lsn: 1, term: 1 }, ..done(0, 0, What::Put(7), 0) };
    let other = done(1, 1, What::Put(8), 2);
    is_right(&[late, other, done(2, 3, What::Get(Some(8)), 2)]);
    let removal = done(1, 1, What::Delete(Some(true)), 2);
    is_right(&[late, removal, done(2, 3, What::Get(None), 2)]);
    is_wrong(&[late, done(1, 1, What::Delete(Some(false)), 2)], &["told false"]);
    // Executed a second time when it was asked for again, it would bring its value back.
    is_wrong(&[late, other, done(2, 3, What::Get(Some(7)), 3)], &["left Some(8)"]);
}
