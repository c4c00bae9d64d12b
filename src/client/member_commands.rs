//! `kv_client member`.

use clap::Subcommand;
use serde_json::json;

use super::cli::Format;
use super::error::printable;
use super::output::{self, Printed};
use super::{Client, ClientError, ListedMember, Served};
use crate::address::parse_address;

/// `member`.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum MemberCommand {
    /// Bring a node in: it learns first, then votes. Answers when that is committed.
    Add {
        /// Where the members reach it; started with --role=auto --join and an empty --data-dir.
        #[arg(value_name = "ADDR", value_parser = parse_address)]
        address: String,
    },
    /// Take a member's vote. If it leads, it hands over first. Stop its process afterwards.
    Remove {
        /// As `member list` shows it. It need not run, if the others are a majority of those left.
        #[arg(value_name = "ADDR", value_parser = parse_address)]
        address: String,
    },
    /// List who votes.
    List,
}

impl MemberCommand {
    /// Does it.
    pub fn run(&self, client: &mut Client, format: Format) -> Result<Printed, ClientError> {
        Ok(match self {
            MemberCommand::Add { address } => output::account(&client.add_member(address)?, format),
            MemberCommand::Remove { address } => output::account(&client.remove_member(address)?, format),
            MemberCommand::List => listed(&client.members()?, format),
        })
    }
}

/// Who votes.
fn listed(served: &Served<(Vec<ListedMember>, u64)>, format: Format) -> Printed {
    let (members, lsn) = &served.value;
    match format {
        Format::Text => {
            let line = |member: &ListedMember| {
                format!("{}  node {}", printable(&member.address), printable(&member.node_id))
            };
            let lines: Vec<String> = members.iter().map(line).collect();
            let since = match lsn {
                0 => "since the cluster was formed".to_owned(),
                lsn => format!("since LSN {lsn}"),
            };
            let count = members.len();
            Printed::text(format!(
                "{}\n({count} member(s), {since}; majority {})",
                lines.join("\n"),
                count / 2 + 1
            ))
        }
        Format::Json => {
            let member =
                |member: &ListedMember| json!({"address": member.address, "node_id": member.node_id});
            Printed::json(&json!({
                "ok": true,
                "members": members.iter().map(member).collect::<Vec<_>>(),
                "members_lsn": lsn,
                "majority": members.len() / 2 + 1,
                "lsn": served.lsn.0,
                "term": served.term.as_u64(),
            }))
        }
    }
}
