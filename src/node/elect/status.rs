//! What an operator sees of elections: one object in the status document.

use serde_json::{Value, json};

use super::super::Node;
use super::{Elect, Member};

impl Node {
    /// For `status`; null where roles are fixed.
    pub(in super::super) fn election_document(&self) -> Value {
        let meta = self.meta.get();
        let member = |listed: &crate::replication::members::Member| {
            json!({
                "node_id": listed.node_id.to_string(),
                "address": listed.address,
                "is_self": listed.node_id == meta.node_id,
            })
        };
        let (timer, forming) = match &self.elect {
            Elect::Fixed => return Value::Null,
            Elect::Forming(forming) => (Value::Null, Value::from(forming.text())),
            Elect::Member(member) => (self.timer_document(member), Value::Null),
        };
        json!({
            "state": self.election_state(),
            "timeout_ms": self.config.election.timeout_ms,
            "reads": self.config.election.reads.name(),
            "members": meta.members.iter().map(member).collect::<Vec<_>>(),
            "members_lsn": meta.members.lsn().0,
            "change": self.changing_text(),
            "has_vote": self.has_vote(),
            "majority": (!meta.members.is_empty()).then(|| meta.members.majority()),
            "vote": (!meta.vote.is_none()).then(|| meta.vote.to_string()),
            "heard_commit_lsn": self.heard_commit().0,
            "timer": timer,
            "forming": forming,
        })
    }

    /// What this node does about elections now, as a word.
    pub(in super::super) fn election_state(&self) -> &'static str {
        match &self.elect {
            Elect::Fixed => "fixed",
            Elect::Forming(_) => "forming",
            Elect::Member(member) if member.handing_over.is_some() => "handing_over",
            Elect::Member(_) if self.leader().is_some() => "leading",
            Elect::Member(member) if member.canvass.is_some() => "campaigning",
            Elect::Member(_) if self.follows_somebody() => "following",
            Elect::Member(_) => "waiting",
        }
    }

    /// Milliseconds to what comes if nothing else does: negative ones are past.
    fn timer_document(&self, member: &Member) -> Value {
        let now = self.clock.now();
        let in_ms = |at: crate::time::Time| (at.0 as i128 - now.0 as i128) / 1_000_000;
        let ms = |at: crate::time::Time| i64::try_from(in_ms(at)).unwrap_or(i64::MAX);
        match self.leader().and_then(|leader| leader.quorum.as_ref()) {
            Some(quorum) => json!({
                "steps_down_in_ms": ms(quorum.steps_down_at(now)),
                "lease_ends_in_ms": quorum.lease_until(now).map(ms),
            }),
            None => json!({
                "votes_in_ms": ms(member.timer.refuse_until()).max(0),
                "campaigns_in_ms": ms(member.timer.campaign_at()).max(0),
            }),
        }
    }
}
