//! Clients that number their writes in a session, and what must hold of the numbers.
//!
//! Such a client does what the client library does, only worse: it has several numbers under way, and asks now and
//! then for one that was answered long ago. What it has no answer to when its connection or its leader is lost it
//! sends again, in order, with the same numbers, to whichever node it meets next. Which clients do so is drawn beside
//! the generator of the run: in runs without any nothing is different.
//!
//! - A number is in one log once: `mirror.rs` has the numbers of each log, and panics.
//! - The answer to a number is about the record that carries it, and every answer to it is the same: status, LSN and
//!   term. Another one is given only where the record of the first was lost, and the promise allowed that.
//! - What was asked for once, and refused as of an unknown session or out of turn, is in no log, ever.
//! - An answer is not forgotten before so many later numbers were used: NUMBER_TOO_OLD never comes to these clients.
//!
//! For the order of what clients see (`replies.rs`, `histories.rs`) a number counts once, from the first time it was
//! asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvstore::ids::{Chain, SessionId, WriteNumber};
use kvstore::limits::CLIENT_SESSION_WINDOW;
use kvstore::rng::Rng;
use kvstore::wire::client::Status;

use crate::client::{Ask, Got, Sent};
use crate::core::Core;
use crate::mirror::Entry;
use crate::oracle::Oracle;
use crate::seed::Seed;
use crate::socks::Emitted;
use crate::world::World;

/// So many of a million times that a client acts it asks for an old number.
const OLD_NUMBER_PPM: u64 = 100_000;

/// Sets the generator that draws who numbers apart from the one of the run.
const DRAWN_BESIDE: u64 = 0x6e75_6d62_6572;
/// Numbers that a client begins in one moment, at most; in nanoseconds too.
const AT_ONCE_MAX: u64 = 2 * CLIENT_SESSION_WINDOW as u64;
/// After so many refusals for want of memory or space a number is given up: its value may be too large for ever.
const TRIES_MAX: u32 = 8;

/// The number of a request.
#[derive(Clone, Copy, Debug)]
pub struct By {
    pub session: SessionId,
    pub number: u64,
    /// When it was asked for the first time.
    pub first_at: u64,
    /// How often it was sent, this time included.
    pub tries: u32,
}

impl By {
    fn key(&self) -> Number {
        (self.session, self.number)
    }
}

type Number = (SessionId, u64);

/// The session of a client.
#[derive(Debug, Default)]
pub struct Numbering {
    session: Option<SessionId>,
    /// Where a session was asked for.
    opening: Option<usize>,
    /// It was refused: until there is one, writes have no number.
    is_plain: bool,
    last: u64,
    last_first_at: u64,
    /// In the order of their numbers.
    unanswered: VecDeque<Write>,
    answered: VecDeque<Write>,
    /// The connection on which all that is unanswered was sent.
    conn: Option<usize>,
    /// One of those was refused there: they must be sent again.
    refused: bool,
}

#[derive(Clone, Debug)]
struct Write {
    number: u64,
    ask: Ask,
    first_at: u64,
    tries: u32,
}

/// Whether this client of a run numbers its writes: some of the clients of every second run.
pub fn numbers(seed: Seed, client: usize) -> Option<Numbering> {
    let drawn = Rng::new(seed.number ^ DRAWN_BESIDE).next_u64();
    let is_it = drawn & 1 == 1 && (client == 0 || drawn >> (client + 1) & 1 == 1);
    is_it.then(Numbering::default)
}

impl Numbering {
    fn write(&mut self, number: u64) -> Option<&mut Write> {
        self.unanswered.iter_mut().chain(&mut self.answered).find(|write| write.number == number)
    }

    /// The client gives the session up.
    fn abandon(&mut self) {
        *self = Numbering::default();
    }

    /// It was answered.
    fn done(&mut self, number: u64) {
        if let Some(at) = self.unanswered.iter().position(|write| write.number == number) {
            self.answered.extend(self.unanswered.remove(at));
        }
        while self
            .answered
            .front()
            .is_some_and(|write| write.number + CLIENT_SESSION_WINDOW as u64 <= self.last)
        {
            self.answered.pop_front();
        }
    }

    /// Whether it may use another number: an answer that it lacks must still be remembered then.
    fn takes_more(&self) -> bool {
        let first = self.unanswered.front().map_or(self.last + 1, |write| write.number);
        self.last + 1 < first + CLIENT_SESSION_WINDOW as u64
    }
}

impl World {
    /// Before a client draws something new: what it must send again.
    pub fn send_numbers_again(&mut self, index: usize) {
        let Some(numbering) = &self.clients[index].numbering else { return };
        let conn = self.clients[index].conn;
        if numbering.session.is_none() {
            if conn.is_none() || numbering.opening != conn {
                self.ask_by(index, Ask::OpenSession, None);
                let conn = self.clients[index].conn;
                self.numbering(index).opening = conn;
            }
            return;
        }
        if conn.is_none() || numbering.conn != conn || numbering.refused && self.is_answered(conn) {
            for write in numbering.unanswered.clone() {
                if !self.send_number(index, &write) {
                    return;
                }
            }
            let conn = self.clients[index].conn;
            let numbering = self.numbering(index);
            (numbering.conn, numbering.refused) = (conn, false);
        }
        let old = self.clients[index].numbering.as_ref().map_or(0, |numbering| numbering.answered.len());
        let mut core = self.core.borrow_mut();
        if old > 0 && core.chance(OLD_NUMBER_PPM) {
            let at = core.rng.below(old as u64) as usize;
            drop(core);
            let write = self.numbering(index).answered[at].clone();
            if write.number + CLIENT_SESSION_WINDOW as u64 > self.numbering(index).last {
                self.send_number(index, &write);
            }
        }
    }

    /// Sends what a client has drawn. A write of one that numbers them waits for its session, and for what is
    /// unanswered.
    pub fn ask_with_number(&mut self, index: usize, ask: Ask) {
        let conn = self.clients[index].conn;
        let Some(numbering) = self.clients[index].numbering.as_mut() else { return self.ask(index, ask) };
        if !matches!(ask, Ask::Put { .. } | Ask::Delete { .. }) {
            return self.ask(index, ask);
        }
        let stands = conn.is_some() && numbering.conn == conn && !numbering.refused;
        if numbering.session.is_none() && numbering.is_plain {
            return self.ask(index, ask);
        }
        if numbering.session.is_none() || !stands || !numbering.takes_more() {
            return;
        }
        numbering.last += 1;
        // In the order of the numbers, and none later than it was: so there is an order of them by time.
        let first_at = (numbering.last_first_at + 1).max(self.core.borrow().now.saturating_sub(AT_ONCE_MAX));
        numbering.last_first_at = first_at;
        numbering.unanswered.push_back(Write { number: numbering.last, ask, first_at, tries: 0 });
        let write = numbering.unanswered.back().expect("it was just put there").clone();
        if !self.send_number(index, &write) {
            let numbering = self.numbering(index);
            numbering.unanswered.pop_back();
            numbering.last -= 1;
        }
    }

    fn numbering(&mut self, index: usize) -> &mut Numbering {
        self.clients[index].numbering.as_mut().expect("it numbers its writes")
    }

    fn is_answered(&self, conn: Option<usize>) -> bool {
        let dialogue = conn.and_then(|conn| self.dialogues.get(&conn));
        dialogue.is_none_or(|dialogue| dialogue.received == dialogue.sent.len())
    }

    fn send_number(&mut self, index: usize, write: &Write) -> bool {
        let session = self.numbering(index).session.expect("it has one");
        let Write { number, ref ask, first_at, tries } = *write;
        let by = By { session, number, first_at, tries: tries + 1 };
        let is_sent = self.ask_by(index, ask.clone(), Some(by));
        if is_sent && let Some(write) = self.numbering(index).write(number) {
            write.tries += 1;
        }
        is_sent
    }

    /// A client got this answer.
    pub fn on_number_got(&mut self, index: usize, sent: &Sent, got: &Got) {
        let Some(numbering) = &mut self.clients[index].numbering else { return };
        let mut core = self.core.borrow_mut();
        if sent.ask == Ask::OpenSession {
            numbering.opening = None;
            if got.status == Status::Refused {
                core.stats.count("client: session refused");
                numbering.is_plain = true;
            }
            if got.status == Status::Ok && numbering.session.is_none() {
                core.stats.count("client: session opened");
                let session = Some(got.session.expect("the id of a session"));
                *numbering = Numbering { session, ..Numbering::default() };
            }
            return;
        }
        let Some(by) = sent.by.filter(|by| Some(by.session) == numbering.session) else { return };
        let is_first = numbering.unanswered.front().is_some_and(|write| write.number == by.number);
        let no_room = matches!(got.status, Status::Busy | Status::DiskFull);
        if no_room && is_first && by.tries == 1 && numbering.unanswered.len() == 1 {
            // It was asked for once, and that was refused: the number is free, and the write is none.
            core.stats.count("client: number used again");
            numbering.unanswered.pop_front();
            numbering.last -= 1;
            if let Ask::Put { id, .. } = &sent.ask {
                self.oracle.is_never_executed(*id, got.status);
            }
            return;
        }
        match got.status {
            Status::Ok | Status::NotFound => return numbering.done(by.number),
            Status::NumberTooOld => {
                panic!("{:?} of {by:?}, and {} is the last one", got.status, numbering.last)
            }
            Status::SessionExpired => core.stats.count("client: session expired"),
            // What is missing there was answered, or was executed by a leader whose records are lost.
            Status::NumberSkips if is_first => core.stats.count("client: numbers missing"),
            _ if no_room && is_first && by.tries > TRIES_MAX => {}
            _ => return numbering.refused = true,
        }
        numbering.abandon();
        if let (Ask::Put { id, .. }, 1) = (&sent.ask, by.tries) {
            self.oracle.is_never_executed(*id, got.status);
        }
    }
}

/// What is known of all numbers of a run.
#[derive(Default)]
pub struct Numbers {
    answers: BTreeMap<Number, Told>,
    /// Those that are in the history of what this host serves.
    pub in_history: BTreeSet<(usize, Number)>,
}

impl Numbers {
    /// Whether an answer that a client got belongs into the history of what this host serves: the first one to its
    /// number, and where roles are fixed only one of that leader's own term.
    pub fn is_new_in_history(&mut self, core: &Core, site: usize, sent: &Sent, got: &Got) -> bool {
        let Some(by) = sent.by.filter(|_| matches!(got.status, Status::Ok | Status::NotFound)) else {
            return true;
        };
        let site = if core.knobs.is_elected() { 0 } else { site };
        sent.by_leader && self.in_history.insert((site, by.key()))
    }
}

/// The answer to a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    status: Status,
    lsn: u64,
    term: u64,
    chain: Chain,
    site: usize,
}

impl Oracle {
    fn is_never_executed(&mut self, id: u64, status: Status) {
        assert!(!self.seen_ids.contains(&id), "write {id} is in a log and was answered {status:?}");
        self.refused_ids.insert(id);
    }

    /// A host answers a number with this record. True if it was answered before, and so.
    pub fn is_told_again(
        &mut self,
        core: &mut Core,
        site: usize,
        by: By,
        reply: &Emitted,
        entry: &Entry,
    ) -> bool {
        let is_its = WriteNumber { session: by.session.lsn, number: by.number };
        assert!(
            entry.by == Some(is_its),
            "host {site} answers {by:?} with LSN {}, where the log has {:?} of {:?}",
            reply.lsn,
            entry.kind,
            entry.by
        );
        let told = Told { status: reply.status, lsn: reply.lsn, term: reply.term, chain: entry.chain, site };
        let Some(first) = self.answers_of(by.key(), told) else { return false };
        if (Told { site, ..first }) == told {
            core.stats.count("check: a number is answered as the first time");
            if first.site != site {
                core.stats.count("check: a number is answered as by another leader");
            }
            return true;
        }
        let lost = self.acked.iter().find(|write| (write.lsn, write.chain) == (first.lsn, first.chain));
        let is_excused = lost.is_some_and(|write| write.given_up || self.lost_somewhere(write))
            || !self.forced.is_empty()
            || !self.discarding.is_empty()
            || self.discards_in_chaos;
        assert!(is_excused, "{by:?} was answered {first:?}, and is answered {told:?}");
        core.stats.count("check: a number whose record was given up is executed again");
        self.numbers.answers.insert(by.key(), told);
        false
    }

    /// The first answer to a number; `None`, and it is noted, if this is it.
    fn answers_of(&mut self, number: Number, told: Told) -> Option<Told> {
        let known = self.numbers.answers.get(&number).copied();
        if known.is_none() {
            self.numbers.answers.insert(number, told);
        }
        known
    }
}
