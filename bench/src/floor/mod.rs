//! What this machine allows, measured in the same minute as the store.
//!
//! *Parts*: fdatasync into a preallocated file, alone and with three processes at it; a ping-pong over
//! loopback through epoll; a wake-up of another process. *The replicated floor*: a bare leader and bare
//! followers, processes of their own, that do nothing but recv, write, send, fdatasync and ack, on the disk of
//! `--data-dir`, under the same load from the same generator. Nothing that has to do the same for the sake
//! of durability can be faster in the same way; a store is good when it comes close.
//!
//! It shares no code with the product: not a frame, not a log, not a buffer. What a bare node leaves out is
//! everything a store is for: it parses nothing, keeps nothing in memory, checks nothing, survives nothing.
//!
//! A floor can be wrong too (a neighbour on the disk, a processor that slept). So each is judged by its
//! parts: two ping-pongs and one fdatasync with three at it are what one write costs at least, and a
//! floor whose p50 at one connection is above 1.3 times that is void.

mod bare_follower;
mod bare_leader;
mod child;
mod copy;
mod file;
mod outbox;
mod parts;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::args::LoadArgs;
use crate::load::{self, Load, Source};
use crate::measure::{Run, Summary, quantile_us};
use crate::protocol::{Dialect, floor_request_size};
use crate::template::Random;

pub use bare_follower::main as follower_main;
pub use bare_leader::main as leader_main;
pub use copy::main as copy_main;
pub use parts::{Parts, pong_main, sync_main, wake_main};

use child::Child;

/// When a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ack {
    /// On the leader's disk and on one follower's: the majority of three.
    Quorum,
    /// On every disk.
    Insync,
    /// On the leader's disk.
    Leader,
}

impl Ack {
    /// The flag's value.
    pub fn name(self) -> &'static str {
        match self {
            Ack::Quorum => "quorum",
            Ack::Insync => "insync",
            Ack::Leader => "leader",
        }
    }

    /// Followers that must have it.
    fn followers_needed(self, followers: usize) -> usize {
        match self {
            Ack::Quorum => followers.div_ceil(2),
            Ack::Insync => followers,
            Ack::Leader => 0,
        }
    }
}

/// A floor whose p50 at one connection is above so many times the sum of its parts is void.
const VOID_FACTOR: f64 = 1.3;
/// Seconds of the check at one connection, where the load is not that itself.
const CHECK_SECONDS: f64 = 1.0;
const CHECK_WARMUP_SECONDS: f64 = 0.3;

/// A name in the data directory for a file of ours. Files lose their names as soon as they are open, so that
/// even a kill leaves nothing behind.
fn file_name(data_dir: &Path, what: &str) -> PathBuf {
    data_dir.join(format!(".kv_bench-{}-{what}", std::process::id()))
}

/// What the floor gave.
#[derive(Default)]
pub struct Floor {
    parts: Option<Parts>,
    summary: Summary,
    /// p50 in microseconds at one connection, of each run.
    check_p50_us: Vec<f64>,
    nodes: usize,
}

impl Floor {
    /// Nothing measured yet.
    pub fn new(args: &LoadArgs) -> Floor {
        Floor { nodes: args.floor_nodes, ..Floor::default() }
    }

    /// One run: the parts, then the bare nodes at one connection and under the load. The parts are measured
    /// in every run, because what disturbs a machine comes and goes, and must not disturb only one of them.
    pub fn measure_run(&mut self, args: &LoadArgs, progress: &mut dyn FnMut(f64, u64)) -> Result<(), String> {
        let parts = Parts::measure(&args.data_dir)?;
        match &mut self.parts {
            Some(together) => together.add(&parts),
            None => self.parts = Some(parts),
        }
        let cluster = Cluster::start(args)?;
        let endpoint = cluster.address.to_string();
        let seed = self.summary.runs.len() as u64;
        let is_check = args.connections == 1 && args.pipeline == 1 && args.rate.is_none();
        if !is_check {
            let (warmup, duration) = (CHECK_WARMUP_SECONDS, CHECK_SECONDS);
            let check =
                LoadArgs { connections: 1, pipeline: 1, rate: None, warmup, duration, ..args.clone() };
            let check = run_load(&endpoint, &check, seed, progress)?;
            self.check_p50_us.push(quantile_us(&check.service_ns, 0.5));
        }
        let run = run_load(&endpoint, args, seed, progress)?;
        if is_check {
            self.check_p50_us.push(quantile_us(&run.service_ns, 0.5));
        }
        self.summary.runs.push(run);
        Ok(())
    }

    /// The runs under the load.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The parts, once measured.
    pub fn parts(&self) -> Option<&Parts> {
        self.parts.as_ref()
    }

    /// p50 at one connection: the median of the checks.
    pub fn check_p50_us(&self) -> Option<f64> {
        crate::measure::Spread::of(self.check_p50_us.iter().copied()).map(|spread| spread.median)
    }

    /// The most that p50 at one connection may be.
    pub fn check_limit_us(&self) -> Option<f64> {
        self.parts.as_ref().map(|parts| VOID_FACTOR * parts.write_us(self.nodes))
    }

    /// Whether the floor must not be used.
    pub fn is_void(&self) -> bool {
        match (self.check_p50_us(), self.check_limit_us()) {
            (Some(p50), Some(limit)) => p50 > limit,
            _ => true,
        }
    }

    /// Of the same form as a store's result, and the parts.
    pub fn to_json(&self) -> Value {
        let mut json = self.summary.to_json();
        json["void"] = self.is_void().into();
        json["nodes"] = self.nodes.into();
        json["one_connection_p50_us"] = json!(self.check_p50_us());
        json["one_connection_p50_us_limit"] = json!(self.check_limit_us());
        json["parts"] = self.parts.as_ref().map(Parts::to_json).into();
        json
    }
}

fn run_load(
    endpoint: &str,
    args: &LoadArgs,
    seed: u64,
    progress: &mut dyn FnMut(f64, u64),
) -> Result<Run, String> {
    let value_size = args.value_size;
    let load = Load {
        endpoint,
        dialect: Box::new(move || Dialect::floor(value_size)),
        connections: args.connections,
        pipeline: args.pipeline,
        source: Source::Drawn { keys: args.keys, get_percent: 0, random: Random::new(seed) },
        rate: args.rate,
        warmup: args.warmup,
        duration: args.duration,
    };
    load::run(load, progress)
}

/// The bare nodes. Dropping it ends them; the leader first, because it would complain about lost followers.
struct Cluster {
    address: SocketAddr,
    _leader: Child,
    _followers: Vec<Child>,
}

impl Cluster {
    fn start(args: &LoadArgs) -> Result<Cluster, String> {
        let mut followers = Vec::new();
        let mut addresses = Vec::new();
        for index in 1..args.floor_nodes {
            let file = file_name(&args.data_dir, &format!("follower-{index}"));
            let mut child = Child::start(&["floor-follower", "--file", child::text(&file)?])?;
            addresses.push(child.read_address()?.to_string());
            followers.push(child);
        }
        let file = file_name(&args.data_dir, "leader");
        let request_size = floor_request_size(args.value_size).to_string();
        let addresses = addresses.join(",");
        let mut flags = vec!["floor-leader", "--file", child::text(&file)?, "--request-size", &request_size];
        flags.extend(["--ack", args.floor_ack.name()]);
        if !addresses.is_empty() {
            flags.extend(["--followers", &addresses]);
        }
        let mut leader = Child::start(&flags)?;
        let address = leader.read_address()?;
        Ok(Cluster { address, _leader: leader, _followers: followers })
    }
}
