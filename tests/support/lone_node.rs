//! One real node on a disk in memory, and connections whose other end is the test: bytes in, frames out.

#![allow(dead_code)]

use std::collections::BTreeMap;

use kvstore::conn::{ConnId, Delivered, Intake, OutBuf};
use kvstore::disk::Disk;
use kvstore::ids::{ClusterId, NodeId, Term};
use kvstore::node::{FatalReason, FlushMode, Node, NodeConfig, RoleFlag};
use kvstore::replication::commit::AckPolicy;
use kvstore::time::Clock;
use kvstore::wal::{Durability, WalConfig};
use kvstore::wire::peer::{Hello, PROTOCOL_VERSIONS};
use kvstore::wire::{CMD_TYPES_KNOWN, MessageType};

use super::mem_disk::MemDisk;
pub use super::node_io::VirtualClock;
use super::node_io::{NodeIo, push, split_frames};

/// What the node did about bytes that were sent to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Frames on the same connection: type and body.
    pub frames: Vec<(MessageType, Vec<u8>)>,
    /// Why the node closed it, if it did so because of what was sent.
    pub fenced: Option<String>,
    /// Whether it is closed.
    pub closed: bool,
}

/// The node.
pub struct LoneNode {
    pub node: Node,
    io: NodeIo,
    intakes: BTreeMap<ConnId, Intake>,
    clock: VirtualClock,
    next_conn: usize,
    /// Where the node dialled, if the test answers; else every dial fails.
    dialled: Option<Vec<(String, ConnId)>>,
}

impl LoneNode {
    /// A new node. Every dial of it fails.
    pub fn new(role: RoleFlag) -> LoneNode {
        LoneNode::on(&MemDisk::new(), role, &[])
    }

    /// A node with this disk. With peers, the test is at the other end of every dial.
    pub fn on(disk: &MemDisk, role: RoleFlag, peers: &[&str]) -> LoneNode {
        LoneNode::flushing(FlushMode::Inline, disk, role, peers)
    }

    /// The same, which waits for its disk in this way.
    pub fn flushing(flush: FlushMode, disk: &MemDisk, role: RoleFlag, peers: &[&str]) -> LoneNode {
        let config = NodeConfig { flush, ..config(role, peers) };
        let clock = VirtualClock::at_ms(1);
        LoneNode::open(Box::new(disk.clone()), clock, config).expect("the disk is well")
    }

    /// A node with this disk and this configuration, if it starts.
    pub fn with(disk: &MemDisk, config: NodeConfig) -> Result<LoneNode, FatalReason> {
        LoneNode::open(Box::new(disk.clone()), VirtualClock::at_ms(1), config)
    }

    /// A node with this disk, clock and configuration, if it starts.
    pub fn open(
        disk: Box<dyn Disk>,
        clock: VirtualClock,
        config: NodeConfig,
    ) -> Result<LoneNode, FatalReason> {
        LoneNode::prepared(disk, clock, config, |_| {})
    }

    /// The same, with what is to be done with the node before its first turn.
    pub fn prepared(
        disk: Box<dyn Disk>,
        clock: VirtualClock,
        config: NodeConfig,
        prepare: impl FnOnce(&mut Node),
    ) -> Result<LoneNode, FatalReason> {
        let dialled = (!config.peers.is_empty()).then(Vec::new);
        let mut node = Node::open(disk, Box::new(clock.clone()), 7, config)?;
        prepare(&mut node);
        let (io, intakes) = (NodeIo::default(), BTreeMap::new());
        let mut lone = LoneNode { node, io, intakes, clock, next_conn: 0, dialled };
        lone.try_finish_turn()?;
        Ok(lone)
    }

    /// A new connection, from which nothing has come yet.
    pub fn connect(&mut self) -> ConnId {
        let conn = self.new_conn();
        self.node.on_accept(conn, "10.0.0.1".to_owned());
        conn
    }

    /// One turn in which these bytes arrive.
    pub fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Answer {
        self.try_send(conn, bytes).expect("the disk is well")
    }

    /// As [`LoneNode::send`], on a disk that may fail.
    pub fn try_send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<Answer, FatalReason> {
        let now = self.clock.now();
        self.node.begin_turn(now);
        let mut fenced = None;
        if let Some(mut intake) = self.intakes.remove(&conn) {
            let delivered = push(&mut intake, bytes, &mut self.node, &mut self.io, conn, now);
            if let Delivered::Fenced(why) = delivered? {
                fenced = Some(why);
            }
            self.intakes.insert(conn, intake);
        }
        if let Some(why) = &fenced {
            self.node.on_closed(&mut self.io, conn, why)?;
        }
        self.try_finish_turn()?;
        let closed = fenced.is_some() || !self.io.is_open(conn);
        Ok(Answer { frames: self.take_frames(conn), fenced, closed })
    }

    /// One turn in which bytes arrive on several connections; for each, why the node closed it.
    pub fn send_all(&mut self, arriving: &[(ConnId, &[u8])]) -> Vec<Option<String>> {
        let now = self.clock.now();
        self.node.begin_turn(now);
        let mut all = Vec::new();
        for (conn, bytes) in arriving {
            let mut fenced = None;
            if let Some(mut intake) = self.intakes.remove(conn) {
                let delivered = push(&mut intake, bytes, &mut self.node, &mut self.io, *conn, now);
                if let Delivered::Fenced(why) = delivered.expect("the disk is well") {
                    fenced = Some(why);
                }
                self.intakes.insert(*conn, intake);
            }
            if let Some(why) = &fenced {
                self.node.on_closed(&mut self.io, *conn, why).expect("the disk is well");
            }
            all.push(fenced);
        }
        self.try_finish_turn().expect("the disk is well");
        all
    }

    fn new_conn(&mut self) -> ConnId {
        self.next_conn += 1;
        let conn = ConnId::new(self.next_conn, 1);
        self.io.outputs.insert(conn, OutBuf::default());
        self.intakes.insert(conn, Intake::default());
        conn
    }

    /// The connections that the node dialled since the last call, and where to.
    pub fn take_dialled(&mut self) -> Vec<(String, ConnId)> {
        self.dialled.as_mut().map(std::mem::take).expect("the test answers dials")
    }

    /// Whether the node has dialled since [`LoneNode::take_dialled`].
    pub fn has_dialled(&self) -> bool {
        self.dialled.as_ref().is_some_and(|dialled| !dialled.is_empty())
    }

    /// One turn at the end of so many milliseconds, in which nothing arrives.
    pub fn pass_ms(&mut self, ms: u64) {
        self.try_pass_ms(ms).expect("the disk is well");
    }

    /// As [`LoneNode::pass_ms`], on a disk that may fail.
    pub fn try_pass_ms(&mut self, ms: u64) -> Result<(), FatalReason> {
        let now = self.clock.now().after_ms(ms);
        self.clock.set(now);
        self.node.begin_turn(now);
        self.try_finish_turn()
    }

    /// What the node said on a connection since it was asked last, whatever brought it about.
    pub fn said(&mut self, conn: ConnId) -> Vec<(MessageType, Vec<u8>)> {
        self.take_frames(conn)
    }

    /// Whether the node has closed this connection.
    pub fn is_closed(&self, conn: ConnId) -> bool {
        !self.io.is_open(conn)
    }

    /// A turn in which nothing arrives and no time passes: something else woke the loop.
    pub fn wake(&mut self) -> Result<(), FatalReason> {
        self.node.begin_turn(self.clock.now());
        self.node.finish_turn(&mut self.io, false)
    }

    fn try_finish_turn(&mut self) -> Result<(), FatalReason> {
        self.node.finish_turn(&mut self.io, false)?;
        for (dial, address) in std::mem::take(&mut self.io.dials) {
            if self.dialled.is_some() {
                let conn = self.new_conn();
                self.node.on_dialed(&mut self.io, dial, conn);
                self.dialled.as_mut().expect("looked at above").push((address, conn));
            } else {
                self.node.on_dial_failed(&mut self.io, dial, "nobody there")?;
            }
        }
        self.node.sync(&mut self.io)
    }

    fn take_frames(&mut self, conn: ConnId) -> Vec<(MessageType, Vec<u8>)> {
        let output = self.io.outputs.get_mut(&conn).expect("the connection is the test's own");
        let bytes = output.pending().to_vec();
        output.clear();
        let typed = |frame: &[u8]| {
            (MessageType::from_u8(frame[4]).expect("a node sends known types"), frame[5..].to_vec())
        };
        split_frames(&bytes).map(typed).collect()
    }
}

/// What the node is told, but for its role and its peers.
pub fn config(role: RoleFlag, peers: &[&str]) -> NodeConfig {
    NodeConfig {
        port: 1,
        own_address: "lone:1".to_owned(),
        role,
        peers: peers.iter().map(|&peer| peer.to_owned()).collect(),
        leader: String::new(),
        ack: AckPolicy::InSync,
        min_insync: 1,
        insync_timeout_ms: 500,
        heartbeat_ms: 100,
        flush: FlushMode::Inline,
        flush_refused: None,
        receipts: true,
        feed: kvstore::node::FeedLimits::default(),
        pin: kvstore::node::PinConfig::default(),
        snapshot: kvstore::node::SnapshotConfig::default(),
        election: kvstore::node::ElectionConfig::default(),
        wal: WalConfig { segment_bytes: 64 << 10, durability: Durability::Fsync },
    }
}

/// A frame with any type byte and any body.
pub fn frame(type_byte: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = (1 + body.len() as u32).to_be_bytes().to_vec();
    bytes.push(type_byte);
    bytes.extend_from_slice(body);
    bytes
}

/// Who the test pretends to be when it speaks as a leader.
pub const LEADER: NodeId = NodeId([0xaa; 16]);

/// The hello of a leader that listens at `address`.
pub fn hello(address: &str) -> Hello {
    Hello {
        versions: PROTOCOL_VERSIONS,
        features: 0,
        cmd_types: CMD_TYPES_KNOWN,
        cluster_id: ClusterId([0xcc; 16]),
        node_id: LEADER,
        term: Term { promotion: 0, start: 1 },
        address: address.to_owned(),
        leader: LEADER,
        leader_address: address.to_owned(),
        auth: Vec::new(),
    }
}
