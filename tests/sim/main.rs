//! The deterministic simulator: the shipping node, log, wire format and connections as a whole cluster in
//! one process, on a virtual clock, over disks and a network that fail. One seed, one history.
//!
//! ```text
//! cargo test --release --test sim                       the CI set: a fixed number of seeds
//! cargo test --release --test sim -- --seed 4711 -v     one seed again, with its trace
//! cargo test --release --test sim -- --seconds 600      new seeds, as many as fit
//! ... --elected                                         clusters that elect their leader, instead of fixed roles
//! ```
//!
//! What is simulated: everything below `node` and `conn` (`disk::Disk`, sockets, the clock, randomness). What
//! is not: mio, the real file system, threads (there are none).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

mod aim;
mod aim_change;
mod archives;
mod args;
mod away;
mod backups;
mod bounds;
mod broken;
mod client;
mod core;
mod cores;
mod crowd;
mod decay;
mod disk;
mod drills;
mod elected;
mod faults;
mod flips;
mod heal;
mod histories;
mod host;
mod knobs;
mod late;
mod library;
mod lists;
mod losses;
#[path = "../support/mem_disk.rs"]
mod mem_disk;
mod mirror;
mod mishaps;
mod net;
mod numbered;
mod oracle;
mod promises;
mod proof;
mod quorums;
mod receipts;
mod replaced;
mod replies;
mod sabotage;
mod search;
mod seed;
mod socks;
mod stats;
mod trace;
mod victims;
mod world;

use args::{Args, Mode};
use seed::Seed;
use stats::Stats;
use world::{Outcome, World};

/// Seeds of the CI set: under two minutes in release, under 40 s in debug, if there were one core only.
const CI_SEEDS: u64 = if cfg!(debug_assertions) { 50 } else { 2_500 };
/// The same, of clusters that elect their leader.
const CI_SEEDS_ELECTED: u64 = if cfg!(debug_assertions) { 25 } else { 1_000 };

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    trace::install(args.verbose);
    std::panic::set_hook(Box::new(trace::note_panic));
    match args.mode {
        Mode::List => ExitCode::SUCCESS,
        Mode::Sabotage(name) => sabotage::run(name, args.from, args.count.unwrap_or(sabotage::SEEDS)),
        Mode::One(number) => one(Seed { number, elected: args.elected }, args.verbose),
        Mode::Hunt(seconds) => hunt(seconds, Seed { number: args.from, elected: args.elected }),
        Mode::Ci => ci(&args),
    }
}

/// Runs a seed; what went wrong, if something did.
fn run(seed: Seed, verbose: bool, hash_trace: bool) -> Result<Outcome, String> {
    trace::begin_run();
    library::clear();
    let result = catch_unwind(AssertUnwindSafe(|| World::new(seed, verbose, hash_trace).run()));
    result.map_err(|_| trace::panic_text())
}

/// Runs a seed; one that fails is reported at once.
fn reported(seed: Seed) -> Option<Outcome> {
    run(seed, false, false).map_err(|why| report(seed, &why)).ok()
}

fn report(seed: Seed, why: &str) {
    let (_, knobs) = seed.begin();
    println!("seed {seed} FAILED at commit {}: {why}", trace::commit());
    println!("  {knobs:?}");
    println!("  replay: cargo test --release --test sim -- --seed {seed} -v");
}

fn one(seed: Seed, verbose: bool) -> ExitCode {
    match run(seed, verbose, true) {
        Ok(outcome) => {
            outcome.stats.print();
            println!(
                "seed {seed}: {:.1} virtual s, {} turns, trace {:08x}",
                outcome.virtual_ns as f64 / 1e9,
                outcome.turns,
                outcome.trace_hash
            );
            println!("1 passed, 0 failed");
            ExitCode::SUCCESS
        }
        Err(why) => {
            report(seed, &why);
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

/// Totals over many seeds.
#[derive(Default)]
struct Totals {
    stats: Stats,
    passed: u64,
    failed: u64,
    virtual_ns: u64,
    turns: u64,
}

impl Totals {
    fn take(&mut self, outcome: Option<Outcome>) {
        let Some(outcome) = outcome else {
            self.failed += 1;
            return;
        };
        self.passed += 1;
        self.stats.merge(&outcome.stats);
        self.virtual_ns += outcome.virtual_ns;
        self.turns += outcome.turns;
    }

    /// The table; what of a CI set never happened.
    fn print(&self, began: Instant, elected: bool) -> Vec<&'static str> {
        self.stats.print();
        let missing = self.stats.missing(elected);
        println!("\n{} seeds at commit {}:", self.passed + self.failed, trace::commit());
        println!("  {:>14.1}  simulated hours", self.virtual_ns as f64 / 3.6e12);
        println!("  {:>14}  turns of a node", self.turns);
        println!("  {:>14}  acknowledged writes", self.stats.of("client: acknowledged write"));
        println!(
            "  {:>14}  faults, of {} kinds",
            self.stats.sum(stats::FAULTS),
            self.stats.kinds(stats::FAULTS)
        );
        println!("  {:>14}  checks of single events", self.stats.sum(&["check: "]));
        println!("  {:>14.1}  seconds", began.elapsed().as_secs_f64());
        missing
    }
}

/// The CI sets: of fixed roles, of elected ones, or of both.
fn ci(args: &Args) -> ExitCode {
    let mut failed = 0;
    let sets = [(false, CI_SEEDS), (true, CI_SEEDS_ELECTED)];
    for (elected, seeds) in sets.into_iter().filter(|(elected, _)| *elected || !args.elected) {
        let from = Seed { number: args.from, elected };
        failed += ci_set(from, args.count.unwrap_or(seeds), seeds);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One set; how many of its seeds and conditions failed.
fn ci_set(from: Seed, count: u64, whole: u64) -> u64 {
    let began = Instant::now();
    let mut totals = Totals::default();
    let count = usize::try_from(count).expect("so many seeds have numbers");
    let run = |at| reported(Seed { number: from.number + at as u64, ..from });
    cores::each(count, run).into_iter().for_each(|outcome| totals.take(outcome));
    let missing = totals.print(began, from.elected);
    // A handful of debug seeds cannot meet everything.
    let must_fire = !cfg!(debug_assertions) && count as u64 >= whole;
    if must_fire && !missing.is_empty() {
        totals.failed += 1;
        println!("never happened: {missing:?}");
    }
    if !the_same_twice(from) {
        totals.failed += 1;
    }
    println!("{} passed, {} failed", totals.passed, totals.failed);
    totals.failed
}

/// The same seed gives the same trace, byte for byte.
fn the_same_twice(from: Seed) -> bool {
    (from.number..from.number + 5).all(|number| {
        let seed = Seed { number, ..from };
        let trace = || run(seed, false, true).map_or(0, |outcome| outcome.trace_hash);
        let (first, second) = (trace(), trace());
        if first != second {
            println!("seed {seed} gave two traces: {first:08x} and {second:08x}");
        }
        first == second
    })
}

fn hunt(seconds: u64, from: Seed) -> ExitCode {
    let began = Instant::now();
    let mut totals = Totals::default();
    let mut next_line = 10;
    let mut seed = from;
    while began.elapsed() < Duration::from_secs(seconds) {
        totals.take(reported(seed));
        seed.number += 1;
        if began.elapsed().as_secs() >= next_line {
            next_line += 10;
            let seeds = seed.number - from.number;
            println!("{} s: {seeds} seeds, {} failed", began.elapsed().as_secs(), totals.failed);
        }
    }
    totals.print(began, from.elected);
    println!("{} passed, {} failed", totals.passed, totals.failed);
    if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
