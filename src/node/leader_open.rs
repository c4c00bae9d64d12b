//! A leader opens a session with a follower: what it says of its log, and what the answer leads to.
//!
//! The answer names the last LSN on which both logs agree. From there on records are sent; if the log does not reach
//! back that far, a snapshot is offered (see `transfer`).

use super::fatal::{fence, malformed};
use super::leader::{Link, Peer, Stream};
use super::{FatalReason, Node, Role, Stop};
use crate::conn::{Close, ConnId, Io};
use crate::ids::Lsn;
use crate::limits::HANDSHAKE_DEADLINE_MS;
use crate::log_info;
use crate::wal::Cursor;
use crate::wire::peer::{FEATURE_SNAPSHOTS, Hello, Open, OpenReply, RefuseCode};
use crate::wire::{CMD_TYPES_BASIC, CMD_TYPES_MEMBERS, CMD_TYPES_SESSIONS};

impl Peer {
    /// The follower answered, and there is something for it.
    pub(super) fn session_stands(&mut self) {
        self.last_error = None;
    }
}

impl Node {
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
        leader.peers[index].cmd_types = hello.cmd_types;
        let needed = self.cmd_types_needed();
        if hello.cmd_types & needed != needed {
            let why = format!(
                "it can apply record types {:#x} and not all of {needed:#x}: update it first",
                hello.cmd_types
            );
            self.refuse(io, conn, RefuseCode::CmdType, why.clone());
            return self.peer_refused(io, index, &why);
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let peers = leader.voters().map(|peer| peer.address.clone()).collect();
        self.note_identity(index, hello);
        let Role::Leader(leader) = &mut self.role else { return };
        let peer = &mut leader.peers[index];
        peer.takes_snapshots = hello.features & FEATURE_SNAPSHOTS != 0;
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
            elected: meta.is_elected(),
        };
        open.encode(io.output(conn).bytes_mut());
    }

    /// The record types that a follower must be able to apply. As long as no client session was opened and no member
    /// changed, a node that cannot apply such a record lacks nothing.
    fn cmd_types_needed(&self) -> u64 {
        let sessions = if self.holds_sessions() { CMD_TYPES_SESSIONS } else { 0 };
        let members = if self.meta.get().members.lsn() > Lsn::ZERO { CMD_TYPES_MEMBERS } else { 0 };
        CMD_TYPES_BASIC | sessions | members
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
        if reply.match_lsn.next() < self.wal.first_lsn() {
            if let Err(why) = self.offer_snapshot(io, conn, index, reply.match_lsn) {
                self.refuse(io, conn, RefuseCode::LogTooShort, why.clone());
                self.peer_refused(io, index, &why);
            }
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
        let cut = if reply.cut_from > Lsn::ZERO {
            format!(", which cut its log from LSN {}", reply.cut_from)
        } else {
            String::new()
        };
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        leader.peers[index].session_stands();
        self.counters.sessions += 1;
        log_info!(
            "replication",
            "session with follower {}{cut}: match LSN {}, {} record(s) behind",
            leader.peers[index].address,
            reply.match_lsn,
            self.wal.last_lsn().0 - reply.match_lsn.0
        );
        self.begin_stream(io, conn, index, (reply.match_lsn, reply.repair_until));
        if crate::sabotage::is(crate::sabotage::Variant::ApplyTwice) && !self.inflight.current().is_empty() {
            self.append_again();
        }
        Ok(())
    }

    /// Records from behind `match_lsn` on, which the follower holds. Until `repair_until` it counts as a newcomer.
    pub(super) fn begin_stream(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        index: usize,
        (match_lsn, repair_until): (Lsn, Lsn),
    ) {
        let (last, loop_now, now) = (self.wal.last_lsn(), self.loop_clock.now(), self.now);
        let (commit, awaited) = (self.commit, self.awaited_lsn());
        let Role::Leader(leader) = &mut self.role else { return };
        let peer = &mut leader.peers[index];
        let next_lsn = match_lsn.next();
        // Records of this turn are sent from the batch; what is older is read back from the log.
        let current_first =
            if self.inflight.current().is_empty() { last.next() } else { self.inflight.current().first() };
        let behind = (next_lsn < current_first).then(Cursor::default);
        io.output(conn).expect_bulk();
        if let Some(quorum) = &mut leader.quorum {
            quorum.session(index);
        }
        peer.link = Link::Streaming(Stream {
            conn,
            next_lsn,
            behind,
            last_sent: now,
            last_heard: now,
            round_heard: 0,
            told_in_sync: false,
            told_commit: Lsn::ZERO,
            waiting_bytes: 0,
        });
        peer.progress.on_session(match_lsn, awaited, loop_now);
        peer.state.on_session();
        if match_lsn < commit {
            // It was out of sync when this leader started, or has lost its disk.
            peer.progress.leave();
        }
        self.note_repair(index, match_lsn, repair_until);
        self.rejoin(index);
    }

    /// The log file must hold what a chain checksum or a follower is asked for.
    pub(super) fn write_batch_for_reading(&mut self) -> Result<(), FatalReason> {
        if self.wal.batch_bytes() > 0 {
            let commit = self.effective_commit();
            self.wal.write(self.disk.as_mut(), commit)?;
        }
        Ok(())
    }
}
