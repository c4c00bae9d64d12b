//! `kv_bench`: a load generator that does not hide stalls, and the floor of the machine beside it.
//!
//! [`load`] makes the requests and takes the times, [`protocol`] knows how each store speaks, [`floor`] is
//! what no store of this kind can be faster than, [`report`] and [`plot`] show it, [`tables`],
//! [`targets`] and [`snapshots`] put the results of many measurements side by side.

mod args;
mod clock;
mod floor;
mod load;
mod machine;
mod measure;
mod plot;
mod protocol;
mod report;
mod revision;
mod snapshots;
mod tables;
mod targets;
mod template;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, LoadArgs};
use floor::Floor;
use load::{Load, Source};
use measure::Summary;
use protocol::Dialect;
use report::Report;
use template::Random;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        None => measure(&cli.load),
        Some(Command::Targets { dir }) => targets::targets(dir).map(|text| print!("{text}")),
        Some(Command::Snapshots { dir, keys }) => snapshots::table(dir, *keys).map(|text| print!("{text}")),
        Some(Command::Table { files }) => tables::table(files).map(|text| print!("{text}")),
        Some(Command::FloorLeader(args)) => floor::leader_main(args),
        Some(Command::FloorFollower(args)) => floor::follower_main(args),
        Some(Command::FloorSync(args)) => floor::sync_main(args),
        Some(Command::FloorPong) => floor::pong_main(),
        Some(Command::FloorCopy { from, directory }) => floor::copy_main(from, directory),
        Some(Command::FloorWake) => floor::wake_main(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("kv_bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &LoadArgs) -> Result<(), String> {
    args.check()?;
    let hold = machine::LatencyHold::take();
    let mut machine = machine::describe(&args.data_dir, &hold);
    let node = args.endpoint.as_deref().filter(|_| args.protocol == args::ProtocolName::Kv);
    report::merge(&mut machine, revision::describe(node));
    let mut progress = Progress::new();
    let mut store = args.endpoint.as_ref().map(|_| Summary::default());
    let mut floor = args.floor.then(|| Floor::new(args));
    if let Some(endpoint) = &args.endpoint {
        if args.op.get_percent > 0 && !args.no_fill {
            progress.stage("writing the keys");
            fill(endpoint, args, &mut progress)?;
        }
    }
    // Interleaved: what changes on the machine meanwhile changes both.
    for run in 1..=args.runs {
        if let (Some(endpoint), Some(summary)) = (&args.endpoint, &mut store) {
            progress.stage(&format!("run {run} of {}: store", args.runs));
            let load = store_load(endpoint, args, run as u64);
            summary.runs.push(load::run(load, &mut |seconds, count| progress.show(seconds, count))?);
        }
        if let Some(floor) = &mut floor {
            progress.stage(&format!("run {run} of {}: floor", args.runs));
            floor.measure_run(args, &mut |seconds, count| progress.show(seconds, count))?;
        }
    }
    progress.end();
    write_report(&Report { args, machine, store, floor })
}

fn store_load<'a>(endpoint: &'a str, args: &'a LoadArgs, seed: u64) -> Load<'a> {
    Load {
        endpoint,
        dialect: Box::new(|| Dialect::new(args)),
        connections: args.connections,
        pipeline: args.pipeline,
        source: Source::Drawn {
            keys: args.keys,
            get_percent: args.op.get_percent,
            random: Random::new(seed),
        },
        rate: args.rate,
        warmup: args.warmup,
        duration: args.duration,
    }
}

fn fill(endpoint: &str, args: &LoadArgs, progress: &mut Progress) -> Result<(), String> {
    let load = Load {
        connections: 50,
        pipeline: args.pipeline.max(16),
        source: Source::Fill { next: 0, keys: args.keys },
        rate: None,
        warmup: 0.0,
        duration: 600.0,
        ..store_load(endpoint, args, 0)
    };
    let run = load::run(load, &mut |seconds, count| progress.show(seconds, count))?;
    if run.completed == args.keys && run.errors.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{endpoint}: of {} keys to read, {} could be written; errors: {:?}",
        args.keys, run.completed, run.errors
    ))
}

fn write_report(report: &Report<'_>) -> Result<(), String> {
    let args = report.args;
    let json_to_stdout = args.json.as_deref() == Some(Path::new("-"));
    if !json_to_stdout {
        print!("{}", report.to_text());
    }
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", report.to_json());
        if json_to_stdout { print!("{text}") } else { write(path, text)? }
    }
    if let Some(path) = &args.hgrm {
        write(path, report.to_hgrm())?;
    }
    if let Some(path) = &args.svg {
        write(path, report.to_svg())?;
    }
    Ok(())
}

/// One line on standard error, where a person looks at it; nothing otherwise.
struct Progress {
    visible: bool,
    stage: String,
}

impl Progress {
    fn new() -> Progress {
        Progress { visible: std::io::stderr().is_terminal(), stage: String::new() }
    }

    fn stage(&mut self, name: &str) {
        name.clone_into(&mut self.stage);
        self.line("");
    }

    fn show(&self, seconds: f64, count: u64) {
        if self.visible {
            self.line(&format!(": {seconds:.1} s, {count} requests"));
        }
    }

    fn line(&self, rest: &str) {
        if self.visible {
            let mut stderr = std::io::stderr();
            // A terminal that is gone must not end a measurement.
            let _ = write!(stderr, "\r\x1b[K{}{rest}", self.stage);
            let _ = stderr.flush();
        }
    }

    fn end(&mut self) {
        self.stage("");
    }
}
