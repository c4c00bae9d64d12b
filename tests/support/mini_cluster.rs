//! A few real nodes without sockets, files or time: frames wait in inboxes until a command runs a turn, every
//! disk is a `MemDisk`, the clock stands still until it is moved. All that happens is written into a trace.
//!
//! A turn is the event loop's: input, timers, what may leave at once, one sync, what waited for it. A node that
//! has nothing to do is not run, so a deadline that nobody set is a deadline that nobody meets.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kvstore::conn::{Close, ConnId, Delivered, DialId, Intake, Io, OutBuf};
use kvstore::node::{
    ElectionConfig, FatalReason, FeedLimits, FlushMode, Node, NodeConfig, PinConfig, RoleFlag, SnapshotConfig,
};
use kvstore::replication::commit::AckPolicy;
use kvstore::time::{Clock, Time};
use kvstore::wal::{Durability, WalConfig};
use kvstore::wire::{Frame, MessageType, client::Request, peer::Ack};

use super::frame_text::{Names, frame_text, kind_of_file};
pub use super::mem_disk::MemDisk;
use super::mem_disk::{Keep, OpKind};
use super::node_io::{NodeIo, VirtualClock, push, split_frames};

/// Turns that one command may take before it is called endless.
const TURNS_MAX: usize = 2_000;

/// What waits for a node's next turn, and from whom.
#[derive(Debug)]
enum Event {
    Dialed(DialId, ConnId),
    DialFailed(DialId, &'static str),
    Frame(ConnId, Vec<u8>),
    Closed(ConnId),
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Remote {
    Node(String, ConnId),
    Client,
}

struct Slot {
    config: NodeConfig,
    disk: MemDisk,
    node: Option<Node>,
    io: NodeIo,
    intakes: BTreeMap<ConnId, Intake>,
    remotes: BTreeMap<ConnId, Remote>,
    inbox: VecDeque<(String, Event)>,
    client: Option<ConnId>,
    ops_told: usize,
    starts: u64,
    frozen: bool,
}

/// The nodes, by name. A node `a` listens at `a:1`.
#[derive(Default)]
pub struct MiniCluster {
    slots: BTreeMap<String, Slot>,
    names: Names,
    clock: VirtualClock,
    next_conn: usize,
    blocked: BTreeSet<(String, String)>,
    muted: BTreeSet<(String, String)>,
    acks_told: BTreeMap<(String, String), u64>,
    /// Heartbeats and failing dials are counted rather than told.
    folding: bool,
    folded: BTreeMap<&'static str, usize>,
    state_told: Vec<String>,
    trace: Vec<String>,
    /// Who had its turn last in [`MiniCluster::step`].
    stepped: String,
    /// For nodes that are started for the first time.
    pub snapshot: SnapshotConfig,
    /// As `snapshot`.
    pub feed: FeedLimits,
    /// As `snapshot`.
    pub pin: PinConfig,
    /// Once: a node stands still for so long within its turn, before it takes what its client sent.
    pub pause_before_client_ms: Option<u64>,
    /// As `snapshot`.
    pub election: ElectionConfig,
}

fn address(name: &str) -> String {
    format!("{name}:1")
}

impl MiniCluster {
    /// No nodes; the clock stands at one second.
    pub fn new() -> MiniCluster {
        MiniCluster { clock: VirtualClock::at_ms(1_000), ..MiniCluster::default() }
    }

    /// What happened since the last call.
    pub fn take_trace(&mut self) -> Vec<String> {
        std::mem::take(&mut self.trace)
    }

    /// A running node, to look at.
    pub fn node(&self, name: &str) -> &Node {
        self.slots[name].node.as_ref().expect("the node runs")
    }

    /// A running node, to damage its memory.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.slot(name).node.as_mut().expect("the node runs")
    }

    /// The disk of a node.
    pub fn disk(&self, name: &str) -> &MemDisk {
        &self.slots[name].disk
    }

    fn tell(&mut self, line: impl Into<String>) {
        self.trace.push(line.into());
    }

    fn slot(&mut self, name: &str) -> &mut Slot {
        self.slots.get_mut(name).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// Starts a node, with a new disk or the one it had. Flags count at its first start only.
    pub fn start(&mut self, name: &str, role: RoleFlag, peers: &[&str], ack: AckPolicy) {
        let seed = u64::from(name.as_bytes()[0]) * 1_000;
        let config = NodeConfig {
            port: 1,
            own_address: address(name),
            role,
            peers: peers.iter().map(|peer| address(peer)).collect(),
            leader: String::new(),
            ack,
            min_insync: 1,
            insync_timeout_ms: 500,
            heartbeat_ms: 100,
            flush: FlushMode::Inline,
            flush_refused: None,
            receipts: true,
            feed: self.feed,
            pin: self.pin,
            snapshot: self.snapshot,
            election: self.election.clone(),
            wal: WalConfig { segment_bytes: 64 << 10, durability: Durability::Fsync },
        };
        let slot = self.slots.entry(name.to_owned()).or_insert_with(|| Slot {
            config,
            disk: MemDisk::new(),
            node: None,
            io: NodeIo::default(),
            intakes: BTreeMap::new(),
            remotes: BTreeMap::new(),
            inbox: VecDeque::new(),
            client: None,
            ops_told: 0,
            starts: 0,
            frozen: false,
        });
        assert!(slot.node.is_none(), "{name} runs already");
        slot.starts += 1;
        let (disk, clock) = (Box::new(slot.disk.clone()), Box::new(self.clock.clone()));
        match Node::open(disk, clock, seed + slot.starts, slot.config.clone()) {
            Ok(node) => {
                self.names.insert(node.node_id(), name.to_owned());
                slot.node = Some(node);
            }
            Err(reason) => self.tell(format!("{name} does not start: {reason}")),
        }
        // What a start does on its disk is another test's matter.
        let slot = self.slot(name);
        slot.ops_told = slot.disk.op_count() as usize;
        self.tell_logs(name);
    }

    /// `kill -9` (`power` false) or a loss of power that takes all that was not synced.
    pub fn kill(&mut self, name: &str, power: bool) {
        let slot = self.slot(name);
        slot.node = None;
        if power {
            slot.disk.crash(Keep::None)
        } else {
            slot.disk.kill_process()
        }
        self.forget_connections(name);
    }

    fn forget_connections(&mut self, name: &str) {
        let slot = self.slot(name);
        (slot.io, slot.client) = (NodeIo::default(), None);
        slot.intakes.clear();
        slot.inbox.clear();
        for (_, remote) in std::mem::take(&mut slot.remotes) {
            self.remote_closed(name, &remote);
        }
    }

    fn remote_closed(&mut self, name: &str, remote: &Remote) {
        match remote {
            Remote::Client => self.tell(format!("client of {name} loses its connection")),
            Remote::Node(other, conn) => {
                self.slot(other).inbox.push_back((name.to_owned(), Event::Closed(*conn)));
            }
        }
    }

    /// SIGTERM: the node is asked to end. Nobody ends its process.
    pub fn end(&mut self, name: &str) {
        self.slot(name).node.as_mut().expect("it runs").begin_shutdown();
        self.turn(name, None);
    }

    /// No more frames between two nodes: connections break, what was under way is lost, dials fail.
    pub fn block(&mut self, a: &str, b: &str) {
        for (from, to) in [(a, b), (b, a)] {
            self.blocked.insert((from.to_owned(), to.to_owned()));
            let slot = self.slot(to);
            slot.inbox.retain(|(sender, event)| sender != from || !matches!(event, Event::Frame(..)));
            let broken: Vec<ConnId> = slot
                .remotes
                .iter()
                .filter(|(_, remote)| matches!(remote, Remote::Node(name, _) if name == from))
                .map(|(conn, _)| *conn)
                .collect();
            for conn in broken {
                self.slot(to).inbox.push_back((from.to_owned(), Event::Closed(conn)));
            }
        }
    }

    /// Dials between two nodes succeed again.
    pub fn unblock(&mut self, a: &str, b: &str) {
        self.blocked.remove(&(a.to_owned(), b.to_owned()));
        self.blocked.remove(&(b.to_owned(), a.to_owned()));
    }

    /// What one node sends to another is lost on its way, while connections stand; or not any more.
    pub fn mute(&mut self, from: &str, to: &str, muted: bool) {
        let pair = (from.to_owned(), to.to_owned());
        if muted {
            self.muted.insert(pair)
        } else {
            self.muted.remove(&pair)
        };
    }

    /// Another disk for a node that is down: an empty one, or an older copy of its own.
    pub fn replace_disk(&mut self, name: &str, disk: MemDisk) {
        let slot = self.slot(name);
        assert!(slot.node.is_none(), "{name} runs");
        disk.kill_process();
        slot.disk = disk;
    }

    /// A client's request, for the node's next turn. Each node has one client, on one connection.
    pub fn send(&mut self, name: &str, request: &Request<'_>) {
        let mut frame = Vec::new();
        request.encode(&mut frame);
        self.send_bytes(name, &frame);
    }

    /// Bytes from the node's client.
    pub fn send_bytes(&mut self, name: &str, bytes: &[u8]) {
        let conn = match self.slot(name).client {
            Some(conn) => conn,
            None => {
                let conn = self.connect(name, Remote::Client);
                self.slot(name).client = Some(conn);
                conn
            }
        };
        self.slot(name).inbox.push_back(("client".to_owned(), Event::Frame(conn, bytes.to_vec())));
    }

    fn connect(&mut self, name: &str, remote: Remote) -> ConnId {
        let conn = self.add_connection(name, remote);
        self.slot(name)
            .node
            .as_mut()
            .expect("only who runs is connected to")
            .on_accept(conn, "net".to_owned());
        conn
    }

    fn add_connection(&mut self, name: &str, remote: Remote) -> ConnId {
        self.next_conn += 1;
        let conn = ConnId::new(self.next_conn, 1);
        let slot = self.slot(name);
        slot.io.outputs.insert(conn, OutBuf::default());
        slot.intakes.insert(conn, Intake::default());
        slot.remotes.insert(conn, remote);
        conn
    }

    /// Runs turns, in the order of names, until nobody has anything to do at this moment.
    pub fn run(&mut self) {
        for _ in 0..TURNS_MAX {
            let now = self.clock.now();
            let busy = self.slots.iter().find(|(_, slot)| slot.has_work(now)).map(|(name, _)| name.clone());
            match busy {
                Some(name) => self.turn(&name, None),
                None => return,
            }
        }
        panic!("the nodes never come to rest: {:#?}", self.trace);
    }

    /// One turn of a node that has something to do; they take turns. If nobody has, a few milliseconds pass.
    pub fn step(&mut self) {
        let now = self.clock.now();
        let mut busy: Vec<String> =
            self.slots.iter().filter(|(_, slot)| slot.has_work(now)).map(|(name, _)| name.clone()).collect();
        let later = busy.iter().position(|name| *name > self.stepped).unwrap_or(0);
        let busy = (!busy.is_empty()).then(|| busy.swap_remove(later));
        match busy {
            Some(name) => {
                self.turn(&name, None);
                self.stepped = name;
            }
            None => self.clock.set(now.after_ms(5)),
        }
    }

    /// Whether a node runs.
    pub fn is_up(&self, name: &str) -> bool {
        self.slots.get(name).is_some_and(|slot| slot.node.is_some())
    }

    /// Lets time pass. A node runs when something arrives and when a deadline of its own is there, as it would
    /// over a poll that wakes it. With `fold`, heartbeats and failing dials are only counted.
    pub fn wait(&mut self, ms: u64, fold: bool) {
        let end = self.clock.now().0 + ms * 1_000_000;
        self.folding = fold;
        loop {
            self.run();
            let now = self.clock.now().0;
            let awake = self.slots.values().filter(|slot| !slot.frozen);
            let deadlines = awake.filter_map(|slot| slot.node.as_ref()?.next_deadline());
            // The poll sleeps in whole milliseconds.
            let wake = deadlines
                .min()
                .map_or(end, |time| now + time.0.saturating_sub(now).max(1).next_multiple_of(1_000_000));
            if now >= end {
                break;
            }
            self.clock.set(Time(wake.min(end)));
        }
        self.folding = false;
        for (what, count) in std::mem::take(&mut self.folded) {
            self.tell(format!("... and {count} {what}"));
        }
    }

    /// What the clock shows.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Time goes on and nobody runs, until a test says who.
    pub fn pass(&mut self, ms: u64) {
        let now = self.clock.now().after_ms(ms);
        self.clock.set(now);
    }

    /// A frozen node keeps its connections and does nothing.
    pub fn freeze(&mut self, name: &str, frozen: bool) {
        self.slot(name).frozen = frozen;
    }

    /// One turn of one node. With `from`: of its input only what came from there.
    pub fn turn(&mut self, name: &str, from: Option<&str>) {
        let result = self.first_half(name, from).and_then(|()| self.second_half(name));
        self.end_if_failed(name, result);
    }

    /// A turn up to the moment when what may leave at once has left, and the disk is about to be asked.
    pub fn half_turn(&mut self, name: &str) {
        let result = self.first_half(name, None);
        self.end_if_failed(name, result);
    }

    fn end_if_failed(&mut self, name: &str, result: Result<(), FatalReason>) {
        if let Err(reason) = result {
            self.tell(format!("{name} ends with exit code {}: {reason}", reason.exit_code()));
            self.slot(name).node = None;
            self.forget_connections(name);
        }
    }

    fn first_half(&mut self, name: &str, from: Option<&str>) -> Result<(), FatalReason> {
        let now = self.clock.now();
        let slot = self.slot(name);
        let Some(node) = &mut slot.node else {
            slot.inbox.clear();
            return Ok(());
        };
        node.begin_turn(now);
        let inbox = std::mem::take(&mut slot.inbox);
        let (taken, left): (VecDeque<_>, VecDeque<_>) =
            inbox.into_iter().partition(|(sender, _)| from.is_none_or(|from| from == sender));
        slot.inbox = left;
        for (sender, event) in taken {
            if let Some(ms) = self.pause_before_client_ms.take_if(|_| sender == "client") {
                self.pass(ms);
            }
            self.take(name, &sender, event, now)?;
        }
        let slot = self.slot(name);
        let node = slot.node.as_mut().expect("it runs");
        node.on_timers(&mut slot.io, false)?;
        node.before_sync(&mut slot.io);
        self.carry_out(name);
        Ok(())
    }

    fn second_half(&mut self, name: &str) -> Result<(), FatalReason> {
        let slot = self.slot(name);
        let Some(node) = &mut slot.node else { return Ok(()) };
        node.sync(&mut slot.io)?;
        node.after_sync(&mut slot.io)?;
        self.carry_out(name);
        Ok(())
    }

    fn take(&mut self, name: &str, sender: &str, event: Event, now: Time) -> Result<(), FatalReason> {
        if let Event::Frame(_, bytes) = &event {
            let text = self.text(sender, name, bytes);
            let short = text.as_deref().map(|text| text.split(' ').next().unwrap_or_default().to_owned());
            if let Some(short) = short {
                self.tell(format!("{name} takes {short} from {sender}"));
            }
        }
        let slot = self.slot(name);
        let node = slot.node.as_mut().expect("it runs");
        match event {
            Event::Dialed(dial, conn) => node.on_dialed(&mut slot.io, dial, conn),
            Event::DialFailed(dial, why) => node.on_dial_failed(&mut slot.io, dial, why)?,
            Event::Closed(conn) => {
                slot.intakes.remove(&conn);
                slot.remotes.remove(&conn);
                slot.io.outputs.remove(&conn);
                node.on_closed(&mut slot.io, conn, "closed by the other side")?;
            }
            Event::Frame(conn, bytes) => {
                let Some(mut intake) = slot.intakes.remove(&conn) else { return Ok(()) };
                let delivered = push(&mut intake, &bytes, node, &mut slot.io, conn, now)?;
                slot.intakes.insert(conn, intake);
                if let Delivered::Fenced(why) = delivered {
                    node.counters.fenced += 1;
                    node.on_closed(&mut slot.io, conn, &why)?;
                    slot.io.closes.push((conn, Close::Now));
                    self.tell(format!("{name} fences {sender}: {why}"));
                }
            }
        }
        Ok(())
    }

    /// Carries out what a node did in its turn so far: disk operations and log lines are told, frames leave,
    /// connections are closed, dials answered.
    fn carry_out(&mut self, name: &str) {
        self.tell_disk(name);
        self.tell_logs(name);
        let conns: Vec<ConnId> = self.slot(name).io.outputs.keys().copied().collect();
        for conn in conns {
            let output = self.slot(name).io.outputs.get_mut(&conn).expect("listed above");
            let bytes = output.pending().to_vec();
            output.clear();
            split_frames(&bytes).for_each(|frame| self.deliver(name, conn, frame));
        }
        for (conn, _) in std::mem::take(&mut self.slot(name).io.closes) {
            self.close(name, conn);
        }
        for (dial, address) in std::mem::take(&mut self.slot(name).io.dials) {
            self.answer_dial(name, dial, &address);
        }
    }

    fn deliver(&mut self, name: &str, conn: ConnId, frame: &[u8]) {
        let Some(remote) = self.slot(name).remotes.get(&conn).cloned() else { return };
        let to = match &remote {
            Remote::Node(other, _) => other.clone(),
            Remote::Client => "client".to_owned(),
        };
        match self.text(name, &to, frame) {
            Some(text) => self.tell(format!("{name} -> {to} {text}")),
            None => *self.folded.entry("frames of heartbeats").or_default() += 1,
        }
        if self.muted.contains(&(name.to_owned(), to)) {
            return;
        }
        if let Remote::Node(other, conn) = remote {
            self.slot(&other).inbox.push_back((name.to_owned(), Event::Frame(conn, frame.to_vec())));
        }
    }

    fn close(&mut self, name: &str, conn: ConnId) {
        let slot = self.slot(name);
        slot.io.outputs.remove(&conn);
        slot.intakes.remove(&conn);
        if slot.client == Some(conn) {
            slot.client = None;
        }
        let Some(remote) = slot.remotes.remove(&conn) else { return };
        if let Remote::Node(other, _) = &remote {
            self.tell(format!("{name} closes its connection with {other}"));
        }
        self.remote_closed(name, &remote);
    }

    fn answer_dial(&mut self, name: &str, dial: DialId, to: &str) {
        let other = to.trim_end_matches(":1").to_owned();
        let blocked = self.blocked.contains(&(name.to_owned(), other.clone()));
        let up = self.slots.get(&other).is_some_and(|slot| slot.node.is_some());
        let event = if up && !blocked {
            self.tell(format!("{name} connects to {other}"));
            let mine = self.add_connection(name, Remote::Client);
            let theirs = self.connect(&other, Remote::Node(name.to_owned(), mine));
            self.slot(name).remotes.insert(mine, Remote::Node(other.clone(), theirs));
            Event::Dialed(dial, mine)
        } else if self.folding {
            *self.folded.entry("dials that failed").or_default() += 1;
            Event::DialFailed(dial, "connection refused")
        } else {
            self.tell(format!("{name} cannot connect to {other}"));
            Event::DialFailed(dial, "connection refused")
        };
        self.slot(name).inbox.push_back((other, event));
    }

    /// The text of a frame; `None` for a heartbeat or its ACK while they are only counted.
    fn text(&mut self, from: &str, to: &str, bytes: &[u8]) -> Option<String> {
        let frame = Frame { type_byte: bytes[4], body: &bytes[5..] };
        let quiet = match MessageType::from_u8(frame.type_byte) {
            Some(MessageType::AppendEntries) => frame.body.starts_with(&[0; 4]),
            Some(MessageType::AppendEntriesAck) => {
                let last = Ack::decode(frame.body).expect("nodes send whole frames").last_lsn.0;
                let told = self.acks_told.entry((from.to_owned(), to.to_owned())).or_default();
                std::mem::replace(told, last) == last
            }
            None => return Some(format!("0x{:02x}", frame.type_byte)),
            _ => false,
        };
        (!quiet || !self.folding).then(|| frame_text(&self.names, frame))
    }

    fn tell_disk(&mut self, name: &str) {
        let slot = self.slot(name);
        let log = slot.disk.op_log();
        let mut texts: Vec<String> = Vec::new();
        for op in &log[slot.ops_told..] {
            let text = match op.kind {
                OpKind::SyncDir => "sync directory".to_owned(),
                kind => format!("{kind:?} {}", kind_of_file(&op.name)).to_lowercase(),
            };
            if texts.last() != Some(&text) {
                texts.push(text);
            }
        }
        slot.ops_told = log.len();
        if !texts.is_empty() {
            self.tell(format!("{name} disk: {}", texts.join(", ")));
        }
    }

    fn tell_logs(&mut self, name: &str) {
        for line in super::logs::take() {
            self.tell(format!("{name} warns: {line}"));
        }
    }

    /// Role, term and positions of every node, one line each, if any of it changed.
    pub fn tell_state(&mut self) {
        let mut lines = Vec::new();
        for (name, slot) in &self.slots {
            let line = match &slot.node {
                Some(node) => {
                    let (last, commit, applied) = node.positions();
                    let (role, term) = (node.role_name(), node.term());
                    format!("{name}: {role}, term {term}, last {last}, commit {commit}, applied {applied}")
                }
                None => format!("{name}: down"),
            };
            lines.push(line);
        }
        if lines != self.state_told {
            self.trace.extend_from_slice(&lines);
            self.state_told = lines;
        }
    }
}

impl Slot {
    fn has_work(&self, now: Time) -> bool {
        let Some(node) = self.node.as_ref().filter(|_| !self.frozen) else { return false };
        let feeding = node.wants_feeding(|conn| self.io.output_if_open(conn).map_or(usize::MAX, OutBuf::len));
        !self.inbox.is_empty() || feeding || node.next_deadline().is_some_and(|deadline| deadline <= now)
    }
}
