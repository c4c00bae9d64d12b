//! A leader's streams to its followers: this turn's batch to those that are up to date, the log files to
//! those that are behind, heartbeats to the idle, and what comes back.
//!
//! A follower costs a bounded amount of memory whatever its lag: past the high-water mark of its output
//! buffer it is *behind*, and fed again from the log files, one frame at a time, when the buffer is low.

use super::divergence::PeerState;
use super::fatal::{fence, malformed};
use super::leader::{Link, Stream};
use super::reads::Rounds;
use super::{FatalReason, Node, Role, Stop};
use crate::conn::{ConnId, Io, OutBuf};
use crate::ids::{Chain, Lsn};
use crate::limits::COMMIT_NEWS_MS;
#[cfg(doc)]
use crate::limits::SESSION_SILENCE_MS;
use crate::replication::election::quorum_clock::QuorumClock;
use crate::replication::progress::Progress;
use crate::time::Time;
use crate::wal::Cursor;
use crate::wire::peer::{Ack, AppendEntries, AppendTail};
use crate::{log_at, log_info, log_warn};

/// What every frame tells beside its records, at one moment of a turn.
struct Told {
    now: Time,
    commit_lsn: Lsn,
    term_lsn: Lsn,
    question: Lsn,
}

impl Told {
    /// The tail of the next frame to a follower. The stream remembers to have told it.
    fn tail(
        &self,
        stream: &mut Stream,
        (progress, state): (&Progress, &mut PeerState),
        (round, chain): (u64, Chain),
    ) -> AppendTail {
        stream.told_in_sync = progress.may_be_told_in_sync(self.term_lsn);
        (stream.last_sent, stream.told_commit) = (self.now, self.commit_lsn);
        AppendTail {
            in_sync: stream.told_in_sync,
            commit_lsn: self.commit_lsn,
            round,
            chain,
            state: state.news(stream.next_lsn, self.question),
        }
    }
}

impl Stream {
    /// When a frame without records is to be sent. Followers of an elected leader show what they hear to be committed:
    /// if no record has taken that along by then, a frame of its own does.
    pub(super) fn heartbeat_due(&self, commit: Lsn, interval_ms: u64, is_elected: bool) -> Time {
        let is_news = is_elected && commit > self.told_commit;
        self.last_sent.after_ms(if is_news { interval_ms.min(COMMIT_NEWS_MS) } else { interval_ms })
    }
}

/// A frame is on its way to a follower; an elected leader will know by its echo that it was heard.
fn sent(quorum: &mut Option<QuorumClock>, follower: usize, round: u64, at: Time) {
    if let Some(quorum) = quorum {
        quorum.sent(follower, round, at);
    }
}

/// Whether reads wait for this follower to echo a frame that is still to be sent.
pub(super) fn awaits_frame(quorum: &Option<QuorumClock>, rounds: &Rounds, follower: usize) -> bool {
    match (quorum, rounds.newest()) {
        (Some(quorum), Some(newest)) => quorum.wants_frame(follower, newest),
        _ => false,
    }
}

impl Node {
    /// This turn's records to every follower that is up to date.
    pub(super) fn send_current_batch(&mut self, io: &mut dyn Io) {
        let (last, commit, now, loop_now) =
            (self.wal.last_lsn(), self.commit_to_tell(), self.now, self.loop_clock.now());
        if self.inflight.current().is_empty() {
            return;
        }
        let (sent_at, question) = (self.sent_at(), self.question());
        let batch = self.inflight.current();
        let feed_limits = self.config.feed;
        let Role::Leader(leader) = &mut self.role else { return };
        let told = Told { now, commit_lsn: commit, term_lsn: leader.term_lsn, question };
        leader.round += 1;
        let mut sent_to = 0;
        for (index, peer) in leader.peers.iter_mut().enumerate() {
            peer.progress.on_appended(last, loop_now);
            let Link::Streaming(stream) = &mut peer.link else { continue };
            if stream.behind.is_some() {
                continue;
            }
            let out = io.output(stream.conn);
            if out.len() > feed_limits.high_water {
                stream.behind = Some(Cursor::default());
                continue;
            }
            assert!(
                stream.next_lsn >= batch.first(),
                "a follower that is up to date has all before the batch"
            );
            let mut from = (stream.next_lsn.0 - batch.first().0) as usize;
            while from < batch.len() {
                let to = batch.fitting(from, feed_limits.frame_bytes);
                let (records, chain) = batch.slice(from, to);
                let tail = told.tail(stream, (&peer.progress, &mut peer.state), (leader.round, chain));
                AppendEntries { record_count: (to - from) as u32, records, tail }.encode(out.bytes_mut());
                from = to;
            }
            stream.next_lsn = last.next();
            sent(&mut leader.quorum, index, leader.round, sent_at);
            sent_to += 1;
        }
        if sent_to > 0 {
            let (count, first) = (batch.len(), batch.first());
            log_at!(
                self.sent_lines.level(now, count as u64),
                "replication",
                "sent AppendEntries, {count} record(s) to {sent_to} follower(s) lsn={first}..{last}"
            );
        }
    }

    pub(super) fn on_ack(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let ack = Ack::decode(body).map_err(malformed("APPEND_ENTRIES_ACK"))?;
        let (last, loop_now, now) = (self.awaited_lsn(), self.loop_clock.now(), self.now);
        let streaming = match &mut self.role {
            Role::Leader(leader) => leader.peer_streaming_on(conn),
            _ => None,
        };
        let Some((index, peer)) = streaming else {
            self.counters.dead_session_frames += 1;
            return Ok(());
        };
        let Link::Streaming(stream) = &mut peer.link else { return Ok(()) };
        let rose = match peer.progress.on_ack(ack.last_lsn, stream.next_lsn.prev(), last, loop_now) {
            Ok(rose) => rose,
            Err(impossible) => {
                return fence(format!(
                    "ACK of LSN {} with {} acknowledged and {} sent",
                    impossible.acked, impossible.match_lsn, impossible.sent
                ));
            }
        };
        if ack.round < stream.round_heard {
            return fence(format!("ACK of round {} after round {}", ack.round, stream.round_heard));
        }
        let rtt_ns = now.since(stream.last_sent);
        stream.last_heard = now;
        stream.round_heard = ack.round;
        peer.last_ack = Some(now);
        if rose || ack.last_lsn == last {
            // It holds more than before, or everything. A session that only stands proves nothing: a follower
            // without room on its disk opens one and ends it with the first record, again and again.
            peer.backoff.on_success();
            peer.down_told = false;
        }
        if rose {
            let address = &peer.address;
            let (lsn, sync_us, rtt_us) = (ack.last_lsn, ack.spent.sync_ns / 1_000, rtt_ns / 1_000);
            log_at!(
                self.ack_lines.level(now, 1),
                "replication",
                "ACK from {address} last_lsn={lsn} after_us={rtt_us} its_fdatasync_us={sync_us}"
            );
        }
        self.marks.ack_received(index, &peer.address, ack.last_lsn, ack.spent.sync_ns);
        if let Some(trace) = &mut self.trace {
            trace.acked(index, ack.last_lsn, self.frames.started, ack.spent);
        }
        self.rejoin(index);
        if let Some(answer) = ack.state {
            self.on_state_answer(index, answer);
        }
        // What it commits is applied in [`Node::finish_turn`], when this turn's batch is on its way to all disks. A
        // read that is answered before shows all that anybody was told.
        self.echoed(io, index, ack.round);
        Ok(())
    }

    /// The commit LSN that followers hear. An elected leader's disk is one among equals: it may have less.
    pub(super) fn commit_to_tell(&self) -> Lsn {
        let is_elected = self.leader().is_some_and(|leader| leader.quorum.is_some());
        if is_elected { self.commit } else { self.effective_commit() }
    }

    /// The last LSN that followers can be waited for: what gathers behind a flush has been sent to nobody.
    pub(super) fn awaited_lsn(&self) -> Lsn {
        if self.wal.flush_pending() { self.unsent_from().prev() } else { self.wal.last_lsn() }
    }

    /// The first LSN that no follower was sent yet.
    fn unsent_from(&self) -> Lsn {
        let current = self.inflight.current();
        if current.is_empty() { self.wal.last_lsn().next() } else { current.first() }
    }

    pub(super) fn rejoin(&mut self, index: usize) {
        let (commit, last, loop_now) = (self.commit, self.awaited_lsn(), self.loop_clock.now());
        let Some(leader) = self.leader_mut() else { return };
        let peer = &mut leader.peers[index];
        if peer.votes() && peer.progress.rejoin(commit, last, loop_now) {
            let (address, count, all) =
                (&leader.peers[index].address, leader.in_sync_count(), leader.voters().count() + 1);
            match leader.quorum {
                // Who is in sync decides nothing there: a majority does, whoever it is.
                Some(_) => log_info!("replication", "follower {address} has caught up at LSN {commit}"),
                None => log_info!(
                    "replication",
                    "follower {address} is in sync again at LSN {commit}: {count} of {all} nodes in sync"
                ),
            }
        }
    }

    /// Asks the commit rule, and remembers what it says: before a batch leaves, which tells it.
    pub(super) fn raise_commit(&mut self) {
        let (own, releasable) = (self.wal.durable(), self.releasable());
        let Role::Leader(leader) = &mut self.role else { return };
        leader.states.clear();
        let voters = leader.peers.iter().filter(|peer| peer.votes());
        leader.states.extend(voters.map(|peer| peer.progress.state()));
        let committed = leader.rule.committed(&own, &leader.states).lsn().min(releasable);
        leader.committed = committed;
        // Records loaded at the start are applied already, committed or not; see `start`.
        if committed > self.commit.max(self.applied) {
            self.marks.committed(committed);
            self.trace_committed(committed);
        }
        self.commit = self.commit.max(committed);
    }

    /// Applies what is committed, and answers its writers.
    pub(super) fn advance_commit(&mut self, io: &mut dyn Io) {
        self.raise_commit();
        if let Some(committed) = self.leader().map(|leader| leader.committed) {
            if committed > self.applied {
                self.release_rounds(io);
            }
            self.apply_up_to(io, committed);
        }
    }

    /// The record at `applied` is applied: if it is this term's first, reads need not wait any more.
    pub(super) fn release_barred_readers(&mut self, io: &mut dyn Io, applied: Lsn) {
        let Some(leader) = self.leader_mut().filter(|leader| leader.term_lsn == applied) else { return };
        let readers = std::mem::take(&mut leader.barred_readers);
        readers.into_iter().for_each(|conn| self.drain_waiting(io, conn));
    }

    /// A follower that takes bytes is alive, however long the frame is until whose end it has nothing to
    /// answer: 8 MiB take longer than [`SESSION_SILENCE_MS`] on a link of less than 22 Mbit/s.
    pub(super) fn note_taken_output(&mut self, io: &dyn Io) {
        let now = self.now;
        let Some(leader) = self.leader_mut() else { return };
        for peer in &mut leader.peers {
            let (conn, known_bytes, last_heard) = match &mut peer.link {
                Link::Streaming(stream) => (stream.conn, &mut stream.waiting_bytes, &mut stream.last_heard),
                Link::Sending(transfer) => {
                    (transfer.conn, &mut transfer.waiting_bytes, &mut transfer.last_heard)
                }
                _ => continue,
            };
            let waiting_bytes = io.output_if_open(conn).map_or(0, OutBuf::len);
            if waiting_bytes < *known_bytes {
                *last_heard = now;
            }
            *known_bytes = waiting_bytes;
        }
    }

    /// Feeds followers that are behind from the log files, one frame each, while their buffers are low.
    pub(super) fn feed_followers(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        if self.flush_stalled_ms().is_some() {
            return Ok(());
        }
        // What gathers behind a flush comes from memory.
        let (unsent_from, commit, now) = (self.unsent_from(), self.commit_to_tell(), self.now);
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        let (mut unreadable, feed_limits) = (None, self.config.feed);
        let told = Told { now, commit_lsn: commit, term_lsn: leader.term_lsn, question: self.checks.asked };
        for (index, peer) in leader.peers.iter_mut().enumerate() {
            let Link::Streaming(stream) = &mut peer.link else { continue };
            let Some(cursor) = &mut stream.behind else { continue };
            let out = io.output(stream.conn);
            if out.len() > feed_limits.low_water {
                continue;
            }
            if stream.next_lsn >= unsent_from {
                stream.behind = None;
                continue;
            }
            leader.feed.clear();
            let range = self.wal.read(
                self.disk.as_mut(),
                cursor,
                stream.next_lsn,
                feed_limits.frame_bytes,
                &mut leader.feed,
            );
            let range = match range {
                Ok(range) => range,
                Err(error) => {
                    unreadable = Some((index, error.to_string()));
                    continue;
                }
            };
            leader.round += 1;
            let tail = told.tail(stream, (&peer.progress, &mut peer.state), (leader.round, range.chain));
            AppendEntries { record_count: range.count, records: &leader.feed, tail }.encode(out.bytes_mut());
            stream.next_lsn = range.last.next();
            sent(&mut leader.quorum, index, leader.round, now);
            if stream.next_lsn >= unsent_from {
                stream.behind = None;
                log_info!(
                    "replication",
                    "follower {} is fed from memory again from LSN {}",
                    peer.address,
                    stream.next_lsn
                );
            }
        }
        if let Some((index, why)) = unreadable {
            self.peer_refused(io, index, &format!("the log cannot be read back for it: {why}"));
        }
        Ok(())
    }

    /// Whether a follower could be fed now: the loop must not sleep then.
    pub fn wants_feeding(&self, output_len: impl Fn(ConnId) -> usize) -> bool {
        self.flush_stalled_ms().is_none()
            && self.leader().is_some_and(|leader| {
                leader.peers.iter().any(|peer| match &peer.link {
                    Link::Streaming(stream) => {
                        stream.behind.is_some() && output_len(stream.conn) <= self.config.feed.low_water
                    }
                    link => self.wants_chunk(link, &output_len),
                })
            })
    }

    pub(super) fn send_heartbeats(&mut self, io: &mut dyn Io) {
        let (now, commit, interval_ms) = (self.now, self.commit_to_tell(), self.config.heartbeat_ms);
        // Where a batch waits for the flush under way, heartbeats go on without it.
        let batch_leaves_now = !self.inflight.current().is_empty() && !self.wal.flush_pending();
        if batch_leaves_now || self.flush_stalled_ms().is_some() {
            return;
        }
        let (sent_at, question) = (self.sent_at(), self.question());
        let (last, last_chain, inflight) = (self.wal.last_lsn(), self.wal.last_chain(), &self.inflight);
        let Role::Leader(leader) = &mut self.role else { return };
        let (term_lsn, is_elected) = (leader.term_lsn, leader.quorum.is_some());
        let told = Told { now, commit_lsn: commit, term_lsn, question };
        for (index, peer) in leader.peers.iter_mut().enumerate() {
            let Link::Streaming(stream) = &mut peer.link else { continue };
            let sent_chain = match stream.next_lsn > last {
                true => Some(last_chain),
                false => inflight.chain_before(stream.next_lsn),
            };
            let Some(chain) = sent_chain.filter(|_| stream.behind.is_none()) else { continue };
            // What it hears of being in sync decides whether it may be promoted: news of that does not wait.
            let news = stream.told_in_sync != peer.progress.may_be_told_in_sync(term_lsn);
            let is_round = awaits_frame(&leader.quorum, &leader.rounds, index);
            let due = stream.heartbeat_due(commit, interval_ms, is_elected);
            if !news && !is_round && now < due {
                continue;
            }
            leader.round += 1;
            let tail = told.tail(stream, (&peer.progress, &mut peer.state), (leader.round, chain));
            AppendEntries { record_count: 0, records: &[], tail }.encode(io.output(stream.conn).bytes_mut());
            sent(&mut leader.quorum, index, leader.round, sent_at);
        }
    }

    pub(super) fn expire_followers(&mut self, io: &mut dyn Io) {
        let (loop_now, timeout_ms) = (self.loop_clock.now(), self.config.insync_timeout_ms);
        let Role::Leader(leader) = &mut self.role else { return };
        let mut left = 0;
        for index in 0..leader.peers.len() {
            let peer = &mut leader.peers[index];
            if peer.votes() && peer.progress.expire(loop_now, timeout_ms * 1_000_000) {
                left += 1;
                let (address, match_lsn) = (peer.address.clone(), peer.progress.match_lsn());
                let (count, all) = (leader.in_sync_count(), leader.voters().count() + 1);
                match leader.quorum {
                    Some(_) => log_warn!(
                        "replication",
                        "follower {address} made no progress for {timeout_ms} ms, at LSN {match_lsn}: writes go on \
                         while a majority has them"
                    ),
                    None => log_warn!(
                        "replication",
                        "follower {address} made no progress for {timeout_ms} ms and is out of sync at LSN \
                         {match_lsn}: writes go on without it, {count} of {all} nodes in sync"
                    ),
                }
            }
        }
        if left > 0 {
            self.counters.insync_left += left;
            self.advance_commit(io);
        }
    }
}
