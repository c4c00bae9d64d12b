//! Is what the clients were told what one node that never fails would have told them?
//!
//! It is asked twice. Once by the LSNs in the answers, over all keys at once: a write has an LSN of its own, a read the
//! last one it saw, so the order is given, and it is left to see whether it explains the answers and keeps to the time.
//! And once without them, key by key, by a search over all orders: a cluster that numbers its mistakes well would pass
//! the first. Reads of every key after the end are part of the history, so a write that is lost is a read that has no
//! explanation.
//!
//! A numbered write that was asked for several times is one call, from the first request to the answer, which is that
//! of the first time: its LSN says where it happened, however late it was told.
//!
//! A write whose outcome is unknown may have happened at any time after it began, once, or not at all. One that was
//! refused must never be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::history::{Call, End, Key, What};
use super::search::{self, Content, Op, Verdict};

/// Steps of the search of one key: a thousand times what histories of some hundred calls take.
const STEPS_MAX: u64 = 1_000_000;
/// Violations that are told; the rest is counted.
const TOLD_MAX: usize = 12;

/// All that is wrong.
#[derive(Debug, Default)]
pub struct Violations {
    told: Vec<String>,
    count: usize,
}

impl Violations {
    fn add(&mut self, text: String) {
        self.count += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(text);
        }
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl std::fmt::Display for Violations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        for told in &self.told {
            let _ = writeln!(text, "  {told}");
        }
        if self.count > self.told.len() {
            let _ = writeln!(text, "  and {} more", self.count - self.told.len());
        }
        f.write_str(&text)
    }
}

/// Both checks.
pub fn check(calls: &[Call]) -> Violations {
    let mut violations = Violations::default();
    lsns_are_given_once(calls, &mut violations);
    lsns_keep_to_the_time(calls, &mut violations);
    let mut by_key: BTreeMap<Key, Vec<Call>> = BTreeMap::new();
    for call in calls {
        by_key.entry(call.key).or_default().push(*call);
    }
    for (key, calls) in &mut by_key {
        calls.sort_by_key(|call| call.from);
        nothing_refused_is_seen(*key, calls, &mut violations);
        answers_fit_their_lsns(*key, calls, &mut violations);
        there_is_an_order(*key, calls, &mut violations);
    }
    violations
}

/// Two writes never have one LSN, and terms rise with LSNs.
fn lsns_are_given_once(calls: &[Call], violations: &mut Violations) {
    let mut writes: Vec<(u64, u64, &Call)> = Vec::new();
    for call in calls.iter().filter(|call| call.is_write()) {
        if let End::Answered { lsn, term, .. } = call.end {
            writes.push((lsn, term, call));
        }
    }
    writes.sort_by_key(|(lsn, ..)| *lsn);
    for pair in writes.windows(2) {
        let [(lsn, term, first), (next_lsn, next_term, second)] = pair else { continue };
        if lsn == next_lsn {
            violations.add(format!("LSN {lsn} was given to two writes: {first:?} and {second:?}"));
        }
        if term > next_term {
            violations.add(format!("LSN {lsn} is of term {term}, and LSN {next_lsn} of {next_term}"));
        }
    }
}

/// A call that began when another had ended has a higher LSN; a read may have the same.
fn lsns_keep_to_the_time(calls: &[Call], violations: &mut Violations) {
    let mut by_begin: Vec<(&Call, u64)> =
        calls.iter().filter_map(|call| Some((call, call.answered()?.1))).collect();
    by_begin.sort_by_key(|(call, _)| call.from);
    let mut by_end: Vec<(u64, u64)> = calls.iter().filter_map(Call::answered).collect();
    by_end.sort_unstable();
    let (mut ended, mut floor) = (by_end.iter().peekable(), 0);
    for (call, lsn) in by_begin {
        while let Some((_, seen)) = ended.next_if(|(at, _)| *at < call.from) {
            floor = floor.max(*seen);
        }
        if if call.is_write() { lsn <= floor } else { lsn < floor } {
            violations
                .add(format!("{} has LSN {lsn}, and began when LSN {floor} had been told", describe(call)));
        }
    }
}

fn nothing_refused_is_seen(key: Key, calls: &[Call], violations: &mut Violations) {
    let put = |call: &Call| if let What::Put(value) = call.what { Some((value, call.end)) } else { None };
    let puts: BTreeMap<u64, End> = calls.iter().filter_map(put).collect();
    for call in calls {
        let What::Get(Some(value)) = call.what else { continue };
        match puts.get(&value) {
            Some(End::Refused) => {
                violations.add(format!("{} sees value {value:x}, whose write was refused", describe(call)));
            }
            None => violations.add(format!("{key:?}: value {value:x} was read and written by nobody")),
            Some(End::Answered { .. } | End::Unknown) => {}
        }
    }
}

/// By the LSNs: what was told is what the last write at or below that LSN left there.
fn answers_fit_their_lsns(key: Key, calls: &[Call], violations: &mut Violations) {
    let mut writes: BTreeMap<u64, Option<u64>> = BTreeMap::new();
    let (mut unknown, mut unknown_removal) = (BTreeSet::new(), false);
    for call in calls {
        match (call.what, call.end) {
            (What::Put(value), End::Answered { lsn, .. }) => drop(writes.insert(lsn, Some(value))),
            (What::Delete(_), End::Answered { lsn, .. }) => drop(writes.insert(lsn, None)),
            (What::Put(value), End::Unknown) => drop(unknown.insert(value)),
            (What::Delete(_), End::Unknown) => unknown_removal = true,
            _ => {}
        }
    }
    // Above which LSN a write without an answer must be, and at or below which.
    let mut between: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for call in calls {
        let Some((_, lsn)) = call.answered() else { continue };
        match call.what {
            What::Get(told) => {
                let (at, left) = state_at(&writes, lsn);
                match told {
                    _ if told == left => {}
                    Some(value) if unknown.contains(&value) => {
                        let (above, upto) = between.entry(value).or_insert((0, u64::MAX));
                        (*above, *upto) = ((*above).max(at), (*upto).min(lsn));
                    }
                    None if unknown_removal => {}
                    _ => violations.add(wrong_read(call, told, at, left)),
                }
            }
            What::Delete(Some(existed)) => {
                let (at, left) = state_at(&writes, lsn - 1);
                let is_open = !unknown.is_empty() || unknown_removal;
                if existed != left.is_some() && !is_open {
                    violations.add(format!("{} told {existed}, LSN {at} left {left:?}", describe(call)));
                }
            }
            What::Put(_) | What::Delete(None) => {}
        }
    }
    for (value, (above, upto)) in between.into_iter().filter(|(_, (above, upto))| above >= upto) {
        violations.add(format!(
            "{key:?}: the write of {value:x}, which was not answered, must be above LSN {above} and not above {upto}"
        ));
    }
}

/// What acknowledged writes at or below that LSN left, and the LSN of the last of them.
fn state_at(writes: &BTreeMap<u64, Option<u64>>, lsn: u64) -> (u64, Option<u64>) {
    writes.range(..=lsn).next_back().map_or((0, None), |(at, left)| (*at, *left))
}

fn wrong_read(call: &Call, told: Option<u64>, at: u64, left: Option<u64>) -> String {
    let read = describe(call);
    match told {
        None => format!("{read} finds nothing: the acknowledged write of {left:x?} at LSN {at} is LOST"),
        Some(value) => format!("{read} sees {value:x}; the acknowledged write at LSN {at} left {left:x?}"),
    }
}

/// Without the LSNs: one after the other, in some order that keeps to the time, the calls give these answers.
fn there_is_an_order(key: Key, calls: &[Call], violations: &mut Violations) {
    let calls: Vec<search::Call> = calls.iter().filter_map(searchable).collect();
    match search::search(&calls, Content::Known(None), STEPS_MAX) {
        Verdict::Linearizable => {}
        Verdict::Undecided => violations.add(format!(
            "{key:?}: {} calls were not put in order in {STEPS_MAX} steps; nothing is proved",
            calls.len()
        )),
        Verdict::Not { ordered, content, stuck } => violations.add(format!(
            "{key:?} is NOT LINEARIZABLE: behind {ordered} of {} calls it holds {content:x?}, and none of these \
             fits: {stuck:x?}",
            calls.len()
        )),
    }
}

fn searchable(call: &Call) -> Option<search::Call> {
    let op = match call.what {
        What::Put(value) => Op::Write(value),
        What::Delete(told) => Op::Remove(told),
        What::Get(told) => Op::Read(told),
    };
    let to = match call.end {
        End::Answered { at, .. } => Some(at),
        End::Unknown => None,
        End::Refused => return None,
    };
    Some(search::Call { lane: call.client, from: call.from, to, op })
}

fn describe(call: &Call) -> String {
    let what = match call.what {
        What::Put(value) => format!("put {value:x}"),
        What::Delete(_) => "delete".to_owned(),
        What::Get(_) => "get".to_owned(),
    };
    format!("{what} of {:?} by client {} at {:.3} s", call.key, call.client, call.from as f64 / 1e9)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
