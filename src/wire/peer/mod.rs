//! What nodes say to each other.
//!
//! ```text
//! HELLO, HELLO_REPLY = [version_min u16][version_max u16][features u64][cmd_types u64][cluster_id 16]
//!                      [node_id 16][term u64][address_len u16][address][leader_id 16]
//!                      [leader_address_len u16][leader_address][auth_len u16][auth] trailer
//! REFUSE             = [code u16][term u64][leader_id 16][address_len u16][leader address]
//!                      [message_len u16][message] trailer
//! OPEN               = [term u64][leader_id 16][your_address][address_count u16][address]...
//!                      [first_lsn u64][last_lsn u64][last_chain u32][start_count u32]
//!                      [term u64, leader_id 16, first_lsn u64, chain u32]... trailer [heard_lsn u64], flags:
//!                      1 the leader was elected
//! OPEN_REPLY         = [term u64][match_lsn u64][match_chain u32][commit_lsn u64][cut_from u64]
//!                      trailer [repair_until u64]
//! FENCE              = [probe u8][term u64][candidate_id 16][candidate address] trailer
//! FENCE_REPLY        = [verdict u8][term u64][last_term u64][last_lsn u64][commit_lsn u64][leads u8]
//!                      trailer [repair_until u64][repair_term u64]
//! APPEND_ENTRIES     = [num_records u32][record]... trailer(flags: bit 0 in sync, bit 1 outvoted)
//!                      [commit_lsn u64][round u64][chain u32][ask_lsn u64][equal_lsn u64][differs_lsn u64]
//! APPEND_ENTRIES_ACK = [last_lsn u64] trailer [round u64][decode_ns u32][write_ns u32][sync_ns u32]
//!                      [state_lsn u64][state_hash 16]
//! SNAPSHOT_OFFER     = [term u64][tag][file bytes u64][entries u64] trailer       tag = [s u64][e u64][crc u32]
//! SNAPSHOT_CHUNK     = [term u64][tag][offset u64][size u32][bytes of the file] trailer
//! SNAPSHOT_ACK       = [term u64][tag][offset u64] trailer(flags: bit 0 installed) [match_lsn u64][match_chain u32]
//! VOTE               = [phase u8][term u64][candidate_id 16][last_term u64][last_lsn u64][candidate address] trailer
//! VOTE_REPLY         = [phase u8][verdict u8][term u64][asked_term u64][commit_lsn u64][refuses_for_ms u32] trailer
//! FORM               = [cluster_id 16][member_count u16][node_id 16, address]... trailer(flags: bit 0 probe, bit 1
//!                      learn) [members_lsn u64]
//! FORM_REPLY         = [accepted u8][node_id 16][cluster_id 16][message_len u16][message] trailer
//! HAND_OVER          = [term u64][last_lsn u64] trailer
//! ```
//!
//! A leader whose log begins behind the follower's match LSN offers a snapshot on the session's connection, if the
//! follower's hello has the feature bit for it. The ACK to the offer says at which byte to begin, which is not 0 for
//! one that was interrupted. Chunks follow without a gap; each is acknowledged. The last ACK says that the snapshot
//! is the follower's state, durably; APPEND_ENTRIES follow from S+1.
//!
//! `chain` in APPEND_ENTRIES is the chain checksum at the last record of the frame (of a heartbeat: at the
//! last record sent). A follower compares it before it appends, so a frame that was damaged on its way, or
//! a log that is not the leader's, never reaches a disk.

mod append;
mod form;
mod hello;
mod session;
mod snapshot;
mod vote;

use super::codec::{DecodeError, Reader};
use super::frame::{begin_frame, end_frame};
use super::message_type::MessageType;
use crate::limits::ADDRESS_SIZE_MAX;

pub use append::{Ack, AckDurations, AppendEntries, AppendTail, StateAt, StateNews};
pub use form::{Form, FormKind, FormReply};
pub use hello::{
    FEATURE_ELECTED, FEATURE_SNAPSHOTS, FEATURES_KNOWN, Hello, HelloError, Refuse, RefuseCode, common_version,
};
pub use session::{Fence, FenceReply, Open, OpenReply};
pub use snapshot::{SnapshotAck, SnapshotChunk, SnapshotOffer, SnapshotTag};
pub use vote::{HandOver, Vote, VoteReply};

/// The oldest and newest version of the peer protocol spoken here.
pub const PROTOCOL_VERSIONS: (u16, u16) = (1, 1);

fn framed(out: &mut Vec<u8>, message_type: MessageType, body: impl FnOnce(&mut Vec<u8>)) {
    let start = begin_frame(out, message_type);
    body(out);
    end_frame(out, start);
}

/// Ends a message whose trailer has u64 fields; those that its sender did not know are 0.
fn finish_with<const N: usize>(
    reader: Reader<'_>,
    names: [&'static str; N],
) -> Result<[u64; N], DecodeError> {
    finish_with_flags(reader, names).map(|(_, values)| values)
}

/// The same, for a trailer whose flags say something.
fn finish_with_flags<const N: usize>(
    mut reader: Reader<'_>,
    names: [&'static str; N],
) -> Result<(u16, [u64; N]), DecodeError> {
    let (mut flags, mut values) = (0, [0; N]);
    if let Some((trailer_flags, mut fields)) = reader.trailer()? {
        flags = trailer_flags;
        for (value, name) in values.iter_mut().zip(names) {
            if fields.left() > 0 {
                *value = fields.u64(name)?;
            }
        }
    }
    reader.finish()?;
    Ok((flags, values))
}

fn finish(mut reader: Reader<'_>) -> Result<(), DecodeError> {
    reader.trailer()?;
    reader.finish()
}

fn decode_address(reader: &mut Reader<'_>, field: &'static str) -> Result<String, DecodeError> {
    Ok(reader.text16(field, ADDRESS_SIZE_MAX)?.to_owned())
}
