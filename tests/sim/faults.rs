//! What breaks, and what an operator does at bad moments.

use crate::client::Ask;
use crate::core::{Event, MS};
use crate::host::Stop;
use crate::mem_disk::{EIO, Keep};
use crate::world::World;

/// Something that befalls a host.
pub type Fault = fn(&mut World, usize);

impl World {
    /// One fault, drawn by the weights of the run.
    pub fn fault(&mut self) {
        if self.healed_at.is_some() {
            return;
        }
        let mut core = self.core.borrow_mut();
        let every = core.knobs.fault_every_ns;
        let next = core.between(every / 4, every * 2);
        core.after(next, Event::Fault);
        let weights = core.knobs.weights.clone();
        let site = core.some_host();
        drop(core);
        let mishaps = self.core.borrow().knobs.mishaps.table();
        let plain: [(u64, Fault); 14] = [
            (weights.power_loss, |world, site| world.crash(site, true)),
            (weights.kill, |world, site| world.crash(site, false)),
            (weights.crash_point, World::arm_crash_point),
            (weights.pause, World::pause),
            (weights.partition, World::partition),
            (weights.one_way, World::one_way),
            (weights.reset, World::reset),
            (weights.half_open, World::half_open),
            (weights.sync_error, World::sync_error),
            (weights.disk_full, World::disk_full),
            (weights.flap, World::flap),
            (weights.wipe, World::wipe),
            (weights.shutdown, World::shut_down),
            (weights.rot, World::rot),
        ];
        let table: Vec<(u64, Fault)> = plain.into_iter().chain(mishaps).collect();
        let total: u64 = table.iter().map(|(weight, _)| weight).sum();
        if total == 0 {
            return;
        }
        let mut drawn = self.core.borrow_mut().rng.below(total);
        for (weight, fault) in table {
            if drawn < weight {
                return fault(self, site);
            }
            drawn -= weight;
        }
    }

    fn crash(&mut self, site: usize, power: bool) {
        if self.hosts[site].process.is_some() {
            let name = if power { "process: power loss" } else { "process: kill" };
            self.core.borrow_mut().stats.count(name);
            self.end_process(site, power);
        }
    }

    /// The machine dies between two operations of its disk, somewhere in the next ones.
    fn arm_crash_point(&mut self, site: usize) {
        let mem = self.some_disk(site);
        let host = &mut self.hosts[site];
        let mut core = self.core.borrow_mut();
        let ops = core.between(0, 12);
        mem.crash_before(mem.op_count() + ops);
        core.trace(|| format!("host {site} will crash in {ops} disk operations"));
        core.after(3_000 * MS, Event::CrashNow { host: site, incarnation: host.incarnation, power: true });
    }

    fn pause(&mut self, site: usize) {
        if self.hosts[site].process.is_none() || self.hosts[site].paused {
            return;
        }
        let mut core = self.core.borrow_mut();
        let long = core.chance(300_000);
        let for_ns = if long { core.between(MS, 10_000 * MS) } else { core.between(MS, 500 * MS) };
        // With fixed roles nothing depends on the clock that a turn began with.
        if core.knobs.is_elected() && core.chance(500_000) {
            let behind = core.rng.below(2) as usize;
            self.hosts[site].stops_in_turn = Some(Stop { for_ns, behind });
            return;
        }
        drop(core);
        self.stop_for(site, for_ns);
    }

    /// The process stands still: between two turns, or in the middle of one.
    pub fn stop_for(&mut self, site: usize, for_ns: u64) {
        let host = &mut self.hosts[site];
        host.paused = true;
        host.next_turn = None;
        let mut core = self.core.borrow_mut();
        core.stats.count("process: pause");
        if host.stopped.is_some() {
            core.stats.count("process: pause in the middle of a turn");
        }
        if for_ns > 5_000 * MS {
            core.stats.count("process: long gap");
        }
        core.trace(|| format!("host {site} pauses for {} ms", for_ns / MS));
        core.after(for_ns, Event::Continue(site));
    }

    fn partition(&mut self, site: usize) {
        let mut core = self.core.borrow_mut();
        let sites = core.knobs.hosts + core.knobs.clients;
        let for_ns = core.between(10 * MS, 6_000 * MS);
        // Partial: with each of the others a coin decides.
        for other in (0..sites).filter(|other| *other != site) {
            if core.chance(700_000) {
                core.block(site, other, for_ns);
                core.block(other, site, for_ns);
            }
        }
        core.trace(|| format!("host {site} is partitioned for {} ms", for_ns / MS));
    }

    fn one_way(&mut self, site: usize) {
        let mut core = self.core.borrow_mut();
        let other = core.some_host();
        if other == site {
            return;
        }
        let for_ns = core.between(10 * MS, 6_000 * MS);
        core.block(site, other, for_ns);
        core.stats.count("net: one-way partition");
        core.trace(|| format!("host {site} does not reach host {other} for {} ms", for_ns / MS));
    }

    /// A link that fails again as soon as it works.
    pub fn flap(&mut self, site: usize) {
        if self.healed_at.is_some() {
            return;
        }
        let mut core = self.core.borrow_mut();
        let other = core.some_host();
        if other == site {
            return;
        }
        core.stats.count("net: link flaps");
        let for_ns = core.between(20 * MS, 400 * MS);
        core.block(site, other, for_ns);
        core.block(other, site, for_ns);
        if core.chance(900_000) {
            core.after(for_ns * 2, Event::Flap(site));
        }
    }

    fn reset(&mut self, _site: usize) {
        let mut core = self.core.borrow_mut();
        if core.reset_some() {
            core.stats.count("net: reset");
        }
    }

    fn half_open(&mut self, _site: usize) {
        let mut core = self.core.borrow_mut();
        if core.half_open_some() {
            core.stats.count("net: half open");
        }
    }

    /// The next syncs of this disk but a few fail, and lose what they were to write, or a part of it.
    fn sync_error(&mut self, site: usize) {
        let mem = self.some_disk(site);
        let mut core = self.core.borrow_mut();
        let (after, seed) = (core.rng.below(4), core.rng.next_u64());
        let keep = if seed % 3 == 0 { Keep::None } else { Keep::Random(seed) };
        mem.fail_sync_keeping(after, EIO, keep);
    }

    fn disk_full(&mut self, site: usize) {
        let mem = self.some_disk(site);
        let mut core = self.core.borrow_mut();
        let most = 2 * core.knobs.segment_bytes;
        let room = core.rng.below(most);
        mem.set_capacity(Some(mem.used() + room));
        let for_ns = core.between(50 * MS, 5_000 * MS);
        core.trace(|| format!("host {site} has {room} bytes left on its disk"));
        core.after(for_ns, Event::SpaceBack(site));
    }

    pub fn shut_down(&mut self, site: usize) {
        let host = &mut self.hosts[site];
        if let Some(process) = host.process.as_mut().filter(|_| !host.ending) {
            process.node.begin_shutdown();
            host.ending = true;
            self.wake(site);
        }
    }

    /// A follower's data directory is lost; where leaders are elected, anybody's.
    fn wipe(&mut self, site: usize) {
        let elected = self.core.borrow().knobs.is_elected();
        let follows = self.hosts[site].seen.as_ref().is_some_and(|seen| !seen.leads) && site != 0;
        let may_go = if elected { self.may_be_out(site) } else { follows && self.is_spare(site) };
        if may_go && self.hosts[site].process.is_some() {
            self.end_process(site, false);
            self.empty_directory(site);
        }
    }

    /// The operator's answer to damage, and what a lost disk looks like.
    pub fn empty_directory(&mut self, site: usize) {
        self.new_disk(site);
        let mut core = self.core.borrow_mut();
        core.stats.count("process: wiped");
        core.trace(|| format!("host {site} has lost its data directory"));
        let is_member = core.knobs.is_elected() && site < core.knobs.members;
        drop(core);
        if is_member {
            self.oracle.out.insert(site);
        }
    }

    /// A command at a moment that nobody chose.
    pub fn operator_acts(&mut self) {
        if self.healed_at.is_some() {
            return self.heal_step();
        }
        let mut core = self.core.borrow_mut();
        let every = core.knobs.operator_every_ns;
        let next = core.between(every / 4, every * 2);
        core.after(next, Event::Operator);
        if core.knobs.is_elected() {
            let changes = core.knobs.joiners > 0 && core.chance(800_000);
            drop(core);
            return if changes { self.ask_to_change() } else { self.ask_to_hand_over() };
        }
        let hosts = core.knobs.hosts as u64;
        let target = core.rng.below(hosts) as usize;
        let ask = if core.chance(500_000) {
            // One that never had a session would begin a cluster of its own, which nothing can heal.
            let force =
                core.chance_of(|knobs| knobs.force_ppm) && self.hosts[target].mirror.borrow().last() > 0;
            Ask::Promote { force }
        } else {
            // Mostly one that leads.
            let leaders: Vec<usize> =
                (0..self.hosts.len()).filter(|site| self.leads(*site) && *site != target).collect();
            let any = core.rng.below(hosts) as usize;
            let site = if core.chance(800_000) { leaders.first().copied().unwrap_or(any) } else { any };
            Ask::Follow { site, discard: core.chance_of(|knobs| knobs.discard_ppm) }
        };
        let behind_its_back = core.chance(400_000);
        drop(core);
        if matches!(ask, Ask::Promote { .. }) && behind_its_back {
            self.cut_off_from_leader(target);
        }
        self.command(target, ask);
    }

    /// Mostly a leader, to any host, or to whoever holds most.
    fn ask_to_hand_over(&mut self) {
        let leaders: Vec<usize> = (0..self.hosts.len()).filter(|site| self.leads(*site)).collect();
        let mut core = self.core.borrow_mut();
        let (any, to) = (core.some_host(), core.some_host());
        let target = if core.chance(900_000) { leaders.last().copied().unwrap_or(any) } else { any };
        let to = core.chance(700_000).then_some(to);
        drop(core);
        self.command(target, Ask::Transfer { to });
    }

    /// The leader and this host do not hear each other for a while; both reach the rest. A promotion then
    /// finds the leader silent, and the leader goes on until the others tell it.
    fn cut_off_from_leader(&mut self, site: usize) {
        let Some(leader) = (0..self.hosts.len()).find(|other| *other != site && self.leads(*other)) else {
            return;
        };
        let mut core = self.core.borrow_mut();
        let for_ns = core.between(1_000 * MS, 8_000 * MS);
        core.block(site, leader, for_ns);
        core.block(leader, site, for_ns);
        core.stats.count("net: leader cut off from a candidate");
    }

    /// Whether this host leads, as far as it was seen.
    pub fn leads(&self, site: usize) -> bool {
        self.hosts[site].process.is_some() && self.hosts[site].seen.as_ref().is_some_and(|seen| seen.leads)
    }

    /// The operator gives a command, on a connection of its own.
    pub fn command(&mut self, target: usize, ask: Ask) {
        // Which of two nodes with one identity is meant is a question that only an empty directory answers.
        if self
            .twin
            .is_some_and(|twin| twin == target || matches!(ask, Ask::Follow { site, .. } if site == twin))
        {
            return;
        }
        let operator = self.clients.len() - 1;
        self.client_lost(operator);
        self.clients[operator].target = target;
        if self.core.borrow().net.alive[target] == 0 {
            return;
        }
        let mut core = self.core.borrow_mut();
        core.trace(|| format!("operator asks host {target}: {ask:?}"));
        match &ask {
            Ask::Promote { force } => {
                core.stats.count(if *force { "operator: promote --force" } else { "operator: promote" });
                if *force {
                    self.oracle.forced.insert(target);
                }
            }
            Ask::Transfer { .. } => core.stats.count("operator: transfer"),
            Ask::ChangeMembers { add: true, .. } => core.stats.count("operator: member add"),
            Ask::ChangeMembers { add: false, .. } => core.stats.count("operator: member remove"),
            Ask::Follow { discard, .. } => {
                core.stats.count(if *discard { "operator: follow --discard" } else { "operator: follow" });
                if *discard {
                    self.oracle.discarding.insert(target);
                }
            }
            _ => {}
        }
        drop(core);
        self.ask(operator, ask);
        self.client_writes(operator);
    }
}
