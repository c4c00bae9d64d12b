//! What `kvstore` does besides running a node: commands on files and directories, each with its own flags.
//!
//! `kvstore` alone runs a node, as it always did. A command stands in the first place, and none of the node's flags
//! beside it. It talks on stdout and stderr, never through the log, and its exit code is one of those in `--help`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Exit code: a flag makes no sense, or what is asked for cannot be had from what was given.
const EXIT_USAGE: u8 = 2;

/// A command in the place of running a node.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Build a new data directory from a backup, a snapshot file, and segments of the log kept aside
    Restore(RestoreFlags),
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
    /// Does it. Returns the exit code.
    pub fn run(&self) -> u8 {
        match self {
            Command::Restore(flags) => restore(flags),
        }
    }
}

fn restore(flags: &RestoreFlags) -> u8 {
    eprintln!("error: this build cannot restore {} yet", flags.file.display());
    EXIT_USAGE
}
