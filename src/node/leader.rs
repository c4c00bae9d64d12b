//! The leader's side of its sessions: dial, open, send, take ACKs, feed who is behind.

use std::collections::VecDeque;

use super::fatal::{fence, malformed};
use super::{DialPurpose, FatalReason, Node, NodeConfig, Role, Stop};
use crate::conn::{Close, ConnId, DialId, Io};
use crate::ids::{Lsn, NodeId, Term};
use crate::limits::{HANDSHAKE_DEADLINE_MS, REFUSED_RETRY_MS, SESSION_SILENCE_MS};
use crate::replication::commit::{CommitRule, FollowerState};
use crate::replication::link::Backoff;
use crate::replication::progress::Progress;
use crate::time::Time;
use crate::wal::{Cursor, ReserveError};
use crate::wire::peer::{Hello, Open, OpenReply, RefuseCode};
use crate::wire::{CMD_TYPES_KNOWN, Effect, record_size};
use crate::{log_debug, log_info, log_warn};

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
    pub(super) round: u64,
    pub(super) states: Vec<FollowerState>,
    pub(super) feed: Vec<u8>,
}

/// One follower as its leader sees it.
#[derive(Debug)]
pub struct Peer {
    /// As `HOST:PORT`.
    pub address: String,
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
    pub(super) backoff: Backoff,
    /// Whether the operator was told that it is down.
    pub(super) down_told: bool,
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
    /// Bytes that waited to be written when this was last looked at.
    pub(super) waiting_bytes: usize,
}

impl Leader {
    /// A leader whose first record will have this LSN.
    pub fn new(addresses: Vec<String>, config: &NodeConfig, now: Time, term_lsn: Lsn) -> Leader {
        let peer = |address| Peer {
            address,
            node_id: None,
            link: Link::Down { retry_at: now, refused: false },
            progress: Progress::new(),
            last_error: None,
            last_ack: None,
            backoff: Backoff::default(),
            down_told: false,
        };
        Leader {
            peers: addresses.into_iter().map(peer).collect(),
            rule: CommitRule { policy: config.ack, min_insync: config.min_insync },
            term_lsn,
            writers: VecDeque::new(),
            barred_readers: Vec::new(),
            round: 0,
            states: Vec::new(),
            feed: Vec::new(),
        }
    }

    /// The connections of its sessions.
    pub fn connections(&self) -> Vec<ConnId> {
        self.peers.iter().filter_map(Peer::conn).collect()
    }

    /// The number of the newest frame sent to any follower.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Nodes in sync, the leader among them.
    pub fn in_sync_count(&self) -> usize {
        1 + self.peers.iter().filter(|peer| peer.progress.in_sync()).count()
    }

    pub(super) fn peer_streaming_on(&mut self, conn: ConnId) -> Option<(usize, &mut Peer)> {
        let index =
            self.peers.iter().position(|peer| matches!(&peer.link, Link::Streaming(s) if s.conn == conn))?;
        Some((index, &mut self.peers[index]))
    }
}

impl Peer {
    /// The connection, if there is one.
    pub fn conn(&self) -> Option<ConnId> {
        match &self.link {
            Link::Down { .. } | Link::Dialing { .. } => None,
            Link::Greeting { conn, .. } | Link::Opening { conn, .. } => Some(*conn),
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
        let streamed = matches!(peer.link, Link::Streaming(_));
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

    /// The peer's hello is good: open the session.
    pub(super) fn open_session(&mut self, io: &mut dyn Io, conn: ConnId, index: usize, hello: &Hello) {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return self.close(io, conn, Close::Now) };
        let twin = leader.peers.iter().position(|peer| peer.node_id == Some(hello.node_id));
        if let Some(twin) = twin.filter(|twin| *twin != index && leader.peers[*twin].conn().is_some()) {
            let why = format!(
                "node id {} is at {} too: two names for one node, or a copied data directory",
                hello.node_id, leader.peers[twin].address
            );
            self.refuse(io, conn, RefuseCode::Identity, why.clone());
            return self.peer_refused(io, index, &why);
        }
        if hello.cmd_types & CMD_TYPES_KNOWN != CMD_TYPES_KNOWN {
            let why = format!(
                "it can apply record types {:#x} and not all of {CMD_TYPES_KNOWN:#x}: update it first",
                hello.cmd_types
            );
            self.refuse(io, conn, RefuseCode::CmdType, why.clone());
            return self.peer_refused(io, index, &why);
        }
        let peers = leader.peers.iter().map(|peer| peer.address.clone()).collect();
        self.note_identity(index, hello);
        let Role::Leader(leader) = &mut self.role else { return };
        let peer = &mut leader.peers[index];
        peer.link = Link::Opening { conn, deadline: now.after_ms(HANDSHAKE_DEADLINE_MS) };
        let meta = self.meta.get();
        let open = Open {
            term: meta.term,
            leader: meta.node_id,
            your_address: peer.address.clone(),
            peers,
            first_lsn: self.wal.first_lsn(),
            last_lsn: self.wal.last_lsn(),
            last_chain: self.wal.last_chain(),
            history: self.wal.history().clone(),
            heard_lsn: peer.progress.heard_lsn(),
        };
        open.encode(io.output(conn).bytes_mut());
    }

    pub(super) fn on_open_reply(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let reply = OpenReply::decode(body).map_err(malformed("OPEN_REPLY"))?;
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        let opening =
            |peer: &Peer| matches!(peer.link, Link::Opening { conn: opening, .. } if opening == conn);
        let Some(index) = leader.peers.iter().position(opening) else {
            return fence("OPEN_REPLY that was not asked for");
        };
        if reply.term != self.meta.get().term || reply.match_lsn > self.wal.last_lsn() {
            return fence(format!("OPEN_REPLY for term {} and LSN {}", reply.term, reply.match_lsn));
        }
        let address = leader.peers[index].address.clone();
        if reply.match_lsn.next() < self.wal.first_lsn() {
            let why = format!(
                "it needs the log from LSN {}, and it begins at {} here",
                reply.match_lsn.next(),
                self.wal.first_lsn()
            );
            self.refuse(io, conn, RefuseCode::LogTooShort, why.clone());
            self.peer_refused(io, index, &why);
            return Ok(());
        }
        self.write_batch_for_reading()?;
        let mine = self.wal.chain_at(self.disk.as_mut(), reply.match_lsn)?;
        if mine != Some(reply.match_chain) {
            let why = format!(
                "chain checksums differ at shared LSN {}: {} there, {} here; one of the logs is damaged, nothing \
                 was cut here",
                reply.match_lsn,
                reply.match_chain,
                mine.map_or_else(|| "none".to_owned(), |chain| chain.to_string())
            );
            self.refuse(io, conn, RefuseCode::Disagreement, why.clone());
            self.peer_refused(io, index, &why);
            return Ok(());
        }
        let (last, loop_now, now) = (self.wal.last_lsn(), self.loop_clock.now(), self.now);
        let (commit, awaited) = (self.commit, self.awaited_lsn());
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        let peer = &mut leader.peers[index];
        let next_lsn = reply.match_lsn.next();
        // Records of this turn are sent from the batch; what is older is read back from the log.
        let current_first =
            if self.inflight.current().is_empty() { last.next() } else { self.inflight.current().first() };
        let behind = (next_lsn < current_first).then(Cursor::default);
        io.output(conn).expect_bulk();
        peer.link = Link::Streaming(Stream {
            conn,
            next_lsn,
            behind,
            last_sent: now,
            last_heard: now,
            round_heard: 0,
            told_in_sync: false,
            waiting_bytes: 0,
        });
        peer.progress.on_session(reply.match_lsn, awaited, loop_now);
        if reply.match_lsn < commit {
            // It was out of sync when this leader started, or has lost its disk.
            peer.progress.leave();
        }
        peer.last_error = None;
        self.counters.sessions += 1;
        let cut = if reply.cut_from > Lsn::ZERO {
            format!(", which cut its log from LSN {}", reply.cut_from)
        } else {
            String::new()
        };
        log_info!(
            "replication",
            "session with follower {address}{cut}: match LSN {}, {} record(s) behind",
            reply.match_lsn,
            last.0 - reply.match_lsn.0
        );
        self.note_repair(index, &reply);
        self.rejoin(index);
        if crate::sabotage::is(crate::sabotage::Variant::ApplyTwice) && !self.inflight.current().is_empty() {
            self.append_again();
        }
        Ok(())
    }

    /// The log file must hold what a chain checksum or a follower is asked for.
    fn write_batch_for_reading(&mut self) -> Result<(), FatalReason> {
        if self.wal.batch_bytes() > 0 {
            let commit = self.effective_commit();
            self.wal.write(self.disk.as_mut(), commit)?;
        }
        Ok(())
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
        let times = leader.peers.iter().flat_map(|peer| {
            let link = match &peer.link {
                Link::Down { retry_at, .. } => *retry_at,
                Link::Dialing { deadline, .. }
                | Link::Greeting { deadline, .. }
                | Link::Opening { deadline, .. } => *deadline,
                // One that is behind gets no heartbeats: what it is fed stands for them.
                Link::Streaming(stream) if stream.behind.is_some() || stalled => {
                    stream.last_heard.after_ms(SESSION_SILENCE_MS + 1)
                }
                Link::Streaming(stream) => stream.last_sent.after_ms(self.config.heartbeat_ms),
            };
            // A turn counts for so much of the timeout at most, so a longer sleep would put it off.
            let sleep_ns_max = self.loop_clock.credit_max_ns();
            let expiry = peer
                .progress
                .expires_in(self.loop_clock.now(), timeout_ns)
                .map(|ns| Time(self.now.0 + ns.min(sleep_ns_max)));
            [Some(link), expiry].into_iter().flatten()
        });
        times.min()
    }
}
