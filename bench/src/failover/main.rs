//! `kv_failover`: what clients of an elected cluster see while its nodes fail, and whether all of it was right.
//!
//! It starts three nodes ([`nodes`]) on a network that it can cut ([`network`]), lets clients write, remove and read
//! ([`load`]), all but one with numbered writes, makes one failure after the other ([`faults`]), and then judges the
//! whole [`history`] ([`check`]): no acknowledged write is lost, and there is one order of all that was told. It
//! prints how long clients waited ([`gaps`]) and draws it ([`timeline`]). It ends with 1 if anything is wrong, and
//! says what.

mod args;
mod check;
mod faults;
mod gaps;
mod history;
mod load;
mod network;
mod nodes;
// The search that the simulator's oracle uses. It knows nothing of either.
#[path = "../../../tests/sim/search.rs"]
mod search;
mod timeline;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use kvstore::rng::Rng;

use args::{Cli, Mode, NetChoice};
use faults::{Event, Kind};
use gaps::{Acks, Gaps};
use history::{Call, End};
use load::{Notes, Plan};
use network::Network;
use nodes::Nodes;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("kv_failover: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was right.
fn run(cli: &Cli) -> Result<bool, String> {
    let network = network_of(cli)?;
    let directory = Directory::make(&cli.data_dir)?;
    let seed = cli.seed.unwrap_or_else(|| u64::from(std::process::id()));
    let mut rng = Rng::new(seed);
    let kinds = cli.kinds(network.can_cut());
    println!("{}", describe(cli, &network, seed, &kinds));
    let mut nodes = Nodes::new(&cli.kvstore, &directory.path, network, cli.node_flags());
    for node in 0..nodes.count() {
        nodes.start(node)?;
    }
    nodes.wait_settled()?;

    let started = Instant::now();
    let plan = Plan {
        addresses: nodes.addresses.clone(),
        clients: cli.clients,
        plain: cli.plain,
        pause: Duration::from_micros(cli.pause_us),
        timeout: Duration::from_millis(cli.client_timeout_ms),
        seed,
    };
    let load = load::start(&plan, started)?;
    let mut told = |event: &Event| {
        if cli.verbose {
            eprintln!("{:8.3} s  {}", event.at as f64 / 1e9, event.title());
        }
    };
    let made = match cli.mode() {
        Mode::Mixed(lasting) => faults::mixed(&mut nodes, &load, &mut rng, &kinds, lasting, &mut told),
        Mode::Kills(count) => faults::kills(&mut nodes, &load, &mut rng, (count, cli.away()), &mut told),
        Mode::Rolling(rounds) => faults::rolling(&mut nodes, &load, &mut rng, rounds, &mut told),
    };
    let notes = load.finish();
    let events = made?;
    let at_end = nodes.wait_equal()?;
    println!("at the end all nodes hold the same state at LSN {at_end}");
    let mut keys: Vec<_> = notes.calls.iter().map(|call| call.key).collect();
    keys.sort_unstable();
    keys.dedup();
    let last_reads = load::read_all(&plan, started, keys.into_iter())?;
    drop(nodes);
    judge(cli, &plan, &events, notes, last_reads)
}

fn network_of(cli: &Cli) -> Result<Network, String> {
    match cli.net {
        NetChoice::Loopback => Network::loopback(cli.nodes),
        _ if Network::is_inside() => Network::namespaces(cli.nodes),
        NetChoice::Namespaces => Err(format!("no network namespaces: {}", Network::enter())),
        NetChoice::Auto => {
            eprintln!("kv_failover: links are NOT cut in this run; that {}", Network::enter());
            Network::loopback(cli.nodes)
        }
    }
}

fn describe(cli: &Cli, network: &Network, seed: u64, kinds: &[Kind]) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let what = match cli.mode() {
        Mode::Mixed(lasting) => format!("{:.0} s of failures: {}", lasting.as_secs_f64(), names.join(", ")),
        Mode::Kills(count) => format!("kill -9 of the leader, {count} x"),
        Mode::Rolling(rounds) => format!("rolling restart, {rounds} x"),
    };
    let where_ = if network.can_cut() { "network namespaces" } else { "loopback" };
    let timeout =
        cli.election_timeout_ms.map_or_else(String::new, |ms| format!(", election timeout {ms} ms"));
    format!("{what}; {} nodes on {where_}{timeout}, {} clients, seed {seed}", cli.nodes, cli.clients)
}

fn judge(
    cli: &Cli,
    plan: &Plan,
    events: &[Event],
    notes: Notes,
    last_reads: Vec<Call>,
) -> Result<bool, String> {
    let acks = Acks::of(&notes.calls, plan.clients);
    let gaps: Vec<Gaps> = events.iter().map(|event| acks.gaps(event)).collect();
    let ended = |wanted: &dyn Fn(&Call) -> bool| notes.calls.iter().filter(|call| wanted(call)).count();
    let is_unknown = |call: &Call| call.end == End::Unknown;
    println!(
        "{} writes acknowledged, of which {} had lost an answer and were asked for again; {} without an answer, {} of \
         them numbered; {} refused; {} reads; {} keys read at the end",
        ended(&|call| call.is_write() && call.answered().is_some()),
        notes.resolved,
        ended(&is_unknown),
        ended(&|call| is_unknown(call) && call.client + plan.plain < plan.clients),
        ended(&|call| call.end == End::Refused),
        ended(&|call| !call.is_write()),
        last_reads.len()
    );
    print!("\n{}\n", gaps::table(events, &gaps));
    let path = cli.out.join(format!("failover-{}.svg", cli.mode().name()));
    write(&path, &timeline::svg(&describe_short(cli), events, &gaps, &acks.all))?;
    println!("timeline of every failure: {}", path.display());

    let begun = Instant::now();
    let calls = [notes.calls, last_reads].concat();
    let violations = check::check(&calls);
    let mut is_right = violations.is_empty();
    if is_right {
        println!(
            "NOTHING LOST, LINEARIZABLE: {} calls, by their LSNs and by a search without them ({:.1} s)",
            calls.len(),
            begun.elapsed().as_secs_f64()
        );
    } else {
        println!("WRONG:\n{violations}");
    }
    let each: Vec<u64> = gaps.iter().flat_map(|gaps| gaps.each.iter().copied()).collect();
    let [_, _, p99, _] = gaps::percentiles(&each);
    if cli.p99_ms.is_some_and(|limit| p99 >= limit) {
        println!(
            "TOO SLOW: p99 of what a client waited is {p99:.1} ms, allowed are {:.0}",
            cli.p99_ms.unwrap_or(0.0)
        );
        is_right = false;
    }
    if matches!(cli.mode(), Mode::Rolling(_)) && !notes.failed_writes.is_empty() {
        println!(
            "FAILED WRITES in a rolling restart: {}, as: {}",
            notes.failed_writes.len(),
            notes.failed_writes[0]
        );
        is_right = false;
    }
    Ok(is_right)
}

fn describe_short(cli: &Cli) -> String {
    format!("{} nodes, {} clients: {}", cli.nodes, cli.clients, cli.mode().name())
}

fn write(path: &std::path::Path, text: &str) -> Result<(), String> {
    let directory = path.parent().expect("it has a name");
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::File::create(path))
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|why| format!("cannot write {}: {why}", path.display()))
}

/// A directory that goes with the run; one that failed is left for a look.
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn make(parent: &std::path::Path) -> Result<Directory, String> {
        let path = parent.join(format!("kv_failover-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|why| format!("cannot make {}: {why}", path.display()))?;
        Ok(Directory { path })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left; the run is over.
        let _left = std::fs::remove_dir_all(&self.path);
    }
}
