//! `kv_client member`.

use clap::Subcommand;

use super::cli::Format;
use super::output::{self, Printed};
use super::{Client, ClientError};
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
            MemberCommand::List => output::members(&client.members()?, format),
        })
    }
}
