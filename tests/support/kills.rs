//! What the hunts with kill -9 share: numbered writes whose acknowledgements are remembered, and lives that end at a
//! system call drawn from a recording (see `tests/real/kills_anywhere.rs`).

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kvstore::wire::client::{Request, Status};

use super::cluster::{DEADLINE, Node, Seeded};
use super::strace::{Call, Recorded};

/// The smallest there are: a segment is full after about twenty writes.
pub const SEGMENTS: &str = "--segment-bytes=65536";
/// Writes on their way at once.
const PIPELINE: u64 = 6;
/// Keys that the numbers are written to in turn.
const KEYS: u64 = 120;

/// The file that a node opens first: what comes before is the loader's.
pub const OWN_BEGIN: &str = "LOCK";

/// What was acknowledged, and by whom which term was told.
#[derive(Debug, Default)]
pub struct Notes {
    /// The last number sent. Numbers rise, whatever becomes of them.
    pub number: u64,
    /// The last number acknowledged of each key.
    pub acked: BTreeMap<u64, u64>,
    pub acked_count: u64,
    /// Of the last write acknowledged.
    pub last_lsn: u64,
    /// The highest term that a node has told, by its port.
    pub terms: BTreeMap<u16, u64>,
}

impl Notes {
    /// Writes numbers until as many are acknowledged or one fails. Only one writer is at work, so LSNs and terms of
    /// its acknowledgements rise, whichever node they come from.
    pub fn write(&mut self, node: &Node, count: u64, timeout: Duration) {
        let mut client = node.client();
        client.set_timeout(timeout);
        for _ in 0..count.div_ceil(PIPELINE) {
            let first = self.number + 1;
            self.number += PIPELINE;
            for number in first..=self.number {
                if client.send(&Request::Put { key: &key(number), value: &value(number) }).is_err() {
                    return;
                }
            }
            if client.flush().is_err() {
                return;
            }
            for number in first..=self.number {
                let Ok(reply) = client.receive() else { return };
                if reply.status != Status::Ok {
                    return;
                }
                assert!(
                    reply.lsn.0 > self.last_lsn,
                    "{number} at LSN {}, {} was given",
                    reply.lsn,
                    self.last_lsn
                );
                self.last_lsn = reply.lsn.0;
                self.hear(node, reply.term.as_u64());
                self.acked.insert(number % KEYS, number);
                self.acked_count += 1;
            }
        }
    }

    pub fn hear(&mut self, node: &Node, term: u64) {
        let known = self.terms.entry(node.port).or_default();
        assert!(term >= *known, "port {}: term {term:#x} after {known:#x}", node.port);
        *known = term;
    }

    /// Everything acknowledged is on this node, and it knows the highest term it has told.
    pub fn check(&mut self, node: &Node) {
        let status = node.status();
        self.hear(node, status["term"].as_u64().unwrap());
        let last = status["last_lsn"].as_u64().unwrap();
        assert!(
            last >= self.last_lsn,
            "port {}: log ends at {last}, {} was acknowledged",
            node.port,
            self.last_lsn
        );
        let mut client = node.client();
        for (index, acked) in &self.acked {
            let found = client.get(&key(*index)).unwrap().value;
            let found = found.unwrap_or_else(|| panic!("port {}: {acked} of key {index} is gone", node.port));
            let number = u64::from_be_bytes(found[..8].try_into().expect("eight bytes"));
            assert!(number >= *acked && number <= self.number, "key {index} is {number}, {acked} was acked");
            assert!(found == value(number), "key {index} holds bytes that nobody wrote");
        }
    }
}

pub fn key(number: u64) -> Vec<u8> {
    format!("key {}", number % KEYS).into_bytes()
}

/// The number, and padding of up to 6 KiB.
pub fn value(number: u64) -> Vec<u8> {
    let mut value = vec![number as u8; 8 + (number as usize * 1_237) % 6_000];
    value[..8].copy_from_slice(&number.to_be_bytes());
    value
}

/// How long a test goes on, and what it draws from.
pub struct Hunt {
    pub random: Seeded,
    lives: usize,
    until: Option<Instant>,
    /// Kills that came, by the call they came at.
    fired: BTreeMap<String, usize>,
    pub begun: usize,
}

impl Hunt {
    /// `lives` in the suite, or for as long as `E2E_SECONDS` says.
    pub fn new(name: &str, lives: usize) -> Hunt {
        let number = |variable: &str| {
            std::env::var(variable)
                .ok()
                .map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
        };
        let seed = number("E2E_SEED").unwrap_or(0x5eed);
        println!("{name}: E2E_SEED={seed}");
        let until = number("E2E_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Hunt { random: Seeded::new(seed), lives, until, fired: BTreeMap::new(), begun: 0 }
    }

    pub fn goes_on(&mut self) -> bool {
        let more = self.until.map_or(self.begun < self.lives, |until| Instant::now() < until);
        self.begun += usize::from(more);
        more
    }

    pub fn draw(&mut self, recorded: &Recorded) -> Call {
        let call = recorded.draw(&mut self.random);
        println!("life {}: {} {}", self.begun, call.name, call.nth);
        call
    }

    /// Ends a traced life, which the kill has ended already unless the node still answers.
    pub fn end_life(&mut self, node: &mut Node, call: &Call) {
        if node.try_status().is_ok() {
            node.kill9();
        } else {
            node.wait_exit(DEADLINE);
            *self.fired.entry(call.name.clone()).or_default() += 1;
        }
        node.wrapper.clear();
    }

    pub fn report(&self) {
        let fired: usize = self.fired.values().sum();
        println!("{} lives, {fired} ended at the call that was drawn: {:?}", self.begun, self.fired);
        assert!(
            fired * 2 > self.begun,
            "{fired} kills in {} lives: that is not what was recorded",
            self.begun
        );
    }
}

/// Starts a node that may die while it starts; whether it serves.
pub fn start_or_die(node: &mut Node) -> bool {
    let mark = node.log.mark();
    node.spawn();
    node.log.line_or_end(mark, "ready:", DEADLINE).is_some()
}
