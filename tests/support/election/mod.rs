//! A cluster of members that are nothing but the pure rules, on a network that loses, delays and reorders, with disks
//! that lose what was not durable, clocks at the bounds of their rates, and processes that stop and die. All of it is
//! drawn from one seed.
//!
//! Left out: everything the simulator drives for real (frames, sockets, the WAL, snapshots). Here a run takes
//! milliseconds, so that thousands of them look for the rare interleavings.

use std::collections::{BTreeMap, BTreeSet};

use kvstore::ids::{Lsn, NodeId};
use kvstore::replication::election::reads::ReadMode;
use kvstore::replication::election::timing::{CLOCK_RATE_ERROR_PERCENT, ElectionTiming};
use kvstore::replication::members::{Member, Members};
use kvstore::rng::Rng;
use kvstore::time::Time;

pub mod checks;
pub mod log;
#[path = "../mem_disk.rs"]
pub mod mem_disk;
pub mod messages;
pub mod nemesis;
pub mod node;

use checks::Checks;
use messages::Message;
use node::{Node, Role};

pub const MS: u64 = 1_000_000;
/// The election timeout: the smallest, so that a run has many.
pub const TIMEOUT_MS: u64 = 100;
const TICK_NS: u64 = 2 * MS;

#[derive(Debug)]
enum Event {
    Tick { node: usize, life: u64 },
    Message { from: usize, to: usize, message: Message },
    Synced { node: usize, life: u64, generation: u64, lsn: Lsn },
    Client,
    Start(usize),
    Nemesis,
}

pub struct World {
    pub now_ns: u64,
    pub rng: Rng,
    pub nodes: Vec<Node>,
    pub checks: Checks,
    /// Which direction of which link takes nothing.
    pub cut: BTreeSet<(usize, usize)>,
    pub paused_until_ns: Vec<u64>,
    /// Messages lost, in parts per million.
    pub loss_ppm: u64,
    /// Whether clients write and the nemesis acts.
    pub calm: bool,
    rates_percent: Vec<u64>,
    lives: Vec<u64>,
    syncing: Vec<bool>,
    queue: BTreeMap<(u64, u64), Event>,
    events: u64,
    channels: BTreeMap<(usize, usize, u64), u64>,
    broken: BTreeSet<(usize, usize, u64)>,
    values: u64,
    slow_disk: Option<usize>,
}

impl World {
    pub fn new(seed: u64, count: usize) -> World {
        let mut rng = Rng::new(seed);
        let member = |index: usize| {
            let node_id = NodeId([index as u8 + 1; 16]);
            Member { node_id, address: format!("host:{}", index + 1) }
        };
        let members = Members::new((0..count).map(member).collect()).expect("they differ");
        let timing = ElectionTiming::from_ms(TIMEOUT_MS);
        let node = |index| Node::new(index, &members, timing, Time(MS), Rng::new(rng.next_u64()));
        let nodes = (0..count).map(node).collect();
        let error = CLOCK_RATE_ERROR_PERCENT;
        let rate = |_| [100 - error, 100, 100 + error][rng.below(3) as usize];
        let rates_percent = (0..count).map(rate).collect();
        let slow_disk = (rng.below(3) == 0).then(|| rng.below(count as u64) as usize);
        let loss_ppm = [0, 5_000, 50_000][rng.below(3) as usize];
        let mut world = World {
            now_ns: 0,
            nodes,
            checks: Checks::default(),
            cut: BTreeSet::new(),
            paused_until_ns: vec![0; count],
            loss_ppm,
            calm: false,
            rates_percent,
            lives: vec![0; count],
            syncing: vec![false; count],
            queue: BTreeMap::new(),
            events: 0,
            channels: BTreeMap::new(),
            broken: BTreeSet::new(),
            values: 0,
            slow_disk,
            rng,
        };
        (0..count).for_each(|index| world.at(MS + index as u64, Event::Tick { node: index, life: 0 }));
        world.at(10 * MS, Event::Client);
        world.at(50 * MS, Event::Nemesis);
        world
    }

    fn at(&mut self, time_ns: u64, event: Event) {
        self.events += 1;
        self.queue.insert((time_ns, self.events), event);
    }

    /// What a node's clock reads now.
    pub fn local(&self, node: usize) -> Time {
        Time(MS + self.now_ns / 100 * self.rates_percent[node])
    }

    pub fn run_ms(&mut self, ms: u64) {
        let end_ns = self.now_ns + ms * MS;
        while let Some(entry) = self.queue.first_entry() {
            let (time_ns, _) = *entry.key();
            if time_ns > end_ns {
                break;
            }
            let event = entry.remove();
            self.now_ns = time_ns;
            self.step(event);
        }
        self.now_ns = end_ns;
    }

    fn step(&mut self, event: Event) {
        let whose = match &event {
            Event::Tick { node, .. } | Event::Synced { node, .. } | Event::Message { to: node, .. } => {
                Some(*node)
            }
            Event::Client | Event::Start(_) | Event::Nemesis => None,
        };
        // What comes to a stopped process waits for it, in order.
        if let Some(until) = whose.map(|node| self.paused_until_ns[node]).filter(|until| *until > self.now_ns)
        {
            return self.at(until, event);
        }
        match event {
            Event::Tick { node, life } if life == self.lives[node] => self.tick(node),
            Event::Tick { .. } => {}
            Event::Message { from, to, message } => self.deliver(from, to, message),
            Event::Synced { node, life, generation, lsn } => {
                if life == self.lives[node] {
                    self.syncing[node] = false;
                    let now = self.local(node);
                    self.nodes[node].on_synced(generation, lsn, now);
                    self.after(node);
                }
            }
            Event::Client => self.client(),
            Event::Start(node) if !self.nodes[node].is_up() => {
                let now = self.local(node);
                self.nodes[node].start(now);
                let life = self.lives[node];
                self.at(self.now_ns + TICK_NS, Event::Tick { node, life });
            }
            Event::Start(_) => {}
            Event::Nemesis => {
                if !self.calm {
                    self.nemesis();
                }
                let wait_ns = (10 + self.rng.below(190)) * MS;
                self.at(self.now_ns + wait_ns, Event::Nemesis);
            }
        }
        if self.events.is_multiple_of(64) {
            self.checks.log_matching(&self.nodes);
        }
    }

    fn tick(&mut self, node: usize) {
        if !self.nodes[node].is_up() {
            return;
        }
        let now = self.local(node);
        self.nodes[node].on_tick(now);
        self.after(node);
        let limit_ns = TIMEOUT_MS * MS * 6 / 5;
        self.checks.check_quorum(&self.nodes[node], self.nodes.len(), self.now_ns, limit_ns);
        self.read(node);
        let life = self.lives[node];
        self.at(self.now_ns + TICK_NS, Event::Tick { node, life });
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let channel = message.session().map(|session| (from, to, session));
        let reset = channel.is_some_and(|channel| self.broken.contains(&channel));
        if reset || !self.nodes[to].is_up() || self.cut.contains(&(from, to)) {
            self.broken.extend(channel);
            return;
        }
        let now = self.local(to);
        self.nodes[to].on_message(from, message, now);
        self.after(to);
    }

    /// What a step of a node leaves behind: messages, deeds, a sync.
    fn after(&mut self, node: usize) {
        for told in std::mem::take(&mut self.nodes[node].told) {
            let elected = matches!(told, messages::Told::Leads(_));
            self.checks.on_told(&self.nodes[node], told, self.nodes.len(), self.now_ns);
            if elected && !self.calm {
                self.haunt_new_leader(node);
            }
        }
        for (to, message) in std::mem::take(&mut self.nodes[node].out) {
            self.send(node, to, message);
        }
        let (now, log) = (self.local(node), &self.nodes[node].log);
        let (generation, lsn) = (log.generation, log.last());
        if log.durable() < lsn && !self.syncing[node] && self.nodes[node].is_up() {
            self.syncing[node] = true;
            let slow_ms = if self.slow_disk == Some(node) { 60 } else { 3 };
            let wait_ns = self.rng.below(slow_ms * MS);
            let life = self.lives[node];
            self.at(self.now_ns + wait_ns, Event::Synced { node, life, generation, lsn });
        }
        for must_see in self.nodes[node].take_answered(now) {
            self.checks.on_read(&self.nodes[node], must_see, "a round");
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let channel = message.session().map(|session| (from, to, session));
        if self.rng.below(1_000_000) < self.loss_ppm || self.cut.contains(&(from, to)) {
            self.broken.extend(channel);
            return;
        }
        let slow = self.rng.below(20) == 0 && !self.calm;
        let wait_ns = self.rng.below(if slow { 80 * MS } else { 2 * MS }) + 50_000;
        let mut time_ns = self.now_ns + wait_ns;
        if let Some(channel) = channel {
            let last_ns = self.channels.entry(channel).or_insert(0);
            time_ns = time_ns.max(*last_ns);
            *last_ns = time_ns;
        }
        self.at(time_ns, Event::Message { from, to, message });
    }

    /// Every leader there is gets a write and a read; a stopped one reads neither.
    fn client(&mut self) {
        for node in 0..self.nodes.len() {
            if self.calm || self.nodes[node].leader().is_none() || self.is_paused(node) {
                continue;
            }
            self.values += 1;
            let (value, now) = (self.values, self.local(node));
            self.nodes[node].write(value, now);
            let (arrived, must_see) = (self.local(node), self.checks.committed());
            if let Role::Leader(leader) = &mut self.nodes[node].role {
                leader.waiting.push((arrived, must_see));
            }
            self.after(node);
        }
        let wait_ns = (1 + self.rng.below(12)) * MS;
        self.at(self.now_ns + wait_ns, Event::Client);
    }

    fn read(&mut self, node: usize) {
        let now = self.local(node);
        if self.nodes[node].read(ReadMode::Lease, now, now) {
            let must_see = self.checks.committed();
            self.checks.on_read(&self.nodes[node], must_see, "its lease");
        }
    }

    pub fn is_paused(&self, node: usize) -> bool {
        self.paused_until_ns[node] > self.now_ns
    }

    pub fn kill(&mut self, node: usize, down_ns: u64) {
        if !self.nodes[node].is_up() {
            return;
        }
        self.nodes[node].crash();
        self.lives[node] += 1;
        self.syncing[node] = false;
        self.paused_until_ns[node] = 0;
        self.at(self.now_ns + down_ns, Event::Start(node));
    }

    pub fn leader(&self) -> Option<usize> {
        let leaders = self.nodes.iter().filter(|node| node.leader().is_some());
        leaders.max_by_key(|node| node.term()).map(|node| node.index)
    }

    /// Everything is mended; after some timeouts one node leads and all have applied the same.
    pub fn check_liveness(&mut self) {
        self.calm = true;
        self.cut.clear();
        (self.loss_ppm, self.slow_disk) = (0, None);
        self.run_ms(40 * TIMEOUT_MS);
        let leaders = self.nodes.iter().filter(|node| node.leader().is_some()).count();
        assert_eq!(leaders, 1, "liveness: leaders after everything was mended");
        for node in &self.nodes {
            assert!(node.is_up(), "liveness: node {} is up", node.index);
            assert_eq!(node.applied, self.nodes[0].log.last(), "liveness: node {} has all", node.index);
        }
        self.checks.log_matching(&self.nodes);
    }
}
