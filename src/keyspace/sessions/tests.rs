//! The table against a model that keeps everything and forgets nothing until it is asked to.

use proptest::prelude::*;

use super::*;
use crate::limits::CLIENT_SESSION_WINDOW;
use crate::wire::Reader;

/// Rows of the tables here.
const ROOM: usize = 3;

/// What is in the log at an LSN.
#[derive(Clone, Copy, Debug)]
enum Step {
    Open {
        nonce: u64,
    },
    /// A write of the n-th session opened so far: its next number, or another one.
    Write {
        session: usize,
        ahead: i64,
        found: bool,
    },
    /// Something else.
    Other,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (any::<usize>(), prop_oneof![20 => Just(0), 1 => -40..40_i64], any::<bool>());
    let step = prop_oneof![
        2 => any::<u64>().prop_map(|nonce| Step::Open { nonce }),
        12 => write.prop_map(|(session, ahead, found)| Step::Write { session, ahead, found }),
        2 => Just(Step::Other),
    ];
    proptest::collection::vec(step, 1..300)
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Open(SessionId),
    Executed(WriteNumber, Answer),
    Nothing,
}

/// The log that these steps make: the n-th change stands at LSN n + 1.
fn log(steps: &[Step]) -> Vec<Change> {
    let mut opened: Vec<(Lsn, u64)> = Vec::new();
    let mut change = |(step, lsn): (&Step, u64)| match *step {
        Step::Open { nonce } => {
            opened.push((Lsn(lsn), 0));
            Change::Open(SessionId { lsn: Lsn(lsn), nonce })
        }
        Step::Write { session, ahead, found } if !opened.is_empty() => {
            let index = session % opened.len();
            let (session, last) = opened[index];
            let number = (last + 1).saturating_add_signed(ahead);
            opened[index].1 = last.max(number);
            Change::Executed(WriteNumber { session, number }, Answer { lsn: Lsn(lsn), found })
        }
        Step::Write { .. } | Step::Other => Change::Nothing,
    };
    steps.iter().zip(1..).map(&mut change).collect()
}

fn apply(table: &mut Sessions, changes: &[Change]) {
    for change in changes {
        match *change {
            Change::Open(id) => table.open(id),
            Change::Executed(by, answer) => table.executed(by, answer),
            Change::Nothing => {}
        }
    }
}

fn applied(changes: &[Change]) -> Sessions {
    let mut table = Sessions::with_room_for(ROOM);
    apply(&mut table, changes);
    table.invariants();
    table
}

/// What can be seen of a table.
fn seen(table: &Sessions) -> (Vec<ClientSession>, u128) {
    (table.iter().cloned().collect(), table.hash())
}

/// One session in the model: every number that was executed, in order, with its answer.
struct Modelled {
    id: SessionId,
    executed: Vec<(u64, Answer)>,
}

/// The sessions that are not forgotten, in the order they were opened in.
fn modelled(changes: &[Change]) -> Vec<Modelled> {
    let mut all: Vec<Modelled> = Vec::new();
    for change in changes {
        match *change {
            Change::Open(id) => {
                if all.len() == ROOM {
                    let used =
                        |one: &Modelled| one.executed.last().map_or(one.id.lsn, |(_, answer)| answer.lsn);
                    let oldest = (0..ROOM).min_by_key(|index| used(&all[*index])).expect("there are some");
                    all.remove(oldest);
                }
                all.push(Modelled { id, executed: Vec::new() });
            }
            Change::Executed(by, answer) => {
                let Some(one) = all.iter_mut().find(|one| one.id.lsn == by.session) else { continue };
                if one.executed.last().is_none_or(|(last, _)| by.number > *last) && by.number > 0 {
                    one.executed.push((by.number, answer));
                }
            }
            Change::Nothing => {}
        }
    }
    all
}

/// The answer to a number: remembered if it is among the last of an unbroken row that ends with the last number.
fn model_answer(one: &Modelled, number: u64) -> Option<Answer> {
    let newest = one.executed.iter().rev().take(CLIENT_SESSION_WINDOW);
    let last = one.executed.last()?.0;
    let row = newest.zip((0..=last).rev()).take_while(|((number, _), expected)| number == expected);
    row.map(|(executed, _)| *executed).find(|(executed, _)| *executed == number).map(|(_, answer)| answer)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn remembers_what_the_model_does(steps in steps()) {
        let changes = log(&steps);
        let (table, model) = (applied(&changes), modelled(&changes));
        prop_assert_eq!(table.len(), model.len());
        for (session, one) in table.iter().zip(&model) {
            prop_assert_eq!(session.id(), one.id);
            prop_assert_eq!(table.get(one.id), Some(session));
            prop_assert_eq!(table.get(SessionId { nonce: !one.id.nonce, ..one.id }), None);
            let last = one.executed.last().map_or(0, |(number, _)| *number);
            prop_assert_eq!(session.last_number(), last);
            for number in 0..=last + 1 {
                prop_assert_eq!(session.answer(number), model_answer(one, number), "number {}", number);
            }
        }
    }

    #[test]
    fn records_applied_again_at_their_lsns_change_nothing(steps in steps(), from in 0..300_usize, to in 0..300_usize) {
        let changes = log(&steps);
        let mut table = applied(&changes);
        let before = seen(&table);
        let to = to.min(changes.len());
        apply(&mut table, &changes[from.min(to)..to]);
        prop_assert_eq!(seen(&table), before);
        table.invariants();
    }

    #[test]
    fn a_table_from_a_snapshot_and_the_log_behind_its_begin_is_that_of_the_whole_log(
        steps in steps(), s in 0..300_usize, e in 0..300_usize,
    ) {
        let changes = log(&steps);
        let e = e.min(changes.len());
        let mut bytes = Vec::new();
        applied(&changes[..e]).iter().for_each(|session| session.encode(&mut bytes));
        let (mut loaded, mut reader) = (Sessions::with_room_for(ROOM), Reader::new(&bytes));
        while reader.left() > 0 {
            loaded.load(Lsn(e as u64), ClientSession::decode(&mut reader).expect("it was encoded"));
        }
        // Behind an empty table nothing is loaded, and there is nothing in the log before it.
        apply(&mut loaded, &changes[s.min(e)..]);
        loaded.invariants();
        prop_assert_eq!(seen(&loaded), seen(&applied(&changes)));
    }

    #[test]
    fn different_tables_have_different_hashes(steps in steps()) {
        let changes = log(&steps);
        let mut hashes: Vec<(u128, Vec<ClientSession>)> = Vec::new();
        for length in 0..=changes.len() {
            let (sessions, hash) = seen(&applied(&changes[..length]));
            match hashes.iter().find(|(known, _)| *known == hash) {
                Some((_, known)) => prop_assert_eq!(known, &sessions),
                None => hashes.push((hash, sessions)),
            }
        }
    }
}
