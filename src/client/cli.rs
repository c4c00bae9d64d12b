//! The command line of `kv_client`: arguments to calls, results to output and exit codes.
//!
//! One deadline covers the whole command, connecting included; reading a value from stdin comes before it.
//! With `--watch` it covers each look. `doctor` asks no node and has none.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use serde_json::Value;

use super::doctor::examine;
use super::failure::EXIT_CODES;
use super::member_commands::MemberCommand;
use super::once::{self, Asking};
use super::output::{self, Printed};
use super::place::{Misplaced, Place};
use super::survey::survey;
use super::watch::watch;
use super::{Client, ClientError, Fetch, FetchError};
use crate::address::parse_address;
use crate::ids::Lsn;
use crate::limits::VALUE_SIZE_MAX;
use crate::wire::client::{ReadMode, WriteOp};

/// A snapshot takes as long as it takes: this is for a node that has gone.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3_600);

/// A client for kvstore nodes.
#[derive(Clone, Debug, Parser)]
#[command(name = "kv_client", version, after_help = EXIT_CODES)]
#[command(disable_help_subcommand = true, max_term_width = 100)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Args)]
struct Global {
    #[command(flatten)]
    place: Place,
    /// Milliseconds for the whole command.
    #[arg(long, global = true, help_heading = "How", env = "KV_CLIENT_TIMEOUT_MS", value_name = "N")]
    #[arg(default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=3_600_000))]
    timeout_ms: u32,
    /// Format of what is printed.
    #[arg(long, short, global = true, help_heading = "How", env = "KV_CLIENT_OUTPUT", value_name = "FORMAT")]
    #[arg(value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; `get` prints the value's bytes and a newline.
    Text,
    /// One JSON object on stdout, also for an error.
    Json,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Set a key.
    Put {
        /// 1 to 65535 bytes, any bytes.
        #[arg(allow_negative_numbers = true)]
        key: OsString,
        /// 0 to 8388608 bytes, any bytes; `-` reads them from stdin, to its end and unchanged.
        #[arg(allow_negative_numbers = true)]
        value: OsString,
        /// Print the receipt of this write: where its time went, on the leader and on every follower. It is not
        /// numbered.
        #[arg(long, conflicts_with_all = ["retry", "again"])]
        explain: bool,
        #[command(flatten)]
        asking: Asking,
    },
    /// Print the value of a key.
    Get {
        /// 1 to 65535 bytes, any bytes.
        #[arg(allow_negative_numbers = true)]
        key: OsString,
        /// How to read it, where leaders are elected: lease, quorum, or local, which any node answers and which may be
        /// old; `-o json` shows how old. Without this as the node's own --reads says.
        #[arg(long, value_name = "MODE", value_parser = parse_read_mode)]
        reads: Option<ReadMode>,
    },
    /// Remove a key; exit 1 if it was not there.
    Delete {
        /// 1 to 65535 bytes, any bytes.
        #[arg(allow_negative_numbers = true)]
        key: OsString,
        #[command(flatten)]
        asking: Asking,
    },
    /// Ask whether the node is there, and how long its answer takes.
    Ping,
    /// Show the node's state, and its peers.
    Status,
    /// Make the node lead: it fences the others, compares, then leads. A failover is this command.
    Promote {
        /// Lead even where acknowledged writes may be lost by it; prints what may be.
        #[arg(long)]
        force: bool,
    },
    /// Make the node stop leading and follow another.
    Follow {
        /// The leader: PORT, HOST:PORT or [IPV6]:PORT, as the node can dial it.
        #[arg(value_name = "ADDR", value_parser = parse_address)]
        address: String,
        /// Allow the node to cut records off its log that were committed here; they are kept in a file.
        #[arg(long)]
        discard: bool,
    },
    /// Move leadership, where leaders are elected, to a follower that holds everything; the leader is found by itself.
    Transfer {
        /// To which member; without it to the one that holds most.
        #[arg(value_name = "ADDR", value_parser = parse_address)]
        address: Option<String>,
    },
    /// Change who votes, where leaders are elected, or list who does; the leader is found by itself.
    #[command(subcommand)]
    Member(MemberCommand),
    /// Have a new node take a member's place: it learns and is added, then the old one is removed.
    Replace {
        /// The member that goes: PORT, HOST:PORT or [IPV6]:PORT. It need not run.
        #[arg(value_name = "OLD", value_parser = parse_address)]
        old: String,
        /// The node that comes, started with --role=auto --join; the same address for a member whose data is lost.
        #[arg(value_name = "NEW", value_parser = parse_address)]
        new: String,
    },
    /// Make a snapshot, so that the log before it can go; done when it is durable.
    Snapshot {
        /// Only begin it; `status` shows how it goes on.
        #[arg(long)]
        no_wait: bool,
    },
    /// Fetch a backup from which `kvstore restore` builds a node: the state at one LSN, in one file.
    Backup {
        /// Where to. It is written as FILE.tmp and gets its name when it is whole and durable.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Take the newest snapshot that the node has instead of making one: more log, less work.
        #[arg(long)]
        newest: bool,
        /// Replace FILE if it is there.
        #[arg(long)]
        force: bool,
    },
    /// Print the receipt of one of the leader's last 4096 writes; exit 1 if it has none.
    Explain {
        /// The write, by the LSN in its reply.
        lsn: u64,
    },
    /// List the slowest writes since the node began to lead, or since a reset.
    Slowest {
        /// How many; 64 are kept.
        #[arg(default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=64))]
        count: u64,
    },
    /// Tell what the slowest writes have in common: which stage, on which node, took what share.
    Tail {
        /// Those above this percentile of the last 4096 writes.
        #[arg(long, value_name = "P", default_value = "99.9", value_parser = parse_percentile)]
        percentile: Millionths,
    },
    /// Show the percentiles of every stage of a write, and of reads.
    Latency {
        /// Again every second, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Show which system calls the node makes, and how many per operation.
    Syscalls {
        /// Those of the last second, every second, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Make the node forget its percentiles and its slowest writes, to measure anew.
    Reset,
    /// Measure what this machine allows, without a node: fdatasync, loopback, wake-ups, and a bare replicated write.
    Doctor {
        /// A directory on the disk to measure; nothing is left in it.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

impl Arguments {
    /// The arguments of this process. Ends it where they make no sense.
    pub fn of_process() -> Arguments {
        Arguments::of(&Arguments::command().get_matches()).unwrap_or_else(|error| error.exit())
    }

    fn of(matches: &ArgMatches) -> Result<Arguments, clap::Error> {
        let mut arguments = Arguments::from_arg_matches(matches)?;
        let settled = arguments.global.place.settle(matches);
        let conflict = |words| Arguments::command().error(ErrorKind::ArgumentConflict, words);
        settled.map_err(conflict).map(|()| arguments)
    }
}

impl Command {
    /// Whether it goes where leaders are, whatever a node answers.
    fn needs_to_follow(&self) -> bool {
        match self {
            Command::Put { asking, .. } | Command::Delete { asking, .. } => asking.needs_to_follow(),
            _ => false,
        }
    }

    /// The command's name, if its answer is about the one node that gives it.
    fn for_one_node(&self) -> Option<&'static str> {
        Some(match self {
            Command::Put { .. } | Command::Get { .. } | Command::Delete { .. } => return None,
            Command::Status | Command::Doctor { .. } => return None,
            Command::Member(_) | Command::Replace { .. } | Command::Transfer { .. } => return None,
            Command::Ping => "ping",
            Command::Promote { .. } => "promote",
            Command::Follow { .. } => "follow",
            Command::Snapshot { .. } => "snapshot",
            Command::Backup { .. } => "backup",
            Command::Explain { .. } => "explain",
            Command::Slowest { .. } => "slowest",
            Command::Tail { .. } => "tail",
            Command::Latency { .. } => "latency",
            Command::Syscalls { .. } => "syscalls",
            Command::Reset => "reset",
        })
    }
}

/// A percentile, p99.9 as 999,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Millionths(u64);

fn parse_read_mode(text: &str) -> Result<ReadMode, String> {
    ReadMode::from_name(text).ok_or_else(|| "one of lease, quorum, local is meant".to_owned())
}

fn parse_percentile(text: &str) -> Result<Millionths, String> {
    match text.parse::<f64>() {
        Ok(percentile) if (0.0..100.0).contains(&percentile) => {
            Ok(Millionths((percentile * 10_000.0).round() as u64))
        }
        _ => Err("allowed are 0 to 99.9999".to_owned()),
    }
}

/// Runs the command, prints what came of it, and returns the exit code.
pub fn run(arguments: Arguments) -> u8 {
    let format = arguments.global.output;
    let printed = match execute(arguments) {
        Ok(printed) => printed,
        Err(Failure::Client(error)) => output::error(&error, format),
        Err(Failure::Usage(message)) => output::usage(&message, format),
        Err(Failure::Backup(message)) => output::no_backup(&message, format),
    };
    output::emit(&printed)
}

enum Failure {
    Client(ClientError),
    Usage(String),
    Backup(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Client(error)
    }
}

impl From<Misplaced> for Failure {
    fn from(error: Misplaced) -> Failure {
        match error {
            Misplaced::Address(error) => Failure::Client(error),
            Misplaced::Several(words) => Failure::Usage(words),
        }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Failure {
        match error {
            FetchError::Client(error) => Failure::Client(error),
            FetchError::Place(why) => Failure::Usage(why),
            FetchError::Write { .. } | FetchError::Damaged(_) | FetchError::Short { .. } => {
                Failure::Backup(error.to_string())
            }
        }
    }
}

fn execute(arguments: Arguments) -> Result<Printed, Failure> {
    let Arguments { global, command } = arguments;
    let format = global.output;
    if let Command::Doctor { data_dir } = &command {
        return Ok(examine(data_dir, format));
    }
    let stdin_value = match &command {
        Command::Put { value, .. } if value == OsStr::new("-") => Some(read_stdin()?),
        _ => None,
    };
    let timeout = Duration::from_millis(global.timeout_ms.into());
    if let (Command::Status, Some(nodes)) = (&command, global.place.several()) {
        return Ok(output::cluster(&survey(nodes, timeout)?, format));
    }
    let of_several = global.place.several().is_some();
    // It connects with its one call, so that call's deadline is that of the command.
    let mut client = global.place.client(command.for_one_node(), command.needs_to_follow(), timeout)?;
    Ok(match command {
        Command::Put { key, value, explain, asking } => {
            let (key, value) = (key.as_bytes(), stdin_value.as_deref().unwrap_or(value.as_bytes()));
            match explain {
                false => {
                    let op = WriteOp::Put { key, value };
                    output::wrote(key, &once::write(client, &op, &asking, of_several), format)
                }
                true => output::explained(&client.put_explained(key, value)?, format),
            }
        }
        Command::Get { key, reads: None } => output::got(key.as_bytes(), client.get(key.as_bytes())?, format),
        Command::Get { key, reads: Some(reads) } => {
            output::read(key.as_bytes(), client.get_with(key.as_bytes(), reads)?, format)
        }
        Command::Delete { key, asking } => {
            let key = key.as_bytes();
            let wrote = once::write(client, &WriteOp::Delete { key }, &asking, of_several);
            output::wrote(key, &wrote, format)
        }
        Command::Ping => output::pong(&client.ping()?, format),
        Command::Status => output::status(&client.status()?.value, format),
        Command::Promote { force } => output::account(&client.promote(force)?, format),
        Command::Follow { address, discard } => output::account(&client.follow(&address, discard)?, format),
        Command::Transfer { address } => {
            output::account(&client.transfer(address.as_deref().unwrap_or_default())?, format)
        }
        Command::Member(command) => command.run(&mut client, format)?,
        Command::Replace { old, new } => output::account(&client.replace_member(&old, &new)?, format),
        Command::Snapshot { no_wait } => {
            if !no_wait {
                client.set_timeout(SNAPSHOT_TIMEOUT.max(timeout));
            }
            output::account(&client.snapshot(!no_wait)?, format)
        }
        Command::Backup { file, newest, force } => {
            let begin_timeout = SNAPSHOT_TIMEOUT.max(timeout);
            let fetch = Fetch { file, newest, force, begin_timeout, part_timeout: timeout };
            output::account(&client.backup(&fetch)?, format)
        }
        Command::Explain { lsn } => output::receipt(&client.explain(Lsn(lsn))?, format),
        Command::Slowest { count } => output::slowest(&client.slowest(count)?.value, format),
        Command::Tail { percentile } => output::tail(&client.tail(percentile.0)?.value, format),
        Command::Latency { watch: false } => output::latency(&client.latency()?.value, format),
        Command::Syscalls { watch: false } => output::syscalls(&client.syscalls()?.value, format),
        Command::Latency { watch: true } => watch_latency(&mut client, format)?,
        Command::Syscalls { watch: true } => watch_syscalls(&mut client, format)?,
        Command::Reset => {
            client.reset_measurements()?;
            output::reset(format)
        }
        Command::Doctor { .. } => unreachable!("it asks no node and is done above"),
    })
}

fn watch_latency(client: &mut Client, format: Format) -> Result<Printed, ClientError> {
    let ended = watch(|| Ok(page(&output::latency(&client.latency()?.value, format), format)))?;
    Ok(output::watched(ended))
}

/// The first page is of all calls since the node's start, each later one of those since the one before.
fn watch_syscalls(client: &mut Client, format: Format) -> Result<Printed, ClientError> {
    let mut before: Option<Value> = None;
    let ended = watch(|| {
        let document = client.syscalls()?.value;
        let printed = match &before {
            None => output::syscalls(&document, format),
            Some(before) => output::syscalls_since(before, &document, format),
        };
        before = Some(document);
        Ok(page(&printed, format))
    })?;
    Ok(output::watched(ended))
}

/// Tables are parted by a blank line, documents are a line each.
fn page(printed: &Printed, format: Format) -> String {
    let text = String::from_utf8_lossy(&printed.stdout).into_owned();
    if format == Format::Text { text + "\n" } else { text }
}

/// The value on stdin. One byte beyond the limit is enough to know that it is too large.
fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    io::stdin()
        .lock()
        .take(VALUE_SIZE_MAX as u64 + 1)
        .read_to_end(&mut value)
        .map_err(|error| Failure::Usage(format!("cannot read the value from stdin: {error}")))?;
    if value.len() > VALUE_SIZE_MAX {
        let message = format!("the value on stdin has more than {VALUE_SIZE_MAX} bytes; nothing was sent");
        return Err(Failure::Usage(message));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
