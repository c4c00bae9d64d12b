//! Flags as a person types them, checked once; behind this module nothing asks again whether they make sense.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::floor::Ack;

/// Measures a store with one thread and one poll loop, and the floor of the machine beside it.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true, args_override_self = true, max_term_width = 110)]
pub struct Cli {
    /// What to do instead of measuring.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The load.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// What kv_bench does besides measuring. The hidden ones are processes that the floor starts from its own
/// binary; each ends when its standard input does, so that none outlives the run, however that ends.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Prints medians and ratios of the results that scripts/compare.sh has collected in a directory.
    Targets {
        /// Holds files `LOAD@SYSTEM@RUN.json`.
        dir: PathBuf,
    },
    /// Prints one table of the result files given.
    Table {
        /// Files written with --json.
        files: Vec<PathBuf>,
    },
    /// Prints what scripts/snapshot_compare.sh has collected in a directory.
    Snapshots {
        /// Holds files `NAME@SYSTEM@RUN.json`.
        dir: PathBuf,
        /// Keys that the stores hold.
        #[arg(long)]
        keys: u64,
    },
    /// A bare leader.
    #[command(hide = true)]
    FloorLeader(LeaderArgs),
    /// A bare follower.
    #[command(hide = true)]
    FloorFollower(FileArgs),
    /// fdatasync in a loop.
    #[command(hide = true)]
    FloorSync(FileArgs),
    /// An echo through epoll.
    #[command(hide = true)]
    FloorPong,
    /// A file through one loopback socket to a disk, as plain as it gets.
    #[command(hide = true)]
    FloorCopy {
        /// The file.
        from: PathBuf,
        /// Where the copy goes, and is removed again.
        directory: PathBuf,
    },
    /// An echo through two pipes.
    #[command(hide = true)]
    FloorWake,
}

/// Flags of the bare leader.
#[derive(Args, Debug)]
pub struct LeaderArgs {
    /// Where its file is.
    #[command(flatten)]
    pub file: FileArgs,
    /// Bytes of a request; every request has as many.
    #[arg(long)]
    pub request_size: usize,
    /// Addresses of the bare followers.
    #[arg(long, value_delimiter = ',')]
    pub followers: Vec<String>,
    /// When a request is answered.
    #[arg(long)]
    pub ack: Ack,
}

/// Flags of a process that writes a file.
#[derive(Args, Debug)]
pub struct FileArgs {
    /// The file, to be created; its name is removed at once.
    #[arg(long)]
    pub file: PathBuf,
}

/// How requests and replies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// kvstore's frames.
    Kv,
    /// RESP, as redis and valkey speak it: SET, GET, WAIT.
    Resp,
    /// etcd's gRPC (KV.Put, KV.Range) over HTTP/2 in the clear.
    Etcd,
}

/// Which requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Of a hundred requests, so many are GET; the rest is PUT.
    pub get_percent: u8,
}

impl std::str::FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let get_percent = match text {
            "put" => Some(0),
            "get" => Some(100),
            other => other.strip_prefix("mix:").and_then(|percent| percent.parse().ok()),
        };
        match get_percent {
            Some(get_percent) if get_percent <= 100 => Ok(Mix { get_percent }),
            _ => Err("expected put, get, or mix:N with N of a hundred requests being GET".to_owned()),
        }
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.get_percent {
            0 => f.write_str("put"),
            100 => f.write_str("get"),
            percent => write!(f, "mix:{percent}"),
        }
    }
}

/// The load and what is done with the result.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Whom to measure, HOST:PORT. Without it only the floor is measured, with --floor.
    #[arg(long)]
    pub endpoint: Option<String>,
    /// How it speaks.
    #[arg(long, value_enum, default_value = "kv")]
    pub protocol: ProtocolName,
    /// RESP: send `WAIT N 0` behind each SET, and take it for done when that says N or more.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub wait: u32,
    /// RESP: send one WAIT behind all SETs of a turn instead. A pipeline then waits once, not once per SET.
    #[arg(long)]
    pub wait_batch: bool,
    /// put, get, or mix:N (N of a hundred are GET; the keys are written first).
    #[arg(long, default_value = "put")]
    pub op: Mix,
    /// Connections, all of one thread.
    #[arg(long, default_value_t = 50)]
    pub connections: usize,
    /// Requests under way on each connection, at most.
    #[arg(long, default_value_t = 1)]
    pub pipeline: usize,
    /// Different keys, drawn evenly.
    #[arg(long, default_value_t = 100_000)]
    pub keys: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 64)]
    pub value_size: usize,
    /// Seconds measured in each run.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub duration: f64,
    /// Seconds before that in each run, not measured.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    pub warmup: f64,
    /// How often; the result is the median. With --floor its runs lie between them.
    #[arg(long, default_value_t = 1)]
    pub runs: usize,
    /// Open loop: so many requests a second over all connections, whatever the store does; latency counts
    /// from when a request was due. Without it: closed loop, as fast as the replies come.
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Do not write the keys before a load that reads.
    #[arg(long)]
    pub no_fill: bool,
    /// Measure what this machine allows, in the same minute (PUT only).
    #[arg(long)]
    pub floor: bool,
    /// When the bare leader answers.
    #[arg(long, value_enum, default_value = "quorum")]
    pub floor_ack: Ack,
    /// A bare leader with two bare followers (3), or alone (1).
    #[arg(long, default_value_t = 3,
        value_parser = PossibleValuesParser::new(["1", "3"]).map(|n| n.parse::<usize>().expect("checked above")))]
    pub floor_nodes: usize,
    /// Where the floor writes, and whose file system the report names: the disk that the store is on.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// What the report calls this measurement.
    #[arg(long)]
    pub label: Option<String>,
    /// Write the result as JSON (`-`: to standard output, instead of the text).
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the response times as an HdrHistogram percentile distribution.
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Draw the percentiles.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl LoadArgs {
    /// Says what makes no sense, in words.
    pub fn check(&self) -> Result<(), String> {
        let positive =
            |ok: bool, flag: &str| if ok { Ok(()) } else { Err(format!("{flag} must be above 0")) };
        positive(self.connections > 0, "--connections")?;
        positive(self.pipeline > 0, "--pipeline")?;
        positive(self.runs > 0, "--runs")?;
        positive(self.keys > 0, "--keys")?;
        positive(self.duration > 0.0 && self.duration.is_finite(), "--duration")?;
        positive(self.rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "--rate")?;
        if !(self.warmup >= 0.0 && self.warmup.is_finite()) {
            return Err("--warmup must be 0 or more seconds".to_owned());
        }
        if self.keys > crate::template::KEYS_MAX {
            return Err(format!("--keys: at most {} different keys", crate::template::KEYS_MAX));
        }
        if self.endpoint.is_none() && !self.floor {
            return Err("nothing to measure: give --endpoint HOST:PORT, or --floor, or both".to_owned());
        }
        if self.floor && self.op.get_percent != 0 {
            return Err("--floor is the floor of writes: it goes with --op put".to_owned());
        }
        if self.wait > 0 && self.protocol != ProtocolName::Resp {
            return Err("--wait is RESP's; use it with --protocol resp".to_owned());
        }
        if self.wait > 0 && self.pipeline > 1 && self.op.get_percent != 0 {
            // A GET answered behind a SET that still waits would be charged for that SET's replicas.
            return Err("--wait with a mixed load needs --pipeline 1".to_owned());
        }
        if self.protocol == ProtocolName::Etcd && self.pipeline * (self.value_size + 64) > 32 << 10 {
            // Half of HTTP/2's first window: the generator does not keep account of what the server allows.
            return Err("etcd: --pipeline times --value-size is limited to 32 KiB per connection".to_owned());
        }
        Ok(())
    }
}
