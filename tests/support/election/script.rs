//! Members driven by hand: who ticks, which messages arrive, whose disk syncs. For the interleavings that have names.

use std::collections::BTreeSet;

use kvstore::ids::{Lsn, NodeId};
use kvstore::replication::election::timing::ElectionTiming;
use kvstore::replication::members::{Member, Members};
use kvstore::rng::Rng;
use kvstore::time::Time;

use super::TIMEOUT_MS;
use super::checks::Checks;
use super::messages::Message;
use super::node::Node;

pub struct Script {
    pub now: Time,
    pub nodes: Vec<Node>,
    pub checks: Checks,
    wires: Vec<(usize, usize, Message)>,
    broken: BTreeSet<(usize, usize, u64)>,
}

impl Script {
    pub fn new(count: usize) -> Script {
        let member = |index: usize| {
            let node_id = NodeId([index as u8 + 1; 16]);
            Member { node_id, address: format!("host:{}", index + 1) }
        };
        let members = Members::new((0..count).map(member).collect()).expect("they differ");
        let (timing, now) = (ElectionTiming::from_ms(TIMEOUT_MS), Time(0).after_ms(1));
        let node = |index| Node::new(index, &members, timing, now, Rng::new(index as u64));
        Script {
            now,
            nodes: (0..count).map(node).collect(),
            checks: Checks::default(),
            wires: Vec::new(),
            broken: BTreeSet::new(),
        }
    }

    pub fn pass_ms(&mut self, ms: u64) {
        self.now = self.now.after_ms(ms);
    }

    pub fn tick(&mut self, node: usize) {
        self.nodes[node].on_tick(self.now);
        self.after(node);
    }

    /// The disk has all that the log has.
    pub fn sync(&mut self, node: usize) {
        let log = &self.nodes[node].log;
        let (generation, last) = (log.generation, log.last());
        self.nodes[node].on_synced(generation, last, self.now);
        self.after(node);
    }

    /// Everything on its way that fits arrives, and what is answered to it if it fits. The rest waits.
    pub fn deliver(&mut self, fits: impl Fn(usize, usize, &Message) -> bool) {
        while let Some(at) = self.wires.iter().position(|(from, to, message)| fits(*from, *to, message)) {
            let (from, to, message) = self.wires.remove(at);
            if self.nodes[to].is_up() {
                self.nodes[to].on_message(from, message, self.now);
                self.after(to);
            }
        }
    }

    /// What is on its way is lost, and with it what would follow on the same sessions.
    pub fn lose(&mut self) {
        let channel = |(from, to, message): (usize, usize, Message)| Some((from, to, message.session()?));
        self.broken.extend(std::mem::take(&mut self.wires).into_iter().filter_map(channel));
    }

    /// The first message that fits arrives, and nothing else is lost.
    pub fn deliver_one(&mut self, fits: impl Fn(usize, usize, &Message) -> bool) {
        let at = self.wires.iter().position(|(from, to, message)| fits(*from, *to, message));
        let (from, to, message) = self.wires.remove(at.expect("such a message is on its way"));
        self.nodes[to].on_message(from, message, self.now);
        self.after(to);
    }

    pub fn after(&mut self, node: usize) {
        let members = self.nodes.len();
        for told in std::mem::take(&mut self.nodes[node].told) {
            self.checks.on_told(&self.nodes[node], told, members, self.now.0);
        }
        let out = std::mem::take(&mut self.nodes[node].out);
        let sent = out.into_iter().map(|(to, message)| (node, to, message));
        let broken = &self.broken;
        self.wires.extend(sent.filter(|(from, to, message)| {
            message.session().is_none_or(|session| !broken.contains(&(*from, *to, session)))
        }));
    }

    /// After a silence, in which all is lost, the candidate campaigns, and only this voter hears it. Nothing but votes
    /// is exchanged.
    pub fn campaign(&mut self, candidate: usize, voter: usize) {
        self.lose();
        self.pass_ms(10 * TIMEOUT_MS);
        self.tick(candidate);
        let pair = [candidate, voter];
        self.deliver(|from, to, message| {
            message.session().is_none() && pair.contains(&from) && pair.contains(&to)
        });
    }

    /// The same, and it wins; its `TERM` record is on its own disk.
    pub fn elect(&mut self, leader: usize, voter: usize) {
        self.campaign(leader, voter);
        assert!(self.nodes[leader].leader().is_some(), "node {leader} is elected with the vote of {voter}");
        self.sync(leader);
    }

    /// The leader and one follower exchange whatever they have, disks included, for so long.
    pub fn replicate(&mut self, leader: usize, follower: usize, ms: u64) {
        let pair = [leader, follower];
        for _ in 0..ms.div_ceil(5) {
            self.pass_ms(5);
            self.tick(leader);
            self.deliver(|from, to, _| pair.contains(&from) && pair.contains(&to));
            self.sync(follower);
            self.sync(leader);
            self.deliver(|from, to, _| pair.contains(&from) && pair.contains(&to));
        }
    }

    pub fn write(&mut self, leader: usize, value: u64) -> Lsn {
        self.nodes[leader].write(value, self.now);
        self.after(leader);
        self.nodes[leader].log.last()
    }

    pub fn restart(&mut self, node: usize) {
        self.nodes[node].crash();
        self.nodes[node].start(self.now);
    }
}
