//! A list of members, as it stands in FORM, in a MEMBERS record, and in the header of a snapshot.

use super::codec::{DecodeError, DecodeProblem, Reader, Writer};
use crate::ids::NodeId;
use crate::limits::{ADDRESS_SIZE_MAX, MEMBERS_MAX};
use crate::replication::members::{Member, Members};

/// Bytes of a list, at most.
pub const MEMBERS_SIZE_MAX: usize = 2 + MEMBERS_MAX * (16 + 2 + ADDRESS_SIZE_MAX);

/// Appends `[member_count u16]`, and for each member `[node_id 16][address_len u16][address]`.
pub fn put_members(out: &mut Vec<u8>, members: &Members) {
    out.put_u16(members.len() as u16);
    members.iter().for_each(|member| put_member(out, member));
}

/// Appends `[node_id 16][address_len u16][address]`.
pub fn put_member(out: &mut Vec<u8>, member: &Member) {
    out.extend_from_slice(&member.node_id.0);
    out.put_bytes16(member.address.as_bytes());
}

/// Reads one.
pub fn read_member(reader: &mut Reader<'_>) -> Result<Member, DecodeError> {
    let node_id = NodeId(reader.array("member id")?);
    Ok(Member { node_id, address: reader.text16("member address", ADDRESS_SIZE_MAX)?.to_owned() })
}

/// Reads such a list, which must be in order. It may be empty.
pub fn read_members(reader: &mut Reader<'_>) -> Result<Members, DecodeError> {
    let error = reader.error("members", DecodeProblem::Invalid(0));
    let count = usize::from(reader.u16("member count")?);
    if count > MEMBERS_MAX {
        return Err(DecodeError { problem: DecodeProblem::Invalid(count as u64), ..error });
    }
    let members = (0..count).map(|_| read_member(reader)).collect::<Result<_, _>>()?;
    Members::from_sorted(members).ok_or(error)
}
