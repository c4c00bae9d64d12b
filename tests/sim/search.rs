//! Is a history of one register linearizable? A search after Wing and Gong (1993), with the memory of what was
//! tried that Lowe (2017) added. It knows nothing of this system: calls have a beginning, an end, and what they
//! were told; there are no LSNs and no logs.
//!
//! A register holds a value, each of which is written once, or nothing. Calls of one *lane* (a connection) take
//! effect in the order in which they were made. A call without an end may have taken effect at any time after its
//! beginning, or not at all.
//!
//! The search picks, one after the other, a call that may be next: no other call ended before it began. Three
//! observations keep it short, and none of them loses an answer:
//!
//! - a call that changes nothing and fits may be next at once, whatever comes later;
//! - a value that somebody still has to read must not be overwritten: it never comes back;
//! - the same position in all lanes with the same value needs to be tried once.
//!
//! What is left is bounded by a number of steps; a search that runs into it has not decided anything.

use std::collections::{BTreeMap, BTreeSet};

/// What was asked, and what was told. Values are named by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write(u64),
    /// Removes the value; whether there was one, if that was told.
    Remove(Option<bool>),
    /// Reads: the value, or that there is none.
    Read(Option<u64>),
}

/// A call on the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Calls of one lane are given in the order in which they were made.
    pub lane: usize,
    pub from: u64,
    /// `None`: nobody knows whether it happened.
    pub to: Option<u64>,
    pub op: Op,
}

/// What the register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// Anything that none of the calls with an end writes: the history begins in the middle.
    Anything,
    Known(Option<u64>),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains it. How many calls could be put in order, what the register held then, and the calls
    /// that could have been next and do not fit.
    Not { ordered: usize, content: Content, stuck: Vec<Call> },
    /// The steps were used up.
    Undecided,
}

/// Whether there is an order of these calls that respects time and lanes and gives each the answer it got.
pub fn search(calls: &[Call], begin: Content, steps_max: u64) -> Verdict {
    Search::new(calls, begin).run(steps_max)
}

struct Search {
    lanes: Vec<Vec<Call>>,
    /// For each lane, how many of its calls are in order or given up.
    at: Vec<u16>,
    content: Content,
    /// Reads with this answer that are not in order yet.
    unread: BTreeMap<u64, u32>,
    /// Values that calls with an end write.
    written: BTreeSet<u64>,
    tried: BTreeSet<(Vec<u16>, Content)>,
    ordered: usize,
    best: Option<(usize, Content, Vec<Call>)>,
}

/// A choice, what may still be chosen in its place, and how to undo it.
struct Choice {
    moves: Vec<(usize, usize)>,
    next: usize,
    undo: Option<(usize, u16, Content, Op)>,
}

impl Search {
    fn new(calls: &[Call], begin: Content) -> Search {
        let mut names: Vec<usize> = calls.iter().map(|call| call.lane).collect();
        names.sort_unstable();
        names.dedup();
        let mut lanes = vec![Vec::new(); names.len()];
        let (mut unread, mut written) = (BTreeMap::new(), BTreeSet::new());
        for call in calls {
            lanes[names.binary_search(&call.lane).expect("all are in it")].push(*call);
            match call.op {
                // A read that nobody was told about says nothing.
                Op::Read(_) if call.to.is_none() => panic!("a read without an end is no part of a history"),
                Op::Read(Some(value)) => *unread.entry(value).or_default() += 1,
                Op::Write(value) if call.to.is_some() => {
                    written.insert(value);
                }
                _ => {}
            }
        }
        let at = vec![0; lanes.len()];
        let tried = BTreeSet::new();
        Search { lanes, at, content: begin, unread, written, tried, ordered: 0, best: None }
    }

    fn run(mut self, steps_max: u64) -> Verdict {
        let mut steps = 0;
        let mut choices = vec![Choice { moves: self.moves(), next: 0, undo: None }];
        loop {
            if self.is_through() {
                return Verdict::Linearizable;
            }
            steps += 1;
            if steps > steps_max {
                return Verdict::Undecided;
            }
            let choice = choices.last_mut().expect("the first one is never taken away");
            if let Some(undo) = choice.undo.take() {
                self.undo(undo);
            }
            let Some(&(lane, index)) = choice.moves.get(choice.next) else {
                choices.pop();
                if choices.is_empty() {
                    let (ordered, content, stuck) = self.best.expect("the first choice was looked at");
                    return Verdict::Not { ordered, content, stuck };
                }
                continue;
            };
            choice.next += 1;
            choice.undo = Some(self.put_in_order(lane, index));
            // A place that was tried has no moves: the next step takes this one back.
            let fresh = self.tried.insert((self.at.clone(), self.content));
            let moves = if fresh { self.moves() } else { Vec::new() };
            choices.push(Choice { moves, next: 0, undo: None });
        }
    }

    /// Every call with an end is in order.
    fn is_through(&self) -> bool {
        self.lanes.iter().zip(&self.at).all(|(lane, at)| lane[*at as usize..].iter().all(|c| c.to.is_none()))
    }

    /// The calls that may be next and fit, the one that ended first in front, those without an end last.
    fn moves(&mut self) -> Vec<(usize, usize)> {
        let ends = self.lanes.iter().zip(&self.at).filter_map(|(lane, at)| {
            // In one lane calls end in order.
            lane[*at as usize..].iter().find_map(|call| call.to)
        });
        let first_end = ends.min().unwrap_or(u64::MAX);
        let (mut moves, mut stuck) = (Vec::new(), Vec::new());
        for (number, lane) in self.lanes.iter().enumerate() {
            for (index, call) in lane.iter().enumerate().skip(self.at[number] as usize) {
                if call.from > first_end {
                    break;
                }
                // One that leaves out a call before it in its lane is a choice like any other.
                if index == self.at[number] as usize && self.changes_nothing(call) {
                    return vec![(number, index)];
                }
                match self.fits(call) {
                    true => moves.push((number, index)),
                    false => stuck.push(*call),
                }
                // Behind one with an end nothing of this lane may be next; one without may be left out.
                if call.to.is_some() {
                    break;
                }
            }
        }
        if self.best.as_ref().is_none_or(|(ordered, ..)| self.ordered > *ordered) {
            self.best = Some((self.ordered, self.content, stuck));
        }
        moves.sort_by_key(|(lane, index)| self.lanes[*lane][*index].to.unwrap_or(u64::MAX));
        moves
    }

    fn changes_nothing(&self, call: &Call) -> bool {
        match (call.op, self.content) {
            (Op::Read(told), Content::Known(value)) => told == value,
            (Op::Remove(Some(false)), Content::Known(None)) => call.to.is_some(),
            _ => false,
        }
    }

    fn fits(&self, call: &Call) -> bool {
        match call.op {
            Op::Read(told) => match self.content {
                Content::Known(value) => told == value,
                Content::Anything => told.is_none_or(|value| !self.written.contains(&value)),
            },
            Op::Write(_) | Op::Remove(None) => self.may_go(),
            Op::Remove(Some(existed)) => match self.content {
                Content::Known(value) => existed == value.is_some() && self.may_go(),
                Content::Anything => true,
            },
        }
    }

    /// Nobody still has to read the value that is there.
    fn may_go(&self) -> bool {
        match self.content {
            Content::Known(Some(value)) => self.unread.get(&value).is_none_or(|left| *left == 0),
            Content::Known(None) | Content::Anything => true,
        }
    }

    fn put_in_order(&mut self, lane: usize, index: usize) -> (usize, u16, Content, Op) {
        let op = self.lanes[lane][index].op;
        let undo = (lane, self.at[lane], self.content, op);
        self.at[lane] = u16::try_from(index + 1).expect("histories are small");
        self.ordered += 1;
        self.content = match op {
            Op::Write(value) => Content::Known(Some(value)),
            Op::Remove(_) => Content::Known(None),
            Op::Read(told) => Content::Known(told),
        };
        if let Op::Read(Some(value)) = op {
            *self.unread.get_mut(&value).expect("it was counted") -= 1;
        }
        undo
    }

    fn undo(&mut self, (lane, at, content, op): (usize, u16, Content, Op)) {
        self.at[lane] = at;
        self.content = content;
        self.ordered -= 1;
        if let Op::Read(Some(value)) = op {
            *self.unread.get_mut(&value).expect("it was counted") += 1;
        }
    }
}
