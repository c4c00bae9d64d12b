//! Backups: one file from which a node can be built, exact at one LSN.
//!
//! A snapshot alone is not that: it is fuzzy, and its state is that of an LSN only once the records S+1..E are applied
//! over it (see [`crate::snapshot`]). So a backup is a snapshot and, behind it, the *tail*: the records from S+1 on, up
//! to the LSN whose state the backup is. It needs no other file.
//!
//! What it promises:
//!
//! 1. *Everything committed when it was asked for is in it.* The tail ends at E, or at the commit LSN of the moment of
//!    asking where the snapshot is older than that.
//! 2. *Nothing is believed unchecked.* The snapshot has its own checksums; a record has that of the chain, which goes
//!    on from the one that the snapshot's header has at S; header and footer of the tail have their own, and name the
//!    snapshot by its checksum. A file that ends early, or goes on behind its end, is no backup.
//! 3. *A restored directory is another cluster.* Cluster id and node id are new, so that no node of the old cluster
//!    takes it for one of its own, and the other way round. LSNs, records and terms stay what they were: a record
//!    holds its own LSN and the chain covers both, so segments kept aside go on fitting, what somebody noted under an
//!    LSN is found there, and the first term of the new leader lies above all of the old ones.
//!
//! # The file
//!
//! Integers are big-endian.
//!
//! ```text
//! snapshot   a .kvsnap file, up to the end of its footer (the header says how long it is); then, the tail:
//!
//! header, 64 bytes
//!    0  magic                 "KVSTTAIL"
//!    8  format version        u32
//!   12  crc32 of bytes 0..12, so that a flipped bit is not taken for another version
//!   16  cluster id            16 bytes
//!   32  S                     u64   the first record is S+1
//!   40  last LSN              u64   the backup is the state at this one; at least E
//!   48  chain at S            u32
//!   52  checksum of the snapshot's file: the last four bytes of its footer
//!   56  zero                  u32
//!   60  crc32 of bytes 0..60
//!
//! entry, one for each record, as in a segment of the log
//!    0  chain                 u32   at this record
//!    4  length                u32   of the record
//!    8  record                as on the wire
//!
//! footer, 36 bytes; the file ends with it
//!    0  magic                 "KVSTTEND"
//!    8  records               u64
//!   16  bytes of the entries  u64
//!   24  chain at the last     u32
//!   28  checksum of the header, as it stands there
//!   32  crc32 of bytes 0..32
//! ```
//!
//! `tail` holds the format and writes it, `parser` reads it from bytes as they come, `stream` checks a whole backup
//! while it comes; `restore` builds a directory, with `archive` for records that were kept aside in segments; `kept` is
//! the directory that a node keeps them in.
//!
//! What is deliberately absent: no increments (a snapshot and archived segments are that), no compression or encryption
//! (a pipe behind the file does both), no network, no clock.

mod archive;
mod error;
mod kept;
mod parser;
mod restore;
mod stream;
mod tail;

pub use error::{BackupError, RestoreError};
pub use kept::{COPY_NAME, KeepError, Keeper, NOTE_NAME, NOTE_SIZE, Note, read_note};
pub use restore::{Plan, Restored, Sources, restore, restore_onto};
pub use stream::{BackupStream, Summary};
pub use tail::{FORMAT_VERSION, TAIL_FOOTER_SIZE, TAIL_HEADER_SIZE, TailHeader, TailWriter};
