//! The log of a node as its disk was told to write it, kept beside the disk: what every check compares with.
//!
//! The simulated disk hands over each batch that the node writes. The mirror knows the format of a batch
//! (mark, entries) and nothing else of the log; it never looks at what the node believes.

use std::collections::BTreeMap;
use std::rc::Rc;

use kvstore::disk::FileId;
use kvstore::ids::{Chain, Lsn, NodeId, Term, WriteNumber};
use kvstore::replication::members::Member;
use kvstore::wal::{ENTRY_HEADER_SIZE, MARK_SIZE};
use kvstore::wire::{Effect, Reader, Record};

use crate::library;

/// What a record does, as far as checks need it. A value begins with the number of the write that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Put {
        key: Vec<u8>,
        id: u64,
    },
    Delete {
        key: Vec<u8>,
    },
    Term,
    Session {
        nonce: u64,
    },
    /// Those who have a say.
    Members {
        members: Vec<Member>,
    },
}

/// A record of some log.
#[derive(Debug)]
pub struct Entry {
    pub lsn: u64,
    pub chain: Chain,
    /// Of the nearest TERM record at or below it.
    pub term: Term,
    pub leader: NodeId,
    pub kind: Kind,
    /// Of a numbered write.
    pub by: Option<WriteNumber>,
    /// Bytes of all records up to it.
    pub end: u64,
}

/// The log of one node.
#[derive(Debug, Default)]
pub struct Mirror {
    /// Index = LSN - 1.
    pub entries: Vec<Rc<Entry>>,
    file_of: Vec<FileId>,
    /// Everything up to here was synced after it was written.
    pub synced: u64,
    /// Where each key was set, for reads at an LSN.
    keys: BTreeMap<Vec<u8>, Vec<(u64, Option<u64>)>>,
    /// The lists of members, by LSN.
    pub lists: Vec<(u64, Vec<Member>)>,
    /// Where each numbered write is.
    ids: BTreeMap<u64, u64>,
    /// Where each number of a session is.
    numbers: BTreeMap<(Lsn, u64), u64>,
    /// Off while the node opens its log.
    pub on: bool,
    /// Records that came since the last look.
    pub fresh: Vec<Rc<Entry>>,
    /// The commit LSN in the newest mark, written and synced.
    pub mark_commit: (u64, u64),
    mark_file: Option<FileId>,
    /// TERM records that it has seen, those cut again included.
    pub terms: usize,
    /// Bytes of records of one batch, at most. What is written while a flush is under way, so that it can be read,
    /// still belongs to the next batch: so it is what was not synced after a turn, with what the next turn added.
    pub batch_max: u64,
    /// What was synced after the turn before.
    pub synced_before: u64,
    /// A sync failed: what it was to write is nowhere, whatever later ones say.
    pub lost: bool,
    /// The flush under way: of which file, up to which record, and the commit LSN in its newest mark.
    flushing: Option<(FileId, u64, u64)>,
    /// A leader's snapshot has its name here: with the next batch, or the end of the turn, it is the log up to this
    /// LSN, with this checksum there.
    pub installing: Option<(u64, Chain)>,
    /// Whether records were taken back since the last look, and the lowest LSN that stayed.
    pub shrunk_to: Option<u64>,
}

/// The number that a value begins with.
pub fn value_id(value: &[u8]) -> Option<u64> {
    value.first_chunk::<8>().map(|raw| u64::from_be_bytes(*raw))
}

impl Mirror {
    /// The number of records.
    pub fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// A record.
    pub fn get(&self, lsn: u64) -> Option<&Rc<Entry>> {
        self.entries.get(lsn.checked_sub(1)? as usize)
    }

    /// Whether it holds this very record behind this very history.
    pub fn holds(&self, lsn: u64, chain: Chain) -> bool {
        self.get(lsn).is_some_and(|entry| entry.chain == chain)
    }

    /// The number of the write whose value a key has at an LSN.
    pub fn value_at(&self, key: &[u8], lsn: u64) -> Option<u64> {
        let versions = self.keys.get(key)?;
        let behind = versions.partition_point(|(at, _)| *at <= lsn);
        versions[..behind].last()?.1
    }

    /// Bytes of the records behind `after`.
    pub fn bytes_behind(&self, after: u64) -> u64 {
        let end = |entry: Option<&Rc<Entry>>| entry.map_or(0, |entry| entry.end);
        end(self.entries.last()) - end(self.get(after))
    }

    /// Forgets what is behind `keep`.
    pub fn cut(&mut self, keep: u64) {
        if self.last() > keep {
            // The marks behind the cut are zeroed with it.
            self.mark_commit = (0, 0);
        }
        while self.last() > keep {
            let entry = self.entries.pop().expect("it is longer");
            self.file_of.pop();
            if let Some(by) = entry.by {
                self.numbers.remove(&(by.session, by.number));
            }
            if let Kind::Put { key, id } = &entry.kind {
                self.ids.remove(id);
                self.keys.get_mut(key).expect("it was set").pop();
            }
            if let Kind::Delete { key } = &entry.kind {
                self.keys.get_mut(key).expect("it was set").pop();
            }
            self.shrunk_to = Some(self.shrunk_to.unwrap_or(keep).min(keep));
        }
        self.lists.retain(|(lsn, _)| *lsn <= keep);
        self.synced = self.synced.min(keep);
        if let Some((_, last, commit)) = &mut self.flushing
            && *last > keep
        {
            (*last, *commit) = (keep, 0);
        }
    }

    /// A record is added. Panics if the log already has the same numbered write: it was applied twice.
    pub fn push(&mut self, record: &Record<'_>, chain: Chain, file: FileId) {
        let lsn = record.lsn.0;
        assert!(lsn <= self.last() + 1, "LSN {lsn} is written behind LSN {}", self.last());
        if self.holds(lsn, chain) {
            // A log that is opened again, behind another snapshot, writes what it is not sure of in its place again.
            return;
        }
        self.cut(lsn - 1);
        let before = self.entries.last();
        let mut term = before.map_or(Term::ZERO, |entry| entry.term);
        let mut leader = before.map_or(NodeId::NONE, |entry| entry.leader);
        let kind = match record.effect {
            Effect::Put { key, value } | Effect::PutNumbered { key, value, .. } => {
                let id = value_id(value).unwrap_or(0);
                if let Some(other) = self.ids.insert(id, lsn) {
                    panic!("write {id} is in one log at LSN {other} and again at LSN {lsn}");
                }
                self.keys.entry(key.to_vec()).or_default().push((lsn, Some(id)));
                Kind::Put { key: key.to_vec(), id }
            }
            Effect::Delete { key } | Effect::DeleteNumbered { key, .. } => {
                self.keys.entry(key.to_vec()).or_default().push((lsn, None));
                Kind::Delete { key: key.to_vec() }
            }
            Effect::Term { term: new, leader: who } => {
                (term, leader) = (new, who);
                self.terms += 1;
                Kind::Term
            }
            Effect::Session { nonce } => Kind::Session { nonce },
            Effect::Members { .. } => {
                let list = record.members().expect("a node writes whole lists");
                Kind::Members { members: list.iter().cloned().collect() }
            }
        };
        let chain_before = before.map_or(0, |entry| entry.chain.0);
        let mut hasher = crc32fast::Hasher::new_with_initial(chain_before);
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        hasher.update(&bytes);
        assert!(
            hasher.finalize() == chain.0,
            "LSN {lsn}: the checksum does not go on from that of the record before"
        );
        let end = before.map_or(0, |entry| entry.end) + bytes.len() as u64;
        if let Kind::Members { members } = &kind {
            self.lists.push((lsn, members.clone()));
        }
        let by = record.effect.number();
        self.note_number(by, lsn);
        let entry = Rc::new(Entry { lsn, chain, term, leader, kind, by, end });
        library::note(&entry, chain_before);
        self.entries.push(entry.clone());
        self.file_of.push(file);
        self.fresh.push(entry);
    }

    /// A number is in one log once, whatever clients repeat.
    fn note_number(&mut self, by: Option<WriteNumber>, lsn: u64) {
        let Some(WriteNumber { session, number }) = by else { return };
        if let Some(other) = self.numbers.insert((session, number), lsn) {
            panic!(
                "number {number} of session {session} is in one log at LSN {other} and again at LSN {lsn}"
            );
        }
    }

    /// The snapshot that was received is what the log goes on from.
    pub fn install(&mut self) {
        let Some((s, chain)) = self.installing.take() else { return };
        let front = library::front(s, chain).expect("a snapshot goes on from a history that somebody wrote");
        assert!(s > self.last(), "a snapshot of LSN {s} takes the place of a log up to LSN {}", self.last());
        if let Some(last) = self.entries.last() {
            let same = front[last.lsn as usize - 1].chain == last.chain;
            assert!(same, "LSN {} was durable here and is another record in the snapshot's log", last.lsn);
        }
        let before = std::mem::take(self);
        *self = Mirror {
            synced: s,
            on: before.on,
            fresh: before.fresh,
            shrunk_to: before.shrunk_to,
            ..Mirror::default()
        };
        self.take_front(front, FileId(u32::MAX));
    }

    /// Begins with records that are not in the files any more.
    pub fn take_front(&mut self, front: Vec<Rc<Entry>>, file: FileId) {
        for entry in front {
            self.note_number(entry.by, entry.lsn);
            match &entry.kind {
                Kind::Put { key, id } => {
                    self.ids.insert(*id, entry.lsn);
                    self.keys.entry(key.clone()).or_default().push((entry.lsn, Some(*id)));
                }
                Kind::Delete { key } => {
                    self.keys.entry(key.clone()).or_default().push((entry.lsn, None));
                }
                Kind::Members { members } => self.lists.push((entry.lsn, members.clone())),
                Kind::Term | Kind::Session { .. } => {}
            }
            self.entries.push(entry);
            self.file_of.push(file);
        }
    }

    /// The keys that are there at an LSN.
    pub fn keys_at(&self, lsn: u64) -> usize {
        self.keys.keys().filter(|key| self.value_at(key, lsn).is_some()).count()
    }

    /// The node wrote these bytes; if they are a batch, its records are read.
    pub fn on_write(&mut self, file: FileId, bytes: &[u8]) {
        let is_mark = |bytes: &[u8]| {
            bytes.len() >= MARK_SIZE && bytes[4..8] == (0x8000_0000 | (MARK_SIZE as u32 - 8)).to_be_bytes()
        };
        if !self.on || !is_mark(bytes) {
            return;
        }
        self.install();
        let commit = u64::from_be_bytes(bytes[16..24].try_into().expect("8 bytes"));
        let mut rest = &bytes[MARK_SIZE..];
        while rest.len() > ENTRY_HEADER_SIZE {
            if is_mark(rest) {
                // A log that is opened again writes several batches at once.
                rest = &rest[MARK_SIZE..];
                continue;
            }
            let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("4 bytes"));
            let (chain, size) = (Chain(word(0)), word(4) as usize);
            let body = &rest[ENTRY_HEADER_SIZE..ENTRY_HEADER_SIZE + size];
            let record = Record::decode(&mut Reader::new(body)).expect("a node writes whole records");
            self.push(&record, chain, file);
            rest = &rest[ENTRY_HEADER_SIZE + size..];
        }
        self.mark_commit.0 = self.mark_commit.0.max(commit);
        self.mark_file = Some(file);
    }

    /// The node wrote these bytes and made them durable, and nothing that it had written before.
    pub fn on_write_sync(&mut self, file: FileId, bytes: &[u8]) {
        let before = self.last();
        self.on_write(file, bytes);
        if self.on && !self.lost && self.synced == before {
            self.synced = self.last();
            self.mark_commit.1 = self.mark_commit.0;
        }
    }

    /// The node asked for a flush of this file: it covers what was written until now.
    pub fn on_flush_begun(&mut self, file: FileId) {
        let commit = if self.mark_file == Some(file) { self.mark_commit.0 } else { 0 };
        self.flushing = Some((file, self.last(), commit));
    }

    /// That flush ended well.
    pub fn on_flush_ended(&mut self) {
        let Some((file, last, commit)) = self.flushing.take().filter(|_| self.on && !self.lost) else {
            return;
        };
        while self.synced < last && self.file_of.get(self.synced as usize) == Some(&file) {
            self.synced += 1;
        }
        self.mark_commit.1 = self.mark_commit.1.max(commit);
    }

    /// The page cache is all that is asked for: what is written counts as synced.
    pub fn all_written(&mut self) {
        if self.on && !self.lost {
            self.synced = self.last();
            self.mark_commit.1 = self.mark_commit.0;
        }
    }

    /// The node synced this file.
    pub fn on_sync(&mut self, file: FileId) {
        if !self.on || self.lost {
            return;
        }
        // The flush under way has nothing left to do there, and what is written now is not its business.
        self.flushing = self.flushing.filter(|(flushed, ..)| *flushed != file);
        while self.file_of.get(self.synced as usize) == Some(&file) {
            self.synced += 1;
        }
        if self.mark_file == Some(file) {
            self.mark_commit.1 = self.mark_commit.0;
        }
    }

    /// The log on a disk that no process has opened yet, all of it durable.
    pub fn stands_still_at(&mut self, records: Mirror) {
        self.reload(records);
        self.on = false;
    }

    /// The log as a restart found it, all of it durable.
    pub fn reload(&mut self, records: Mirror) {
        let synced = records.last();
        *self =
            Mirror { synced, synced_before: synced, on: true, fresh: Vec::new(), shrunk_to: None, ..records };
    }
}
