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
pub mod messages;
pub mod nemesis;
pub mod node;
pub mod script;

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
    Bounce { leader: usize },
    Kill { node: usize, life: u64 },
}

/// A clock of a rate that may change, within the bound.
#[derive(Debug)]
struct NodeClock {
    base_ns: u64,
    base: Time,
    rate_percent: u64,
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
    /// Nothing is done to the cluster any more.
    pub calm: bool,
    /// Until then no client writes.
    quiet_until_ns: u64,
    clocks: Vec<NodeClock>,
    dead: BTreeSet<usize>,
    lives: Vec<u64>,
    syncing: Vec<bool>,
    queue: BTreeMap<(u64, u64), Event>,
    events: u64,
    channels: BTreeMap<(usize, usize, u64), u64>,
    broken: BTreeSet<(usize, usize, u64)>,
    values: u64,
    slow_disk: Option<usize>,
    /// What a message, and a sync, takes at most, if nothing is wrong with it.
    message_ns: u64,
    sync_ns: u64,
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
        let mut rate = |_: usize| [100 - error, 100, 100 + error][rng.below(3) as usize];
        let clock = |index| NodeClock { base_ns: 0, base: Time(MS), rate_percent: rate(index) };
        let clocks = (0..count).map(clock).collect();
        let slow_disk = (rng.below(3) == 0).then(|| rng.below(count as u64) as usize);
        let (message_ns, sync_ns) = [(2 * MS, 3 * MS), (MS / 10, MS / 5)][rng.below(2) as usize];
        let loss_ppm = [0, 5_000, 50_000][rng.below(3) as usize];
        let mut world = World {
            now_ns: 0,
            nodes,
            checks: Checks::default(),
            cut: BTreeSet::new(),
            paused_until_ns: vec![0; count],
            loss_ppm,
            calm: false,
            quiet_until_ns: 0,
            clocks,
            dead: BTreeSet::new(),
            lives: vec![0; count],
            syncing: vec![false; count],
            queue: BTreeMap::new(),
            events: 0,
            channels: BTreeMap::new(),
            broken: BTreeSet::new(),
            values: 0,
            slow_disk,
            message_ns,
            sync_ns,
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
        let clock = &self.clocks[node];
        Time(clock.base.0 + (self.now_ns - clock.base_ns) * clock.rate_percent / 100)
    }

    /// From now on this node's clock runs at this rate.
    pub fn set_rate(&mut self, node: usize, rate_percent: u64) {
        let (base_ns, base) = (self.now_ns, self.local(node));
        self.clocks[node] = NodeClock { base_ns, base, rate_percent };
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
            Event::Client | Event::Start(_) | Event::Nemesis | Event::Bounce { .. } => None,
            Event::Kill { .. } => None,
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
            Event::Start(node) if !self.nodes[node].is_up() && !self.dead.contains(&node) => {
                let now = self.local(node);
                self.nodes[node].start(now);
                let life = self.lives[node];
                self.at(self.now_ns + TICK_NS, Event::Tick { node, life });
            }
            Event::Start(_) => {}
            Event::Bounce { leader } => self.bounce(leader),
            Event::Kill { node, life } if life == self.lives[node] && !self.calm => self.kill(node, 30 * MS),
            Event::Kill { .. } => {}
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
            let sync_ns = if self.slow_disk == Some(node) { 60 * MS } else { self.sync_ns };
            let wait_ns = self.rng.below(sync_ns);
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
        let slow = self.rng.below(40) == 0 && !self.calm;
        let wait_ns = self.rng.below(if slow { 80 * MS } else { self.message_ns }) + 20_000;
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
            let quiet = self.calm || self.now_ns < self.quiet_until_ns;
            if quiet || self.nodes[node].leader().is_none() || self.is_paused(node) {
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

    /// Everything is mended, but for a minority that never comes back: after some timeouts one node leads and all have
    /// applied the same.
    pub fn check_liveness(&mut self) {
        let minority = self.nodes.len() - (self.nodes.len() / 2 + 1);
        let dead = self.rng.below(minority as u64 + 1) as usize;
        let first = self.rng.below(self.nodes.len() as u64) as usize;
        self.dead = (0..dead).map(|at| (first + at) % self.nodes.len()).collect();
        self.dead.clone().into_iter().for_each(|node| self.kill(node, 0));
        self.calm = true;
        self.cut.clear();
        (self.loss_ppm, self.slow_disk) = (0, None);
        self.run_ms(40 * TIMEOUT_MS);
        let leaders = self.nodes.iter().filter(|node| node.leader().is_some()).count();
        assert_eq!(leaders, 1, "liveness: leaders after everything was mended");
        let leader = self.leader().expect("one leads");
        for node in self.nodes.iter().filter(|node| !self.dead.contains(&node.index)) {
            assert!(node.is_up(), "liveness: node {} is up", node.index);
            assert_eq!(node.applied, self.nodes[leader].log.last(), "liveness: node {} has all", node.index);
        }
        self.checks.log_matching(&self.nodes);
    }
}
