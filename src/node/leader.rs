//! The leader's side of its sessions: dial, open, send, take ACKs, feed who is behind.

use std::collections::VecDeque;

use super::client_sessions::UnderWay;
use super::divergence::PeerState;
use super::keep::Kept;
use super::reads::Rounds;
use super::stream::awaits_frame;
use super::transfer::Transfer;
use super::{DialPurpose, FatalReason, Node, NodeConfig, Role};
use crate::conn::{Close, ConnId, DialId, Io};
use crate::ids::{Lsn, NodeId, Term};
use crate::limits::{HANDSHAKE_DEADLINE_MS, REFUSED_RETRY_MS, SESSION_SILENCE_MS, TRANSFER_SILENCE_MS};
use crate::replication::commit::{CommitRule, FollowerState};
use crate::replication::election::quorum_clock::QuorumClock;
use crate::replication::link::Backoff;
use crate::replication::progress::Progress;
use crate::snapshot::SnapshotId;
use crate::time::Time;
use crate::wal::{Cursor, ReserveError};
use crate::wire::{Effect, record_size};
use crate::{log_debug, log_warn};

/// What only a leader has.
#[derive(Debug)]
pub struct Leader {
    /// Its followers, in the order of the flags.
    pub peers: Vec<Peer>,
    pub(super) rule: CommitRule,
    /// The LSN of this term's first record: reads wait for it.
    pub term_lsn: Lsn,
    /// Who waits for which LSN, oldest first.
    pub writers: VecDeque<(Lsn, ConnId)>,
    /// Who waits for `term_lsn`.
    pub barred_readers: Vec<ConnId>,
    /// What clients numbered and is not applied yet.
    pub(super) under_way: UnderWay,
    /// Who waits for an echo.
    pub(super) rounds: Rounds,
    pub(super) round: u64,
    /// What the rule said last.
    pub(super) committed: Lsn,
    pub(super) states: Vec<FollowerState>,
    pub(super) feed: Vec<u8>,
    /// Of an elected one: since when a majority has heard it. Its followers are `peers`, in their order.
    pub(super) quorum: Option<QuorumClock>,
}

/// One follower as its leader sees it.
#[derive(Debug)]
pub struct Peer {
    /// As `HOST:PORT`.
    pub address: String,
    pub(super) kind: PeerKind,
    /// Its identity, once it said hello.
    pub node_id: Option<NodeId>,
    /// The connection to it.
    pub link: Link,
    /// Its log.
    pub progress: Progress,
    /// Why it is not streaming.
    pub last_error: Option<String>,
    /// When its last ACK came.
    pub last_ack: Option<Time>,
    /// What is kept for it from the moment it was offered a snapshot until it has caught up.
    pub(super) kept: Option<Kept>,
    /// The snapshot of which it last said that it is damaged, and how often in a row.
    pub(super) damaged: Option<(SnapshotId, u32)>,
    /// Whether its hello says that it takes snapshots.
    pub(super) takes_snapshots: bool,
    pub(super) state: PeerState,
    /// The record types that its last hello announced; 0: it has not said hello to this leader.
    pub(super) cmd_types: u64,
    pub(super) backoff: Backoff,
    /// Whether the operator was told that it is down.
    pub(super) down_told: bool,
}

/// What a follower is to its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerKind {
    /// Its disk counts.
    Member,
    /// It gets the log, and is to be a member once it has it. Its disk does not count.
    Learner,
    /// A read replica of an elected cluster. Its disk does not count.
    Replica,
    /// It was removed, or did not learn: nothing is sent to it, and its place is for another one.
    Gone,
}

/// The connection to a follower.
#[derive(Debug)]
pub enum Link {
    /// None; dialled at this time.
    Down {
        /// When.
        retry_at: Time,
        /// Whether it answered, and refused.
        refused: bool,
    },
    /// Connecting.
    Dialing {
        /// The dial.
        dial: DialId,
        /// Given up at this time.
        deadline: Time,
    },
    /// Hello sent.
    Greeting {
        /// The connection.
        conn: ConnId,
        /// Given up at this time.
        deadline: Time,
    },
    /// OPEN sent.
    Opening {
        /// The connection.
        conn: ConnId,
        /// Given up at this time.
        deadline: Time,
    },
    /// The log begins behind what it has: it gets a snapshot first.
    Sending(Transfer),
    /// The session stands.
    Streaming(Stream),
}

/// A session from the leader's side.
#[derive(Debug)]
pub struct Stream {
    /// Its connection.
    pub conn: ConnId,
    /// The next LSN to send.
    pub next_lsn: Lsn,
    /// `Some`: the follower is behind and fed from the log files.
    pub behind: Option<Cursor>,
    pub(super) last_sent: Time,
    pub(super) last_heard: Time,
    pub(super) round_heard: u64,
    /// What the follower last heard of being in sync.
    pub(super) told_in_sync: bool,
    /// What it last heard to be committed.
    pub(super) told_commit: Lsn,
    /// Bytes that waited to be written when this was last looked at.
    pub(super) waiting_bytes: usize,
}

impl Leader {
    /// A leader whose first record will have this LSN.
    pub fn new(addresses: Vec<String>, config: &NodeConfig, now: Time, term_lsn: Lsn) -> Leader {
        Leader {
            peers: addresses.into_iter().map(|address| Peer::new(address, now)).collect(),
            rule: CommitRule { policy: config.ack, min_insync: config.min_insync, term_lsn },
            term_lsn,
            writers: VecDeque::new(),
            barred_readers: Vec::new(),
            under_way: UnderWay::default(),
            rounds: Rounds::default(),
            round: 0,
            committed: Lsn::ZERO,
            states: Vec::new(),
            feed: Vec::new(),
            quorum: None,
        }
    }

    /// Read replicas, behind the members: they are sent what those are, and have no say.
    pub(super) fn add_replicas(&mut self, addresses: &[String], now: Time) {
        let replica = |address: &String| Peer::without_vote(PeerKind::Replica, address, now);
        self.peers.extend(addresses.iter().map(replica));
    }

    /// One more follower, which has no vote yet. Its place is one that another one left, or a new one at the end.
    pub(super) fn add_learner(&mut self, address: &str, now: Time) -> usize {
        let peer = Peer::without_vote(PeerKind::Learner, address, now);
        let index = self.peers.iter().position(|peer| peer.kind == PeerKind::Gone);
        match index {
            Some(index) => self.peers[index] = peer,
            None => self.peers.push(peer),
        }
        let index = index.unwrap_or(self.peers.len() - 1);
        if let Some(quorum) = &mut self.quorum {
            quorum.forget(index);
        }
        index
    }

    /// All but those who are gone.
    pub(super) fn present(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.kind != PeerKind::Gone)
    }

    /// Those who count: the members beside this node.
    pub(super) fn voters(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.votes())
    }

    /// The connections of its sessions.
    pub fn connections(&self) -> Vec<ConnId> {
        self.peers.iter().filter_map(Peer::conn).collect()
    }

    /// The number of the newest frame sent to any follower.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Whether it was elected, and its followers alone can be a majority.
    pub(super) fn has_majority_beside(&self) -> bool {
        self.quorum.is_some() && self.voters().count() >= 2
    }

    /// Nodes in sync, the leader among them.
    pub fn in_sync_count(&self) -> usize {
        1 + self.voters().filter(|peer| peer.progress.in_sync()).count()
    }

    pub(super) fn peer_streaming_on(&mut self, conn: ConnId) -> Option<(usize, &mut Peer)> {
        let index =
            self.peers.iter().position(|peer| matches!(&peer.link, Link::Streaming(s) if s.conn == conn))?;
        Some((index, &mut self.peers[index]))
    }
}

impl Peer {
    fn new(address: String, now: Time) -> Peer {
        Peer {
            address,
            kind: PeerKind::Member,
            node_id: None,
            link: Link::Down { retry_at: now, refused: false },
            progress: Progress::new(),
            last_error: None,
            last_ack: None,
            kept: None,
            damaged: None,
            takes_snapshots: false,
            state: PeerState::default(),
            cmd_types: 0,
            backoff: Backoff::default(),
            down_told: false,
        }
    }

    fn without_vote(kind: PeerKind, address: &str, now: Time) -> Peer {
        let mut peer = Peer { kind, ..Peer::new(address.to_owned(), now) };
        peer.progress.leave();
        peer
    }

    /// Whether its disk counts.
    pub(super) fn votes(&self) -> bool {
        self.kind == PeerKind::Member
    }

    /// Nothing is to do with it any more. Returns the connection that is to be closed.
    pub(super) fn send_away(&mut self) -> Option<ConnId> {
        let conn = self.conn();
        self.kind = PeerKind::Gone;
        self.state = PeerState::default();
        // Never dialled again; see `add_learner` for what becomes of the place.
        self.link = Link::Down { retry_at: Time(u64::MAX), refused: false };
        conn
    }

    /// The connection, if there is one.
    pub fn conn(&self) -> Option<ConnId> {
        match &self.link {
            Link::Down { .. } | Link::Dialing { .. } => None,
            Link::Greeting { conn, .. } | Link::Opening { conn, .. } => Some(*conn),
            Link::Sending(transfer) => Some(transfer.conn),
            Link::Streaming(stream) => Some(stream.conn),
        }
    }

    /// The word for status.
    pub fn state_name(&self) -> &'static str {
        match &self.link {
            Link::Down { refused: true, .. } => "refused",
            Link::Down { .. } => "down",
            Link::Dialing { .. } if self.down_told => "down",
            Link::Dialing { .. } | Link::Greeting { .. } | Link::Opening { .. } => "connecting",
            Link::Sending(_) => "snapshot",
            Link::Streaming(stream) if stream.behind.is_some() => "catching_up",
            Link::Streaming(_) => "streaming",
        }
    }
}

impl Node {
    /// A leader's first record in its term.
    pub(super) fn append_term_record(&mut self, term: Term) -> Result<(), FatalReason> {
        let effect = Effect::Term { term, leader: self.meta.get().node_id };
        match self.wal.reserve(self.disk.as_mut(), record_size(&effect)) {
            Ok(()) => {}
            Err(ReserveError::NoRoom(error)) => return Err(FatalReason::NoRoom(error)),
            Err(ReserveError::FlushPending) => unreachable!("who begins to lead has settled the log"),
            Err(ReserveError::Failed(error)) => return Err(error.into()),
        }
        self.append(effect);
        // No client waits for it: it has no receipt, and counts in no percentile.
        self.frames.first_lsn = self.wal.last_lsn().next();
        Ok(())
    }

    /// Greeting begins on a connection to the `index`-th peer.
    pub(super) fn peer_dialled(&mut self, index: usize, conn: ConnId) {
        let deadline = self.now.after_ms(HANDSHAKE_DEADLINE_MS);
        if let Some(leader) = self.leader_mut() {
            leader.peers[index].link = Link::Greeting { conn, deadline };
        }
    }

    /// A peer is gone: one warning for each change of state, and another try later.
    pub(super) fn peer_down(&mut self, io: &mut dyn Io, index: usize, why: &str) {
        self.peer_lost(io, index, why, false);
    }

    /// A peer answered and refused.
    pub(super) fn peer_refused(&mut self, io: &mut dyn Io, index: usize, why: &str) {
        self.peer_lost(io, index, why, true);
    }

    fn peer_lost(&mut self, io: &mut dyn Io, index: usize, why: &str, refused: bool) {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return };
        let peer = &mut leader.peers[index];
        let streamed = matches!(peer.link, Link::Streaming(_) | Link::Sending(_));
        let conn = peer.conn();
        let backoff = peer.backoff.on_failure(now, &mut self.rng);
        let retry_at = if refused { backoff.max(now.after_ms(REFUSED_RETRY_MS)) } else { backoff };
        let changed = !peer.down_told || peer.last_error.as_deref() != Some(why) && refused;
        peer.link = Link::Down { retry_at, refused };
        peer.down_told = true;
        peer.progress.on_session_lost();
        peer.last_error = Some(why.to_owned());
        let address = peer.address.clone();
        if changed {
            let what = match (refused, streamed) {
                (true, _) => "refuses the session",
                (_, true) => "is lost",
                _ => "is not reachable",
            };
            log_warn!("replication", "follower {address} {what}: {why}; trying again until it answers");
        } else {
            log_debug!("replication", "follower {address}: {why}");
        }
        if let Some(conn) = conn {
            self.close(io, conn, Close::Now);
        }
    }

    /// Dials, heartbeats, deadlines. `input_left`: frames of peers are still unread, so nobody is judged
    /// for what they did not say.
    pub(super) fn leader_timers(&mut self, io: &mut dyn Io, input_left: bool) {
        let now = self.now;
        self.note_taken_output(io);
        for index in 0..self.leader().map_or(0, |leader| leader.peers.len()) {
            let Some(leader) = self.leader_mut() else { return };
            let peer = &leader.peers[index];
            match &peer.link {
                Link::Down { retry_at, .. } if now >= *retry_at => self.dial_peer(io, index),
                Link::Dialing { deadline, .. } if now >= *deadline => {
                    self.dials.retain(|(_, purpose)| *purpose != DialPurpose::Session(index));
                    self.peer_down(io, index, "connecting took too long");
                }
                Link::Greeting { deadline, .. } | Link::Opening { deadline, .. } if now >= *deadline => {
                    self.peer_down(io, index, "no answer to the hello in time");
                }
                Link::Sending(transfer) if !input_left && transfer.is_silent(now) => {
                    let why = format!("no answer to a part of a snapshot for {TRANSFER_SILENCE_MS} ms");
                    self.peer_down(io, index, &why);
                }
                Link::Streaming(stream)
                    if !input_left && now.since(stream.last_heard) > SESSION_SILENCE_MS * 1_000_000 =>
                {
                    self.peer_down(
                        io,
                        index,
                        &format!("no answer to heartbeats for {SESSION_SILENCE_MS} ms"),
                    );
                }
                _ => {}
            }
        }
        self.send_heartbeats(io);
        self.transfer_heartbeats(io);
        self.watch_kept(io);
        if !input_left {
            self.expire_followers(io);
        }
    }

    fn dial_peer(&mut self, io: &mut dyn Io, index: usize) {
        let Some(leader) = self.leader() else { return };
        let address = leader.peers[index].address.clone();
        let dial = self.dial(io, DialPurpose::Session(index), &address);
        let deadline = self.now.after_ms(HANDSHAKE_DEADLINE_MS);
        if let Some(leader) = self.leader_mut() {
            leader.peers[index].link = Link::Dialing { dial, deadline };
        }
    }

    /// When [`Node::leader_timers`] has something to do.
    pub(super) fn leader_deadline(&self) -> Option<Time> {
        let leader = self.leader()?;
        let timeout_ns = self.config.insync_timeout_ms * 1_000_000;
        let stalled = self.flush_stalled_ms().is_some();
        let times = leader.peers.iter().enumerate().flat_map(|(index, peer)| {
            let link = match &peer.link {
                Link::Down { retry_at, .. } => *retry_at,
                Link::Dialing { deadline, .. }
                | Link::Greeting { deadline, .. }
                | Link::Opening { deadline, .. } => *deadline,
                Link::Sending(transfer) => transfer.deadline(self.config.heartbeat_ms),
                // One that is behind gets no heartbeats: what it is fed stands for them.
                Link::Streaming(stream) if stream.behind.is_some() || stalled => {
                    stream.last_heard.after_ms(SESSION_SILENCE_MS + 1)
                }
                Link::Streaming(_) if awaits_frame(&leader.quorum, &leader.rounds, index) => self.now,
                Link::Streaming(stream) => {
                    let is_elected = leader.quorum.is_some();
                    stream.heartbeat_due(self.commit_to_tell(), self.config.heartbeat_ms, is_elected)
                }
            };
            // A turn counts for so much of the timeout at most, so a longer sleep would put it off.
            let sleep_ns_max = self.loop_clock.credit_max_ns();
            // Who has no vote is never in the set, so none of its waits ends: a deadline would stay in the past.
            let expires_in =
                peer.progress.expires_in(self.loop_clock.now(), timeout_ns).filter(|_| peer.votes());
            let expiry = expires_in.map(|ns| Time(self.now.0 + ns.min(sleep_ns_max)));
            [Some(link), expiry, peer.kept.as_ref().and_then(Kept::lapses_at)].into_iter().flatten()
        });
        times.chain(self.slow_window_end()).min()
    }
}
