//! Faults beyond the plain ones of `faults`: their probabilities, and those that are only links and clocks.
//!
//! What takes a disk away, in whole or in part, stands in `decay` and `backups`; what may be lost by it, in
//! `losses`. At most one such thing is under way at a time, and it befalls a node only while another one holds
//! every acknowledged write: otherwise any loss would be allowed, and nothing could be judged.

use kvstore::node::Budgets;

use crate::core::{Event, MS};
use crate::faults::Fault;
use crate::world::World;

/// Everything here that the CI set must have seen.
pub const EXPECTED: &[&str] = &[
    "check: orderly end lost nothing",
    "check: write excused by a lost disk",
    "client: hot key",
    "client: large value",
    "client: long gap",
    "disk: bit rot on a leader",
    "disk: misdirected write over the log",
    "disk: misdirected write behind the log",
    "disk: misdirected write over a copy of META",
    "disk: power loss took what only the page cache had",
    "disk: stall beyond 5 s",
    "disk: ten times slower for the whole run",
    "memory: a bit flips",
    "memory: a bit of an answer flips",
    "net: leader unreachable for one node",
    "net: link flaps every 200 ms",
    "node: client throttled",
    "node: input left for later",
    "node: BUSY refused a write",
    "node: BUSY, request not read",
    "node: refused a second node of one identity",
    "operator: emptied the disk of a leader that another replaced",
    "operator: rolling restart begun",
    "operator: rolling restart of all nodes",
    "process: long gap",
    "process: a follower's directory rolled back",
    "process: a leader's directory rolled back",
    "process: second node of one identity",
];

/// The knobs of these faults, and how often each is drawn relative to the others; 0: not in this run.
#[derive(Clone, Debug)]
pub struct Mishaps {
    /// All nodes acknowledge what is in their page cache.
    pub os_durability: bool,
    /// This node's disk takes ten times as long, for the whole run.
    pub slow_site: Option<usize>,
    pub budgets: Option<SmallBudgets>,
    pub client_gap_ppm: u64,
    pub misdirect: u64,
    pub rot_leader: u64,
    pub roll_back: u64,
    pub twin: u64,
    pub rolling: u64,
    pub leader_unreachable: u64,
    pub fast_flap: u64,
    /// Where transfers bring followers back.
    pub away: u64,
    pub rot_snapshot: u64,
    pub flip_memory: u64,
    /// Where there are archives.
    pub archive_gone: u64,
}

/// Limits that a run can reach.
#[derive(Clone, Copy, Debug)]
pub struct SmallBudgets {
    pub in_flight_bytes: u64,
    pub requests_in_flight: u64,
    pub output_bytes: u64,
    /// Bytes of all input buffers that grew, together.
    pub input_bytes: u64,
}

impl SmallBudgets {
    pub fn of_node(self) -> Budgets {
        Budgets {
            in_flight_bytes: self.in_flight_bytes as usize,
            requests_in_flight: self.requests_in_flight as usize,
            output_high_water: self.output_bytes as usize,
            output_low_water: self.output_bytes as usize / 4,
        }
    }
}

impl Mishaps {
    /// Draws them. `pick`: one of these. Where there are snapshots a disk decays only if a follower may get one of its
    /// leader: what is left of its log may be of no use without.
    pub fn draw(
        hosts: usize,
        with_snapshots: bool,
        transfers: bool,
        pick: &mut impl FnMut(&[u64]) -> u64,
    ) -> Mishaps {
        let decays = u64::from(!with_snapshots || transfers);
        let slow = pick(&[0, 0, 0, 0, 1, 2]) as usize;
        let small = pick(&[0, 0, 1]) == 1;
        let budgets = SmallBudgets {
            in_flight_bytes: pick(&[1_000, 10_000, 100_000]),
            requests_in_flight: pick(&[2, 8, 64]),
            output_bytes: pick(&[100, 1_000]),
            input_bytes: pick(&[10_000, 100_000]),
        };
        Mishaps {
            os_durability: pick(&[0, 0, 0, 0, 0, 0, 0, 1]) == 1,
            slow_site: slow.checked_sub(1).filter(|site| *site < hosts),
            budgets: small.then_some(budgets),
            client_gap_ppm: pick(&[0, 0, 2_000]),
            misdirect: pick(&[0, 0, 0, 1]) * decays,
            rot_leader: pick(&[0, 0, 0, 0, 0, 1]) * decays,
            roll_back: pick(&[0, 0, 0, 2]),
            twin: pick(&[0, 0, 0, 1]),
            rolling: pick(&[0, 0, 0, 1]),
            leader_unreachable: pick(&[0, 0, 1, 2]),
            fast_flap: pick(&[0, 0, 0, 1]),
            away: if transfers { pick(&[8, 20, 40]) } else { 0 },
            rot_snapshot: if transfers { pick(&[0, 0, 3]) } else { 0 },
            flip_memory: pick(&[0, 0, 0, 2]),
            archive_gone: 0,
        }
    }

    /// None of them.
    pub fn none() -> Mishaps {
        Mishaps {
            os_durability: false,
            slow_site: None,
            budgets: None,
            client_gap_ppm: 0,
            misdirect: 0,
            rot_leader: 0,
            roll_back: 0,
            twin: 0,
            rolling: 0,
            leader_unreachable: 0,
            fast_flap: 0,
            away: 0,
            rot_snapshot: 0,
            flip_memory: 0,
            archive_gone: 0,
        }
    }

    /// The faults with their weights.
    pub fn table(&self) -> [(u64, Fault); 11] {
        [
            (self.misdirect, World::misdirect),
            (self.rot_leader, World::rot_leader),
            (self.roll_back, World::roll_back),
            (self.twin, World::start_twin),
            (self.rolling, |world, _| world.begin_rolling_restart()),
            (self.leader_unreachable, World::leader_unreachable),
            (self.fast_flap, World::fast_flap),
            (self.away, World::go_away),
            (self.rot_snapshot, World::rot_snapshot),
            (self.flip_memory, World::flip_memory),
            (self.archive_gone, World::archive_goes),
        ]
    }
}

/// A rolling restart under way.
#[derive(Clone, Copy, Debug)]
pub struct Rolling {
    /// So many nodes are done.
    done: usize,
    /// The incarnation of the node that was asked to end; none yet.
    asked: Option<u64>,
    steps: u64,
}

/// A rolling restart looks after its node so often, and is given up after so many looks.
const ROLLING_STEP_NS: u64 = 100 * MS;
const ROLLING_STEPS_MAX: u64 = 600;
/// What a client has still to wait is a gap from so long on.
const GAP_NS_MIN: u64 = 1_000 * MS;
/// Half a period of a link that flaps.
const FLAP_NS: u64 = 200 * MS;

impl World {
    /// One node does not hear the leader, and the leader not it; everybody else hears both.
    fn leader_unreachable(&mut self, site: usize) {
        let Some(leader) = (0..self.hosts.len()).find(|other| *other != site && self.leads(*other)) else {
            return;
        };
        let mut core = self.core.borrow_mut();
        let for_ns = core.between(500 * MS, 8_000 * MS);
        core.block(site, leader, for_ns);
        core.block(leader, site, for_ns);
        core.stats.count("net: leader unreachable for one node");
        core.trace(|| format!("host {site} and its leader {leader} do not hear each other"));
    }

    /// The link between this host and another works for 200 ms and fails for 200 ms, again and again.
    fn fast_flap(&mut self, site: usize) {
        let mut core = self.core.borrow_mut();
        let other = core.some_host();
        if other == site {
            return;
        }
        core.stats.count("net: link flaps every 200 ms");
        core.trace(|| format!("the link between hosts {site} and {other} flaps"));
        let times = core.between(5, 25);
        core.after(0, Event::Toggle { one: site, other, times });
    }

    /// A flapping link fails once more.
    pub fn toggle(&mut self, one: usize, other: usize, times: u64) {
        if self.healed_at.is_some() || times == 0 {
            return;
        }
        let mut core = self.core.borrow_mut();
        core.block(one, other, FLAP_NS);
        core.block(other, one, FLAP_NS);
        core.after(2 * FLAP_NS, Event::Toggle { one, other, times: times - 1 });
    }

    /// The operator restarts all nodes, one after the other, each by an orderly end, while clients go on.
    fn begin_rolling_restart(&mut self) {
        if self.rolling.is_some() {
            return;
        }
        self.rolling = Some(Rolling { done: 0, asked: None, steps: 0 });
        let mut core = self.core.borrow_mut();
        core.stats.count("operator: rolling restart begun");
        core.after(0, Event::Rolling);
    }

    /// The next node is asked to end once the last one is back.
    pub fn rolling_step(&mut self) {
        let Some(mut rolling) = self.rolling.take().filter(|_| self.healed_at.is_none()) else { return };
        let site = rolling.done;
        let (incarnation, up) = (self.hosts[site].incarnation, self.hosts[site].process.is_some());
        match rolling.asked {
            None if up => {
                rolling.asked = Some(incarnation);
                self.core.borrow_mut().trace(|| format!("rolling restart: host {site}"));
                self.shut_down(site);
            }
            Some(before) if up && incarnation > before => {
                rolling.done += 1;
                rolling.asked = None;
            }
            _ => {}
        }
        rolling.steps += 1;
        let mut core = self.core.borrow_mut();
        if rolling.done == self.hosts.len() {
            core.stats.count("operator: rolling restart of all nodes");
        } else if rolling.steps < ROLLING_STEPS_MAX {
            core.after(ROLLING_STEP_NS, Event::Rolling);
            self.rolling = Some(rolling);
        }
    }

    /// The second phase begins: what these faults left is put right, as an operator would.
    pub fn end_mishaps(&mut self) {
        self.rolling = None;
        self.hosts.iter_mut().for_each(|host| host.away = false);
        let mut core = self.core.borrow_mut();
        core.knobs.mishaps.slow_site = None;
        core.knobs.mishaps.client_gap_ppm = 0;
        core.heap.retain(|_, event| !matches!(event, Event::Toggle { .. } | Event::LetLateGo(_)));
        // A client in a long gap would find no time to be served in.
        let gaps = core
            .heap
            .range((core.now + GAP_NS_MIN, 0)..)
            .filter(|(_, event)| matches!(event, Event::Client(_)));
        for at in gaps.map(|(at, _)| *at).collect::<Vec<_>>() {
            let event = core.heap.remove(&at).expect("it was found there");
            core.after(GAP_NS_MIN, event);
        }
        drop(core);
        (0..self.hosts.len()).for_each(|site| self.let_late_go(site, true));
        self.end_twin();
        self.replace_broken_leader();
    }
}
