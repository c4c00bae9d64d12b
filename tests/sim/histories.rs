//! What clients saw of a leader, key by key, without the LSNs that it told them: is there an order that explains
//! it? Beside the check by LSN (`replies.rs`), which would believe a node that numbers its mistakes well.
//!
//! One history is one key, served by one leader in one term; what a term begins with is unknown but for the very
//! first one, which begins with nothing. A write without an answer may have happened in any term of its leader.
//! Where leaders are elected, one history is one key, whoever served it, from the beginning of the run.

use std::collections::{BTreeMap, BTreeSet};

use kvstore::wire::client::Status;

use crate::client::{Ask, Dialogue, Got, Sent};
use crate::core::Core;
use crate::library;
use crate::numbered::{By, Numbers};
use crate::search::{Call, Content, Op, Verdict, search};

/// Steps of one search: about ten times what the longest history of the CI set takes.
const STEPS_MAX: u64 = 200_000;
/// Calls with an end of one history; of a longer one the calls that began in its first part are looked at.
const CALLS_MAX: usize = 400;

/// One key of one leader in one term.
type Place = (u64, usize, Vec<u8>);
/// The term and host that stand for all leaders of an elected cluster: there is no term 0 with a leader.
const ALL_LEADERS: (u64, usize) = (0, 0);

/// See the head of this file.
#[derive(Default)]
pub struct Histories {
    calls: BTreeMap<Place, Vec<Call>>,
}

impl Histories {
    /// A client got this answer, on this connection.
    pub fn on_got(&mut self, core: &Core, conn: usize, site: usize, sent: &Sent, got: &Got) {
        let (key, op) = match (&sent.ask, got.status) {
            (Ask::Put { key, id, .. }, Status::Ok) => (key, Op::Write(*id)),
            (Ask::Delete { key, .. }, Status::Ok) => (key, Op::Remove(Some(true))),
            (Ask::Delete { key, .. }, Status::NotFound) => (key, Op::Remove(Some(false))),
            // A follower's reads are as old as the follower.
            (Ask::Get { .. }, _) if !sent.by_leader => return,
            (Ask::Get { key, .. }, Status::Ok) => (key, Op::Read(got.value_id)),
            (Ask::Get { key, .. }, Status::NotFound) => (key, Op::Read(None)),
            _ => return,
        };
        let call = Call { lane: lane_of(conn, sent), from: sent.began(), to: Some(core.now), op };
        let (term, site) = if core.knobs.is_elected() { ALL_LEADERS } else { (got.term, site) };
        self.calls.entry((term, site, key.clone())).or_default().push(call);
    }

    /// Searches an order for each history. Panics where there is none, or none was found in the steps allowed.
    /// `began_twice`: whether a leader with an older disk may have begun this term again.
    pub fn check(
        &self,
        core: &mut Core,
        dialogues: &BTreeMap<usize, Dialogue>,
        numbers: &Numbers,
        began_twice: impl Fn(usize, u64) -> bool,
    ) {
        let open = open_writes(dialogues, numbers, core.knobs.is_elected());
        let judged = self.calls.iter().filter(|((term, site, _), _)| !began_twice(*site, *term));
        for ((term, site, key), done) in judged {
            let none = Vec::new();
            let mut calls = begin_of(done);
            let last_end = calls.iter().filter_map(|call| call.to).max().unwrap_or(0);
            let open = open.get(&(*site, key.clone())).unwrap_or(&none);
            calls.extend(open.iter().filter(|call| call.from <= last_end));
            // Both lists are in the order of each lane, and a lane's open calls may stand between its others.
            calls.sort_by_key(|call| call.from);
            let begin = if *term <= 1 { Content::Known(None) } else { Content::Anything };
            let key = String::from_utf8_lossy(key);
            match search(&calls, begin, STEPS_MAX) {
                Verdict::Linearizable => core.stats.count("check: history of a key put in order"),
                Verdict::Undecided => panic!(
                    "host {site}, term {term}: {} calls on {key} were not put in order in {STEPS_MAX} steps",
                    calls.len()
                ),
                Verdict::Not { ordered, content, stuck } => panic!(
                    "host {site}, term {term}: what clients saw of {key} has no order: behind {ordered} of {} \
                     calls it holds {content:?}, and none of these fits: {stuck:?}",
                    calls.len()
                ),
            }
        }
    }
}

/// The first part of a history that is too long for a search: what began in it. A write that ended behind it is
/// open, a read that did so says nothing yet.
fn begin_of(done: &[Call]) -> Vec<Call> {
    let mut begun: Vec<u64> = done.iter().map(|call| call.from).collect();
    begun.sort_unstable();
    let Some(until) = begun.get(CALLS_MAX).copied() else { return done.to_vec() };
    let mut calls: Vec<Call> = done.iter().filter(|call| call.from < until).copied().collect();
    let ended = |call: &Call| call.to.is_some_and(|to| to < until);
    calls.retain(|call| ended(call) || !matches!(call.op, Op::Read(_)));
    for call in calls.iter_mut().filter(|call| !ended(call)) {
        call.to = None;
        if let Op::Remove(told) = &mut call.op {
            *told = None;
        }
    }
    calls
}

/// Calls by the host they were sent to and their key.
type ByKey = BTreeMap<(usize, Vec<u8>), Vec<Call>>;

/// What is asked for again may have taken effect before what stands in front of it on this connection. Within a session
/// it is in the order of the numbers.
fn lane_of(conn: usize, sent: &Sent) -> usize {
    match sent.by {
        Some(By { session, tries, .. }) if tries > 1 => session.nonce as usize | 1 << 63,
        _ => conn,
    }
}

/// Writes that nobody heard the end of. A number counts once where it was sent, and not at all where it was answered:
/// its record is in one log once. With fixed roles a leader may lose that record, by its disk or a cut, and execute the
/// number again in a later term; what was read of the first one in its own term must find it among these.
fn open_writes(dialogues: &BTreeMap<usize, Dialogue>, numbers: &Numbers, elected: bool) -> ByKey {
    let mut open = ByKey::new();
    let given_again = if elected { BTreeSet::new() } else { library::numbers_given_again() };
    let mut counted = BTreeSet::new();
    for (conn, dialogue) in dialogues {
        let unheard = |(index, sent): &(usize, &Sent)| *index >= dialogue.received || sent.unknown;
        for (_, sent) in dialogue.sent.iter().enumerate().filter(unheard) {
            let (key, op) = match &sent.ask {
                Ask::Put { key, id, .. } => (key, Op::Write(*id)),
                Ask::Delete { key, .. } => (key, Op::Remove(None)),
                _ => continue,
            };
            let call = Call { lane: lane_of(*conn, sent), from: sent.began(), to: None, op };
            let site = if elected { ALL_LEADERS.1 } else { dialogue.site };
            if let Some(by) = &sent.by {
                let number = (site, (by.session, by.number));
                let is_again = given_again.contains(&(by.session.lsn, by.number));
                let is_told = numbers.in_history.contains(&number) && !is_again;
                if is_told || !counted.insert(number) {
                    continue;
                }
            }
            open.entry((site, key.clone())).or_default().push(call);
        }
    }
    open
}
