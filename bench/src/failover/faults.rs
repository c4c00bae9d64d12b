//! What is done to the nodes, and when: one failure after the other, each mended and waited for before the next.

use std::thread;
use std::time::{Duration, Instant};

use kvstore::rng::Rng;
use rustix::process::Signal;

use super::load::Running;
use super::network::Cut;
use super::nodes::{DEADLINE, Nodes};

/// Writes between the end of one failure and the next: the cluster is at work when it begins.
const WRITES_BETWEEN: u64 = 100;

/// A kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9, and a start a little later.
    Kill,
    /// SIGSTOP, and SIGCONT a little later.
    Stop,
    /// Packets get lost for a while.
    CutOff,
    /// The same between nodes only.
    CutFromPeers,
    /// The same, and only what it sends.
    CutOutgoing,
    /// kill -9 of all nodes at once, and a start of all.
    KillAll,
    /// SIGTERM, and a start when it has ended.
    Restart,
}

impl Kind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill -9",
            Kind::Stop => "stop",
            Kind::CutOff => "cut off",
            Kind::CutFromPeers => "cut from peers",
            Kind::CutOutgoing => "outgoing lost",
            Kind::KillAll => "kill -9 all",
            Kind::Restart => "SIGTERM, start",
        }
    }
}

/// A failure that was.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: Kind,
    /// By number, from 0.
    pub node: usize,
    pub was_leader: bool,
    /// Nanoseconds since the start of the run.
    pub at: u64,
    /// When it was over, mended and caught up with.
    pub settled: u64,
}

impl Event {
    /// In words.
    pub fn title(&self) -> String {
        let whose = if self.was_leader { "leader" } else { "follower" };
        format!("{} of the {whose}, node {}", self.kind.name(), self.node + 1)
    }
}

/// Random failures of these kinds for so long.
pub fn mixed(
    nodes: &mut Nodes,
    load: &Running,
    rng: &mut Rng,
    kinds: &[Kind],
    lasting: Duration,
    told: &mut dyn FnMut(&Event),
) -> Result<Vec<Event>, String> {
    let until = Instant::now() + lasting;
    let mut events: Vec<Event> = Vec::new();
    while Instant::now() < until {
        // In turn, so that a short run has some of each; leaders twice as often as followers.
        let kind = kinds[events.len() % kinds.len()];
        let on_leader = rng.below(3) > 0;
        let hold = Duration::from_millis(50 + rng.below(1_500));
        let event = fail(nodes, load, rng, kind, on_leader, hold)?;
        told(&event);
        events.push(event);
    }
    Ok(events)
}

/// The leader is killed so many times, and stays away until the others have gone on: what is measured is their doing.
pub fn kills(
    nodes: &mut Nodes,
    load: &Running,
    rng: &mut Rng,
    (count, away): (usize, Duration),
    told: &mut dyn FnMut(&Event),
) -> Result<Vec<Event>, String> {
    let mut events = Vec::new();
    for _ in 0..count {
        let event = fail(nodes, load, rng, Kind::Kill, true, away)?;
        told(&event);
        events.push(event);
    }
    Ok(events)
}

/// Every node is restarted in turn, so many times.
pub fn rolling(
    nodes: &mut Nodes,
    load: &Running,
    rng: &mut Rng,
    rounds: usize,
    told: &mut dyn FnMut(&Event),
) -> Result<Vec<Event>, String> {
    let mut events = Vec::new();
    for _ in 0..rounds {
        for node in 0..nodes.count() {
            load.wait_for_writes(WRITES_BETWEEN, DEADLINE).map_err(|why| why + &nodes.log_ends())?;
            let was_leader = nodes.leader()? == node;
            pause(rng);
            let at = load.now_ns();
            nodes.end(node)?;
            nodes.start(node)?;
            nodes.wait_settled()?;
            let event = Event { kind: Kind::Restart, node, was_leader, at, settled: load.now_ns() };
            told(&event);
            events.push(event);
        }
    }
    Ok(events)
}

fn fail(
    nodes: &mut Nodes,
    load: &Running,
    rng: &mut Rng,
    kind: Kind,
    on_leader: bool,
    hold: Duration,
) -> Result<Event, String> {
    load.wait_for_writes(WRITES_BETWEEN, DEADLINE).map_err(|why| why + &nodes.log_ends())?;
    let leader = nodes.leader()?;
    let node = if on_leader { leader } else { (leader + 1 + rng.below(2) as usize) % nodes.count() };
    pause(rng);
    let at = load.now_ns();
    match kind {
        Kind::Kill | Kind::Restart => {
            nodes.kill(node);
            thread::sleep(hold);
            nodes.start(node)?;
        }
        Kind::KillAll => {
            (0..nodes.count()).for_each(|node| nodes.kill(node));
            (0..nodes.count()).try_for_each(|node| nodes.start(node))?;
        }
        Kind::Stop => {
            nodes.signal(node, Signal::STOP);
            thread::sleep(hold);
            nodes.signal(node, Signal::CONT);
        }
        Kind::CutOff | Kind::CutFromPeers | Kind::CutOutgoing => {
            let cut = match kind {
                Kind::CutOff => Cut::Off,
                Kind::CutFromPeers => Cut::Peers,
                _ => Cut::Outgoing,
            };
            nodes.network.cut(node, cut, true)?;
            thread::sleep(hold);
            nodes.network.cut(node, cut, false)?;
        }
    }
    nodes.wait_settled()?;
    Ok(Event { kind, node, was_leader: node == leader, at, settled: load.now_ns() })
}

/// At another place between two heartbeats each time.
fn pause(rng: &mut Rng) {
    thread::sleep(Duration::from_micros(rng.below(200_000)));
}
