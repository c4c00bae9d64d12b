//! kill -9 at one system call of a real node (D12): while it appends, begins segments and starts; while leadership
//! moves; while it cuts its log. After each kill the node starts again, everything acknowledged is there with the
//! LSN it was acknowledged at, and no term has gone back.
//!
//! A run is recorded once, and each kill is drawn from its calls, so that every call that the node makes is as
//! likely as it is frequent, and half of the kills meet the disk. The seed is printed; with another one, or for
//! longer:
//!
//! ```text
//! E2E_SEED=7 E2E_SECONDS=600 cargo test --release --test real kills_anywhere:: -- --nocapture
//! ```
//!
//! A seed draws the same places in the recording again. The recording is made anew by each run, and the node's own
//! timing is in it: a place may be another call, and what was on its way when the node died may differ.

use std::time::{Duration, Instant};

use kvstore::client::Client;
use kvstore::wire::client::Request;

use crate::cluster::{Cluster, DEADLINE, Node, Single};
use crate::kills::{Hunt, Notes, OWN_BEGIN, SEGMENTS, key, start_or_die, value};
use crate::strace::{self, Recorded};

#[test]
fn a_node_killed_at_any_call_of_starts_appends_and_new_segments_has_all_it_acknowledged() {
    if !strace::works() {
        return;
    }
    let mut hunt = Hunt::new("appends", 120);
    let mut single = Single::prepare(&[SEGMENTS]);
    let mut notes = Notes::default();
    let path = single.node.dir.with_extension("calls");
    let node = &mut single.node;
    // The second life is recorded: it begins with the log of the first.
    for recorder in [Vec::new(), strace::recording(&path)] {
        node.wrapper = recorder;
        node.start();
        notes.write(node, 60, DEADLINE);
        node.kill9();
    }
    let recorded = Recorded::read(&path, OWN_BEGIN, 0);
    while hunt.goes_on() {
        let call = hunt.draw(&recorded);
        node.wrapper = strace::killing_at(&call);
        if start_or_die(node) {
            notes.write(node, 60, DEADLINE);
        }
        hunt.end_life(node, &call);
        node.start();
        notes.check(node);
        node.kill9();
        if hunt.begun.is_multiple_of(25) {
            // A new log, so that starts stay short and first segments are made as well.
            std::fs::remove_dir_all(&node.dir).unwrap();
            notes = Notes { number: notes.number, ..Notes::default() };
        }
    }
    hunt.report();
}

/// Two nodes and the writes that they acknowledged.
struct Pair {
    cluster: Cluster,
    notes: Notes,
    /// Who leads.
    leader: usize,
}

impl Pair {
    fn new(ack: &str) -> Pair {
        let cluster = Cluster::start(2, &[ack, "--insync-timeout-ms=200", SEGMENTS]);
        Pair { cluster, notes: Notes::default(), leader: 0 }
    }

    fn node(&self, index: usize) -> &Node {
        &self.cluster.nodes[index]
    }

    fn other(&self) -> usize {
        1 - self.leader
    }

    fn client(&self, index: usize) -> Client {
        let mut client = self.node(index).client();
        client.set_timeout(Duration::from_secs(5));
        client
    }

    /// The role of a node, after a look at its term.
    fn asks(&mut self, index: usize) -> String {
        let status = self.node(index).status();
        self.notes.hear(&self.cluster.nodes[index], status["term"].as_u64().unwrap());
        status["role"].as_str().unwrap().to_owned()
    }

    /// With both nodes up: whoever can leads without force, the other follows, and both have everything.
    fn settle(&mut self) {
        let until = Instant::now() + DEADLINE;
        loop {
            let leading: Vec<usize> = (0..2).filter(|index| self.asks(*index) == "leader").collect();
            match leading[..] {
                [leader] => {
                    self.leader = leader;
                    if self.follows() {
                        break;
                    }
                }
                [] => {
                    let refused: Vec<_> =
                        [0, 1].iter().map_while(|index| self.client(*index).promote(false).err()).collect();
                    assert!(refused.len() < 2, "neither can be promoted without force: {refused:?}");
                }
                // The one that was promoted has not met the other yet.
                _ => {}
            }
            assert!(Instant::now() < until, "the nodes do not find together again");
        }
        self.cluster.expect_equal(&[self.leader, self.other()]);
        for index in 0..2 {
            self.notes.check(&self.cluster.nodes[index]);
        }
    }

    /// Whether the other node follows the leader, is in sync, and knows it. If it follows nobody, it is told to.
    fn follows(&self) -> bool {
        let (leader, other) = (self.node(self.leader), self.node(self.other()));
        let status = other.status();
        if status["role"] == "deposed" || status["leader"] != leader.address() {
            // It may meet the term of the leader at this very moment: then it is told again.
            let _ = self.client(self.other()).follow(&leader.address(), false);
        }
        let peers = &leader.status()["peers"];
        peers[0]["state"] == "streaming" && peers[0]["in_sync"] == true && status["in_sync"] == true
    }

    /// Leadership goes over to the follower, with writes before and after. Whatever fails, fails: a node may die.
    fn hand_over(&mut self) {
        let short = Duration::from_secs(5);
        self.notes.write(&self.cluster.nodes[self.leader], 24, short);
        if self.client(self.other()).promote(false).is_ok() {
            self.leader = self.other();
            let _ = self.client(self.other()).follow(&self.node(self.leader).address(), false);
        }
        // A term that was told is one that must not be forgotten.
        for index in 0..2 {
            if let Ok(status) = self.node(index).try_status() {
                self.notes.hear(&self.cluster.nodes[index], status["term"].as_u64().unwrap());
            }
        }
        self.notes.write(&self.cluster.nodes[self.leader], 24, short);
    }
}

#[test]
fn a_node_killed_at_any_call_of_a_promotion_loses_nothing_and_no_term_goes_back() {
    if !strace::works() {
        return;
    }
    let mut hunt = Hunt::new("promotions", 50);
    let mut pair = Pair::new("--ack=insync");
    let path = pair.cluster.path().join("calls");
    // Of the node that is promoted, and of the one that is deposed.
    let mut recorded = Vec::new();
    for is_leader in [false, true] {
        let victim = if is_leader { pair.leader } else { pair.other() };
        pair.cluster.nodes[victim].kill9();
        pair.cluster.nodes[victim].wrapper = strace::recording(&path);
        pair.cluster.nodes[victim].start();
        pair.settle();
        pair.hand_over();
        pair.cluster.nodes[victim].kill9();
        pair.cluster.nodes[victim].wrapper.clear();
        recorded.push(Recorded::read(&path, OWN_BEGIN, 0));
        pair.cluster.nodes[victim].start();
        pair.settle();
    }
    while hunt.goes_on() {
        let is_leader = hunt.random.below(3) == 0;
        let victim = if is_leader { pair.leader } else { pair.other() };
        let call = hunt.draw(&recorded[usize::from(is_leader)]);
        pair.cluster.nodes[victim].kill9();
        pair.cluster.nodes[victim].wrapper = strace::killing_at(&call);
        if start_or_die(&mut pair.cluster.nodes[victim]) {
            pair.hand_over();
        }
        hunt.end_life(&mut pair.cluster.nodes[victim], &call);
        pair.cluster.nodes[victim].start();
        pair.settle();
    }
    hunt.report();
}

impl Pair {
    /// The leader writes what nobody else gets and dies; the other is promoted, and `promoted` leads.
    fn diverge(&mut self) {
        let (old, promoted) = (self.leader, self.other());
        self.cluster.nodes[promoted].kill9();
        let before = self.node(old).status()["last_lsn"].as_u64().unwrap();
        let mut client = self.client(old);
        for _ in 0..LOST {
            self.notes.number += 1;
            let number = self.notes.number;
            client.send(&Request::Put { key: &key(number), value: &value(number) }).unwrap();
        }
        client.flush().unwrap();
        self.node(old).wait_status("holding what is not committed", |status| {
            status["durable_lsn"].as_u64().unwrap() >= before + LOST
        });
        self.cluster.nodes[old].kill9();
        self.cluster.nodes[promoted].start();
        self.client(promoted)
            .promote(false)
            .expect("it was in sync, and nobody but the old leader is silent");
        self.leader = promoted;
    }

    /// The one that led before follows, and cuts, unless it dies of it.
    fn rejoin_or_die(&mut self) {
        let (leader, old) = (self.leader, self.other());
        let told = format!("session with follower {}", self.node(old).address());
        let mark = self.node(leader).log.mark();
        while self.cluster.nodes[old].is_running() && self.node(leader).log.count_from(mark, &told) == 0 {
            let address = self.node(leader).address();
            let _ = self.client(old).follow(&address, false);
        }
    }
}

/// Writes that a leader keeps to itself: three segments of them.
const LOST: u64 = 60;

#[test]
fn a_node_killed_at_any_call_of_a_cut_keeps_the_cut_records_aside_and_has_its_leaders_log() {
    if !strace::works() {
        return;
    }
    let mut hunt = Hunt::new("cuts", 20);
    let mut pair = Pair::new("--ack=quorum");
    let path = pair.cluster.path().join("calls");
    pair.diverge();
    let old = pair.other();
    pair.cluster.nodes[old].wrapper = strace::recording(&path);
    pair.cluster.nodes[old].start();
    pair.rejoin_or_die();
    pair.cluster.nodes[old].kill9();
    pair.cluster.nodes[old].wrapper.clear();
    pair.cluster.nodes[old].start();
    pair.settle();
    // What makes the cut durable comes before its first file: the term, generation and LSN in the identity record.
    let recorded = Recorded::read(&path, ".kvcut", 12);
    while hunt.goes_on() {
        let call = hunt.draw(&recorded);
        pair.notes.write(&pair.cluster.nodes[pair.leader], 12, DEADLINE);
        pair.diverge();
        let old = pair.other();
        let kept = pair.node(old).files(".kvcut").len();
        pair.cluster.nodes[old].wrapper = strace::killing_at(&call);
        if start_or_die(&mut pair.cluster.nodes[old]) {
            pair.rejoin_or_die();
        }
        hunt.end_life(&mut pair.cluster.nodes[old], &call);
        pair.cluster.nodes[old].start();
        pair.settle();
        assert!(pair.node(old).files(".kvcut").len() > kept, "what was cut is kept aside");
    }
    hunt.report();
}
