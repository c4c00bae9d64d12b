//! The client sessions: which numbered writes were executed, and what was answered.
//!
//! A client numbers its writes 1, 2, 3, ... in a session, so that it can ask again when an answer was lost. The table
//! is part of the state: it follows from the log alone, is part of the state hash and of every snapshot, and so is
//! the same on every node, after a restart, and under the next leader.
//!
//! - A session is opened by a record; that record's LSN is its key.
//! - A numbered write is executed like any other, whatever stands here: applying decides nothing. Its answer, where it
//!   was and whether it found what it was about, is remembered with the last [`CLIENT_SESSION_WINDOW`] of its session.
//! - At most [`CLIENT_SESSIONS_MAX`] sessions are kept. One more, and the one that was used at the lowest LSN is
//!   forgotten: by position in the log, not by time, so that all nodes forget the same one. A table that held a session
//!   is never empty again, which tells whether a log holds any.
//!
//! **Why a fuzzy snapshot holds it exactly.** Whether the removal of a key found it is seen when it is applied, and
//! over the entries of a snapshot, which were met anywhere between S and E, that would be seen wrongly. So the table
//! is not scanned: all of it is written when the scan ends, as it is at E, and remembers that ([`Sessions::at`]).
//! Records up to there leave it alone, and behind E the entries are exact as well. The same rule makes every record
//! harmless that is applied again at its LSN, also one that opens a session which has been forgotten since.
//!
//! **The hash is kept like that of the entries** (see `check`): a change takes out what lies in memory now, not what
//! was put in. So a bit that flips in an answer makes the hash another one for good once its session is used, and
//! before that it differs from what [`Sessions::is_as_applied`] computes. Either costs a hash of half a kilobyte.
//!
//! [`CLIENT_SESSION_WINDOW`]: crate::limits::CLIENT_SESSION_WINDOW

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_128;

use crate::ids::{Lsn, SessionId, WriteNumber};
use crate::limits::{CLIENT_SESSION_SIZE_MAX, CLIENT_SESSIONS_MAX};
use crate::wire::{Answer, ClientSession};

/// What stands before a session where it is hashed, as the length of a key stands before an entry: no key is empty, so
/// no entry has these bytes.
const HASH_PREFIX: [u8; 2] = [0, 0];

/// Bytes that a session takes in memory, about: its rows in two trees, and answers that grow by doubling.
const MEMORY_PER_SESSION: u64 = 16 + 96 + 2 * 8 * crate::limits::CLIENT_SESSION_WINDOW as u64;

/// All client sessions of a node.
///
/// Invariants: as many rows as uses; each use names the row that was used last there; the hash is the sum of the rows'.
#[derive(Debug)]
pub struct Sessions {
    /// Rows, at most.
    max: usize,
    rows: BTreeMap<Lsn, ClientSession>,
    /// Which session was used last at an LSN.
    by_use: BTreeMap<Lsn, Lsn>,
    hash: u128,
    /// Every record up to here is in the table. (Behind it there may be others that are none of its business.)
    at: Lsn,
}

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions::with_room_for(CLIENT_SESSIONS_MAX)
    }
}

impl Sessions {
    /// A small table forgets soon.
    fn with_room_for(max: usize) -> Sessions {
        Sessions { max, rows: BTreeMap::new(), by_use: BTreeMap::new(), hash: 0, at: Lsn::ZERO }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether none was ever opened.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The session with this id, if it is remembered.
    pub fn get(&self, id: SessionId) -> Option<&ClientSession> {
        self.rows.get(&id.lsn).filter(|session| session.id() == id)
    }

    /// All of them, in the order they were opened in.
    pub fn iter(&self) -> impl Iterator<Item = &ClientSession> {
        self.rows.values()
    }

    /// Up to which LSN every record is in the table.
    pub fn at(&self) -> Lsn {
        self.at
    }

    pub(super) fn open(&mut self, id: SessionId) {
        if !self.takes(id.lsn) {
            return;
        }
        if self.rows.len() == self.max {
            let (_, oldest) = self.by_use.pop_first().expect("a full table was used");
            let row = self.rows.remove(&oldest).expect("a use names a row");
            self.hash = self.hash.wrapping_sub(hash_of(&row));
        }
        self.insert(ClientSession::new(id));
    }

    pub(super) fn executed(&mut self, by: WriteNumber, answer: Answer) {
        if !self.takes(answer.lsn) {
            return;
        }
        // It was forgotten between the leader's decision and this record: the write stands, its answer goes nowhere.
        let Some(row) = self.rows.get_mut(&by.session) else { return };
        let (last_lsn, before) = (row.last_lsn(), hash_of(row));
        row.executed(by.number, answer);
        if row.last_lsn() == last_lsn {
            return;
        }
        self.hash = self.hash.wrapping_sub(before).wrapping_add(hash_of(row));
        self.by_use.remove(&last_lsn);
        self.by_use.insert(answer.lsn, by.session);
    }

    /// One that stands in a snapshot whose scan ended at `e`.
    pub(super) fn load(&mut self, e: Lsn, session: ClientSession) {
        self.at = self.at.max(e);
        if let Some(row) = self.rows.remove(&session.id().lsn) {
            self.by_use.remove(&row.last_lsn());
            self.hash = self.hash.wrapping_sub(hash_of(&row));
        }
        self.insert(session);
    }

    /// The sum of the hashes of all of them: the part of the state hash that is theirs.
    pub(super) fn hash(&self) -> u128 {
        self.hash
    }

    pub(super) fn recompute_hash(&self) -> u128 {
        self.iter().fold(0, |sum, session| sum.wrapping_add(hash_of(session)))
    }

    /// Whether all of them are what the hash was kept of.
    pub(super) fn is_as_applied(&self) -> bool {
        self.hash == self.recompute_hash()
    }

    /// See [`super::Keyspace::flip_answer`].
    pub(super) fn flip_answer(&mut self, id: SessionId, index: usize) -> bool {
        self.rows.get_mut(&id.lsn).is_some_and(|session| session.flip_answer(index))
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.rows.len() as u64 * MEMORY_PER_SESSION
    }

    pub(super) fn invariants(&self) {
        assert!(self.rows.len() <= self.max && self.rows.len() == self.by_use.len());
        assert_eq!(self.hash, self.recompute_hash(), "hash of the sessions kept and computed anew");
        for (lsn, row) in &self.rows {
            assert_eq!(*lsn, row.id().lsn);
            assert_eq!(self.by_use.get(&row.last_lsn()), Some(lsn), "a session is not under its last use");
        }
    }

    /// Whether the record at this LSN is one that the table has not seen.
    fn takes(&mut self, lsn: Lsn) -> bool {
        let takes = lsn > self.at;
        self.at = self.at.max(lsn);
        takes
    }

    fn insert(&mut self, session: ClientSession) {
        self.hash = self.hash.wrapping_add(hash_of(&session));
        self.by_use.insert(session.last_lsn(), session.id().lsn);
        self.rows.insert(session.id().lsn, session);
    }
}

fn hash_of(session: &ClientSession) -> u128 {
    let mut bytes = Vec::with_capacity(HASH_PREFIX.len() + CLIENT_SESSION_SIZE_MAX);
    bytes.extend_from_slice(&HASH_PREFIX);
    session.encode(&mut bytes);
    xxh3_128(&bytes)
}

#[cfg(test)]
mod tests;
