//! The command line of `kv_failover`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::{Parser, ValueEnum};

use super::faults::Kind;

/// Makes the nodes of an elected cluster fail under load, and checks all that its clients were told.
#[derive(Debug, Parser)]
#[command(name = "kv_failover", version, max_term_width = 100)]
pub struct Cli {
    /// The program to run as a node
    #[arg(long, value_name = "FILE")]
    pub kvstore: PathBuf,
    /// Random failures for so long
    #[arg(long, default_value_t = 3.0, value_name = "N")]
    pub minutes: f64,
    /// In place of that: kill -9 the leader so many times
    #[arg(long, value_name = "N", conflicts_with_all = ["minutes", "rolling"])]
    pub kills: Option<usize>,
    /// In place of that: restart every node in turn with SIGTERM, so many times
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    pub rolling: Option<usize>,
    /// Which failures
    #[arg(long, value_enum, value_delimiter = ',')]
    #[arg(default_values_t = [FaultChoice::Kill, FaultChoice::Stop, FaultChoice::Cut])]
    pub faults: Vec<FaultChoice>,
    /// What the nodes talk over: a network of their own that can be cut, or the loopback interface, where nothing is
    /// cut; auto: the first, where the system allows it
    #[arg(long, value_enum, default_value = "auto")]
    pub net: NetChoice,
    /// Nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=7).map(usize::from))]
    pub nodes: usize,
    /// Clients, each with one call at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64).map(usize::from))]
    pub clients: usize,
    /// Clients, of these, whose writes have no number: what is lost of them stays unknown
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=64).map(usize::from))]
    pub plain: usize,
    /// Between an answer and a client's next call
    #[arg(long, default_value_t = 500, value_name = "US")]
    pub pause_us: u64,
    /// For one call of a client, with all its searching for a leader
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    pub client_timeout_ms: u64,
    /// Given to every node
    #[arg(long, value_name = "MS")]
    pub election_timeout_ms: Option<u64>,
    /// Given to every node, as it is: --node-flag=--flush=inline
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    pub node_flag: Vec<String>,
    /// Fail if the p99 of what a client waited is this or more
    #[arg(long, value_name = "MS")]
    pub p99_ms: Option<f64>,
    /// Draws the failures; the default differs with every run, and is told
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where the timeline goes
    #[arg(long, default_value = "bench/out", value_name = "DIR")]
    pub out: PathBuf,
    /// Where the nodes' data goes, while it runs
    #[arg(long, default_value = "/tmp", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Tell every failure
    #[arg(long, short)]
    pub verbose: bool,
}

/// `--faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FaultChoice {
    /// kill -9, and a start
    Kill,
    /// SIGSTOP and SIGCONT
    Stop,
    /// Lost packets: of a node to all, to and from other nodes, to other nodes
    Cut,
    /// kill -9 of all nodes at once
    KillAll,
}

/// `--net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NetChoice {
    Auto,
    Namespaces,
    Loopback,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Mixed(Duration),
    Kills(usize),
    Rolling(usize),
}

impl Mode {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Mixed(_) => "mixed",
            Mode::Kills(_) => "kills",
            Mode::Rolling(_) => "rolling",
        }
    }
}

impl Cli {
    /// What is done.
    pub fn mode(&self) -> Mode {
        match (self.kills, self.rolling) {
            (Some(count), _) => Mode::Kills(count),
            (None, Some(rounds)) => Mode::Rolling(rounds),
            (None, None) => Mode::Mixed(Duration::from_secs_f64(self.minutes * 60.0)),
        }
    }

    /// How long a leader that was killed stays away: more than two elections take.
    pub fn away(&self) -> Duration {
        Duration::from_millis(self.election_timeout_ms.unwrap_or(500) * 12 / 5)
    }

    /// Flags of every node.
    pub fn node_flags(&self) -> Vec<String> {
        let timeout = self.election_timeout_ms.map(|ms| format!("--election-timeout-ms={ms}"));
        timeout.into_iter().chain(self.node_flag.iter().cloned()).collect()
    }

    /// Failures that can be made here.
    pub fn kinds(&self, can_cut: bool) -> Vec<Kind> {
        let kinds = self.faults.iter().flat_map(|choice| match choice {
            FaultChoice::Kill => vec![Kind::Kill],
            FaultChoice::Stop => vec![Kind::Stop],
            FaultChoice::Cut if can_cut => vec![Kind::CutOff, Kind::CutFromPeers, Kind::CutOutgoing],
            FaultChoice::Cut => Vec::new(),
            FaultChoice::KillAll => vec![Kind::KillAll],
        });
        let kinds: Vec<Kind> = kinds.collect();
        if kinds.is_empty() { vec![Kind::Kill] } else { kinds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
