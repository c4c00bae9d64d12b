//! Forming a cluster: the founder tells every member who is in it.

use super::session::decode_list;
use super::{decode_address, finish, finish_with_flags, framed};
use crate::ids::{ClusterId, NodeId};
use crate::limits::MEMBERS_MAX;
use crate::replication::members::{Member, Members};
use crate::wire::client::decode_bool;
use crate::wire::{DecodeError, DecodeProblem, MessageType, Reader, Writer};

/// This is the cluster, and these are its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The cluster's new identity.
    pub cluster_id: ClusterId,
    /// Its members, sender and receiver included; never empty.
    pub members: Members,
    /// Only a question: would you join? Changes nothing.
    pub probe: bool,
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

/// The flag in the trailer of FORM of one that only asks.
const PROBE: u16 = 1;

/// Bytes of a member, at least: its id and the length of its address.
const MEMBER_SIZE_MIN: usize = 16 + 2;

impl Form {
    /// Appends FORM.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::Form, |out| {
            out.extend_from_slice(&self.cluster_id.0);
            out.put_u16(self.members.len() as u16);
            for member in self.members.iter() {
                out.extend_from_slice(&member.node_id.0);
                out.put_bytes16(member.address.as_bytes());
            }
            out.put_trailer(if self.probe { PROBE } else { 0 }, |_| {});
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
        let members = decode_list(
            &mut reader,
            "members",
            (MEMBERS_MAX, MEMBER_SIZE_MIN),
            |reader, _| reader.u16("member count").map(u32::from),
            |reader| {
                let node_id = NodeId(reader.array("member id")?);
                Ok(Member { node_id, address: decode_address(reader, "member address")? })
            },
        )?;
        let members = Members::from_sorted(members).filter(|members| !members.is_empty()).ok_or(error)?;
        let (flags, []) = finish_with_flags(reader, [])?;
        Ok(Form { cluster_id, members, probe: flags & PROBE != 0 })
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
