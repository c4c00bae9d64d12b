//! A node: one turn of the loop, without sockets and without the operating system's files.
//!
//! The loop (or the simulator) tells a node what happened, frame by frame, and then runs the turn:
//!
//! ```text
//! on_frame, on_accept, on_dialed, on_closed    step: decode, decide, append to the batch
//! on_timers                                    heartbeats, deadlines, who is in sync
//! before_sync                                  this turn's records into every follower's buffer
//!   (the loop writes those buffers out)        they overlap the followers' disks with ours
//! sync                                         ONE write, ONE fdatasync; then release what waited for it:
//!                                              ACKs, commit, apply, replies. Or, see `flush`, the fdatasync runs
//!                                              beside the loop, and a later turn releases
//! after_sync                                   feed followers that are behind from the log files
//! ```
//!
//! Invariants:
//! - Nothing that claims durability is built without a token of the log or of the identity record.
//! - `applied <= durable`; on a leader `applied` grows with `commit` only (the state it began with aside). Where the
//!   leader is elected, `applied <= commit` on every node, and a leader may apply what its own disk does not have yet;
//!   see `apply`.
//! - `commit` never goes back while the process lives, but for a follower's cut that an operator allowed.
//! - A write is in `inflight` from its append until it is applied, or, where it may have to wait long, in the log.

mod apply;
mod archive;
mod backup;
mod client_sessions;
mod config;
mod conn_table;
mod counters;
mod divergence;
mod dry_run;
mod elect;
mod fatal;
mod flush;
pub mod follower;
mod given_up;
mod handshake;
mod inflight;
mod inspect;
mod install;
mod keep;
pub mod leader;
mod leader_open;
mod load;
mod load_progress;
mod pace;
mod promote;
mod reads;
mod rebuild;
mod repair;
mod replog;
mod requests;
mod retention;
mod role;
mod session_open;
mod snapshot;
mod snapshot_ask;
mod snapshot_scan;
mod start;
mod status;
mod stream;
mod timers;
mod transfer;
mod turn;

use crate::conn::{Close, ConnId, DialId, Io};
use crate::ids::{ClusterId, Lsn, NodeId, Term};
use crate::keyspace::Keyspace;
use crate::limits::BATCH_SIZE_MAX;
use crate::marks::Marks;
use crate::meta::MetaStore;
use crate::replication::members::Members;
use crate::rng::Rng;
use crate::time::{Clock, LoopClock, Time};
use crate::trace::Trace;
use crate::wal::Wal;
use crate::wire::{Authority, Frame, MessageType};

use archive::Archive;
pub use archive::{ArchiveConfig, OpenDirectory};
use backup::Backup;
pub use config::{Budgets, ElectionConfig, FeedLimits, NodeConfig};
use conn_table::ConnTable;
pub use counters::Counters;
use divergence::StateChecks;
pub use dry_run::{DryRun, Outcome, dry_run};
use elect::Elect;
use fatal::fence;
pub use fatal::{FatalReason, Fence, Stop};
pub use flush::FlushMode;
use handshake::{PeerIn, PeerOut};
use inflight::Inflight;
use install::Install;
use keep::Slowness;
pub use keep::{PinConfig, PinOverflow};
pub use load_progress::LoadProgress;
use load_progress::Loading;
use promote::PromotionRun;
use replog::LineLimit;
use requests::ClientConn;
pub use retention::PinId;
use retention::{Pins, Removal};
pub use role::{Role, RoleFlag};
pub use snapshot::SnapshotConfig;
use snapshot::Snapshots;
pub use status::Observed;

/// What this node knows of the other side of a connection.
#[derive(Debug)]
enum Conn {
    /// Accepted, nothing received yet. Its address.
    New(String),
    Client(ClientConn),
    PeerIn(PeerIn),
    PeerOut(PeerOut),
}

/// The node.
pub struct Node {
    config: NodeConfig,
    budgets: Budgets,
    disk: Box<dyn crate::disk::Disk>,
    clock: Box<dyn Clock>,
    rng: Rng,
    meta: MetaStore,
    wal: Wal,
    under_way: Option<flush::UnderWay>,
    /// When a sync ended last that was slow.
    slow_sync_at: Option<Time>,
    /// Who was answered a read last, and when.
    last_read: Option<(ConnId, Time)>,
    keyspace: Keyspace,
    inflight: Inflight,
    due: apply::Due,
    freshness: reads::Freshness,
    /// A reading of the clock from after the frames came that are being read.
    read_at: Option<Time>,
    applied: Lsn,
    /// The state is that of `applied` once that has reached this: it came from a snapshot that ended there.
    complete_at: Lsn,
    commit: Lsn,
    /// The highest LSN heard to be committed, where the commit LSN in use may have been lowered since.
    heard_commit: Lsn,
    /// The state is being loaded; until that is done there is no role but a follower's without a session.
    load: Option<Box<Loading>>,
    snapshots: Snapshots,
    backup: Backup,
    archive: Option<Box<Archive>>,
    pins: Pins,
    removal: Removal,
    /// Requests or records came in this turn; and the last turn in which some did.
    had_work: bool,
    last_work: Time,
    role: Role,
    elect: Elect,
    conns: ConnTable<Conn>,
    dials: Vec<(DialId, DialPurpose)>,
    /// Nodes that said hello on a connection of theirs, and until when they must have said what they want.
    greeted: Vec<(ConnId, Time)>,
    next_dial: u64,
    promotion: Option<PromotionRun>,
    loop_clock: LoopClock,
    now: Time,
    started: Time,
    sent_lines: LineLimit,
    received_lines: LineLimit,
    ack_lines: LineLimit,
    shutdown: Option<Time>,
    spare_retry_at: Time,
    /// When a busy log may have its next zeros.
    zeros_at: Time,
    /// A snapshot of the leader's on its way in.
    install: Option<Install>,
    checks: StateChecks,
    /// The keyspace holds a part of a snapshot, or nothing, and not the state of `applied`.
    state_is_given_up: bool,
    /// Writers wait for a follower that is catching up.
    slowness: Option<Slowness>,
    trace: Option<Trace>,
    marks: Marks,
    /// The last refusal that was logged as a warning.
    last_refusal: String,
    frames: Frames,
    /// What happened so far.
    pub counters: Counters,
}

/// The frames of one read, for the receipts.
#[derive(Debug, Default)]
struct Frames {
    started: Time,
    first_lsn: Lsn,
    /// How many reads were answered before.
    reads: u64,
    /// How many of them are in a histogram.
    reads_told: u64,
    /// The newest reading of the clock, if nothing was done since that takes time.
    newest: Option<Time>,
    /// Until when a write is taken to be near.
    written_until: Time,
}

/// What a dial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DialPurpose {
    /// A session with the leader's n-th peer.
    Session(usize),
    /// An answer of the promotion's n-th peer.
    Promotion(usize),
    /// A question to the n-th of the others, while a cluster is formed or a leader elected.
    Call(usize),
}

impl Node {
    /// A connection was accepted from `remote_ip`.
    pub fn on_accept(&mut self, conn: ConnId, remote_ip: String) {
        self.conns.insert(conn, Conn::New(remote_ip));
    }

    /// A dial succeeded.
    pub fn on_dialed(&mut self, io: &mut dyn Io, dial: DialId, conn: ConnId) {
        match self.take_dial(dial) {
            Some(purpose) => self.greet(io, conn, purpose),
            None => io.close(conn, Close::Now),
        }
    }

    /// A dial failed.
    pub fn on_dial_failed(&mut self, io: &mut dyn Io, dial: DialId, why: &str) -> Result<(), FatalReason> {
        match self.take_dial(dial) {
            Some(DialPurpose::Session(peer)) => self.peer_down(io, peer, why),
            Some(DialPurpose::Promotion(peer)) => self.promotion_silent(io, peer, why)?,
            Some(DialPurpose::Call(index)) => self.call_failed(io, index, why)?,
            None => {}
        }
        Ok(())
    }

    /// A connection that the node did not close is gone.
    pub fn on_closed(&mut self, io: &mut dyn Io, conn: ConnId, why: &str) -> Result<(), FatalReason> {
        self.backup_lost(conn, why);
        match self.conns.remove(conn) {
            Some(Conn::PeerOut(peer)) => match peer.purpose {
                DialPurpose::Session(index) => self.peer_down(io, index, why),
                DialPurpose::Promotion(index) => self.promotion_silent(io, index, why)?,
                DialPurpose::Call(index) => self.call_failed(io, index, why)?,
            },
            Some(Conn::PeerIn(_)) => self.session_lost(conn, why),
            Some(Conn::Client(_)) => self.forget_repeats(conn),
            Some(Conn::New(_)) | None => {}
        }
        Ok(())
    }

    /// A frame arrived. `Err(Stop::Fence)`: the caller closes the connection and calls [`Node::on_closed`].
    pub fn on_frame(&mut self, io: &mut dyn Io, conn: ConnId, frame: Frame<'_>) -> Result<(), Stop> {
        let Some(message_type) = MessageType::from_u8(frame.type_byte) else {
            return fence(format!("unknown message type 0x{:02x}", frame.type_byte));
        };
        self.clock_first(io)?;
        let Some(known) = self.conns.get(conn) else { return Ok(()) };
        match (known, message_type) {
            (Conn::Client(_), _) => self.on_request(io, conn, message_type, frame.body),
            (Conn::New(remote_ip), MessageType::Hello) => {
                let remote_ip = remote_ip.clone();
                self.on_hello(io, conn, &remote_ip, frame.body)
            }
            (Conn::New(_), _) if message_type.authority() != Authority::Peer => {
                *self.conns.get_mut(conn).expect("it was found above") = Conn::Client(ClientConn::default());
                self.on_request(io, conn, message_type, frame.body)
            }
            (Conn::PeerIn(_), MessageType::Open) => self.on_open(io, conn, frame.body),
            (Conn::PeerIn(_), MessageType::AppendEntries) => self.on_append_entries(io, conn, frame.body),
            (Conn::PeerIn(_), MessageType::SnapshotOffer) => self.on_snapshot_offer(io, conn, frame.body),
            (Conn::PeerIn(_), MessageType::SnapshotChunk) => self.on_snapshot_chunk(io, conn, frame.body),
            (Conn::PeerIn(_), MessageType::Fence) => self.on_fence(io, conn, frame.body),
            (Conn::PeerIn(_), MessageType::Form) => self.on_form(io, conn, frame.body),
            (Conn::PeerIn(_), MessageType::HandOver) => self.on_hand_over(io, conn, frame.body),
            (Conn::PeerIn(_), MessageType::Vote) => self.on_vote(io, conn, frame.body),
            (Conn::PeerOut(_), MessageType::FormReply) => self.on_form_reply(io, conn, frame.body),
            (Conn::PeerOut(_), MessageType::VoteReply) => self.on_vote_reply(io, conn, frame.body),
            (Conn::PeerOut(_), MessageType::HelloReply) => self.on_hello_reply(io, conn, frame.body),
            (Conn::PeerOut(_), MessageType::Refuse) => self.on_refuse(io, conn, frame.body),
            (Conn::PeerIn(_), MessageType::Refuse) => self.on_refused_by_dialler(io, conn, frame.body),
            (Conn::PeerOut(_), MessageType::OpenReply) => self.on_open_reply(io, conn, frame.body),
            (Conn::PeerOut(_), MessageType::AppendEntriesAck) => self.on_ack(io, conn, frame.body),
            (Conn::PeerOut(_), MessageType::SnapshotAck) => self.on_snapshot_ack(io, conn, frame.body),
            (Conn::PeerOut(_), MessageType::FenceReply) => self.on_fence_reply(io, conn, frame.body),
            (Conn::New(_), _) => fence(format!("{message_type:?} before a hello")),
            (Conn::PeerIn(_) | Conn::PeerOut(_), _) => {
                fence(format!("{message_type:?} is not expected here"))
            }
        }
    }

    /// Whether the node takes another frame of this connection now. If not, the loop leaves it unread.
    pub fn wants_input(&self, conn: ConnId) -> bool {
        if self.inflight.size() > 0 && self.wal.batch_bytes() >= BATCH_SIZE_MAX {
            return false;
        }
        match self.conns.get(conn) {
            Some(Conn::Client(client)) => {
                let waits_for_follower = self.slow_window().is_some_and(|window| client.had_turn(window));
                client.takes_more(&self.budgets) && !waits_for_follower
            }
            _ => true,
        }
    }

    /// Whether the connection is a peer's (a larger read budget, timers wait for what it sent).
    pub fn is_peer(&self, conn: ConnId) -> bool {
        matches!(self.conns.get(conn), Some(Conn::PeerIn(_) | Conn::PeerOut(_)))
    }

    /// Whether this node dialled the other side, and sends it more than answers.
    pub fn is_fed(&self, conn: ConnId) -> bool {
        matches!(self.conns.get(conn), Some(Conn::PeerOut(_)))
    }

    /// The role's word.
    pub fn role_name(&self) -> &'static str {
        self.role.name()
    }

    /// What an operator waits for at a start.
    pub fn ready_text(&self) -> String {
        format!("ready: {} in term {}, node id {}", self.role_name(), self.term(), self.node_id())
    }

    /// The name that this process should go by now: `kv-leader:9001`. The kernel keeps 15 bytes, so that a
    /// role of up to six letters leaves room for every port.
    pub fn process_name(&self) -> String {
        let role = match self.role {
            Role::Leader(_) => "leader",
            Role::Follower(_) => "follow",
            Role::Deposed => "former",
        };
        format!("kv-{role}:{}", self.config.port)
    }

    /// Other limits than those of production.
    pub fn set_budgets(&mut self, budgets: Budgets) {
        self.budgets = budgets;
    }

    /// What clients may cost.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Puts up signposts for those who watch from outside.
    pub fn set_marks(&mut self, marks: Marks) {
        self.marks = marks;
    }

    /// The term.
    pub fn term(&self) -> Term {
        self.meta.get().term
    }

    /// The node's identity.
    pub fn node_id(&self) -> NodeId {
        self.meta.get().node_id
    }

    /// The cluster it belongs to, if any, and who votes in it.
    pub fn cluster(&self) -> (ClusterId, &Members) {
        (self.meta.get().cluster_id, &self.meta.get().members)
    }

    /// Last, commit and applied LSN.
    pub fn positions(&self) -> (Lsn, Lsn, Lsn) {
        (self.wal.last_lsn(), self.commit, self.applied)
    }

    /// The state.
    pub fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    /// The turn begins: what is decided in it is decided at this time.
    pub fn begin_turn(&mut self, now: Time) {
        self.now = now;
        self.frames.newest = Some(now);
        self.loop_clock.advance(now);
        self.election_turn_begins();
    }

    fn dial(&mut self, io: &mut dyn Io, purpose: DialPurpose, address: &str) -> DialId {
        let dial = DialId(self.next_dial);
        self.next_dial += 1;
        self.dials.push((dial, purpose));
        io.dial(dial, address);
        dial
    }

    fn take_dial(&mut self, dial: DialId) -> Option<DialPurpose> {
        let index = self.dials.iter().position(|(id, _)| *id == dial)?;
        Some(self.dials.swap_remove(index).1)
    }

    /// Closes a connection from this side.
    fn close(&mut self, io: &mut dyn Io, conn: ConnId, how: Close) {
        if self.conns.remove(conn).is_some() {
            io.close(conn, how);
        }
    }

    fn leader(&self) -> Option<&leader::Leader> {
        match &self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    fn leader_mut(&mut self) -> Option<&mut leader::Leader> {
        match &mut self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }
}
