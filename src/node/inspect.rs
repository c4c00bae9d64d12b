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
    /// Frames with neither writes nor reads are a follower's ACK, which is handled in about a microsecond: what it
    /// commits is applied when the turn is read. So no clock is read for them, and what comes next begins where they
    /// did. Reads alone are timed for the sake of what comes next, so where nobody writes they are not.
    #[inline]
    pub fn end_frames(&mut self) {
        if self.trace.is_none() || self.note_writes() {
            return;
        }
        let frames = &mut self.frames;
        let times_reads = self.counters.reads != frames.reads && self.now < frames.written_until;
        frames.newest = Some(if times_reads { self.clock.now() } else { frames.started });
    }

    /// Whether the frames have brought writes; if so, they are decoded now.
    #[inline]
    fn note_writes(&mut self) -> bool {
        let (frames, last) = (&mut self.frames, self.wal.last_lsn());
        let Some(trace) = self.trace.as_mut().filter(|_| last >= frames.first_lsn) else { return false };
        if !matches!(self.role, Role::Leader(_)) {
            return false;
        }
        let now = self.clock.now();
        trace.appended(frames.first_lsn, last, frames.started, now);
        frames.first_lsn = last.next();
        frames.newest = Some(now);
        true
    }

    /// Everything this turn had to say so far was handed to the sockets.
    #[inline]
    pub fn note_replied(&mut self) {
        if self.applied > self.marks.last_replied() {
            self.mark_replied();
        }
        let Some(trace) = &self.trace else { return };
        if self.counters.reads > self.frames.reads_told || trace.has_unreplied() {
            self.time_replies();
        }
    }

    #[inline(never)]
    fn mark_replied(&mut self) {
        if self.leader().is_some() {
            self.marks.replied(self.applied);
        }
    }

    fn time_replies(&mut self) {
        let Some(trace) = &mut self.trace else { return };
        let now = self.clock.now();
        let reads = self.counters.reads - std::mem::replace(&mut self.frames.reads_told, self.counters.reads);
        if reads > 0 {
            trace.reads(now.since(self.now), reads);
        }
        if trace.has_unreplied() {
            trace.replied(now);
        }
    }

    /// All requests of the turn are read, and the flush under way has ended.
    #[inline]
    pub(super) fn trace_turn(&mut self) {
        if self.trace.is_some() && !self.inflight.current().is_empty() {
            self.trace_batch();
        }
    }

    fn trace_batch(&mut self) {
        // Of a turn that is settled in the middle of a read.
        self.note_writes();
        let turn = self.newest_reading();
        // Whoever asks next, it is about the same moment.
        self.frames.newest = Some(turn);
        self.frames.written_until = turn.after_ms(WRITTEN_MS);
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

    fn slowest_document(&mut self, count: u64) -> Value {
        let slowest = self.trace.as_mut().map_or_else(Vec::new, |trace| trace.measured().slowest());
        let (own, peers) = (&self.config.own_address, self.peer_addresses());
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
    pub(super) fn latency_document(&mut self) -> Value {
        let addresses: Vec<String> = self.peer_addresses().into_iter().map(str::to_owned).collect();
        let Some(trace) = &mut self.trace else { return Value::Null };
        let measured = trace.measured();
        let mut stages: Map<String, Value> =
            measured.histograms().map(|(name, durations)| (name, durations.document())).collect();
        for (index, address) in addresses.into_iter().enumerate() {
            for (what, durations) in measured.follower_histograms(index) {
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
