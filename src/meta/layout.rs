//! The bytes of one copy of the record.
//!
//! ```text
//! offset  size  field (integers are big-endian and unsigned)
//!      0     8  magic "KVSTMETA"
//!      8     4  format version
//!     12     8  record version: 1 when created, one more with every update
//!     20    16  cluster id            36  16  node id
//!     52     8  term                  60  16  vote
//!     76     1  role                  77   1  flags: 1 in sync, 2 discard allowed, 4 damaged files to be put aside,
//!                                                8 the leader is elected
//!     78     8  log generation        86   8  cut LSN
//!     94    16  leader id
//!    110        leader address, own address: each [size u16][text]
//!               peers: [count u8], then as many [size u16][text]
//!               base: [LSN u64][chain u32]; repair: [until LSN u64][term u64][commit LSN u64]. Zeros in format 1,
//!               which knew neither: they mean that there is none
//!               members: [count u8], then as many [node id 16][size u16][address]. Zero before format 3
//!               the record that made the list: [LSN u64]; the change that it was: [u8: 0 none, 1 added, 2 removed],
//!               and unless none [LSN of the list before u64][node id 16][size u16][address]. Zeros before format 4
//!               zeros
//!   8188     4  CRC-32 of all bytes before it
//! ```
//!
//! The checksum covers the zeros too, so no flipped bit anywhere in a copy goes unseen. Magic, format version
//! and checksum keep their places in every later format: that is how an older program knows a newer copy
//! from a damaged one.

use std::fmt;
use std::io;

use super::{Meta, Repair, StoredRole};
use crate::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use crate::limits::{ADDRESS_SIZE_MAX, MEMBERS_MAX, PEERS_MAX};
use crate::replication::members::{Members, Membership, Step};
use crate::wire::{DecodeError, DecodeProblem, Reader, Writer, put_member, read_member};

/// Bytes of one copy: two pages, allocated once, so that a term and a vote fit on a full disk too.
pub(super) const COPY_SIZE: usize = 8192;
/// Formats 1 to 3 are read too: they have zeros where a later one has the base of the log and the note of a repair
/// (2), the members of an elected cluster (3), and how their list came about (4), which is what having none looks like.
/// The version was raised all the same, so that a program that would forget them does not start.
pub(super) const FORMAT_VERSION: u32 = 4;
/// The oldest version that is read.
const FORMAT_VERSION_MIN: u32 = 1;
const MAGIC: [u8; 8] = *b"KVSTMETA";
const CHECKSUM_OFFSET: usize = COPY_SIZE - 4;
const FIXED_SIZE: usize = 110;
/// Bytes behind the peers.
const APPENDED_SIZE: usize = 8 + 4 + REPAIR_SIZE;
const ADDRESS_FIELD_SIZE_MAX: usize = 2 + ADDRESS_SIZE_MAX;
/// The two addresses of a record with neither peers nor members, and the counts of those.
const LISTLESS_SIZE_MAX: usize =
    FIXED_SIZE + 2 * ADDRESS_FIELD_SIZE_MAX + 1 + APPENDED_SIZE + 1 + STEP_SIZE_MAX;
/// How the list of members came about.
const STEP_SIZE_MAX: usize = 8 + 1 + 8 + NODE_ID_SIZE + ADDRESS_FIELD_SIZE_MAX;

const FLAG_IN_SYNC: u8 = 1;
const FLAG_DISCARD_ALLOWED: u8 = 2;
const FLAG_REPAIR_FILES_PENDING: u8 = 4;
const FLAG_FOLLOWS_ELECTED: u8 = 8;
const REPAIR_SIZE: usize = 24;
const NODE_ID_SIZE: usize = 16;

const _: () = {
    assert!(PEERS_MAX <= u8::MAX as usize);
    // A record has peers or members, never both: together they would not fit.
    assert!(LISTLESS_SIZE_MAX + PEERS_MAX * ADDRESS_FIELD_SIZE_MAX <= CHECKSUM_OFFSET);
    assert!(LISTLESS_SIZE_MAX + MEMBERS_MAX * (NODE_ID_SIZE + ADDRESS_FIELD_SIZE_MAX) <= CHECKSUM_OFFSET);
};

/// What makes a copy unusable.
#[derive(Debug)]
pub enum CopyProblem {
    /// There is no such file.
    Missing,
    /// It cannot be read.
    Unreadable(io::Error),
    /// It ends too early.
    Short {
        /// Bytes it has.
        size: u64,
    },
    /// It begins with other bytes.
    Magic,
    /// Its checksum is not that of its bytes.
    Checksum {
        /// The one in the file.
        stored: u32,
        /// The one of the bytes.
        computed: u32,
    },
    /// A field means nothing although the checksum is right.
    Field(DecodeError),
}

impl fmt::Display for CopyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyProblem::Missing => f.write_str("the file is missing"),
            CopyProblem::Unreadable(error) => write!(f, "cannot be read: {error}"),
            CopyProblem::Short { size } => write!(f, "ends at byte {size} of {COPY_SIZE}"),
            CopyProblem::Magic => f.write_str("byte 0: the magic number is not that of a record"),
            CopyProblem::Checksum { stored, computed } => write!(
                f,
                "byte {CHECKSUM_OFFSET}: checksum {stored:08x}, but that of the bytes is {computed:08x}"
            ),
            CopyProblem::Field(error) => error.fmt(f),
        }
    }
}

/// What the bytes of a copy are, if they are not damaged.
#[derive(Debug)]
pub(super) enum Decoded {
    Record { version: u64, meta: Box<Meta> },
    NewerFormat { format: u32 },
}

pub(super) fn encode(version: u64, meta: &Meta) -> Vec<u8> {
    let mut out = Vec::with_capacity(COPY_SIZE);
    out.extend_from_slice(&MAGIC);
    out.put_u32(FORMAT_VERSION);
    out.put_u64(version);
    out.extend_from_slice(&meta.cluster_id.0);
    out.extend_from_slice(&meta.node_id.0);
    out.put_u64(meta.term.as_u64());
    out.extend_from_slice(&meta.vote.0);
    out.put_u8(role_to_byte(meta.role));
    let in_sync = if meta.in_sync { FLAG_IN_SYNC } else { 0 };
    let discard_allowed = if meta.discard_allowed { FLAG_DISCARD_ALLOWED } else { 0 };
    let files_pending = if meta.repair.files_pending { FLAG_REPAIR_FILES_PENDING } else { 0 };
    let follows_elected = if meta.follows_elected { FLAG_FOLLOWS_ELECTED } else { 0 };
    out.put_u8(in_sync | discard_allowed | files_pending | follows_elected);
    out.put_u64(meta.log_generation);
    out.put_u64(meta.cut_lsn.0);
    out.extend_from_slice(&meta.leader_id.0);
    debug_assert_eq!(out.len(), FIXED_SIZE);
    out.put_bytes16(meta.leader_address.as_bytes());
    out.put_bytes16(meta.own_address.as_bytes());
    out.put_u8(u8::try_from(meta.peers.len()).expect("peers are bounded by PEERS_MAX"));
    meta.peers.iter().for_each(|peer| out.put_bytes16(peer.as_bytes()));
    out.put_u64(meta.base_lsn.0);
    out.put_u32(meta.base_chain.0);
    out.put_u64(meta.repair.until.0);
    out.put_u64(meta.repair.term.as_u64());
    out.put_u64(meta.repair.commit_lsn.0);
    out.put_u8(u8::try_from(meta.members.len()).expect("members are bounded by MEMBERS_MAX"));
    meta.members.iter().for_each(|member| put_member(&mut out, member));
    put_step(&mut out, &meta.members);
    assert!(out.len() <= CHECKSUM_OFFSET, "addresses are bounded by ADDRESS_SIZE_MAX");
    out.resize(CHECKSUM_OFFSET, 0);
    out.put_u32(crc32fast::hash(&out));
    out
}

pub(super) fn decode(bytes: &[u8; COPY_SIZE]) -> Result<Decoded, CopyProblem> {
    let (covered, checksum) = bytes.split_at(CHECKSUM_OFFSET);
    if covered[..MAGIC.len()] != MAGIC {
        return Err(CopyProblem::Magic);
    }
    let stored = u32::from_be_bytes(checksum.try_into().expect("the checksum has 4 bytes"));
    let computed = crc32fast::hash(covered);
    if stored != computed {
        return Err(CopyProblem::Checksum { stored, computed });
    }
    decode_fields(covered).map_err(CopyProblem::Field)
}

fn decode_fields(covered: &[u8]) -> Result<Decoded, DecodeError> {
    let mut reader = Reader::new(covered);
    reader.bytes("magic", MAGIC.len())?;
    let at_format = reader.clone();
    let format = reader.u32("format version")?;
    if format > FORMAT_VERSION {
        return Ok(Decoded::NewerFormat { format });
    }
    if format < FORMAT_VERSION_MIN {
        return Err(at_format.error("format version", DecodeProblem::Invalid(format.into())));
    }
    let version = reader.u64("record version")?;
    let cluster_id = ClusterId(reader.array("cluster id")?);
    let node_id = NodeId(reader.array("node id")?);
    let term = Term::from_u64(reader.u64("term")?);
    let vote = NodeId(reader.array("vote")?);
    let role = read_role(&mut reader)?;
    let flags = reader.u8("flags")?;
    let log_generation = reader.u64("log generation")?;
    let cut_lsn = Lsn(reader.u64("cut LSN")?);
    let leader_id = NodeId(reader.array("leader id")?);
    let leader_address = reader.text16("leader address", ADDRESS_SIZE_MAX)?.to_owned();
    let own_address = reader.text16("own address", ADDRESS_SIZE_MAX)?.to_owned();
    let peers = read_peers(&mut reader)?;
    let base_lsn = Lsn(reader.u64("base LSN")?);
    let base_chain = Chain(reader.u32("base chain")?);
    let repair = Repair {
        until: Lsn(reader.u64("repair until")?),
        term: Term::from_u64(reader.u64("repair term")?),
        commit_lsn: Lsn(reader.u64("repair commit LSN")?),
        files_pending: flags & FLAG_REPAIR_FILES_PENDING != 0,
    };
    let list = read_members(&mut reader)?;
    let members = read_membership(&mut reader, list)?;
    let meta = Box::new(Meta {
        cluster_id,
        node_id,
        term,
        vote,
        role,
        leader_id,
        leader_address,
        peers,
        members,
        follows_elected: flags & FLAG_FOLLOWS_ELECTED != 0,
        own_address,
        in_sync: flags & FLAG_IN_SYNC != 0,
        log_generation,
        cut_lsn,
        base_lsn,
        base_chain,
        discard_allowed: flags & FLAG_DISCARD_ALLOWED != 0,
        repair,
    });
    Ok(Decoded::Record { version, meta })
}

fn read_peers(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let at_count = reader.clone();
    let count = reader.u8("peer count")?;
    if usize::from(count) > PEERS_MAX {
        let problem = DecodeProblem::TooLarge { value: count.into(), limit: PEERS_MAX as u64 };
        return Err(at_count.error("peer count", problem));
    }
    (0..count).map(|_| Ok(reader.text16("peer", ADDRESS_SIZE_MAX)?.to_owned())).collect()
}

fn read_members(reader: &mut Reader<'_>) -> Result<Members, DecodeError> {
    let at_count = reader.clone();
    let count = reader.u8("member count")?;
    if usize::from(count) > MEMBERS_MAX {
        let problem = DecodeProblem::TooLarge { value: count.into(), limit: MEMBERS_MAX as u64 };
        return Err(at_count.error("member count", problem));
    }
    let members = (0..count).map(|_| read_member(reader)).collect::<Result<_, _>>()?;
    Members::from_sorted(members).ok_or(at_count.error("members", DecodeProblem::Invalid(count.into())))
}

const STEP_NONE: u8 = 0;
const STEP_ADDED: u8 = 1;
const STEP_REMOVED: u8 = 2;

fn put_step(out: &mut Vec<u8>, members: &Membership) {
    out.put_u64(members.lsn().0);
    let Some(Step { before_lsn, added, member }) = members.step() else { return out.put_u8(STEP_NONE) };
    out.put_u8(if *added { STEP_ADDED } else { STEP_REMOVED });
    out.put_u64(before_lsn.0);
    put_member(out, member);
}

fn read_membership(reader: &mut Reader<'_>, list: Members) -> Result<Membership, DecodeError> {
    let lsn = Lsn(reader.u64("LSN of the members")?);
    let at_step = reader.clone();
    let what = reader.u8("change of members")?;
    let invalid = || at_step.error("change of members", DecodeProblem::Invalid(what.into()));
    let added = match what {
        STEP_NONE => return Ok(Membership::settled(list, lsn)),
        STEP_ADDED => true,
        STEP_REMOVED => false,
        _ => return Err(invalid()),
    };
    let before_lsn = Lsn(reader.u64("LSN of the members before")?);
    let step = Step { before_lsn, added, member: read_member(reader)? };
    Membership::with_step(list, lsn, Some(step)).ok_or_else(invalid)
}

fn role_to_byte(role: StoredRole) -> u8 {
    match role {
        StoredRole::Unset => 0,
        StoredRole::LeaderByFlags => 1,
        StoredRole::FollowerByFlags => 2,
        StoredRole::LeaderByPromotion => 3,
        StoredRole::FollowerByCommand => 4,
        StoredRole::Deposed => 5,
        StoredRole::Elected => 6,
    }
}

fn read_role(reader: &mut Reader<'_>) -> Result<StoredRole, DecodeError> {
    let at_role = reader.clone();
    Ok(match reader.u8("role")? {
        0 => StoredRole::Unset,
        1 => StoredRole::LeaderByFlags,
        2 => StoredRole::FollowerByFlags,
        3 => StoredRole::LeaderByPromotion,
        4 => StoredRole::FollowerByCommand,
        5 => StoredRole::Deposed,
        6 => StoredRole::Elected,
        other => return Err(at_role.error("role", DecodeProblem::Invalid(other.into()))),
    })
}
