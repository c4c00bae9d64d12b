//! Which node, or nodes, a command of `kv_client` is for.
//!
//! `--host` and `--port` name one node, `--endpoints` those of a cluster. What somebody typed outweighs the
//! environment: `--port 9002` is for that node though KV_CLIENT_ENDPOINTS is set. A command whose answer is about the
//! one node that gives it is refused where several are named: which of them answered would be chance.

use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::{Client, ClientError};
use crate::address::{join_address, parse_address};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Place {
    /// Host of the node: a name, an IPv4 or an IPv6 address.
    #[arg(long, global = true, help_heading = "Where", env = "KV_CLIENT_HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port of the node.
    #[arg(
        long,
        short,
        global = true,
        help_heading = "Where",
        env = "KV_CLIENT_PORT",
        default_value_t = 9001
    )]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The nodes of a cluster, in place of --host and --port: PORT, HOST:PORT or [IPV6]:PORT, with commas between.
    /// put, get and delete go to whoever leads, until --timeout-ms, and writes are numbered, so that one whose answer
    /// is lost is asked for again; status shows all of them.
    #[arg(long, global = true, help_heading = "Where", env = "KV_CLIENT_ENDPOINTS", value_name = "ADDR,...")]
    #[arg(value_delimiter = ',', value_parser = parse_address)]
    endpoints: Vec<String>,
    /// Show NOT_LEADER (exit 5) instead of sending a request on to the leader it names.
    #[arg(long, global = true, help_heading = "Where", env = "KV_CLIENT_NO_FOLLOW")]
    #[arg(value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    no_follow: bool,
}

/// Why there is no client for a command.
pub(super) enum Misplaced {
    /// What names the node is no address.
    Address(ClientError),
    /// The command makes no sense there: mostly because several nodes are named.
    Several(String),
}

impl Place {
    /// Makes one place of flags and environment; `Err` with words if two are typed.
    pub(super) fn settle(&mut self, matches: &ArgMatches) -> Result<(), &'static str> {
        let is_typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
        if !is_typed("host") && !is_typed("port") {
            return Ok(());
        }
        if is_typed("endpoints") {
            return Err("--endpoints names nodes, and --host and --port name one: give one or the other\n");
        }
        self.endpoints.clear();
        Ok(())
    }

    /// The nodes, where there are several.
    pub(super) fn several(&self) -> Option<&[String]> {
        let (first, others) = self.endpoints.split_first()?;
        others.iter().any(|other| other != first).then_some(&self.endpoints)
    }

    /// A client of them. `for_one_node` is the name of a command that is not for several; one that `needs_to_follow`
    /// asks on until it has its answer.
    pub(super) fn client(
        &self,
        for_one_node: Option<&'static str>,
        needs_to_follow: bool,
        timeout: Duration,
    ) -> Result<Client, Misplaced> {
        if self.no_follow && needs_to_follow {
            let words =
                "--no-follow shows what one node answers; --retry and --again ask on: give one or the other";
            return Err(Misplaced::Several(words.to_owned()));
        }
        if let Some(nodes) = self.several() {
            self.check_for_several(for_one_node, nodes.len()).map_err(Misplaced::Several)?;
        }
        let client = if self.endpoints.is_empty() {
            join_address(&self.host, self.port)
                .map_err(ClientError::Address)
                .and_then(|address| Client::new(&address, timeout))
        } else {
            Client::of_cluster(&self.endpoints, timeout)
        };
        let client = client.map_err(Misplaced::Address)?;
        Ok(if self.no_follow { client.no_follow() } else { client })
    }

    fn check_for_several(&self, for_one_node: Option<&'static str>, nodes: usize) -> Result<(), String> {
        if let Some(name) = for_one_node {
            return Err(format!(
                "{name} is about one node, and {nodes} were named: name one with --host and --port"
            ));
        }
        if self.no_follow {
            return Err("--no-follow shows what one node answers: name it with --host and --port".to_owned());
        }
        Ok(())
    }
}
