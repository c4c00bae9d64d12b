//! Forming a cluster: the founder tells every member who is in it.

use super::{finish, finish_with_flags, framed};
use crate::ids::{ClusterId, Lsn, NodeId};
use crate::replication::members::Members;
use crate::wire::client::decode_bool;
use crate::wire::{DecodeError, DecodeProblem, MessageType, Reader, Writer, put_members, read_members};

/// This is the cluster, and these are its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The cluster's new identity.
    pub cluster_id: ClusterId,
    /// Its members; never empty. The receiver is one of them, unless it is to learn.
    pub members: Members,
    /// The record that made this list; 0: the forming itself.
    pub members_lsn: Lsn,
    /// What is asked.
    pub kind: FormKind,
}

/// What FORM asks of its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormKind {
    /// Would you be a member? Changes nothing.
    Probe,
    /// You are one.
    Found,
    /// Learn, without a vote: what you hold is brought up to date first.
    Learn,
}

/// The answer, when it is durable or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormReply {
    /// Whether the node is a member of that cluster now, durably.
    pub accepted: bool,
    /// Who answers.
    pub node_id: NodeId,
    /// The cluster it belongs to, or none.
    pub cluster_id: ClusterId,
    /// Why not, and what to do, for a person; empty if it was accepted.
    pub message: String,
}

/// The flags in the trailer of FORM: of one that only asks, and of one to a node that learns.
const PROBE: u16 = 1;
const LEARN: u16 = 2;

impl Form {
    /// Appends FORM.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::Form, |out| {
            out.extend_from_slice(&self.cluster_id.0);
            put_members(out, &self.members);
            let flags = match self.kind {
                FormKind::Probe => PROBE,
                FormKind::Found => 0,
                FormKind::Learn => LEARN,
            };
            out.put_trailer(flags, |fields| fields.put_u64(self.members_lsn.0));
        });
    }

    /// Reads the body of FORM.
    pub fn decode(body: &[u8]) -> Result<Form, DecodeError> {
        let mut reader = Reader::new(body);
        let cluster_error = reader.error("cluster_id", DecodeProblem::Invalid(0));
        let cluster_id = ClusterId(reader.array("cluster_id")?);
        if cluster_id.is_none() {
            return Err(cluster_error);
        }
        let error = reader.error("members", DecodeProblem::Invalid(0));
        let members = read_members(&mut reader)?;
        if members.is_empty() {
            return Err(error);
        }
        let (flags, [members_lsn]) = finish_with_flags(reader, ["members_lsn"])?;
        let kind = match flags {
            flags if flags & PROBE != 0 => FormKind::Probe,
            flags if flags & LEARN != 0 => FormKind::Learn,
            _ => FormKind::Found,
        };
        Ok(Form { cluster_id, members, members_lsn: Lsn(members_lsn), kind })
    }
}

impl FormReply {
    /// Appends FORM_REPLY.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::FormReply, |out| {
            out.put_u8(self.accepted.into());
            out.extend_from_slice(&self.node_id.0);
            out.extend_from_slice(&self.cluster_id.0);
            out.put_bytes16(self.message.as_bytes());
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of FORM_REPLY.
    pub fn decode(body: &[u8]) -> Result<FormReply, DecodeError> {
        let mut reader = Reader::new(body);
        let reply = FormReply {
            accepted: decode_bool(&mut reader, "accepted")?,
            node_id: NodeId(reader.array("node_id")?),
            cluster_id: ClusterId(reader.array("cluster_id")?),
            message: reader.text16("message", usize::from(u16::MAX))?.to_owned(),
        };
        finish(reader)?;
        Ok(reply)
    }
}
