//! Receipts, histograms and the ledger of system calls: what a node tells about its own time.

use serde_json::{Map, Value, json};

use super::{Node, Role};
use crate::conn::{ConnId, Io};
use crate::ids::Lsn;
use crate::ledger;
use crate::time::Time;
use crate::trace::{RING_SIZE, SLOWEST_SIZE, tail_document};
use crate::wire::client::{Inspect, Status};

/// Milliseconds after a write in which a read beside it is timed: the next write may come right behind it.
const WRITTEN_MS: u64 = 100;

impl Node {
    /// The first of the frames that were read together is about to be decoded.
    ///
    /// Their time begins where that of the read before has ended, or with the turn: one reading of the clock for each
    /// read and not two, and the call that read them is counted to those it brought.
    #[inline]
    pub fn begin_frames(&mut self) {
        self.read_at = None;
        if self.trace.is_some() {
            self.frames.started = self.newest_reading();
            self.frames.first_lsn = self.wal.last_lsn().next();
            self.frames.reads = self.counters.reads;
        }
    }

    /// The last of them is decoded.
    ///
    /// Of what had neither writes nor reads, be it the ACK that commits fifty writes, nothing is charged to the next
    /// read. Reads alone are timed for its sake, so where nobody writes they are not.
    #[inline]
    pub fn end_frames(&mut self) {
        let Some(trace) = &mut self.trace else { return };
        let (frames, last) = (&mut self.frames, self.wal.last_lsn());
        if last >= frames.first_lsn && matches!(self.role, Role::Leader(_)) {
            let now = self.clock.now();
            trace.appended(frames.first_lsn, last, frames.started, now);
            frames.newest = Some(now);
            frames.written_until = now.after_ms(WRITTEN_MS);
        } else if self.counters.reads != frames.reads {
            let is_written = self.now < frames.written_until;
            frames.newest = Some(if is_written { self.clock.now() } else { frames.started });
        }
        (frames.first_lsn, frames.reads) = (last.next(), self.counters.reads);
    }

    /// Everything this turn had to say so far was handed to the sockets.
    pub fn note_replied(&mut self) {
        if self.leader().is_some() {
            self.marks.replied(self.applied);
        }
        let Some(trace) = &mut self.trace else { return };
        let reads = self.counters.reads - self.frames.reads_told;
        let wrote = trace.has_unreplied();
        if reads == 0 && !wrote {
            return;
        }
        let now = self.clock.now();
        if reads > 0 {
            self.frames.reads_told = self.counters.reads;
            trace.reads(now.since(self.now), reads);
        }
        if wrote {
            trace.replied(now);
        }
    }

    /// All requests of the turn are read, and the flush under way has ended.
    pub(super) fn trace_turn(&mut self) {
        // Of a turn that is settled in the middle of a read.
        self.end_frames();
        if self.trace.is_none() || self.inflight.current().is_empty() {
            return;
        }
        let turn = self.newest_reading();
        // Whoever asks next, it is about the same moment.
        self.frames.newest = Some(turn);
        let batch = self.inflight.current();
        if let Some(trace) = &mut self.trace {
            trace.turn(batch.last(), batch.len() as u32, turn);
        }
    }

    /// The commit rule says that everything up to this LSN is committed.
    pub(super) fn trace_committed(&mut self, lsn: Lsn) {
        if self.trace.is_some() {
            let now = self.newest_reading();
            self.trace.iter_mut().for_each(|trace| trace.committed(lsn, now));
        }
    }

    /// The newest reading of the clock, or another if something was done since that takes time.
    fn newest_reading(&mut self) -> Time {
        self.frames.newest.take().unwrap_or_else(|| self.clock.now())
    }

    pub(super) fn receipt_text(&self, lsn: Lsn) -> String {
        self.receipt(lsn).map_or_else(String::new, |receipt| receipt.to_string())
    }

    fn receipt(&self, lsn: Lsn) -> Option<Value> {
        let receipt = self.trace.as_ref()?.receipt(lsn, self.clock.now())?;
        let term = self.wal.history().term_at(lsn);
        Some(receipt.document(term.as_u64(), &self.config.own_address, &self.peer_addresses()))
    }

    fn peer_addresses(&self) -> Vec<&str> {
        self.leader()
            .map_or_else(Vec::new, |leader| leader.peers.iter().map(|peer| peer.address.as_str()).collect())
    }

    pub(super) fn on_inspect(&mut self, io: &mut dyn Io, conn: ConnId, inspect: Inspect) {
        let (status, text) = self.inspect(inspect);
        self.reply(io, conn, status, text.as_bytes());
    }

    fn inspect(&mut self, inspect: Inspect) -> (Status, String) {
        if let Inspect::Syscalls = inspect {
            return (Status::Ok, self.syscalls_document().to_string());
        }
        if self.trace.is_none() {
            return (
                Status::Refused,
                "this node keeps no receipts: it was started with --no-receipts".to_owned(),
            );
        }
        match inspect {
            Inspect::Receipt(lsn) => match self.receipt(lsn) {
                Some(receipt) => (Status::Ok, receipt.to_string()),
                None => (Status::NotFound, self.no_receipt(lsn)),
            },
            Inspect::Slowest(count) => (Status::Ok, self.slowest_document(count).to_string()),
            Inspect::Tail(millionths) => (Status::Ok, self.tail(millionths).to_string()),
            Inspect::Latency => (Status::Ok, self.latency_document().to_string()),
            Inspect::Reset => {
                self.trace.iter_mut().for_each(crate::trace::Trace::reset);
                (Status::Ok, "{\"reset\":true}".to_owned())
            }
            Inspect::Syscalls => unreachable!("answered above"),
        }
    }

    fn no_receipt(&self, lsn: Lsn) -> String {
        let last = self.wal.last_lsn();
        if self.leader().is_none() {
            return format!(
                "no receipt of LSN {lsn}: receipts are kept where writes are taken, on the leader"
            );
        }
        format!(
            "no receipt of LSN {lsn}: kept are the last {RING_SIZE} writes that this process took, up to LSN {last}"
        )
    }

    fn slowest_document(&self, count: u64) -> Value {
        let (own, peers) = (&self.config.own_address, self.peer_addresses());
        let slowest = self.trace.as_ref().map_or_else(Vec::new, crate::trace::Trace::slowest);
        let term_of = |lsn| self.wal.history().term_at(lsn).as_u64();
        let count = usize::try_from(count).unwrap_or(SLOWEST_SIZE).min(SLOWEST_SIZE);
        slowest
            .iter()
            .take(count)
            .map(|receipt| receipt.document(term_of(receipt.lsn), own, &peers))
            .collect()
    }

    fn tail(&self, millionths: u64) -> Value {
        let percentile = millionths.min(1_000_000) as f64 / 10_000.0;
        let receipts = self.trace.as_ref().map_or_else(Vec::new, |trace| trace.receipts().collect());
        tail_document(receipts, percentile, &self.config.own_address, &self.peer_addresses())
    }

    /// Percentiles of every stage, of every follower.
    pub(super) fn latency_document(&self) -> Value {
        let Some(trace) = &self.trace else { return Value::Null };
        let mut stages: Map<String, Value> =
            trace.histograms().map(|(name, durations)| (name, durations.document())).collect();
        for (index, address) in self.peer_addresses().into_iter().enumerate() {
            for (what, durations) in trace.follower_histograms(index) {
                stages.insert(format!("{address} {what}"), durations.document());
            }
        }
        Value::Object(stages)
    }

    fn syscalls_document(&self) -> Value {
        let counts: Map<String, Value> = ledger::snapshot()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| (name.to_owned(), count.into()))
            .collect();
        let total: u64 = ledger::snapshot().map(|(_, count)| count).sum();
        let operations = self.counters.writes_acked + self.counters.reads;
        json!({
            "role": self.role.name(),
            "writes": self.counters.writes_acked,
            "reads": self.counters.reads,
            "records": self.applied.0,
            "total": total,
            "per_operation": (operations > 0).then(|| (total as f64 * 100.0 / operations as f64).round() / 100.0),
            "counts": counts,
        })
    }
}
