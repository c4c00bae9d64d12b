//! Every bound of the system, with its unit. Relations between them are checked when the crate is compiled.

/// Bytes of a key, at least.
pub const KEY_SIZE_MIN: usize = 1;
/// Bytes of a key, at most.
pub const KEY_SIZE_MAX: usize = 65_535;
/// Bytes of a value, at most.
pub const VALUE_SIZE_MAX: usize = 8 << 20;
/// Bytes of a record without its key and value: lsn, cmd_type, key_len, value_len.
pub const RECORD_OVERHEAD: usize = 8 + 1 + 4 + 4;
/// Bytes in front of the value of a numbered write: the LSN of its session, and its number.
pub const WRITE_NUMBER_SIZE: usize = 8 + 8;
/// Bytes of a record, at most.
pub const RECORD_SIZE_MAX: usize = RECORD_OVERHEAD + KEY_SIZE_MAX + WRITE_NUMBER_SIZE + VALUE_SIZE_MAX;

/// Client sessions that are remembered, at most; with one more the one that wrote least lately goes. Part of what all
/// nodes must agree on, as is the next: a change is a change of the format.
pub const CLIENT_SESSIONS_MAX: usize = 4_096;
/// Answers that are remembered of each, so many numbered writes a client may have under way: two pipelines of the depth
/// that measurements here use.
pub const CLIENT_SESSION_WINDOW: usize = 32;
/// Bytes of a client session in a snapshot, at most: LSN, nonce, last number, count, answers.
pub const CLIENT_SESSION_SIZE_MAX: usize = 8 + 8 + 8 + 1 + CLIENT_SESSION_WINDOW * 8;

/// The value of a frame's length field, at most: 16 MiB - 1. So its first byte is always 0x00.
pub const FRAME_SIZE_MAX: usize = (16 << 20) - 1;
/// Bytes of a frame before its body: the length field and the type.
pub const FRAME_HEADER_SIZE: usize = 5;
/// Bytes of record data in one `APPEND_ENTRIES` frame before the next frame is begun.
pub const APPEND_BATCH_SIZE: usize = 1 << 20;
/// Bytes left free in a frame for counts and trailers around its records.
pub const FRAME_SLACK: usize = 4096;

/// Bytes of an address as text (`HOST:PORT`), at most.
pub const ADDRESS_SIZE_MAX: usize = 255;
/// Peers of a node, at most.
pub const PEERS_MAX: usize = 15;
/// Members of an elected cluster, at most: a node and its peers.
pub const MEMBERS_MAX: usize = 1 + PEERS_MAX;
/// Bytes of the opaque authentication field in a hello, at most.
pub const AUTH_SIZE_MAX: usize = 4096;
/// Entries of a term history, at most (each start of a leader adds one).
pub const TERM_HISTORY_MAX: usize = 262_144;
/// Bytes of one entry of a term history as sent: term, leader id, first LSN, chain checksum.
pub const TERM_HISTORY_ENTRY_SIZE: usize = 8 + 16 + 8 + 4;

/// Connections of a node, at most; `nofile` may bound it further.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Descriptors a node needs besides its connections (log files, poll, listener, data directory).
pub const DESCRIPTORS_RESERVED: usize = 64;
/// Connections accepted in one turn of the loop, at most: a connect storm must not starve peers.
pub const ACCEPTS_PER_TURN: usize = 64;
/// Connections that wait to be accepted, at most; the system's `somaxconn` may bound it further. When the
/// queue is full a client waits a second for its next try, so it is as long as a storm between two turns.
pub const LISTEN_QUEUE_SIZE: i32 = 4096;
/// Bytes read from one client connection in one turn, at most.
pub const READ_PER_TURN_CLIENT: usize = 256 << 10;
/// Bytes read from one peer connection in one turn, at most.
pub const READ_PER_TURN_PEER: usize = 8 << 20;
/// Bytes of a connection's input buffer to begin with; it grows only for a frame whose length was checked.
pub const INPUT_BUFFER_SIZE: usize = 16 << 10;
/// Bytes of a peer's input buffer: a whole frame of records, so that it neither takes many reads nor makes the
/// buffer grow (and be zeroed) for each one.
pub const PEER_INPUT_BUFFER_SIZE: usize = APPEND_BATCH_SIZE + FRAME_SLACK;
/// Bytes of all input buffers that grew beyond their first size, together, at most.
pub const INPUT_BUDGET: usize = 512 << 20;
/// Bytes waiting to be sent to a client above which its requests are no longer read.
pub const CLIENT_OUTPUT_HIGH_WATER: usize = 1 << 20;
/// Bytes waiting to be sent to a client below which its requests are read again.
pub const CLIENT_OUTPUT_LOW_WATER: usize = 256 << 10;
/// Requests of one connection that wait for their outcome above which it is no longer read.
pub const CLIENT_REQUESTS_IN_FLIGHT_MAX: usize = 16_384;
/// Bytes waiting to be sent to a follower above which it is fed from the WAL files later.
pub const PEER_OUTPUT_HIGH_WATER: usize = 4 << 20;
/// Bytes of an empty output buffer to a follower that are kept for the next batch: a whole frame of records, with
/// the room by which a growing buffer doubles.
pub const PEER_OUTPUT_KEPT: usize = 2 * (APPEND_BATCH_SIZE + FRAME_SLACK);
/// Bytes waiting to be sent to a follower below which it is fed again.
pub const PEER_OUTPUT_LOW_WATER: usize = 1 << 20;
/// Bytes of records appended and not yet applied on a leader; above it writes are refused as BUSY.
pub const IN_FLIGHT_SIZE_MAX: usize = 256 << 20;
/// Bytes of records taken into one WAL batch before input is left for the next turn.
pub const BATCH_SIZE_MAX: usize = 16 << 20;
/// Bytes of records that are read from the log and applied in one turn, about: some milliseconds.
pub const APPLY_SLICE_SIZE: usize = 4 << 20;

/// Bytes of zeros that a busy log has in front of it.
pub const ZEROS_AHEAD: u64 = 4 << 20;
/// Bytes of zeros written in one turn, at most: 0.3 ms on the development machine.
pub const ZEROS_PER_TURN: u64 = 1 << 20;
/// Milliseconds between two such writes of a busy node, at least: 64 MiB/s.
pub const ZEROS_EVERY_MS: u64 = 16;
/// Milliseconds without requests or records after which a node has the rest of its zeros written.
pub const ZEROS_IDLE_AFTER_MS: u64 = 20;

/// Bytes of a WAL segment by default.
pub const SEGMENT_SIZE_DEFAULT: u64 = 64 << 20;
/// Bytes of a WAL segment, at least. One record larger than that gets a segment of its own size.
pub const SEGMENT_SIZE_MIN: u64 = 64 << 10;
/// Bytes of a WAL segment, at most.
pub const SEGMENT_SIZE_MAX: u64 = 1 << 30;

/// Bytes of the entries in one block of a snapshot, unless a single entry has more.
pub const SNAPSHOT_BLOCK_SIZE: usize = 64 << 10;
/// Bytes of a snapshot written at once.
pub const SNAPSHOT_WRITE_SIZE: usize = 256 << 10;
/// Bytes of a snapshot read at once.
pub const SNAPSHOT_READ_SIZE: usize = 1 << 20;
/// Bytes of a snapshot that may wait in memory before another entry is added to it.
pub const SNAPSHOT_BUFFER_SIZE_MAX: usize = 1 << 20;
/// Bytes of a snapshot in one chunk of its transfer, at most.
pub const SNAPSHOT_CHUNK_SIZE_MAX: usize = 1 << 20;
/// Chunks sent to a follower in one turn. One is too few where a turn answers 50 writers: it takes 1 ms, and so does a
/// chunk. With four those writers wait longer, and the transfer takes as long.
pub const SNAPSHOT_CHUNKS_PER_TURN: usize = 2;
/// Bytes of a received snapshot behind its end that are on the disk by now: their pages are given back to the system,
/// and taken for the bytes that come next.
pub const SNAPSHOT_WRITE_BEHIND: u64 = 16 << 20;
/// Bytes of log since the last snapshot after which the next is made, by default at least. Twice the size of the last
/// one if that is more: then a key costs at most half a write of a snapshot per write.
pub const SNAPSHOT_LOG_BYTES_MIN: u64 = 256 << 20;
/// The value of `--snapshot-log-bytes`, at least.
pub const SNAPSHOT_LOG_BYTES_FLAG_MIN: u64 = 64 << 10;
/// Bytes of log kept for a connected follower that has not acknowledged them, at most, by default.
pub const RETAIN_LOG_BYTES_DEFAULT: u64 = 1 << 30;
/// Bytes of snapshot and log up to which a state is loaded before the node serves anybody; a larger one is loaded in
/// slices of the loop. 4 MiB take about 10 ms.
pub const LOAD_AT_ONCE_BYTES: u64 = 4 << 20;
/// Microseconds of a turn that loads.
pub const LOAD_SLICE_US: u64 = 5_000;
/// Microseconds of a slice of a snapshot while nobody asks for anything.
pub const SNAPSHOT_SLICE_IDLE_US: u64 = 2_000;
/// Microseconds of a slice of a snapshot in a turn with work, at most; and one of so many parts of that turn.
pub const SNAPSHOT_SLICE_LOADED_US: u64 = 200;
/// See [`SNAPSHOT_SLICE_LOADED_US`].
pub const SNAPSHOT_TURN_SHARE: u64 = 10;
/// Milliseconds without work after which a node counts as idle. A client that waits for each answer is back earlier.
pub const SNAPSHOT_IDLE_AFTER_MS: u64 = 20;
/// Bytes of a snapshot written per second while there is load: a third of what the slowest disk in mind takes, so that
/// what is dirty stays a few writes.
pub const SNAPSHOT_RATE_LOADED: u64 = 48 << 20;
/// The same while there is none.
pub const SNAPSHOT_RATE_IDLE: u64 = 192 << 20;
/// Milliseconds between the last write of a snapshot and its sync, in which writeback ends by itself.
pub const SNAPSHOT_SETTLE_MS: u64 = 300;
/// Milliseconds before a snapshot that failed is tried again: the first and the largest step.
pub const SNAPSHOT_RETRY_MS_MIN: u64 = 1_000;
/// See [`SNAPSHOT_RETRY_MS_MIN`].
pub const SNAPSHOT_RETRY_MS_MAX: u64 = 300_000;
/// Milliseconds between looks at how much log there is.
pub const SNAPSHOT_CHECK_MS: u64 = 100;
/// Slots scanned between two looks at the clock: about 10 us.
pub const SNAPSHOT_SLOTS_PER_STEP: u32 = 64;
/// Snapshots that are kept.
pub const SNAPSHOTS_KEPT: usize = 2;

/// Bytes of log kept for a follower that gets a snapshot, at most, by default.
pub const PIN_LOG_BYTES_DEFAULT: u64 = 8 << 30;
/// The value of `--pin-log-bytes`, at least.
pub const PIN_LOG_BYTES_MIN: u64 = 1 << 20;
/// Milliseconds without a sign of a follower that gets a snapshot after which it is taken for gone. Giving up a
/// state of many GiB, and making a file of that size durable, take seconds in which it answers nothing.
pub const TRANSFER_SILENCE_MS: u64 = 15_000;
/// Bytes of a backup in one answer, at most; a record larger than that comes alone. Read in one turn: 256 KiB take some
/// 50 us from the page cache, and 1 ms from a disk of 250 MB/s.
pub const BACKUP_PART_SIZE: usize = 256 << 10;
/// Bytes of closed segments kept for an archive that does not take them, at most, by default.
pub const ARCHIVE_LOG_BYTES_DEFAULT: u64 = 8 << 30;
/// The value of `--archive-log-bytes`, at least.
pub const ARCHIVE_LOG_BYTES_MIN: u64 = 1 << 20;
/// Bytes of a segment read, checked, and written to the archive at once: about 60 us. Beside it the p99 of writers was
/// 1.43 times that of without an archive, and 1.66 times with 256 KiB.
pub const ARCHIVE_COPY_SIZE: usize = 64 << 10;
/// Milliseconds between two looks at a sync of the archive that runs beside the loop.
pub const ARCHIVE_LOOK_MS: u64 = 10;
/// Milliseconds before an archive that failed is tried again: the first and the largest step.
pub const ARCHIVE_RETRY_MS_MIN: u64 = 1_000;
/// See [`ARCHIVE_RETRY_MS_MIN`].
pub const ARCHIVE_RETRY_MS_MAX: u64 = 30_000;
/// Milliseconds after which a backup is given up that nobody asks to go on.
pub const BACKUP_SILENCE_MS: u64 = 60_000;
/// Milliseconds that a transfer waits for a lost connection, on both sides.
pub const TRANSFER_RESUME_MS: u64 = 60_000;
/// Milliseconds in which a client's connection gets one request while a follower must catch up.
pub const SLOW_WINDOW_MS: u64 = 10;

/// Milliseconds in which a connection must finish a frame it began (C1).
pub const FRAME_DEADLINE_MS: u64 = 30_000;
/// Milliseconds in which a dialled peer must answer connect, hello and open.
pub const HANDSHAKE_DEADLINE_MS: u64 = 5_000;
/// Milliseconds for which one who has read counts as a reader, whom a flush inline would keep waiting.
pub const FLUSH_READER_MS: u64 = 1_000;
/// Milliseconds of one flush of the log after which the node counts as stalled: its heartbeats stop.
pub const FLUSH_STALL_MS: u64 = 2_000;
/// Milliseconds from which on a sync is slow: an elected leader's next ones run beside the loop, where a majority need
/// not wait for them. A disk that is well takes a fifth of that at most.
pub const FLUSH_SLOW_MS: u64 = 5;
/// Milliseconds in which a node that said hello must open a session or ask something, and again after each
/// question: longer than a promotion is silent between its two.
pub const PEER_IDLE_MS: u64 = 10_000;
/// Milliseconds between heartbeats of a leader, by default.
pub const HEARTBEAT_MS_DEFAULT: u64 = 100;
/// Milliseconds without a frame after which an elected leader tells a follower what has been committed since.
pub const COMMIT_NEWS_MS: u64 = 10;
/// Milliseconds without a leader after which a member of an elected cluster campaigns, by default. A disk that stalls
/// for the odd 100 ms costs nobody leadership.
pub const ELECTION_TIMEOUT_MS_DEFAULT: u64 = 500;
/// The value of `--election-timeout-ms`, at least: two flushes of a slow disk and five heartbeats must fit.
pub const ELECTION_TIMEOUT_MS_MIN: u64 = 100;
/// The same, at most.
pub const ELECTION_TIMEOUT_MS_MAX: u64 = 60_000;
/// Milliseconds without progress after which a follower leaves the in-sync set, by default.
pub const INSYNC_TIMEOUT_MS_DEFAULT: u64 = 500;
/// Milliseconds without a frame after which a session's other side is taken for gone (N5).
pub const SESSION_SILENCE_MS: u64 = 3_000;
/// Milliseconds before a lost peer is dialled again: first and largest step of the backoff.
pub const REDIAL_MS_MIN: u64 = 20;
/// See [`REDIAL_MS_MIN`].
pub const REDIAL_MS_MAX: u64 = 1_000;
/// Milliseconds before a peer that refused the session in words is asked again.
pub const REFUSED_RETRY_MS: u64 = 500;
/// Milliseconds in which the peers must answer a promotion.
pub const PROMOTION_DEADLINE_MS: u64 = 3_000;
/// Milliseconds that a follower has to reach the end of the log before it is handed leadership, and then to lead.
pub const HAND_OVER_DEADLINE_MS: u64 = 1_500;
/// Milliseconds in which a node that is to be a member must be reached. A few dials.
pub const LEARNER_REACHED_MS: u64 = 5_000;
/// Milliseconds without progress after which a node that learns is given up.
pub const LEARNER_SILENCE_MS: u64 = 20_000;
/// Log lines about single replication events at info, per kind and second; the rest is summed up.
pub const REPLICATION_LINES_PER_S: u32 = 10;
/// Milliseconds between two questions of a leader for the hash of its followers' states, at least.
pub const STATE_CHECK_MS: u64 = 1_000;
/// Milliseconds a node takes at most to end after SIGTERM.
pub const SHUTDOWN_DEADLINE_MS: u64 = 4_000;

const _: () = {
    assert!(KEY_SIZE_MAX <= u16::MAX as usize);
    assert!(RECORD_SIZE_MAX + FRAME_SLACK <= FRAME_SIZE_MAX, "a largest record must fit into a frame");
    assert!(APPEND_BATCH_SIZE + RECORD_SIZE_MAX + FRAME_SLACK <= FRAME_SIZE_MAX);
    assert!(
        TERM_HISTORY_MAX * TERM_HISTORY_ENTRY_SIZE + AUTH_SIZE_MAX + PEERS_MAX * 257 + FRAME_SLACK
            <= FRAME_SIZE_MAX
    );
    assert!(CLIENT_SESSION_WINDOW >= 1 && CLIENT_SESSION_WINDOW <= u8::MAX as usize, "the count is a byte");
    assert!(CLIENT_SESSION_SIZE_MAX <= SNAPSHOT_BLOCK_SIZE);
    // All of them are written at once, when the scan of a snapshot ends: 1.2 MB, half a millisecond.
    assert!(CLIENT_SESSIONS_MAX * CLIENT_SESSION_SIZE_MAX <= 2 << 20);
    assert!(CLIENT_OUTPUT_LOW_WATER < CLIENT_OUTPUT_HIGH_WATER);
    assert!(PEER_OUTPUT_LOW_WATER < PEER_OUTPUT_HIGH_WATER);
    assert!(BATCH_SIZE_MAX >= RECORD_SIZE_MAX);
    assert!(IN_FLIGHT_SIZE_MAX >= 2 * BATCH_SIZE_MAX);
    assert!(INPUT_BUDGET >= 2 * FRAME_SIZE_MAX);
    assert!(SNAPSHOT_BLOCK_SIZE <= SNAPSHOT_WRITE_SIZE && SNAPSHOT_WRITE_SIZE <= SNAPSHOT_BUFFER_SIZE_MAX);
    assert!(SNAPSHOT_RETRY_MS_MIN < SNAPSHOT_RETRY_MS_MAX && SNAPSHOT_RATE_LOADED < SNAPSHOT_RATE_IDLE);
    assert!(SNAPSHOT_LOG_BYTES_FLAG_MIN <= SNAPSHOT_LOG_BYTES_MIN && SNAPSHOTS_KEPT >= 2);
    assert!(SNAPSHOT_CHUNK_SIZE_MAX + FRAME_SLACK <= FRAME_SIZE_MAX);
    assert!(SNAPSHOT_CHUNKS_PER_TURN * (SNAPSHOT_CHUNK_SIZE_MAX + FRAME_SLACK) <= PEER_OUTPUT_HIGH_WATER);
    assert!(
        ARCHIVE_LOG_BYTES_MIN <= ARCHIVE_LOG_BYTES_DEFAULT && ARCHIVE_RETRY_MS_MIN < ARCHIVE_RETRY_MS_MAX
    );
    assert!(SEGMENT_SIZE_MIN <= SEGMENT_SIZE_DEFAULT && SEGMENT_SIZE_DEFAULT <= SEGMENT_SIZE_MAX);
    assert!(FLUSH_STALL_MS <= SESSION_SILENCE_MS, "a stall is told before anybody draws conclusions");
    assert!(PEER_IDLE_MS > HANDSHAKE_DEADLINE_MS && PEER_IDLE_MS > 2 * PROMOTION_DEADLINE_MS);
    assert!(2 * HAND_OVER_DEADLINE_MS < SHUTDOWN_DEADLINE_MS);
    assert!(LEARNER_SILENCE_MS > TRANSFER_SILENCE_MS && LEARNER_REACHED_MS >= HANDSHAKE_DEADLINE_MS);
    assert!(ELECTION_TIMEOUT_MS_MIN <= ELECTION_TIMEOUT_MS_DEFAULT);
    assert!(ELECTION_TIMEOUT_MS_DEFAULT <= ELECTION_TIMEOUT_MS_MAX);
    assert!(REDIAL_MS_MIN < REDIAL_MS_MAX && HEARTBEAT_MS_DEFAULT * 4 <= INSYNC_TIMEOUT_MS_DEFAULT);
};
