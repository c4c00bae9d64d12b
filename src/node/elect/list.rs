//! Which list of members a node goes by: that of the newest record of its log, committed or not.
//!
//! The list is durable in the identity record *before* the record is in the log, so a log never holds a change that the
//! node does not go by. A restart may find the list and not the record; a cut may take the record: then the list before
//! counts again (`Membership::at`). A cut does that in the same durable update that orders it (`session_open`), and so
//! does a snapshot in the place of the log (`install`), whose header names the list.

use super::super::{FatalReason, Node};
use crate::ids::Lsn;
use crate::replication::members::Members;
use crate::{log_info, log_warn};

impl Node {
    /// A record of the log with a list of members is about to be appended: the list counts, durably, before it is.
    pub(in super::super) fn note_members(&mut self, lsn: Lsn, list: Members) -> Result<(), FatalReason> {
        let meta = self.meta.get();
        // A read replica goes by no list. One that is known is read again behind a snapshot, or by a node that learns.
        if meta.members.is_empty() || lsn <= meta.members.lsn() {
            return Ok(());
        }
        let (before, own) = (meta.members.clone(), meta.node_id);
        let next = before.changed(lsn, list);
        let addresses: Vec<&str> = next.iter().map(|member| member.address.as_str()).collect();
        log_info!("election", "the members are, from LSN {lsn} on: {}", addresses.join(", "));
        match (before.contains(own), next.contains(own)) {
            (false, true) => log_info!("election", "this node is a member now, and votes"),
            (true, false) => log_warn!("election", "this node is no member any more"),
            _ => {}
        }
        self.meta.update(self.disk.as_mut(), |meta| meta.members = next)?;
        Ok(())
    }

    /// The log that a restart found may end in front of the record that brought the list.
    pub(super) fn forget_unlogged_members(&mut self) -> Result<(), FatalReason> {
        let members = self.meta.get().members.at(self.wal.last_lsn());
        if members != self.meta.get().members {
            log_info!(
                "election",
                "the change of members at LSN {} never was in the log: the list of LSN {} counts",
                self.meta.get().members.lsn(),
                members.lsn()
            );
            self.meta.update(self.disk.as_mut(), |meta| meta.members = members)?;
        }
        Ok(())
    }
}
