//! Hellos and refusals: who is at the other end of a connection between nodes.

use super::fatal::{fence, malformed};
use super::{Conn, DialPurpose, FatalReason, Node, Role, Stop};
use crate::address::parse_address;
use crate::conn::{Close, ConnId, Io};
use crate::ids::{ClusterId, NodeId, Term};
use crate::limits::PEER_IDLE_MS;
use crate::meta::StoredRole;
use crate::time::Time;
use crate::wire::CMD_TYPES_KNOWN;
use crate::wire::peer::{
    FEATURE_ELECTED, FEATURES_KNOWN, Hello, HelloError, PROTOCOL_VERSIONS, Refuse, RefuseCode,
};
use crate::{log_debug, log_info, log_warn};

/// A node that dialled us and said hello.
#[derive(Clone, Debug)]
pub(super) struct PeerIn {
    pub node_id: NodeId,
    pub cluster_id: ClusterId,
    pub address: String,
}

/// A node that we dialled.
#[derive(Debug)]
pub(super) struct PeerOut {
    pub purpose: DialPurpose,
    /// Known once it has answered the hello.
    pub node_id: Option<NodeId>,
}

impl Node {
    fn hello(&self) -> Hello {
        let meta = self.meta.get();
        Hello {
            versions: PROTOCOL_VERSIONS,
            features: FEATURES_KNOWN | if self.wants_elections() { FEATURE_ELECTED } else { 0 },
            cmd_types: CMD_TYPES_KNOWN,
            cluster_id: meta.cluster_id,
            node_id: meta.node_id,
            term: meta.term,
            address: self.config.own_address.clone(),
            leader: meta.leader_id,
            leader_address: meta.leader_address.clone(),
            auth: Vec::new(),
        }
    }

    /// We dialled: say hello first.
    pub(super) fn greet(&mut self, io: &mut dyn Io, conn: ConnId, purpose: DialPurpose) {
        self.conns.insert(conn, Conn::PeerOut(PeerOut { purpose, node_id: None }));
        self.hello().encode(false, io.output(conn).bytes_mut());
        match purpose {
            DialPurpose::Session(index) => self.peer_dialled(index, conn),
            DialPurpose::Call(index) => self.call_dialled(io, index, conn),
            DialPurpose::Promotion(_) => {}
        }
    }

    pub(super) fn on_hello(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        remote_ip: &str,
        body: &[u8],
    ) -> Result<(), Stop> {
        if self.is_loading() {
            let why = format!("{}; it takes part once that is done", self.incomplete_text());
            self.refuse(io, conn, RefuseCode::Other, why);
            return Ok(());
        }
        let hello = match self.checked_hello(body)? {
            Ok(hello) => hello,
            Err((code, why)) => {
                self.log_refusal(format!("refused a node at {remote_ip}: {why}"));
                self.refuse(io, conn, code, why);
                return Ok(());
            }
        };
        // It is stored, dialled and told to clients, so what cannot be an address goes no further.
        let address = match parse_address(&visible_address(&hello.address, remote_ip)) {
            Ok(address) => address,
            Err(error) => return fence(format!("HELLO of a node that says it listens at {error}")),
        };
        self.note_higher_term(io, &hello, &address)?;
        self.dial_soon(hello.node_id);
        *self.conns.get_mut(conn).expect("the frame came from it") =
            Conn::PeerIn(PeerIn { node_id: hello.node_id, cluster_id: hello.cluster_id, address });
        self.hello().encode(true, io.output(conn).bytes_mut());
        self.expect_more_of(conn);
        Ok(())
    }

    /// A node that dialled us has said something: what comes next must come in time.
    pub(super) fn expect_more_of(&mut self, conn: ConnId) {
        self.greeted.retain(|(known, _)| *known != conn);
        self.greeted.push((conn, self.now.after_ms(PEER_IDLE_MS)));
    }

    /// A node that lost its power between its hello and its session leaves a connection that nothing is ever sent
    /// on, so nothing else would ever tell that it is dead. One with a session is judged by its heartbeats.
    pub(super) fn close_idle_peers(&mut self, io: &mut dyn Io, input_left: bool) {
        let now = self.now;
        if input_left || self.greeted.iter().all(|(_, deadline)| now < *deadline) {
            return;
        }
        let (late, others) = self.greeted.drain(..).partition(|(_, deadline)| now >= *deadline);
        self.greeted = others;
        let late: Vec<(ConnId, Time)> = late;
        for (conn, _) in late {
            let idle =
                matches!(self.conns.get(conn), Some(Conn::PeerIn(_))) && self.session_mut(conn).is_none();
            if idle {
                log_debug!("peer", "a node that said hello asked for nothing in {PEER_IDLE_MS} ms");
                self.close(io, conn, Close::Now);
            }
        }
    }

    pub(super) fn on_hello_reply(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let Some(Conn::PeerOut(peer)) = self.conns.get(conn) else { return Ok(()) };
        let purpose = peer.purpose;
        if peer.node_id.is_some() {
            return fence("a second hello");
        }
        let address = self.dialled_address(purpose);
        let hello = match self.checked_hello(body)? {
            Ok(hello) => hello,
            Err((code, why)) => {
                self.refuse(io, conn, code, why.clone());
                self.dialled_peer_refused(io, purpose, &why)?;
                return Ok(());
            }
        };
        if let Some(Conn::PeerOut(peer)) = self.conns.get_mut(conn) {
            peer.node_id = Some(hello.node_id);
        }
        self.note_higher_term(io, &hello, &address)?;
        match purpose {
            DialPurpose::Session(index) => {
                if self.may_open_session(io, conn, index, &hello) {
                    self.open_session(io, conn, index, &hello);
                }
            }
            DialPurpose::Promotion(index) => self.send_probe(io, conn, index),
            DialPurpose::Call(index) => self.call_greeted(io, conn, index, &hello)?,
        }
        Ok(())
    }

    pub(super) fn on_refuse(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let refuse = Refuse::decode(body).map_err(malformed("REFUSE"))?;
        let Some(Conn::PeerOut(peer)) = self.conns.get(conn) else { return Ok(()) };
        let purpose = peer.purpose;
        if let (RefuseCode::SnapshotDamaged, DialPurpose::Session(index)) = (refuse.code, purpose) {
            self.note_damaged_snapshot(index);
        }
        self.close(io, conn, Close::Now);
        if self.is_elected() {
            self.refused_in_term(io, refuse.code, refuse.term)?;
        } else if refuse.term > self.meta.get().term && self.leader().is_some() {
            self.depose(io, refuse.term, refuse.leader, &refuse.leader_address)?;
        }
        self.dialled_peer_refused(io, purpose, &refuse.message)?;
        Ok(())
    }

    /// The node that dialled us has heard our side and refuses: this operator is told as well as its own.
    pub(super) fn on_refused_by_dialler(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let refuse = Refuse::decode(body).map_err(malformed("REFUSE"))?;
        let Some(Conn::PeerIn(peer)) = self.conns.get(conn) else { return Ok(()) };
        log_warn!("peer", "{} refuses this node: {}", peer.address, refuse.message);
        self.session_lost(conn, "the leader refuses it");
        self.close(io, conn, Close::Now);
        Ok(())
    }

    fn dialled_peer_refused(
        &mut self,
        io: &mut dyn Io,
        purpose: DialPurpose,
        why: &str,
    ) -> Result<(), FatalReason> {
        match purpose {
            DialPurpose::Session(index) => self.peer_refused(io, index, why),
            DialPurpose::Promotion(index) => self.promotion_silent(io, index, why)?,
            DialPurpose::Call(index) => self.call_failed(io, index, why)?,
        }
        Ok(())
    }

    fn dialled_address(&self, purpose: DialPurpose) -> String {
        match purpose {
            DialPurpose::Session(index) => {
                self.leader().map_or_else(String::new, |leader| leader.peers[index].address.clone())
            }
            DialPurpose::Promotion(index) => self.promotion_address(index),
            DialPurpose::Call(index) => self.call_address(index),
        }
    }

    /// The hello, or why its sender is refused.
    #[allow(clippy::type_complexity)]
    fn checked_hello(&self, body: &[u8]) -> Result<Result<Hello, (RefuseCode, String)>, Stop> {
        let hello = match Hello::decode(body) {
            Ok(hello) => hello,
            Err(HelloError::Malformed(error)) => return Err(malformed("HELLO")(error)),
            Err(HelloError::Version { theirs }) => {
                let (ours, theirs_text) = (PROTOCOL_VERSIONS, format!("{} to {}", theirs.0, theirs.1));
                let why = format!(
                    "protocol versions {theirs_text} there and {} to {} here have none in common; run builds \
                     that share one",
                    ours.0, ours.1
                );
                return Ok(Err((RefuseCode::Version, why)));
            }
        };
        let meta = self.meta.get();
        let both_known = !hello.cluster_id.is_none() && !meta.cluster_id.is_none();
        if both_known && hello.cluster_id != meta.cluster_id {
            let why = format!(
                "node {} at {} belongs to cluster {}, node {} at {} to cluster {}; a data directory cannot change its \
                 cluster: correct the address, or start the follower with an empty --data-dir",
                hello.node_id,
                hello.address,
                hello.cluster_id,
                meta.node_id,
                self.config.own_address,
                meta.cluster_id
            );
            return Ok(Err((RefuseCode::Cluster, why)));
        }
        if hello.node_id == meta.node_id {
            let why = format!(
                "node id {} is at both ends: the node is its own peer, or a data directory was copied; correct \
                 --peers, or start the copy with an empty --data-dir",
                meta.node_id
            );
            return Ok(Err((RefuseCode::Identity, why)));
        }
        Ok(Ok(hello))
    }

    /// A node that is refused asks again every so often: one warning for each reason, the rest at debug.
    pub(super) fn log_refusal(&mut self, what: String) {
        if self.last_refusal == what {
            log_debug!("peer", "{what}");
        } else {
            log_warn!("peer", "{what}");
            self.last_refusal = what;
        }
    }

    /// Refuses in words and closes.
    pub(super) fn refuse(&mut self, io: &mut dyn Io, conn: ConnId, code: RefuseCode, message: String) {
        let meta = self.meta.get();
        let refuse = Refuse {
            code,
            term: meta.term,
            leader: meta.leader_id,
            leader_address: meta.leader_address.clone(),
            message,
        };
        refuse.encode(io.output(conn).bytes_mut());
        self.close(io, conn, Close::AfterOutput);
    }

    /// A leader that meets a higher term stops taking writes at that moment.
    fn note_higher_term(&mut self, io: &mut dyn Io, hello: &Hello, address: &str) -> Result<(), FatalReason> {
        // Where leaders are elected a hello proves nothing: see `term_to_adopt`.
        if self.leader().is_none() || self.is_elected() || hello.term <= self.meta.get().term {
            return Ok(());
        }
        let leads_itself = hello.leader == hello.node_id;
        let leader_address = if leads_itself { address } else { &hello.leader_address };
        self.depose(io, hello.term, hello.leader, leader_address)
    }

    /// Stops leading: a higher term exists.
    pub(super) fn depose(
        &mut self,
        io: &mut dyn Io,
        term: Term,
        leader: NodeId,
        leader_address: &str,
    ) -> Result<(), FatalReason> {
        assert!(term > self.meta.get().term, "deposed only by a higher term");
        let itself = leader == self.meta.get().node_id;
        self.step_down(io, "this node stopped leading before the write was acknowledged")?;
        self.role = Role::Deposed;
        self.meta.update(self.disk.as_mut(), |meta| {
            meta.term = term;
            meta.role = StoredRole::Deposed;
            meta.leader_id = leader;
            meta.leader_address = leader_address.to_owned();
            meta.in_sync = false;
        })?;
        let port = self.config.port;
        if itself {
            log_warn!(
                "node",
                "stopped leading: a peer knows term {term} of this very node; the data directory is older than what it \
                 had (restored from a backup?). Promote the node with the most records instead"
            );
        } else {
            log_warn!(
                "node",
                "stopped leading: met term {term}, led by {leader_address} (node {leader}); writes are refused. \
                 To follow it run `kv_client --port {port} follow {leader_address}`"
            );
        }
        Ok(())
    }

    /// Leaves the leader's role: what waits is answered, every session closed.
    pub(super) fn step_down(&mut self, io: &mut dyn Io, why: &str) -> Result<(), FatalReason> {
        for index in 0..self.leader().map_or(0, |leader| leader.peers.len()) {
            self.keep_nothing_for(index);
        }
        self.slowness = None;
        let Role::Leader(leader) = std::mem::replace(&mut self.role, Role::Deposed) else { return Ok(()) };
        for conn in leader.connections() {
            self.close(io, conn, Close::Now);
        }
        self.dials.retain(|(_, purpose)| !matches!(purpose, DialPurpose::Session(_)));
        if !self.meta.get().is_elected() {
            let token = self.settle(io)?;
            self.apply_up_to(io, token.lsn());
        }
        self.release_clients(io, why);
        log_info!(
            "node",
            "no longer leads; log ends at LSN {}, committed are at least {}",
            self.wal.last_lsn(),
            self.commit
        );
        Ok(())
    }
}

/// The address to reach a node at: an empty host stands for the one it is seen at.
fn visible_address(address: &str, remote_ip: &str) -> String {
    match address.strip_prefix(':') {
        Some(port) if remote_ip.contains(':') => format!("[{remote_ip}]:{port}"),
        Some(port) => format!("{remote_ip}:{port}"),
        None => address.to_owned(),
    }
}
