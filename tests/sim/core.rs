//! What everything in a run shares: the virtual clock, the one event heap, the one generator, the network.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use kvstore::conn::DialId;
use kvstore::rng::Rng;

use crate::knobs::Knobs;
use crate::lists::Directories;
use crate::net::Net;
use crate::stats::Stats;

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;

/// A handle to the shared part of one run.
pub type Shared = Rc<RefCell<Core>>;

/// What happens at a moment of virtual time.
#[derive(Clone, Debug)]
pub enum Event {
    /// A host's loop wakes up; void unless the token is the host's newest.
    Turn { host: usize, token: u64 },
    /// Bytes, an end or a reset reach the receiving side of a connection.
    Arrive { conn: usize, dir: usize },
    /// A sender that found the socket full may write again.
    Writable { conn: usize, side: usize },
    /// A connect is answered.
    Dial { host: usize, incarnation: u64, dial: DialId, target: Option<usize> },
    /// A client acts.
    Client(usize),
    /// The operator acts.
    Operator,
    /// The next fault is drawn.
    Fault,
    /// A link of this host fails once more.
    Flap(usize),
    /// A link that flaps fails again, so many times.
    Toggle { one: usize, other: usize, times: u64 },
    /// The operator looks after a rolling restart.
    Rolling,
    /// The operator looks after a leader that refuses to start.
    Rescue,
    /// The second node of one identity gets a directory of its own.
    TwinEnds,
    /// A follower is away until the log has gone on without it.
    Away { site: usize, steps: u64 },
    /// Something comes in between when it is back.
    Trouble { site: usize, trouble: crate::away::Trouble },
    /// What a leader sent to this host in an earlier session arrives at last.
    LetLateGo(usize),
    /// The next step of what an aimed run is aimed at.
    Aim,
    /// Each member of an aimed run is asked for one key.
    Probe,
    /// A blocked link works again.
    Unblock { from: usize, to: usize },
    /// A dead process is started.
    Start(usize),
    /// A process that had a crash point and did not reach it ends all the same.
    CrashNow { host: usize, incarnation: u64, power: bool },
    /// A paused process goes on.
    Continue(usize),
    /// A disk has space again.
    SpaceBack(usize),
    /// Nothing breaks any more.
    Heal,
    /// The end of the second phase.
    Deadline,
}

/// See the head of this file.
pub struct Core {
    /// Nanoseconds of virtual time.
    pub now: u64,
    /// The only source of randomness.
    pub rng: Rng,
    /// What is to happen, by time and then by the order in which it was asked for.
    pub heap: BTreeMap<(u64, u64), Event>,
    seq: u64,
    /// What fired.
    pub stats: Stats,
    /// The probabilities of this run.
    pub knobs: Knobs,
    /// All connections.
    pub net: Net,
    /// Which node each host is.
    pub directories: Directories,
    /// ACKs told and disks crashed on a copy so far, by all hosts.
    pub acks_told: u64,
    pub proofs: u64,
    /// HAND_OVER was handed to the network by this host.
    pub hand_over_left: Option<usize>,
    /// Print every step.
    pub verbose: bool,
    /// Keep a checksum of the trace even if it is not printed.
    pub hash_trace: bool,
    /// That checksum.
    pub trace_hash: u32,
}

impl Core {
    /// A run that has not begun.
    pub fn new(rng: Rng, knobs: Knobs, verbose: bool, hash_trace: bool) -> Core {
        let sites = knobs.hosts + knobs.clients + 1;
        Core {
            now: 1,
            rng,
            heap: BTreeMap::new(),
            seq: 0,
            stats: Stats::default(),
            net: Net::new(sites),
            directories: Directories::new(knobs.hosts),
            knobs,
            acks_told: 0,
            proofs: 0,
            hand_over_left: None,
            verbose,
            hash_trace,
            trace_hash: 0,
        }
    }

    /// Puts an event on the heap.
    pub fn at(&mut self, time: u64, event: Event) {
        self.seq += 1;
        self.heap.insert((time.max(self.now), self.seq), event);
    }

    /// Puts an event on the heap, `delay` from now.
    pub fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    /// True with a probability of `per_million`.
    pub fn chance(&mut self, per_million: u64) -> bool {
        per_million > 0 && self.rng.below(1_000_000) < per_million
    }

    /// True with one of the probabilities of this run.
    pub fn chance_of(&mut self, ppm: impl FnOnce(&Knobs) -> u64) -> bool {
        let ppm = ppm(&self.knobs);
        self.chance(ppm)
    }

    /// Any of the hosts.
    pub fn some_host(&mut self) -> usize {
        self.rng.below(self.knobs.hosts as u64) as usize
    }

    /// A number of `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.rng.below(high - low + 1)
    }

    /// One line of the trace; nothing is formatted if nobody reads it.
    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.verbose || self.hash_trace {
            let text = format!("{:>14.6} {}", self.now as f64 / 1e6, line());
            if self.verbose {
                println!("{text}");
            }
            let mut hasher = crc32fast::Hasher::new_with_initial(self.trace_hash);
            hasher.update(text.as_bytes());
            self.trace_hash = hasher.finalize();
        }
    }
}
