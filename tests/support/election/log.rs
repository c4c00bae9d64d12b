//! A log that loses what was not durable, with the real term history.

use kvstore::ids::{Chain, Lsn, NodeId, Term};
use kvstore::replication::history::{TermHistory, TermStart};

/// A record. `value` 0 is a `TERM` record; every other value is given out once in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub term: Term,
    pub leader: NodeId,
    pub value: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Log {
    entries: Vec<Entry>,
    chains: Vec<Chain>,
    pub history: TermHistory,
    durable: u64,
    /// Raised by every cut: a sync that began before proves nothing behind it.
    pub generation: u64,
}

impl Log {
    pub fn last(&self) -> Lsn {
        Lsn(self.entries.len() as u64)
    }

    pub fn durable(&self) -> Lsn {
        Lsn(self.durable)
    }

    pub fn last_term(&self) -> Term {
        self.entries.last().map_or(Term::ZERO, |entry| entry.term)
    }

    pub fn entry(&self, lsn: Lsn) -> Option<Entry> {
        self.entries.get(lsn.0.checked_sub(1)? as usize).copied()
    }

    pub fn chain(&self, lsn: Lsn) -> Chain {
        lsn.0.checked_sub(1).map_or(Chain::ZERO, |index| self.chains[index as usize])
    }

    pub fn append(&mut self, entry: Entry) {
        let mut bytes = entry.term.as_u64().to_be_bytes().to_vec();
        bytes.extend_from_slice(&entry.value.to_be_bytes());
        let chain = self.chain(self.last()).extend(&bytes);
        self.entries.push(entry);
        self.chains.push(chain);
        if entry.value == 0 {
            let (term, leader, first_lsn) = (entry.term, entry.leader, self.last());
            self.history.push(TermStart { term, leader, first_lsn, chain });
        }
    }

    pub fn synced(&mut self, generation: u64, lsn: Lsn) {
        if generation == self.generation {
            self.durable = self.durable.max(lsn.0);
        }
    }

    /// Makes all of it durable: before its end is told.
    pub fn settle(&mut self) {
        self.durable = self.last().0;
    }

    /// Cuts behind `keep`, durably.
    pub fn cut(&mut self, keep: Lsn) {
        if keep < self.last() {
            self.entries.truncate(keep.0 as usize);
            self.chains.truncate(keep.0 as usize);
            self.history.cut(keep);
            self.generation += 1;
        }
        self.settle();
    }

    /// The power fails: of what was not durable so much survives, and is durable then (a start writes it again).
    pub fn lose(&mut self, survives: u64) {
        self.cut(Lsn((self.durable + survives).min(self.last().0)));
    }
}
