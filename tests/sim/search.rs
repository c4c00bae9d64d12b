//! Is a history of one register linearizable? A search after Wing and Gong (1993), with the memory of what was
//! tried that Lowe (2017) added. It knows nothing of this system: calls have a beginning, an end, and what they
//! were told; there are no LSNs and no logs.
//!
//! A register holds a value, each of which is written once, or nothing. Calls of one *lane* (a connection) take
//! effect in the order in which they were made. A call without an end may have taken effect at any time after its
//! beginning, or not at all.
//!
//! The search picks, one after the other, a call that may be next: no other call ended before it began. These
//! observations keep it short:
//!
//! - a call that changes nothing and fits may be next at once, whatever comes later;
//! - a value that somebody still has to read must not be overwritten: it never comes back;
//! - a write without an end whose value was read has happened before that read ended;
//! - all other calls without an end are as good as each other, the writes and the removals: how many were used counts,
//!   not which. (They leave their lanes for that, the one place where the search allows more than it must.)
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
    Not {
        ordered: usize,
        content: Content,
        stuck: Vec<Call>,
    },
    /// The steps were used up.
    Undecided,
}

/// Whether there is an order of these calls that respects time and lanes and gives each the answer it got.
pub fn search(calls: &[Call], begin: Content, steps_max: u64) -> Verdict {
    Search::new(calls, begin).run(steps_max)
}

/// A value that nobody reads any more: all of them are one.
const UNREAD: u64 = u64::MAX;

struct Search {
    lanes: Vec<Vec<Call>>,
    /// When calls without an end began that may be used or not, the first one in front.
    spare_writes: Vec<u64>,
    spare_removals: Vec<u64>,
    state: State,
    /// Reads with this answer that are not in order yet.
    unread: BTreeMap<u64, u32>,
    /// Values that calls with an end write.
    written: BTreeSet<u64>,
    /// Calls with an end, not in order yet, that need a value to be there, or none.
    want_some: u32,
    want_none: u32,
    tried: BTreeSet<State>,
    ordered: usize,
    best: Option<(usize, Content, Vec<Call>)>,
}

/// How far the search is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    content: Content,
    /// Used of the spare writes and removals.
    writes: usize,
    removals: usize,
    /// For each lane, how many of its calls are in order or left out.
    at: Vec<u16>,
}

#[derive(Clone, Copy, Debug)]
enum Move {
    /// The call of this lane with this index.
    Call(usize, usize),
    SpareWrite,
    SpareRemoval,
}

/// A choice, what may still be chosen in its place, and how to undo it.
struct Choice {
    moves: Vec<Move>,
    next: usize,
    undo: Option<(State, Option<Op>)>,
}

impl Search {
    fn new(calls: &[Call], begin: Content) -> Search {
        let mut names: Vec<usize> = calls.iter().map(|call| call.lane).collect();
        names.sort_unstable();
        names.dedup();
        let mut search = Search {
            lanes: vec![Vec::new(); names.len()],
            spare_writes: Vec::new(),
            spare_removals: Vec::new(),
            state: State { content: begin, writes: 0, removals: 0, at: vec![0; names.len()] },
            unread: BTreeMap::new(),
            written: BTreeSet::new(),
            want_some: 0,
            want_none: 0,
            tried: BTreeSet::new(),
            ordered: 0,
            best: None,
        };
        let first_read = search.count(calls);
        for call in calls {
            let mut call = *call;
            if call.to.is_none() {
                match call.op {
                    Op::Write(value) if first_read.contains_key(&value) => {
                        // What a history begins with may be an open write of the time before.
                        let known = begin != Content::Anything;
                        call.to = first_read.get(&value).copied().filter(|_| known);
                    }
                    Op::Write(_) => search.spare_writes.push(call.from),
                    Op::Remove(_) => search.spare_removals.push(call.from),
                    Op::Read(_) => panic!("a read without an end says nothing"),
                }
            }
            if call.to.is_some() || matches!(call.op, Op::Write(value) if first_read.contains_key(&value)) {
                search.lanes[names.binary_search(&call.lane).expect("all are in it")].push(call);
            }
        }
        search.spare_writes.sort_unstable();
        search.spare_removals.sort_unstable();
        for lane in &mut search.lanes {
            // In a lane each call is in order before those behind it are.
            let mut end = u64::MAX;
            for call in lane.iter_mut().rev().filter(|call| call.to.is_some()) {
                end = end.min(call.to.unwrap_or(end));
                call.to = Some(end);
            }
        }
        search
    }

    /// Counts what is told; when each value was read first.
    fn count(&mut self, calls: &[Call]) -> BTreeMap<u64, u64> {
        let mut first_read = BTreeMap::new();
        for call in calls {
            let Some(to) = call.to else { continue };
            self.want(call.op, 1);
            match call.op {
                Op::Read(Some(value)) => {
                    let first = first_read.entry(value).or_insert(to);
                    *first = to.min(*first);
                }
                Op::Write(value) => {
                    self.written.insert(value);
                }
                _ => {}
            }
        }
        first_read
    }

    /// One call more that needs what it was told, or one less.
    fn want(&mut self, op: Op, by: i32) {
        let count = match op {
            Op::Read(Some(value)) => self.unread.entry(value).or_default(),
            Op::Remove(Some(true)) => &mut self.want_some,
            Op::Read(None) | Op::Remove(Some(false)) => &mut self.want_none,
            Op::Write(_) | Op::Remove(None) => return,
        };
        *count = count.checked_add_signed(by).expect("each was counted");
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
            if let Some((state, op)) = choice.undo.take() {
                self.state = state;
                if let Some(op) = op {
                    self.want(op, 1);
                    self.ordered -= 1;
                }
            }
            let Some(next) = choice.moves.get(choice.next).copied() else {
                choices.pop();
                if choices.is_empty() {
                    let (ordered, content, stuck) = self.best.expect("the first choice was looked at");
                    return Verdict::Not { ordered, content, stuck };
                }
                continue;
            };
            choice.next += 1;
            choice.undo = Some(self.put_in_order(next));
            // A place that was tried has no moves: the next step takes this one back.
            let fresh = self.tried.insert(self.state.clone());
            let moves = if fresh { self.moves() } else { Vec::new() };
            choices.push(Choice { moves, next: 0, undo: None });
        }
    }

    /// What is left of each lane.
    fn rests(&self) -> impl Iterator<Item = &[Call]> {
        self.lanes.iter().zip(&self.state.at).map(|(lane, at)| &lane[*at as usize..])
    }

    /// Every call with an end is in order.
    fn is_through(&self) -> bool {
        self.rests().all(|rest| rest.iter().all(|call| call.to.is_none()))
    }

    /// What may be next and fits: the call that ends first in front, spare ones last.
    fn moves(&mut self) -> Vec<Move> {
        let first_end =
            self.rests().filter_map(|rest| rest.iter().find_map(|call| call.to)).min().unwrap_or(u64::MAX);
        let (mut found, mut stuck) = (Vec::new(), Vec::new());
        for (number, rest) in self.rests().enumerate() {
            let first = self.state.at[number] as usize;
            for (index, call) in rest.iter().enumerate() {
                if call.from > first_end {
                    break;
                }
                // One that leaves out a call before it in its lane is a choice like any other.
                if index == 0 && self.changes_nothing(call) {
                    return vec![Move::Call(number, first)];
                }
                match self.fits(call) {
                    true => found.push((call.to.unwrap_or(u64::MAX), number, first + index)),
                    false => stuck.push(*call),
                }
                // Behind one with an end nothing of this lane may be next; one without may be left out.
                if call.to.is_some() {
                    break;
                }
            }
        }
        if self.best.as_ref().is_none_or(|(ordered, ..)| self.ordered > *ordered) {
            self.best = Some((self.ordered, self.state.content, stuck));
        }
        found.sort_unstable();
        let mut moves: Vec<Move> = found.iter().map(|(_, lane, index)| Move::Call(*lane, *index)).collect();
        let began = |spare: &[u64], used: usize| spare.get(used).is_some_and(|from| *from <= first_end);
        let is_none = !matches!(self.state.content, Content::Known(Some(_)));
        if self.want_some > 0 && is_none && began(&self.spare_writes, self.state.writes) {
            moves.push(Move::SpareWrite);
        }
        let is_some = self.state.content != Content::Known(None);
        if self.want_none > 0 && is_some && self.may_go() && began(&self.spare_removals, self.state.removals)
        {
            moves.push(Move::SpareRemoval);
        }
        moves
    }

    fn changes_nothing(&self, call: &Call) -> bool {
        match (call.op, self.state.content) {
            (Op::Read(told), Content::Known(value)) => told == value,
            (Op::Remove(Some(false)), Content::Known(None)) => true,
            _ => false,
        }
    }

    fn fits(&self, call: &Call) -> bool {
        match call.op {
            Op::Read(told) => match self.state.content {
                Content::Known(value) => told == value,
                Content::Anything => told.is_none_or(|value| !self.written.contains(&value)),
            },
            Op::Write(_) | Op::Remove(None) => self.may_go(),
            Op::Remove(Some(existed)) => match self.state.content {
                Content::Known(value) => existed == value.is_some() && self.may_go(),
                Content::Anything => true,
            },
        }
    }

    /// Nobody still has to read the value that is there.
    fn may_go(&self) -> bool {
        match self.state.content {
            Content::Known(Some(value)) => self.is_read(value) == 0,
            Content::Known(None) | Content::Anything => true,
        }
    }

    fn is_read(&self, value: u64) -> u32 {
        self.unread.get(&value).copied().unwrap_or(0)
    }

    fn put_in_order(&mut self, next: Move) -> (State, Option<Op>) {
        let before = self.state.clone();
        let op = match next {
            Move::Call(lane, index) => {
                self.state.at[lane] = u16::try_from(index + 1).expect("histories are small");
                Some(self.lanes[lane][index].op)
            }
            Move::SpareWrite => {
                self.state.writes += 1;
                None
            }
            Move::SpareRemoval => {
                self.state.removals += 1;
                None
            }
        };
        let content = match (next, op) {
            (Move::SpareWrite, _) => Some(UNREAD),
            (_, Some(Op::Write(value))) => Some(value),
            (_, Some(Op::Read(told))) => told,
            (_, Some(Op::Remove(_)) | None) => None,
        };
        if let Some(op) = op {
            self.want(op, -1);
            self.ordered += 1;
        }
        let named = content.map(|value| if self.is_read(value) == 0 { UNREAD } else { value });
        self.state.content = Content::Known(named);
        (before, op)
    }
}
