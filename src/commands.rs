//! What `kvstore` does besides running a node: commands on files and directories, each with its own flags.
//!
//! `kvstore` alone runs a node, as it always did. A command stands in the first place, and none of the node's flags
//! beside it. It talks on stdout and stderr, never through the log, and its exit code is one of those in `--help`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::backup::{self, Plan, RestoreError};
use crate::disk::advice;
use crate::ids::Lsn;
use crate::inspect;

/// Exit code: a flag makes no sense, or what is asked for cannot be had from what was given.
const EXIT_USAGE: u8 = 2;
/// Exit code: something that is inspected is damaged, or a node would not start with it.
const EXIT_DAMAGED: u8 = 1;
/// Exit code: a directory or a file cannot be read.
const EXIT_DATA_DIR: u8 = 10;

/// A command in the place of running a node.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Build a new data directory from a backup, a snapshot file, and segments of the log kept aside
    Restore(RestoreFlags),
    /// Show what is in a data directory, an archive, or one file of either, and what a start would do with it.
    /// Changes nothing, takes no lock, and works beside a running node
    Inspect(InspectFlags),
}

/// What `kvstore inspect` is told.
#[derive(Args, Clone, Debug)]
pub struct InspectFlags {
    /// A directory, or one file: a segment, a snapshot, META.a or META.b, a file that was put aside
    #[arg(value_name = "DIR|FILE")]
    pub path: PathBuf,
    /// Text for people, or a JSON document
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: OutputChoice,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum OutputChoice {
    Text,
    Json,
}

/// What `kvstore restore` is told.
#[derive(Args, Clone, Debug)]
pub struct RestoreFlags {
    /// A file made by `kv_client backup`, or a snapshot file (*.kvsnap)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The data directory to build; it must not be there, or be empty
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Restore the state at exactly this LSN
    #[arg(long, value_name = "LSN")]
    pub until: Option<u64>,
    /// A directory with segments of the log behind FILE: copies kept aside, or a data directory; only read. May be
    /// given several times
    #[arg(long, value_name = "DIR")]
    pub archive: Vec<PathBuf>,
}

impl Command {
    /// Does it. Returns the exit code. `seed` draws a random number.
    pub fn run(&self, seed: fn() -> io::Result<u64>) -> u8 {
        match self {
            Command::Restore(flags) => restore(flags, seed),
            Command::Inspect(flags) => inspect(flags),
        }
    }
}

fn restore(flags: &RestoreFlags, seed: fn() -> io::Result<u64>) -> u8 {
    let seed = match seed() {
        Ok(seed) => seed,
        Err(why) => {
            eprintln!("error: cannot get random bytes for the new ids: {why}");
            return EXIT_DATA_DIR;
        }
    };
    let plan = Plan {
        file: flags.file.clone(),
        data_dir: flags.data_dir.clone(),
        until: flags.until.map(Lsn),
        archives: flags.archive.clone(),
        seed,
    };
    match backup::restore(&plan) {
        Ok(restored) => {
            // Nobody may be there to read it, and that is no failure of the restore.
            let _unread = writeln!(
                io::stdout(),
                "restored the state at LSN {} to {}: snapshot of LSN {} with {} entries, log up to {0}\n\
                 new cluster {}, new node {} (the backup is of cluster {})",
                restored.last,
                flags.data_dir.display(),
                restored.id,
                restored.entries,
                restored.cluster_id,
                restored.node_id,
                restored.from
            );
            0
        }
        Err(why) => {
            eprintln!("error: {why}");
            match why {
                _ if why.is_damage() => EXIT_DAMAGED,
                RestoreError::BelowE { .. }
                | RestoreError::Missing { .. }
                | RestoreError::OtherLog { .. } => EXIT_USAGE,
                _ => EXIT_DATA_DIR,
            }
        }
    }
}

fn inspect(flags: &InspectFlags) -> u8 {
    let report = match inspect::inspect(&flags.path) {
        Ok(report) => report,
        Err(why) => {
            eprintln!("error: cannot look at {}: {why}; {}", flags.path.display(), advice(&why));
            return EXIT_DATA_DIR;
        }
    };
    let text = match flags.output {
        OutputChoice::Text => inspect::text(&report),
        OutputChoice::Json => format!("{:#}\n", inspect::document(&report)),
    };
    // Who reads may stop reading (`| head`), and that is no failure of the files.
    if let Err(why) = io::stdout().write_all(text.as_bytes())
        && why.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("error: cannot write the report: {why}");
        return EXIT_DATA_DIR;
    }
    if report.problems().is_empty() { 0 } else { EXIT_DAMAGED }
}
