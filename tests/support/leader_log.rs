//! A leader that a test plays: its log, the frame of each record, and how it opens a session with the one real node.

#![allow(dead_code)]

use kvstore::conn::ConnId;
use kvstore::ids::{Chain, Lsn, Term};
use kvstore::replication::history::{TermHistory, TermStart};
use kvstore::wire::peer::{Ack, AppendEntries, AppendTail, Hello, Open, OpenReply};
use kvstore::wire::{Effect, MessageType, Record};

use super::lone_node::{Answer, LEADER, LoneNode, hello};

/// The term it leads in.
pub const TERM: Term = Term { promotion: 0, start: 3 };

pub fn bytes_of(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

pub fn term_record(term: Term) -> Effect<'static> {
    Effect::Term { term, leader: LEADER }
}

/// A leader's log, and the frame of each record of it.
pub struct Log {
    pub history: TermHistory,
    pub chains: Vec<Chain>,
    pub frames: Vec<Vec<u8>>,
    pub records: Vec<Vec<u8>>,
    /// The term it leads in now.
    pub term: Term,
    /// Whether it says that it was elected.
    pub elected: bool,
}

impl Log {
    /// The first record begins the term; the others are puts of their own number.
    pub fn new(records: u64) -> Log {
        let mut log = Log {
            history: TermHistory::default(),
            chains: vec![Chain::ZERO],
            frames: Vec::new(),
            records: Vec::new(),
            term: TERM,
            elected: false,
        };
        log.push(term_record(TERM));
        (2..=records).for_each(|lsn| log.push(Effect::Put { key: b"k", value: &lsn.to_be_bytes() }));
        log
    }

    pub fn last(&self) -> Lsn {
        Lsn(self.frames.len() as u64)
    }

    pub fn push(&mut self, effect: Effect<'_>) {
        let lsn = self.last().next();
        let record = bytes_of(|out| Record { lsn, effect }.encode(out));
        let chain = self.chains[self.frames.len()].extend(&record);
        if let Effect::Term { term, leader } = effect {
            self.history.push(TermStart { term, leader, first_lsn: lsn, chain });
            self.term = term;
        }
        self.chains.push(chain);
        self.frames.push(frame_of(lsn, chain, &record));
        self.records.push(record);
    }

    /// One frame with the records `from..=to`, or with none if `to` is the LSN before `from`, from a leader that knows
    /// this commit LSN.
    pub fn frame(&self, from: u64, to: u64, commit: u64) -> Vec<u8> {
        let (records, chain) =
            (self.records[from as usize - 1..to as usize].concat(), self.chains[to as usize]);
        let tail = AppendTail { in_sync: false, commit_lsn: Lsn(commit), round: to, chain };
        let record_count = (to + 1 - from) as u32;
        bytes_of(|out| AppendEntries { record_count, records: &records, tail }.encode(out))
    }

    pub fn open(&self) -> Vec<u8> {
        bytes_of(|out| self.open_message().encode(out))
    }

    pub fn open_message(&self) -> Open {
        Open {
            term: self.term,
            leader: LEADER,
            your_address: "lone:1".to_owned(),
            peers: vec!["lone:1".to_owned()],
            first_lsn: Lsn(1),
            last_lsn: self.last(),
            last_chain: self.chains[self.frames.len()],
            history: self.history.clone(),
            heard_lsn: Lsn::ZERO,
            elected: self.elected,
        }
    }
}

pub fn frame_of(lsn: Lsn, chain: Chain, record: &[u8]) -> Vec<u8> {
    let tail = AppendTail { in_sync: true, commit_lsn: lsn, round: lsn.0, chain };
    bytes_of(|out| AppendEntries { record_count: 1, records: record, tail }.encode(out))
}

pub fn leaders_hello() -> Hello {
    Hello { term: TERM, ..hello("leader:1") }
}

/// A connection on which the leader has said hello and nothing else.
pub fn greeted(lone: &mut LoneNode) -> ConnId {
    let conn = lone.connect();
    let answer = lone.send(conn, &bytes_of(|out| leaders_hello().encode(false, out)));
    assert_eq!(answer.frames[0].0, MessageType::HelloReply);
    conn
}

/// A session, and where it begins.
pub fn session(lone: &mut LoneNode, log: &Log) -> (ConnId, Lsn) {
    let conn = greeted(lone);
    let answer = lone.send(conn, &log.open());
    assert_eq!(answer.frames[0].0, MessageType::OpenReply);
    (conn, OpenReply::decode(&answer.frames[0].1).expect("an OPEN_REPLY").match_lsn)
}

pub fn acked(answer: &Answer) -> Lsn {
    let (message_type, body) = answer.frames.last().expect("an answer");
    assert_eq!(*message_type, MessageType::AppendEntriesAck);
    Ack::decode(body).expect("an ACK").last_lsn
}
