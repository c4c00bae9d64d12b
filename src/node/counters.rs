//! How often what happened.

use serde_json::{Value, json};

/// Counts of what happened, for `status`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections closed for what their other side sent.
    pub fenced: u64,
    /// Cuts of this node's log.
    pub cuts: u64,
    /// Records cut away.
    pub cut_records: u64,
    /// Sessions opened (both roles).
    pub sessions: u64,
    /// Frames that belonged to a dead session.
    pub dead_session_frames: u64,
    /// Writes refused for want of memory.
    pub busy: u64,
    /// Writes refused for want of disk.
    pub disk_full: u64,
    /// Followers that left the in-sync set.
    pub insync_left: u64,
    /// Snapshots that a follower has installed.
    pub snapshots_sent: u64,
    /// Transfers that ended because too much log was kept for them.
    pub transfers_dropped: u64,
    /// Transfers that went on behind the first byte, with another connection.
    pub transfers_resumed: u64,
    /// Snapshots of a leader's that took the place of state and log.
    pub snapshots_installed: u64,
    /// Snapshots of a leader's that were not taken: damaged, or no room.
    pub snapshots_refused: u64,
    /// Log syncs.
    pub syncs: u64,
    /// Writes acknowledged.
    pub writes_acked: u64,
    /// Numbered writes that were asked for again, and got their first answer.
    pub repeats: u64,
    /// Reads answered.
    pub reads: u64,
    /// Connections refused for want of descriptors or slots.
    pub accepts_refused: u64,
    /// Whether the state came from a snapshot when the node started: 1 or 0.
    pub loaded_from_snapshot: u64,
    /// Snapshots that got their name.
    pub snapshots: u64,
    /// Segments of the log removed.
    pub segments_removed: u64,
    /// States made: by a start, after a cut, with a leader's snapshot.
    pub states_made: u64,
    /// Hashes of followers' states that were compared.
    pub states_compared: u64,
    /// Those that were not those of the leader or of a majority.
    pub states_differed: u64,
    /// Times that all entries were compared with what was applied.
    pub states_scanned: u64,
    /// Those that found something else in memory.
    pub scans_failed: u64,
}

impl Counters {
    /// For `status`.
    pub(super) fn document(&self) -> Value {
        json!({
            "writes_acked": self.writes_acked,
            "repeats": self.repeats,
            "reads": self.reads,
            "syncs": self.syncs,
            "snapshots_sent": self.snapshots_sent,
            "snapshots_installed": self.snapshots_installed,
            "snapshots_refused": self.snapshots_refused,
            "transfers_resumed": self.transfers_resumed,
            "transfers_dropped": self.transfers_dropped,
            "sessions": self.sessions,
            "cuts": self.cuts,
            "cut_records": self.cut_records,
            "fenced": self.fenced,
            "dead_session_frames": self.dead_session_frames,
            "insync_left": self.insync_left,
            "busy": self.busy,
            "disk_full": self.disk_full,
            "accepts_refused": self.accepts_refused,
            "snapshots": self.snapshots,
            "segments_removed": self.segments_removed,
            "loaded_from_snapshot": self.loaded_from_snapshot,
            "states_made": self.states_made,
            "states_compared": self.states_compared,
            "states_differed": self.states_differed,
            "states_scanned": self.states_scanned,
            "scans_failed": self.scans_failed,
        })
    }
}
