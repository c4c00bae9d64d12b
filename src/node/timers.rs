//! What a node does because time passed, and when the next such moment is. Also its orderly end.

use super::follower::Follower;
use super::{Conn, FatalReason, Node, Role};
use crate::conn::Io;
use crate::limits::{SESSION_SILENCE_MS, SHUTDOWN_DEADLINE_MS};
use crate::time::Time;
use crate::wal::ReserveError;
use crate::{log_info, log_warn};

impl Node {
    /// Runs what is due. `input_left`: peers sent more than this turn read, so nobody is judged for silence.
    pub fn on_timers(&mut self, io: &mut dyn Io, input_left: bool) -> Result<(), FatalReason> {
        self.election_timers(io, input_left)?;
        self.leader_timers(io, input_left);
        self.follower_timers(io, input_left);
        self.install_timers()?;
        self.close_idle_peers(io, input_left);
        self.promotion_timers(io)?;
        self.backup_timers();
        self.flush_timers();
        self.summarize_lines();
        Ok(())
    }

    /// When [`Node::on_timers`] wants to run again. Now, while something waits for a sync.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.needs_sync() || self.load.is_some() || self.applies_from_log() {
            return Some(self.now);
        }
        let lines = [&self.sent_lines, &self.received_lines, &self.ack_lines];
        let deadlines = [
            self.election_deadline(),
            self.leader_deadline(),
            self.follower_deadline(),
            self.install_deadline(),
            self.promotion_deadline(),
            self.flush_deadline(),
            self.snapshot_deadline(),
            self.zeros_deadline(),
            self.backup_deadline(),
            self.archive_deadline(),
        ];
        let greeted = self.greeted.iter().map(|(_, deadline)| *deadline);
        let lines = lines.into_iter().filter_map(|line| line.due());
        deadlines.into_iter().flatten().chain(greeted).chain(lines).min()
    }

    /// A leader that fell silent is gone (N5): the session is closed, the leader dials again if it lives.
    pub(super) fn follower_timers(&mut self, io: &mut dyn Io, input_left: bool) {
        let now = self.now;
        let Role::Follower(Follower { session: Some(session), .. }) = &self.role else { return };
        if !input_left && now.since(session.last_heard) > SESSION_SILENCE_MS * 1_000_000 {
            log_warn!(
                "replication",
                "leader {} is silent for {SESSION_SILENCE_MS} ms",
                session.leader_address
            );
            self.drop_session(io, "the leader is silent");
        }
    }

    /// When [`Node::follower_timers`] has something to do.
    pub(super) fn follower_deadline(&self) -> Option<Time> {
        match &self.role {
            Role::Follower(Follower { session: Some(session), .. }) => {
                Some(session.last_heard.after_ms(SESSION_SILENCE_MS + 1))
            }
            _ => None,
        }
    }

    fn summarize_lines(&mut self) {
        let now = self.now;
        if let Some((lines, records)) = self.sent_lines.summary(now) {
            log_info!(
                "replication",
                "sent AppendEntries, {records} record(s) in {lines} more batch(es) in the last second"
            );
        }
        if let Some((lines, records)) = self.received_lines.summary(now) {
            log_info!(
                "replication",
                "received AppendEntries, applied {records} record(s) in {lines} more batch(es) in the last second"
            );
        }
        if let Some((lines, _)) = self.ack_lines.summary(now) {
            log_info!("replication", "{lines} more ACK(s) in the last second, commit_lsn={}", self.commit);
        }
    }

    /// The process was asked to end: no new write is taken from now on.
    pub fn begin_shutdown(&mut self) {
        if self.shutdown.is_none() {
            self.shutdown = Some(self.now.after_ms(SHUTDOWN_DEADLINE_MS));
            self.hand_over_before_end();
            log_info!("node", "ending: no new writes; those under way are finished first");
        }
    }

    /// Whether the node has finished what it can finish, or has waited long enough for it.
    pub fn may_end(&self) -> bool {
        let Some(deadline) = self.shutdown else { return false };
        if self.hands_over() && self.now < deadline {
            return false;
        }
        let unanswered = match &self.role {
            Role::Leader(leader) => !leader.writers.is_empty(),
            _ => false,
        };
        !(unanswered || self.wal.batch_bytes() > 0 || self.wal.flush_pending()) || self.now >= deadline
    }

    /// Whether connections are taken. A node that ends takes none: that is how clients learn of it. One that hands over
    /// is asked for its vote first.
    pub fn takes_connections(&self) -> bool {
        self.shutdown.is_none() || self.hands_over()
    }

    /// When an ending node ends whatever is left.
    pub fn shutdown_deadline(&self) -> Option<Time> {
        self.shutdown
    }

    /// The last words to the disk: a mark, so that the next start knows how much of the log is durable.
    pub fn close_log(&mut self) -> Result<(), FatalReason> {
        self.abandon_snapshot();
        self.abandon_copy();
        let commit = self.effective_commit();
        if self.wal.last_lsn() > crate::ids::Lsn::ZERO {
            match self.wal.write_mark(self.disk.as_mut(), commit) {
                Ok(()) => {}
                Err(ReserveError::Failed(error)) => return Err(error.into()),
                Err(ReserveError::FlushPending) => {
                    log_warn!("wal", "no closing mark: the flush under way does not end");
                }
                // Without the mark the next start only rewrites the last batch.
                Err(ReserveError::NoRoom(error)) => log_info!("wal", "no room for the closing mark: {error}"),
            }
        }
        let unanswered = self.leader().map_or(0, |leader| leader.writers.len());
        let clients = self.conns.iter().filter(|(_, conn)| matches!(conn, Conn::Client(_))).count();
        log_info!(
            "node",
            "ended at last_lsn={} commit_lsn={commit}; {clients} client(s) connected, {unanswered} write(s) unanswered",
            self.wal.last_lsn()
        );
        Ok(())
    }
}
