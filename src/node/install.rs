//! The follower's side of a snapshot transfer: receive, load, and put the snapshot in the place of state and log.
//!
//! ```text
//! offered    the file gets its room; nothing of the node's own has changed, and it is read as before
//! receiving  with the first bytes the old state is given up in memory (two would not fit), and blocks are loaded as
//!            they come; on the disk old log and old snapshot are still all there is
//! installed  the file has its final name, durably; ONE durable update of the identity record makes it the base of an
//!            empty log; the old log and older snapshots go; the ACK says so
//! ```
//!
//! So a crash at any point finds the old log and state, or the new ones (see `Wal::reset`). From E on the state is
//! exact: until then it is neither read nor promoted.
//!
//! A transfer that ends without an end (another session that needs none, a damaged chunk, no room, no leader for
//! [`TRANSFER_RESUME_MS`]) leaves no file, and the old state is made anew from what is on the disk. A lost connection
//! alone ends nothing: the leader goes on where it stopped.
//!
//! Frames of a dead session, or of another transfer than the one under way, change nothing and are counted.

use super::fatal::{fence, malformed};
use super::follower::Follower;
use super::rebuild::NoSource;
use super::{FatalReason, Node, Role, Stop};
use crate::conn::{ConnId, Io};
use crate::ids::{Chain, Lsn, Term};
use crate::limits::TRANSFER_RESUME_MS;
use crate::replication::members::Membership;
use crate::snapshot::{
    Offer, ReadError, ReceiveError, ReceivedFile, SnapshotError, SnapshotId, SnapshotInfo,
};
use crate::time::Time;
use crate::wal::Base;
use crate::wire::peer::{RefuseCode, SnapshotAck, SnapshotChunk, SnapshotOffer, SnapshotTag};
use crate::{log_info, log_warn};

/// A snapshot on its way in.
#[derive(Debug)]
pub(super) struct Install {
    tag: SnapshotTag,
    file: ReceivedFile,
    /// Announced, as far as the announced bytes can hold them.
    entries: u64,
    /// Since when there is no session in which it could go on.
    lost_at: Option<Time>,
    began: Time,
}

/// Bytes of the smallest entry in a snapshot: memory for an announced number of entries is bounded by the bytes that
/// were announced, for which the disk had room.
const ENTRY_SIZE_MIN: u64 = 2 + 1 + 4;

impl Node {
    /// Why the keyspace is no state, in words for clients: it holds a part of a snapshot.
    pub(super) fn install_text(&self) -> String {
        let Some(install) = &self.install else { return "restoring: a snapshot is to come".to_owned() };
        let percent = install.file.offset() * 100 / install.file.offer().bytes.max(1);
        let id = install.file.offer().id;
        format!("restoring: {percent} % of the leader's snapshot of LSN {id} is here")
    }

    /// Bytes that are here of a snapshot on its way in; 0: none is.
    pub fn bytes_received(&self) -> u64 {
        self.install.as_ref().map_or(0, |install| install.file.offset())
    }

    /// Whether a frame belongs to the session that stands.
    fn is_of_session(&mut self, conn: ConnId, frame_term: Term) -> bool {
        let (now, term) = (self.now, self.meta.get().term);
        let from_any = crate::sabotage::is(crate::sabotage::Variant::OldTransferChunk);
        match &mut self.role {
            Role::Follower(Follower { session: Some(session), .. })
                if from_any || session.conn == conn && session.term() == term && frame_term == term =>
            {
                session.last_heard = now;
                self.hear_leader(self.clock.now());
                true
            }
            _ => false,
        }
    }

    pub(super) fn on_snapshot_offer(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let offer = SnapshotOffer::decode(body).map_err(malformed("SNAPSHOT_OFFER"))?;
        if !self.is_of_session(conn, offer.term) {
            self.counters.dead_session_frames += 1;
            return Ok(());
        }
        let (tag, last) = (offer.tag, self.wal.last_lsn());
        if tag.s <= last {
            return fence(format!("SNAPSHOT_OFFER of {tag} to a log that ends at LSN {last}"));
        }
        // The leader's log has moved on without this node.
        self.hear_in_sync(false)?;
        let wanted = Offer { id: SnapshotId { s: tag.s, e: tag.e }, bytes: offer.bytes, crc: tag.crc };
        let again = self.install.as_ref().is_some_and(|install| *install.file.offer() == wanted);
        if !again && let Err(error) = self.begin_install(&offer, wanted) {
            return self.install_fails(io, conn, ReceiveError::Write(error));
        }
        let received = self.install.as_ref().map_or(0, |install| install.file.offset());
        self.counters.transfers_resumed += u64::from(received > 0);
        self.ack_snapshot(io, conn, tag, None);
        Ok(())
    }

    fn begin_install(&mut self, offer: &SnapshotOffer, wanted: Offer) -> Result<(), SnapshotError> {
        self.drop_install("another snapshot is offered");
        let file = ReceivedFile::begin(self.disk.as_mut(), self.meta.get().cluster_id, wanted)?;
        log_info!(
            "replication",
            "the leader's log does not reach back to LSN {}: it sends its snapshot of LSN {}, {} bytes",
            self.wal.last_lsn().next(),
            wanted.id,
            wanted.bytes
        );
        let entries = offer.entries.min(wanted.bytes / ENTRY_SIZE_MIN);
        self.install = Some(Install { tag: offer.tag, file, entries, lost_at: None, began: self.now });
        if self.state_is_given_up {
            // Blocks of the transfer before are loaded, with keys that have been deleted since.
            self.empty_keyspace();
        }
        Ok(())
    }

    pub(super) fn on_snapshot_chunk(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let chunk = SnapshotChunk::decode(body).map_err(malformed("SNAPSHOT_CHUNK"))?;
        let from_any = crate::sabotage::is(crate::sabotage::Variant::OldTransferChunk);
        let is_its = self.install.as_ref().is_some_and(|install| install.tag == chunk.tag || from_any);
        if !is_its || !self.is_of_session(conn, chunk.term) {
            self.counters.dead_session_frames += 1;
            return Ok(());
        }
        if let Err(error) = self.take_chunk(io, &chunk) {
            return match error {
                // Not what this leader sends to somebody who acknowledges what he has.
                ReceiveError::OutOfOrder { .. } | ReceiveError::TooLong { .. } => fence(error.to_string()),
                _ => self.install_fails(io, conn, error),
            };
        }
        let Some(install) = &self.install else { return Ok(()) };
        let installed = if install.file.offset() == install.file.offer().bytes {
            match self.finish_install(io)? {
                Ok(installed) => Some(installed),
                Err(error) => return self.install_fails(io, conn, error),
            }
        } else {
            None
        };
        self.ack_snapshot(io, conn, chunk.tag, installed);
        // What the last bytes took must not count as the leader's silence.
        let now = self.clock.now();
        if let Some(session) = self.session_mut(conn) {
            session.last_heard = now;
        }
        Ok(())
    }

    /// Writes a chunk, and loads the blocks that it completes.
    fn take_chunk(&mut self, io: &mut dyn Io, chunk: &SnapshotChunk<'_>) -> Result<(), ReceiveError> {
        let Some(install) = &mut self.install else { return Ok(()) };
        install.file.receive(self.disk.as_mut(), chunk.offset, chunk.bytes)?;
        if !self.state_is_given_up && !chunk.bytes.is_empty() {
            self.give_up_state(io);
        }
        let Some(install) = &mut self.install else { return Ok(()) };
        let mut rest = chunk.bytes;
        while let Some(block) = install.file.next_block(self.disk.as_ref(), &mut rest)? {
            self.keyspace.load(block.entries());
            self.keyspace.load_sessions(install.tag.e, block.sessions());
        }
        Ok(())
    }

    /// The state in memory makes room for the one that comes. On the disk it stays until that one is durable.
    fn give_up_state(&mut self, io: &mut dyn Io) {
        // A snapshot in the making would go on with entries of another state.
        self.abort_snapshot_behind(io, Lsn::ZERO);
        self.state_is_given_up = true;
        self.empty_keyspace();
        log_info!("replication", "reads wait for the leader's snapshot from now on");
    }

    fn empty_keyspace(&mut self) {
        self.keyspace.clear();
        if let Some(install) = &self.install {
            self.keyspace.reserve(install.entries, install.file.offer().bytes);
        }
    }

    fn ack_snapshot(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        tag: SnapshotTag,
        installed: Option<(Lsn, Chain, u64)>,
    ) {
        let term = self.meta.get().term;
        let received = self.install.as_ref().map_or(0, |install| install.file.offset());
        let offset = installed.map_or(received, |(_, _, bytes)| bytes);
        let installed = installed.map(|(lsn, chain, _)| (lsn, chain));
        SnapshotAck { term, tag, offset, installed }.encode(io.output(conn).bytes_mut());
    }

    /// All bytes are here and loaded: the snapshot takes the place of log and state, in one durable step.
    fn finish_install(
        &mut self,
        io: &mut dyn Io,
    ) -> Result<Result<(Lsn, Chain, u64), ReceiveError>, FatalReason> {
        let install = self.install.take().expect("who calls has looked at it");
        // Nothing was appended since the session opened; a batch would be of the log that goes.
        let token = self.settle(io)?;
        assert!(token.lsn() == self.wal.last_lsn() && token.lsn() < install.tag.s);
        let finished = match install.file.finish(self.disk.as_mut()) {
            Ok(finished) => finished,
            Err(error) => return Ok(Err(error)),
        };
        if finished.info().history.last().is_some_and(|last| last.term > self.meta.get().term) {
            let (file, what) =
                (finished.info().name.clone(), "its terms go beyond that of the leader who sends it");
            finished.abandon(self.disk.as_mut());
            return Ok(Err(ReceiveError::Invalid(ReadError::Damaged { file, offset: 0, what })));
        }
        let info = match finished.publish(self.disk.as_mut()) {
            Ok(info) => info,
            Err(error) if error.is_fatal() => return Err(error.into()),
            Err(error) => return Ok(Err(ReceiveError::Write(error))),
        };
        let (s, e, chain) = (info.id.s, info.id.e, info.chain);
        let members = self.members_of_snapshot(&info);
        self.meta.update(self.disk.as_mut(), |meta| {
            meta.log_generation += 1;
            meta.cut_lsn = Lsn::ZERO;
            (meta.base_lsn, meta.base_chain) = (s, chain);
            meta.members = members;
        })?;
        let base = Base { lsn: s, chain, history: info.history.clone(), durable_lsn: s };
        let generation = self.meta.get().log_generation;
        let kept = self.wal.reset(self.disk.as_mut(), &base, generation)?;
        assert!(kept.is_none(), "what an installed snapshot replaces is not kept aside");
        self.state_is_given_up = false;
        self.forget_unapplied(s);
        (self.applied, self.complete_at) = (s, e);
        self.state_is_new();
        // It had its name at the leader, so all of it is committed there.
        self.commit = self.commit.max(e);
        self.counters.snapshots_installed += 1;
        log_info!(
            "replication",
            "installed {} in {} ms: {} key(s), {} bytes, exact from LSN {e} on",
            info.name,
            self.clock.now().since(install.began) / 1_000_000,
            self.keyspace.len(),
            info.bytes
        );
        let bytes = info.bytes;
        self.adopt_snapshot(info)?;
        Ok(Ok((s, chain, bytes)))
    }

    /// The members that an installed snapshot brings, to a node that goes by any: those of the log it stands for.
    fn members_of_snapshot(&self, info: &SnapshotInfo) -> Membership {
        let own = &self.meta.get().members;
        if own.is_empty() || info.members.is_empty() { own.clone() } else { info.members.clone() }
    }

    /// The transfer cannot go on: refused in words, so that both operators read why. The leader begins anew.
    fn install_fails(&mut self, io: &mut dyn Io, conn: ConnId, error: ReceiveError) -> Result<(), Stop> {
        let (why, is_damage) = (error.to_string(), matches!(error, ReceiveError::Invalid(_)));
        if let ReceiveError::Write(error) = error
            && error.is_fatal()
        {
            return Err(error.into());
        }
        log_warn!("replication", "the leader's snapshot is not taken: {why}");
        self.counters.snapshots_refused += 1;
        self.end_install("it is not taken")?;
        if let Role::Follower(follower) = &mut self.role {
            follower.session = None;
        }
        let code = if is_damage { RefuseCode::SnapshotDamaged } else { RefuseCode::Other };
        self.refuse(io, conn, code, why);
        Ok(())
    }

    /// Lets go of the file of a transfer under way.
    pub(super) fn drop_install(&mut self, why: &str) {
        if let Some(install) = self.install.take() {
            log_info!(
                "replication",
                "the transfer of the snapshot of LSN {} ends: {why}",
                install.file.offer().id
            );
            install.file.abandon(self.disk.as_mut());
        }
    }

    /// Ends a transfer under way, and makes the old state anew if it was given up for it.
    pub(super) fn end_install(&mut self, why: &str) -> Result<(), FatalReason> {
        self.drop_install(why);
        if !self.state_is_given_up {
            return Ok(());
        }
        // The log stands where it stood, so a snapshot that was installed and not caught up with will do.
        let (last, complete_at) = (self.wal.last_lsn(), self.complete_at);
        match self.source_for(last.max(complete_at)) {
            Ok(source) => self.rebuild_state(source.as_ref())?,
            Err(NoSource) => return Err(FatalReason::StateLost { last }),
        }
        log_info!(
            "replication",
            "the state of before is made anew: {} key(s), LSN {last}",
            self.keyspace.len()
        );
        Ok(())
    }

    /// A session opened: does it go on with the transfer under way, or is the leader's log enough?
    pub(super) fn session_opened_with_log_from(&mut self, first_lsn: Lsn) -> Result<(), FatalReason> {
        if self.install.is_some() && first_lsn <= self.wal.last_lsn().next() {
            self.end_install("the leader's log reaches back far enough")?;
        }
        Ok(())
    }

    /// A transfer whose leader does not come back ends; what is here is served again.
    pub(super) fn install_timers(&mut self) -> Result<(), FatalReason> {
        let now = self.now;
        let has_session = matches!(&self.role, Role::Follower(Follower { session: Some(_), .. }));
        let Some(install) = &mut self.install else { return Ok(()) };
        if has_session {
            install.lost_at = None;
        } else if now >= install.lost_at.get_or_insert(now).after_ms(TRANSFER_RESUME_MS) {
            self.end_install("no leader goes on with it")?;
        }
        Ok(())
    }

    pub(super) fn install_deadline(&self) -> Option<Time> {
        let lost_at = self.install.as_ref()?.lost_at?;
        Some(lost_at.after_ms(TRANSFER_RESUME_MS))
    }
}
