//! Snapshots: a file of all entries, so that the log before it can be given up.
//!
//! A snapshot is *fuzzy*: the keyspace is scanned a slice at a time while writes go on. S is the LSN applied when
//! the scan began, E the one applied when it ended, and an entry in between may be met before or after a change to
//! it. Effects are idempotent at their LSN, so the state is exact once the records S+1..E are applied over it. Client
//! sessions are not scanned: the file has them as they are at E, and records up to there leave them alone. An
//! entry may stand in the file twice (deleted and put again during the scan, in a slot further behind): a reader
//! puts, in the order of the file, and does not rely on keys being new.
//!
//! What it promises:
//!
//! 1. *A final name means a whole snapshot.* The file is written as [`NEW_NAME`] (or [`RECEIVED_NAME`]), synced,
//!    and renamed only then. Under a temporary name nothing is believed: [`remove_leftovers`] takes it away.
//! 2. *Nothing is believed unchecked.* Each block has a checksum that begins with the snapshot's identity and the
//!    block's own place; the footer has one over all blocks, and that of the header.
//! 3. *A snapshot that cannot be written is an outcome*, not the end of the process: it is abandoned and the log
//!    goes on as the only copy ([`SnapshotError`]). That goes for a full disk and for a failed sync too. After the
//!    latter the page cache of the file cannot be trusted and a second sync proves nothing, so the file is removed
//!    and never published; the kernel keeps such an error per file, and the log's own files report theirs to the
//!    log. One failure does end the process: that of [`crate::disk::Disk::sync_dir`]. The directory is shared with
//!    the log, and the error, reported here once, would be kept from the log, which then relied on a name of a
//!    segment that is not there after a power loss ([`SnapshotError::is_fatal`]).
//!
//! # The file
//!
//! `snap-<S, 20 digits>-<E, 20 digits>.kvsnap`; integers are big-endian.
//!
//! ```text
//! header, a multiple of 4096 bytes, written last: a crash while the file is written leaves zeros here
//!    0  magic                 "KVSTSNAP"
//!    8  format version        u32   2; a file without client sessions has 1, which older programs read
//!   12  crc32 of bytes 0..12, so that a flipped bit is not taken for another version
//!   16  cluster id            16 bytes
//!   32  node id of the maker  16 bytes
//!   48  S                     u64
//!   56  E                     u64
//!   64  chain at S            u32
//!   68  bytes of the header   u32
//!   72  bytes of the file     u64   header, blocks, footer; zeros of the preallocation may follow
//!   80  peers                 u32   how many
//!   84  terms                 u32   how many
//!   88  peers: [length u16][address]; then terms: [term u64][leader id][first LSN u64][chain there u32]
//!    .  zeros
//!   -4  crc32 of the header before it
//!
//! block, one after the other up to the footer
//!    0  crc32                 of the block's offset u64 and its bytes from 4 on, begun with the identity's (below)
//!    4  bytes of the entries  u32   about 64 KiB; an entry larger than that is alone in its block
//!    8  entries               u32   how many, at least one; bit 31: they are client sessions (version 2)
//!   12  entries: [key_len u16][key][value_len u32][value]
//!    .  or sessions, in the last blocks of all: see `wire/client_session.rs`
//!
//! footer, 44 bytes
//!    0  magic                 "KVSTSEND"
//!    8  blocks                u64
//!   16  entries               u64   client sessions are none
//!   24  data bytes            u64   of all keys and values
//!   32  crc32 of all bytes between header and footer
//!   36  crc32 of the header, as it stands there
//!   40  crc32 of bytes 0..40 of the footer: with what it covers, the checksum of the whole file
//! ```
//!
//! The checksum of a block goes on from that of `[cluster id][node id of the maker][S u64][chain at S u32]`, which is
//! what is known when the first one is written. So a block of another snapshot, or at another place, is not valid.
//! The file is preallocated from an estimate, because the `fdatasync` of another file waits for newly allocated
//! data on ext4, and not for data in space that was allocated before.
//!
//! Layout: `header` and `block` hold the format, `parser` reads it from bytes as they come; `writer`, `reader` and
//! `received` are the three ways of a file, `stream` checks one on its way elsewhere, `files` is the directory.
//!
//! What is deliberately absent: no clock, no thread, no network, no compression (values of the kind this store is
//! for hardly compress, and the loop has better things to do), no decision when to make, keep or remove a snapshot.

mod block;
mod error;
mod files;
mod header;
mod look;
mod parser;
mod reader;
mod received;
mod stream;
mod writer;

use crate::ids::{Chain, ClusterId, Lsn, NodeId};
use crate::replication::history::TermHistory;
use crate::replication::members::Membership;

pub use block::{BLOCK_HEADER_SIZE, Block, Entries};
pub use error::{ReadError, ReceiveError, SnapshotError};
pub use files::{
    Listed, NEW_NAME, RECEIVED_NAME, list, parse_snapshot_name, remove, remove_leftovers, set_aside,
};
pub use header::{FOOTER_SIZE, FORMAT_VERSION, FORMAT_VERSION_PLAIN};
pub use look::{PartLook, look_at_part};
pub use reader::SnapshotReader;
pub use received::{Offer, ReceivedFile};
pub use stream::{SnapshotStream, StreamStep};
pub use writer::{Finished, SnapshotWriter};

/// Between which LSNs a snapshot was scanned. Ordered by age: the newest is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// The LSN applied when the scan began.
    pub s: Lsn,
    /// The LSN applied when it ended: the state is exact from there on.
    pub e: Lsn,
}

impl SnapshotId {
    /// The final name of its file.
    pub fn file_name(&self) -> String {
        format!("snap-{:020}-{:020}.kvsnap", self.s.0, self.e.0)
    }
}

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{}", self.s, self.e)
    }
}

/// What a snapshot is begun with: all of it as it is at S.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node that makes it.
    pub maker: NodeId,
    /// The LSN applied now.
    pub s: Lsn,
    /// The chain checksum there.
    pub chain: Chain,
    /// The terms up to there.
    pub history: TermHistory,
    /// Addresses of the peers, at most [`crate::limits::PEERS_MAX`].
    pub peers: Vec<String>,
    /// Who votes, of a cluster whose leader is elected: what counted at S. The list of a later record stands in its
    /// place if that was committed by the time and not applied.
    pub members: Membership,
}

/// What a whole snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The LSNs it was scanned between.
    pub id: SnapshotId,
    /// The chain checksum at S.
    pub chain: Chain,
    /// Bytes of the file that mean something.
    pub bytes: u64,
    /// Entries in it; keys met twice count twice.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub data_bytes: u64,
    /// The terms up to S.
    pub history: TermHistory,
    /// The peers of its maker.
    pub peers: Vec<String>,
    /// Who votes; see [`Start`].
    pub members: Membership,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node that made it.
    pub maker: NodeId,
    /// The checksum of the whole file: tells one snapshot from another of the same LSNs.
    pub crc: u32,
    /// The name of its file now.
    pub name: String,
}
