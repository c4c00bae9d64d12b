//! The node: arguments in, exit code out.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use kvstore::config::{Config, Flags};
use kvstore::disk::{FileSystem, FlushRing, OpenError, RealDisk};
use kvstore::marks::Marks;
use kvstore::net::{Bound, LoopOptions, MonotonicClock, bind, run};
use kvstore::node::{FatalReason, FlushMode, Node, OpenDirectory};
use kvstore::wal::Durability;
use log::{error, info, warn};

/// Exit code for flags that make no sense.
const EXIT_USAGE: u8 = 2;
/// Exit code for a data directory that cannot be used.
const EXIT_DATA_DIR: u8 = 10;

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Some(command) = &flags.command {
        return ExitCode::from(command.run(random_seed));
    }
    let config = match flags.validate() {
        Ok(config) => config,
        Err(why) => {
            eprintln!("error: {why}\n\nFor more information, try 'kvstore --help'.");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    kvstore::logsink::install(flags.log_level.filter());
    outlive_file_size_limit();
    let disk = match RealDisk::open(&config.data_dir) {
        Ok(disk) => disk,
        Err(why) => return end(EXIT_DATA_DIR, &why),
    };
    match serve(config, disk) {
        Ok(()) => {
            kvstore::logsink::drain();
            ExitCode::SUCCESS
        }
        Err(reason) => end(reason.exit_code(), &reason),
    }
}

fn end(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    // Through the log, so that it stands behind what led to it, and on stderr even if logging is off.
    if log::max_level() >= log::LevelFilter::Error {
        error!("[node] {why} (exit code {code})");
        kvstore::logsink::drain();
    } else {
        eprintln!("error: {why}");
    }
    ExitCode::from(code)
}

fn serve(mut config: Config, mut disk: RealDisk) -> Result<(), FatalReason> {
    info!(
        "[node] kvstore {} pid={} listens on {} data_dir={}",
        env!("CARGO_PKG_VERSION"),
        std::process::id(),
        config.listen_address,
        config.data_dir.display()
    );
    info!("[node] {}", config.promise());
    warn_about_surroundings(&config, &disk);
    let bound = bind(&config.listen_address)?;
    prepare_flush(&mut config, &mut disk, &bound)?;
    pin(&config);
    keep_malloc_from_stalling();
    let options = LoopOptions {
        connections_max: connections_within_nofile(&config),
        busy_poll_us: config.busy_poll_us,
    };
    let clock = MonotonicClock::new();
    let seed =
        random_seed().map_err(|source| FatalReason::Net { doing: "get random bytes".to_owned(), source })?;
    let marks = marks_of(&config)?;
    let archive = config.archive.take();
    let has_ring = config.node.flush != FlushMode::Inline;
    let mut node = Node::open(Box::new(disk), Box::new(clock), seed, config.node)?;
    if let Some((directory, archive)) = archive {
        node.keep_archive(directory.display().to_string(), archive_opener(directory, has_ring), archive);
    }
    if node.is_loading() {
        info!("[node] answers ping and status; it takes its role when its state is loaded");
    } else {
        info!("[node] {}", node.ready_text());
    }
    node.set_marks(marks);
    run(bound, node, clock, options)
}

/// Makes the ring for flushes beside the loop, if there are to be any. Without one every flush is inline, which is
/// slower for some loads and nothing else.
fn prepare_flush(config: &mut Config, disk: &mut RealDisk, bound: &Bound) -> Result<(), FatalReason> {
    let node = &mut config.node;
    if node.flush == FlushMode::Inline || node.wal.durability == Durability::Os {
        return Ok(());
    }
    match FlushRing::new() {
        Ok(ring) => {
            bound.watch_flushes(&ring)?;
            disk.flush_through(ring);
        }
        Err(error) => {
            warn!(
                "[node] W007 --flush={} is not possible here, as io_uring does not work: {error}; each flush is \
                 inline. The sysctl kernel.io_uring_disabled or a sandbox may forbid it",
                node.flush.name()
            );
            node.flush = FlushMode::Inline;
            node.flush_refused = Some(error.to_string());
        }
    }
    Ok(())
}

/// Opens the archive, at the start and again after whatever failed in it. With a ring of its own no turn waits for the
/// sync of a copy.
fn archive_opener(directory: PathBuf, with_ring: bool) -> OpenDirectory {
    Box::new(move || {
        let mut disk = RealDisk::open_existing(&directory).map_err(|error| match error {
            OpenError::InUse { pid: Some(pid), .. } => {
                format!("{} is in use by the process with pid {pid}", directory.display())
            }
            error => error.to_string(),
        })?;
        if with_ring && let Ok(ring) = FlushRing::new() {
            disk.flush_through(ring);
        }
        Ok(Box::new(disk))
    })
}

/// A write beyond `ulimit -f` fails, and raises a signal of which a process dies without a word. With the signal
/// caught, by a handler that sets a flag nobody reads, it is a failed write like any other, with an exit code of
/// its own.
fn outlive_file_size_limit() {
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        warn!(
            "[node] cannot catch SIGXFSZ: {error}; a write beyond `ulimit -f` will end this process without words"
        );
    }
}

/// Runs the loop on one CPU, if asked to.
fn pin(config: &Config) {
    let Some(cpu) = config.cpu else { return };
    let mut set = rustix::thread::CpuSet::new();
    let pinned = if cpu < rustix::thread::CpuSet::MAX_CPU {
        set.set(cpu);
        rustix::thread::sched_setaffinity(None, &set).map_err(std::io::Error::from)
    } else {
        Err(std::io::ErrorKind::InvalidInput.into())
    };
    match pinned {
        Ok(()) => info!("[node] pinned to CPU {cpu}"),
        Err(error) => {
            warn!("[node] W006 cannot run on CPU {cpu} (--cpu): {error}; running wherever the kernel puts it")
        }
    }
}

/// glibc keeps freed pieces of up to 128 bytes apart and joins all of them at the next request of 1 KiB or
/// more: 10 ms after a million deletes (0.4 ms without). A loop of one thread cannot afford that.
#[allow(unsafe_code)]
fn keep_malloc_from_stalling() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a parameter of the allocator, before other threads could exist.
    unsafe {
        libc::mallopt(libc::M_MXFAST, 0);
    }
}

fn marks_of(config: &Config) -> Result<Marks, FatalReason> {
    if !config.strace_marks {
        return Ok(Marks::default());
    }
    let opening = || "open the data directory for --strace-marks".to_owned();
    Marks::with_notes(&config.data_dir).map_err(|source| FatalReason::Net { doing: opening(), source })
}

fn random_seed() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

fn warn_about_surroundings(config: &Config, disk: &RealDisk) {
    if config.beyond_loopback {
        warn!(
            "[node] W001 listening on {} beyond loopback: nothing authenticates yet, so whoever reaches the port can \
             read and write; allow only trusted hosts to connect",
            config.listen_address
        );
    }
    if matches!(disk.file_system(), Ok(FileSystem::Memory)) {
        warn!(
            "[node] W002 data directory {} is on tmpfs: what is called on disk here is gone with the machine's memory",
            config.data_dir.display()
        );
    }
}

/// Raises the soft descriptor limit as far as needed and allowed; fewer descriptors mean fewer connections.
fn connections_within_nofile(config: &Config) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = config.descriptors_needed();
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= needed {
        return config.connections_max;
    }
    let wanted = needed.min(limit.maximum.unwrap_or(u64::MAX));
    if setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).is_ok()
        && wanted == needed
    {
        return config.connections_max;
    }
    let available = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let connections = available.saturating_sub(needed - config.connections_max as u64).max(1) as usize;
    warn!(
        "[node] W003 nofile is {available}: {connections} connections at most instead of {}; raise it with \
         `ulimit -n {needed}`",
        config.connections_max
    );
    connections
}
