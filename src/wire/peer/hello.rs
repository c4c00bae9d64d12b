//! Who is there, and why somebody is refused.

use super::{PROTOCOL_VERSIONS, decode_address, finish, framed};
use crate::ids::{ClusterId, NodeId, Term};
use crate::limits::AUTH_SIZE_MAX;
use crate::wire::{DecodeError, MessageType, Reader, Writer};

/// The feature bit of a node that takes SNAPSHOT_OFFER.
pub const FEATURE_SNAPSHOTS: u64 = 1;
/// The feature bit of a node that runs with `--role=auto`: it votes, or wants to.
pub const FEATURE_ELECTED: u64 = 2;
/// The feature bits of this program, whatever its role.
pub const FEATURES_KNOWN: u64 = FEATURE_SNAPSHOTS;

/// A node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest protocol version it speaks.
    pub versions: (u16, u16),
    /// Feature bits, as [`FEATURE_SNAPSHOTS`]; unknown ones are ignored.
    pub features: u64,
    /// Bit n: it can apply `cmd_type` n.
    pub cmd_types: u64,
    /// Its cluster, or none yet.
    pub cluster_id: ClusterId,
    /// Its identity.
    pub node_id: NodeId,
    /// The highest term it knows.
    pub term: Term,
    /// Where it listens; an empty host (`:PORT`) means "the address you see me come from".
    pub address: String,
    /// Who leads in that term as far as it knows, or none.
    pub leader: NodeId,
    /// Where that one listens, or empty.
    pub leader_address: String,
    /// Opaque authentication data; empty today.
    pub auth: Vec<u8>,
}

/// Why a node refuses another, as a number that code can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RefuseCode {
    /// No protocol version in common.
    Version = 1,
    /// Another cluster.
    Cluster = 2,
    /// The node is its own peer, or two nodes have one id.
    Identity = 3,
    /// A higher term is known; `term` and `leader` say which.
    StaleTerm = 4,
    /// Another leader in the same term.
    TwoLeaders = 5,
    /// The node leads or led, and needs an operator's `follow`.
    NotFollower = 6,
    /// Checksums disagree at a shared LSN.
    Disagreement = 7,
    /// The match LSN lies below what is committed here.
    CutBelowCommit = 8,
    /// The session was replaced or misused.
    Session = 9,
    /// A record type this node cannot apply.
    CmdType = 10,
    /// The log does not reach back to what is needed.
    LogTooShort = 11,
    /// The node is ending.
    ShuttingDown = 12,
    /// The leader's log ends before records of its own term that are here: its data directory is an older one.
    RolledBack = 13,
    /// What came of a snapshot is none, or not the one that was offered.
    SnapshotDamaged = 14,
    /// Anything a later version adds.
    Other = 0xffff,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// Why.
    pub code: RefuseCode,
    /// The term of the one who refuses.
    pub term: Term,
    /// Who leads as far as it knows, or none.
    pub leader: NodeId,
    /// Where that one listens, or empty.
    pub leader_address: String,
    /// Why, and what to do next, for a person.
    pub message: String,
}

impl Hello {
    /// Appends HELLO (`reply` false) or HELLO_REPLY.
    pub fn encode(&self, reply: bool, out: &mut Vec<u8>) {
        framed(out, if reply { MessageType::HelloReply } else { MessageType::Hello }, |out| {
            out.put_u16(self.versions.0);
            out.put_u16(self.versions.1);
            out.put_u64(self.features);
            out.put_u64(self.cmd_types);
            out.extend_from_slice(&self.cluster_id.0);
            out.extend_from_slice(&self.node_id.0);
            out.put_u64(self.term.as_u64());
            out.put_bytes16(self.address.as_bytes());
            out.extend_from_slice(&self.leader.0);
            out.put_bytes16(self.leader_address.as_bytes());
            out.put_bytes16(&self.auth);
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of HELLO or HELLO_REPLY. Only the two versions are read first: the rest of another
    /// version's hello may look different, and `Err` then stands beside versions that do not overlap.
    pub fn decode(body: &[u8]) -> Result<Hello, HelloError> {
        let mut reader = Reader::new(body);
        let versions = (
            reader.u16("version_min").map_err(HelloError::Malformed)?,
            reader.u16("version_max").map_err(HelloError::Malformed)?,
        );
        if common_version(versions).is_none() {
            return Err(HelloError::Version { theirs: versions });
        }
        Hello::decode_rest(versions, reader).map_err(HelloError::Malformed)
    }

    fn decode_rest(versions: (u16, u16), mut reader: Reader<'_>) -> Result<Hello, DecodeError> {
        let hello = Hello {
            versions,
            features: reader.u64("features")?,
            cmd_types: reader.u64("cmd_types")?,
            cluster_id: ClusterId(reader.array("cluster_id")?),
            node_id: NodeId(reader.array("node_id")?),
            term: Term::from_u64(reader.u64("term")?),
            address: decode_address(&mut reader, "address")?,
            leader: NodeId(reader.array("leader_id")?),
            leader_address: decode_address(&mut reader, "leader address")?,
            auth: reader.bytes16("auth", AUTH_SIZE_MAX)?.to_vec(),
        };
        finish(reader)?;
        Ok(hello)
    }
}

/// Why a hello is refused before its sender is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// No version in common.
    Version {
        /// Their range.
        theirs: (u16, u16),
    },
    /// Not a hello at all.
    Malformed(DecodeError),
}

/// The highest version both speak.
pub fn common_version(theirs: (u16, u16)) -> Option<u16> {
    let highest = theirs.1.min(PROTOCOL_VERSIONS.1);
    (highest >= theirs.0.max(PROTOCOL_VERSIONS.0)).then_some(highest)
}

impl RefuseCode {
    fn from_u16(raw: u16) -> RefuseCode {
        use RefuseCode::*;
        let all = [
            Version,
            Cluster,
            Identity,
            StaleTerm,
            TwoLeaders,
            NotFollower,
            Disagreement,
            CutBelowCommit,
            Session,
            CmdType,
            LogTooShort,
            ShuttingDown,
            RolledBack,
            SnapshotDamaged,
        ];
        all.into_iter().find(|code| *code as u16 == raw).unwrap_or(Other)
    }
}

impl Refuse {
    /// Appends REFUSE.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::Refuse, |out| {
            out.put_u16(self.code as u16);
            out.put_u64(self.term.as_u64());
            out.extend_from_slice(&self.leader.0);
            out.put_bytes16(self.leader_address.as_bytes());
            out.put_bytes16(self.message.as_bytes());
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of REFUSE.
    pub fn decode(body: &[u8]) -> Result<Refuse, DecodeError> {
        let mut reader = Reader::new(body);
        let refuse = Refuse {
            code: RefuseCode::from_u16(reader.u16("code")?),
            term: Term::from_u64(reader.u64("term")?),
            leader: NodeId(reader.array("leader_id")?),
            leader_address: decode_address(&mut reader, "leader address")?,
            message: reader.text16("message", usize::from(u16::MAX))?.to_owned(),
        };
        finish(reader)?;
        Ok(refuse)
    }
}
