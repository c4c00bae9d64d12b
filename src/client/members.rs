//! Who votes, as an operator changes it: what one request does not do alone.
//!
//! - The leader does not remove itself. Asked for that, the client has leadership moved first, and asks its successor.
//! - Replacing is two changes: the new node learns and is added, then the old one is removed. Where both have one
//!   address the old one goes first, for an address is that of one member.
//! - Each step looks at what is there already, so that a replacement that was interrupted can be given again.
//!
//! Finding the leader has the client's timeout. The answer of a node that is added comes when it has learnt, which
//! takes as long as its log or snapshot takes to be sent: that has [`LEARN_TIMEOUT`].

use std::time::Duration;

use serde_json::{Value, json};

use super::{Client, ClientError, Served, account, served};
use crate::address::parse_address;
use crate::wire::client::{ReadMode, Request, Status};

/// For a leader that has gone while a node learns; one that gets no further is given up by the leader long before.
const LEARN_TIMEOUT: Duration = Duration::from_secs(24 * 3_600);
/// A request that the leader alone answers, and that changes nothing.
const TO_THE_LEADER: Request<'static> = Request::GetWith { key: b"-", reads: ReadMode::Lease };

/// Where leaders are not elected, that request is no request, and there is nothing to change.
const FIXED: &str =
    "roles are fixed here: there are no members, and the flag --peers of the leader says who follows it";

/// A member, as a node lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedMember {
    /// Where the others dial it.
    pub address: String,
    /// Its identity, in the node's words.
    pub node_id: String,
}

impl Client {
    /// Who votes, as the leader says; and the LSN of the record that says it, 0 for the list of the forming.
    pub fn members(&mut self) -> Result<Served<(Vec<ListedMember>, u64)>, ClientError> {
        self.find_leader()?;
        let status = self.status()?;
        let election = &status.value["election"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let member = |listed: &Value| ListedMember {
            address: text(&listed["address"]),
            node_id: text(&listed["node_id"]),
        };
        let Some(listed) = election["members"].as_array() else {
            return Err(self.refused(FIXED));
        };
        let mut members: Vec<ListedMember> = listed.iter().map(member).collect();
        members.sort_by(|a, b| a.address.cmp(&b.address));
        let lsn = election["members_lsn"].as_u64().unwrap_or_default();
        Ok(Served { value: (members, lsn), lsn: status.lsn, term: status.term })
    }

    /// Brings the node at this address in: it learns, and then votes. It must run with `--role=auto --join`.
    pub fn add_member(&mut self, address: &str) -> Result<Served<Value>, ClientError> {
        let address = parse_address(address).map_err(ClientError::Address)?;
        self.find_leader()?;
        let timeout = std::mem::replace(&mut self.timeout, LEARN_TIMEOUT);
        let reply = self.call(&Request::ChangeMembers { add: true, address: &address });
        self.timeout = timeout;
        let reply = reply?;
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(account(&reply), &reply))
    }

    /// Takes the vote of the member at this address. If it leads, it hands over first.
    pub fn remove_member(&mut self, address: &str) -> Result<Served<Value>, ClientError> {
        let address = parse_address(address).map_err(ClientError::Address)?;
        let (members, _) = self.members()?.value;
        if self.address == address && members.len() > 1 {
            self.transfer("")?;
            self.find_leader()?;
        }
        let reply = self.call(&Request::ChangeMembers { add: false, address: &address })?;
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(account(&reply), &reply))
    }

    /// Has the node at `new` take the place of the member at `old`.
    pub fn replace_member(&mut self, old: &str, new: &str) -> Result<Served<Value>, ClientError> {
        let old = parse_address(old).map_err(ClientError::Address)?;
        let new = parse_address(new).map_err(ClientError::Address)?;
        let (members, _) = self.members()?.value;
        let at = |address: &str| members.iter().find(|member| member.address == address);
        if at(&old).is_none() && at(&new).is_none() {
            let all: Vec<&str> = members.iter().map(|member| member.address.as_str()).collect();
            return Err(self.refused(&format!("{old} is no member: the members are {}", all.join(", "))));
        }
        let mut steps = Vec::new();
        if old == new {
            if let Some(member) = at(&old) {
                self.check_is_another(member)?;
                steps.push(self.remove_member(&old)?);
            }
            steps.push(self.add_member(&new)?);
        } else {
            if at(&new).is_none() {
                steps.push(self.add_member(&new)?);
            }
            if at(&old).is_some() {
                steps.push(self.remove_member(&old)?);
            }
        }
        match steps.last() {
            Some(last) => {
                let (lsn, term) = (last.lsn, last.term);
                let text =
                    |step: &Served<Value>| step.value["message"].as_str().unwrap_or_default().to_owned();
                let message = steps.iter().map(text).collect::<Vec<_>>().join("\n");
                let value = json!({ "members": last.value["members"], "message": message });
                Ok(Served { value, lsn, term })
            }
            None => {
                let list = self.members()?;
                let message = format!("nothing to do: {new} is a member, and {old} is none");
                Ok(Served { value: json!({ "message": message }), lsn: list.lsn, term: list.term })
            }
        }
    }

    /// A member that runs with the directory it always had is not replaced by itself.
    fn check_is_another(&self, member: &ListedMember) -> Result<(), ClientError> {
        let mut there = Client::new(&member.address, self.timeout)?.no_follow();
        let status = there.status()?;
        match status.value["node_id"].as_str() == Some(member.node_id.as_str()) {
            true => Err(self.refused(&format!(
                "the node at {} is the member that is listed there (node {}), and its data directory is not lost; to \
                 replace it all the same start the new node at another address",
                member.address, member.node_id
            ))),
            false => Ok(()),
        }
    }

    /// Goes to the leader, within the client's timeout.
    fn find_leader(&mut self) -> Result<(), ClientError> {
        let reply = self.call(&TO_THE_LEADER)?;
        if reply.status == Status::BadRequest {
            return Err(self.refused(FIXED));
        }
        self.expect(&[Status::Ok, Status::NotFound], &reply)
    }

    fn refused(&self, message: &str) -> ClientError {
        ClientError::Server {
            address: self.address.clone(),
            status: Status::Refused,
            lsn: crate::ids::Lsn::ZERO,
            term: crate::ids::Term::ZERO,
            message: message.to_owned(),
        }
    }
}
