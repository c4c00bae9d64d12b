//! One run: hosts, clients and an operator on one event heap, until the seed's time is over, healed, and
//! everything that was promised is there.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use kvstore::conn::DialId;
use kvstore::node::{ElectionConfig, FlushMode, NodeConfig, RoleFlag};
use kvstore::wal::{Durability, WalConfig};

use crate::client::{Client, Dialogue};
use crate::core::{Core, Event, MS, Shared};
use crate::disk::HostClock;
use crate::host::{Host, TurnEnd};
use crate::knobs::Knobs;
use crate::mem_disk::{Keep, MemDisk};
use crate::oracle::Oracle;
use crate::seed::Seed;
use crate::stats::Stats;

/// See the head of this file.
pub struct World {
    pub core: Shared,
    pub hosts: Vec<Host>,
    pub clients: Vec<Client>,
    pub dialogues: BTreeMap<usize, Dialogue>,
    pub oracle: Oracle,
    /// The second phase has begun at this time.
    pub healed_at: Option<u64>,
    pub heal: crate::heal::Heal,
    pub turns: u64,
    /// What an aimed run is at.
    pub encounter: crate::aim::Encounter,
    /// Members that have lost their directories.
    pub replacing: crate::replaced::Replacing,
    /// A rolling restart under way.
    pub rolling: Option<crate::mishaps::Rolling>,
    /// The host that runs with a copy of another one's directory.
    pub twin: Option<usize>,
    /// The leader whose damaged log waits for its operator.
    pub broken_leader: Option<usize>,
    /// What happens at most once in a run has happened.
    pub leader_replaced: bool,
    pub rolled_back: bool,
}

/// What a run brought.
pub struct Outcome {
    pub stats: Stats,
    pub trace_hash: u32,
    pub virtual_ns: u64,
    pub turns: u64,
}

impl World {
    /// A cluster that has not been started.
    pub fn new(seed: Seed, verbose: bool, hash_trace: bool) -> World {
        let (rng, knobs) = seed.begin();
        let core: Shared = Rc::new(RefCell::new(Core::new(rng, knobs.clone(), verbose, hash_trace)));
        let hosts = (0..knobs.hosts).map(|site| new_host(&core, &knobs, site)).collect();
        let new_client = |index: usize| {
            let mut client = Client::new(knobs.hosts + index, index as u64);
            let is_operator = index == knobs.clients;
            client.numbering = crate::numbered::numbers(seed, index).filter(|_| !is_operator);
            client
        };
        let clients = (0..=knobs.clients).map(new_client).collect();
        World {
            core,
            hosts,
            clients,
            dialogues: BTreeMap::new(),
            oracle: Oracle::default(),
            healed_at: None,
            heal: crate::heal::Heal::default(),
            turns: 0,
            encounter: Default::default(),
            replacing: Default::default(),
            rolling: None,
            twin: None,
            broken_leader: None,
            leader_replaced: false,
            rolled_back: false,
        }
    }

    /// Runs to the end. Panics at the first thing that is not as promised.
    pub fn run(mut self) -> Outcome {
        self.begin();
        while let Some(((time, _), event)) = self.pop() {
            self.core.borrow_mut().now = time;
            if matches!(event, Event::Deadline) {
                break;
            }
            self.handle(event);
        }
        self.check_healed();
        let began_twice = |site, term| self.oracle.began_twice(site, term);
        let numbers = &self.oracle.numbers;
        self.oracle.histories.check(&mut self.core.borrow_mut(), &self.dialogues, numbers, began_twice);
        let mut core = self.core.borrow_mut();
        self.hosts.iter().for_each(|host| count_process(&mut core.stats, host));
        Outcome {
            stats: core.stats.clone(),
            trace_hash: core.trace_hash,
            virtual_ns: core.now,
            turns: self.turns,
        }
    }

    fn pop(&mut self) -> Option<((u64, u64), Event)> {
        self.core.borrow_mut().heap.pop_first()
    }

    fn begin(&mut self) {
        let mut core = self.core.borrow_mut();
        for site in 0..self.hosts.len() {
            let when = core.between(0, 300 * MS);
            core.at(when, Event::Start(site));
        }
        for client in &self.clients {
            core.net.alive[client.site] = 1;
        }
        let bound = |client: &usize| *client < core.knobs.probes();
        for client in (0..self.clients.len() - 1).filter(|client| !bound(client)).collect::<Vec<_>>() {
            let when = core.between(0, 100 * MS);
            core.at(when, Event::Client(client));
        }
        let (chaos, every) = (core.knobs.chaos_ns, core.knobs.fault_every_ns);
        core.at(every, Event::Fault);
        if core.knobs.operator_every_ns > 0 {
            let when = core.knobs.operator_every_ns;
            core.at(when, Event::Operator);
        }
        if core.knobs.aim.is_some() {
            core.at(1_000 * MS, Event::Aim);
        }
        core.at(chaos, Event::Heal);
        core.at(chaos + crate::heal::HEAL_NS, Event::Deadline);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Turn { host, token } => self.turn(host, token),
            Event::Arrive { conn, dir } => {
                if self.core.borrow_mut().arrive(conn, dir) {
                    self.wake_receiver(conn, 1 - dir);
                }
            }
            Event::Writable { conn, side } => self.on_writable(conn, side),
            Event::Dial { host, incarnation, dial, target } => self.on_dial(host, incarnation, dial, target),
            Event::Client(index) => self.client_acts(index),
            Event::Operator => self.operator_acts(),
            Event::Fault => self.fault(),
            Event::Flap(site) => self.flap(site),
            Event::Toggle { one, other, times } => self.toggle(one, other, times),
            Event::Rolling => self.rolling_step(),
            Event::Rescue => self.rescue_step(),
            Event::TwinEnds => self.end_twin(),
            Event::Away { site, steps } => self.away_step(site, steps),
            Event::Trouble { site, trouble } => self.trouble(site, trouble),
            Event::LetLateGo(site) => self.let_late_go(site, false),
            Event::Aim => self.aim_step(),
            Event::Probe => self.probe(),
            Event::Unblock { from, to } => self.core.borrow_mut().unblock(from, to),
            Event::Start(site) => self.start(site),
            Event::CrashNow { host, incarnation, power } => {
                if self.hosts[host].incarnation == incarnation && self.hosts[host].process.is_some() {
                    self.end_process(host, power);
                }
            }
            Event::Continue(site) if self.broken(site).is_some() => {}
            Event::SpaceBack(site) if self.broken(site).is_some() => {}
            Event::Continue(site) => {
                self.hosts[site].paused = false;
                self.core.borrow_mut().stats.count("process: continue");
                self.wake(site);
            }
            Event::SpaceBack(site) => {
                self.hosts[site].mem.set_capacity(None);
                if let Some(archive) = &self.hosts[site].archive {
                    archive.there.set(true);
                    archive.mem.set_capacity(None);
                }
            }
            Event::Heal => self.begin_heal(),
            Event::Deadline => unreachable!("it ends the run"),
        }
    }

    // ---- processes

    pub fn start(&mut self, site: usize) {
        if self.hosts[site].process.is_some() || !self.may_start(site) {
            return;
        }
        let mut core = self.core.borrow_mut();
        let seed = core.rng.next_u64();
        core.stats.count("process: start");
        core.trace(|| format!("host {site} starts"));
        drop(core);
        self.hosts[site].incarnation += 1;
        let before = self.hosts[site].mirror.borrow().entries.clone();
        match self.hosts[site].start(seed) {
            Ok(()) => {
                let node = self.hosts[site].process.as_ref().expect("it has just started").node.node_id();
                let mut core = self.core.borrow_mut();
                core.directories.note(site, node);
                core.net.alive[site] = self.hosts[site].incarnation;
                drop(core);
                self.note_losses(site, &before);
                let mut core = self.core.borrow_mut();
                self.oracle.after_start(&mut core, &mut self.hosts, site);
                let host = &self.hosts[site];
                self.oracle.elections.after_start(&mut core, site, &host.mem);
                let (busy, seen) = (host.busy_until, host.seen.clone());
                core.trace(|| format!("host {site} is up: {seen:?}"));
                drop(core);
                self.after_broken_start(site);
                self.schedule(site, busy);
            }
            Err(TurnEnd::Crashed) => self.end_process(site, true),
            Err(TurnEnd::Fatal(reason)) => self.refused_start(site, &reason.to_string()),
            Err(_) => unreachable!("a start ends in no other way"),
        }
    }

    fn refused_start(&mut self, site: usize, why: &str) {
        let mut core = self.core.borrow_mut();
        core.trace(|| format!("host {site} does not start: {why}"));
        core.stats.count("process: refused to start");
        if self.hosts[site].rotten && why.contains("damaged") {
            core.stats.count("process: refused a damaged log");
            drop(core);
            return self.on_damage_refused(site, why);
        }
        let full = why.contains("os error 28");
        let failed_sync = why.contains("os error 5");
        assert!(full || failed_sync, "host {site} refuses to start: {why}");
        let later = core.between(100 * MS, 2_000 * MS);
        core.after(later, Event::Start(site));
        drop(core);
        self.hosts[site].mem.kill_process();
    }

    /// The process is gone, and with `power` what its disk had not synced.
    pub fn end_process(&mut self, site: usize, power: bool) {
        let mut core = self.core.borrow_mut();
        let power = power && !core.knobs.has_power_for_good();
        if core.knobs.has_power_for_good() {
            core.stats.count("process: killed, and its page cache is all there is");
        }
        count_process(&mut core.stats, &self.hosts[site]);
        self.oracle.after_turn(&mut core, &mut self.hosts, site, &mut self.dialogues, true);
        let host = &mut self.hosts[site];
        host.process = None;
        host.next_turn = None;
        host.token += 1;
        host.paused = false;
        host.accepts.clear();
        host.dialled.clear();
        host.mirror.borrow_mut().on = false;
        if host.mem.flush_is_pending() {
            let how =
                if power { "process: power loss under a flush" } else { "process: killed under a flush" };
            core.stats.count(how);
        }
        if power {
            host.at_risk |= core.knobs.mishaps.os_durability;
            let (sectors, names) = (core.rng.next_u64(), core.rng.next_u64());
            let keep = |seed: u64| match seed % 4 {
                0 => Keep::None,
                1 => Keep::All,
                _ => Keep::Random(seed),
            };
            host.mem.crash_with(keep(sectors), keep(names));
            if let Some(archive) = &host.archive {
                archive.mem.crash_with(keep(names), keep(sectors));
            }
        } else {
            host.mem.kill_process();
            if let Some(archive) = &host.archive {
                archive.mem.kill_process();
            }
        }
        core.trace(|| format!("host {site} is gone (power loss: {power})"));
        core.leave(site, power);
        let later = if core.chance_of(|knobs| knobs.long_down_ppm) {
            core.between(0, 8_000 * MS)
        } else {
            core.between(MS, 500 * MS)
        };
        core.after(later, Event::Start(site));
    }

    pub fn wake(&mut self, site: usize) {
        let now = self.core.borrow().now;
        self.schedule(site, now);
    }

    fn schedule(&mut self, site: usize, time: u64) {
        let host = &mut self.hosts[site];
        if host.process.is_none() || host.paused {
            return;
        }
        let time = time.max(host.busy_until);
        if host.next_turn.is_none_or(|next| time < next) {
            host.next_turn = Some(time);
            host.token += 1;
            self.core.borrow_mut().at(time, Event::Turn { host: site, token: host.token });
        }
    }

    fn turn(&mut self, site: usize, token: u64) {
        let host = &mut self.hosts[site];
        if host.token != token || host.process.is_none() || host.paused {
            return;
        }
        self.turns += 1;
        host.check_spin();
        match host.turn() {
            TurnEnd::Stopped(for_ns) => self.stop_for(site, for_ns),
            TurnEnd::Crashed => {
                self.core.borrow_mut().stats.count("disk: crash point reached");
                let power = self.core.borrow_mut().chance(600_000);
                self.end_process(site, power);
            }
            TurnEnd::Fatal(reason) => {
                let mut core = self.core.borrow_mut();
                core.trace(|| format!("host {site} ends: {reason}"));
                core.stats.count("process: ended by a fatal reason");
                let power = core.chance(300_000);
                drop(core);
                self.end_process(site, power);
            }
            TurnEnd::Ended => {
                let mut core = self.core.borrow_mut();
                core.stats.count("process: orderly end");
                // Switching the machine off afterwards takes nothing.
                let power = core.chance(200_000);
                drop(core);
                let host = &self.hosts[site];
                let seen = host.process.as_ref().expect("it has just ended").node.observe();
                // A flush that hangs for longer than an end may take is not waited for, nor is what is behind it.
                let last = if host.mem.flush_is_pending() { seen.durable.0 } else { seen.last.0 };
                self.end_process(site, power);
                self.hosts[site].left = last;
            }
            TurnEnd::GoesOn => {
                self.note_repair_in_turn(site);
                self.watch_state(site);
                let mut core = self.core.borrow_mut();
                let cuts_allowed = core.stats.0.get("node: cut below commit allowed").copied();
                self.oracle.after_turn(&mut core, &mut self.hosts, site, &mut self.dialogues, false);
                if core.stats.0.get("node: cut below commit allowed").copied() != cuts_allowed {
                    self.oracle.on_discard(&mut core, &self.hosts);
                }
                let removal = core.knobs.removal;
                drop(core);
                if removal {
                    self.let_log_go(site);
                }
                self.let_late_go(site, false);
                if self.trouble_in_transfer(site) || self.aim_after_turn(site) {
                    return;
                }
                self.start_dials(site);
                if let Some(time) = self.hosts[site].wants_turn_at() {
                    self.schedule(site, time);
                }
            }
        }
    }

    /// The log may go as far as it is equal and durable everywhere: no cut and no follower ever needs it again.
    fn let_log_go(&mut self, site: usize) {
        let mirrors: Vec<_> = self.hosts.iter().map(|host| host.mirror.borrow()).collect();
        let equal_at = |lsn: u64| {
            let chain = |mirror: &crate::mirror::Mirror| mirror.get(lsn).map(|entry| entry.chain);
            mirrors.iter().all(|mirror| chain(mirror).is_some() && chain(mirror) == chain(&mirrors[0]))
        };
        let (mut low, mut high) = (0, mirrors.iter().map(|mirror| mirror.synced).min().unwrap_or(0));
        while low < high {
            let middle = (low + high).div_ceil(2);
            (low, high) = if equal_at(middle) { (middle, high) } else { (low, middle - 1) };
        }
        drop(mirrors);
        let host = &mut self.hosts[site];
        if let (Some(process), Some(pin)) = (&mut host.process, host.pin) {
            process.node.move_pin(pin, kvstore::ids::Lsn(low));
        }
    }

    // ---- connections

    fn start_dials(&mut self, site: usize) {
        let host = &mut self.hosts[site];
        let Some(process) = &mut host.process else { return };
        let mut core = self.core.borrow_mut();
        for (dial, address) in std::mem::take(&mut process.socks.dials) {
            host.dials_made += 1;
            let target = (0..core.knobs.hosts).find(|target| Host::address(*target) == address);
            let delay = core.connect_delay() + host.ahead.get();
            core.after(delay, Event::Dial { host: site, incarnation: host.incarnation, dial, target });
        }
    }

    fn on_dial(&mut self, site: usize, incarnation: u64, dial: DialId, target: Option<usize>) {
        if self.hosts[site].incarnation != incarnation || self.hosts[site].process.is_none() {
            return;
        }
        let mut core = self.core.borrow_mut();
        let outcome = match target {
            Some(target) if !core.net.works(site, target) || !core.net.works(target, site) => {
                // No answer: TCP tries again for as long as the node waits.
                core.after(500 * MS, Event::Dial { host: site, incarnation, dial, target: Some(target) });
                return;
            }
            Some(target) if core.net.alive[target] > 0 => {
                let conn = core.connect(site, target);
                drop(core);
                self.hosts[target].accepts.push((conn, format!("10.0.0.{}", site + 1)));
                self.wake(target);
                Ok(conn)
            }
            _ => {
                core.stats.count("net: connection refused");
                drop(core);
                Err("connection refused".to_owned())
            }
        };
        self.hosts[site].dialled.push((dial, outcome));
        self.wake(site);
    }

    fn wake_receiver(&mut self, conn: usize, side: usize) {
        let end = self.core.borrow().net.conns[conn].ends[side];
        if end.site >= self.hosts.len() {
            return self.client_reads(end.site - self.hosts.len());
        }
        let reset = self.core.borrow().net.conns[conn].pipes[1 - side].reset;
        if let Some(process) = &mut self.hosts[end.site].process
            && let Some(sock) = process.socks.find(conn, side)
        {
            sock.readable = true;
            // As epoll reports an error: the next write says so.
            sock.write_blocked &= !reset;
        }
        self.wake(end.site);
    }

    fn on_writable(&mut self, conn: usize, side: usize) {
        let end = self.core.borrow().net.conns[conn].ends[side];
        if end.site >= self.hosts.len() {
            return self.client_writes(end.site - self.hosts.len());
        }
        if let Some(process) = &mut self.hosts[end.site].process
            && let Some(sock) = process.socks.find(conn, side)
        {
            sock.write_blocked = false;
        }
        self.wake(end.site);
    }
}

/// What a process has counted in its life.
fn count_process(stats: &mut Stats, host: &Host) {
    let Some(process) = &host.process else { return };
    let counters = &process.node.counters;
    stats.add("node: session", counters.sessions);
    stats.add("snapshot: published", counters.snapshots);
    stats.add("snapshot: segments removed", counters.segments_removed);
    stats.add("transfer: installed", counters.snapshots_installed);
    stats.add("transfer: refused by the follower", counters.snapshots_refused);
    stats.add("transfer: dropped at the bound", counters.transfers_dropped);
    stats.add("transfer: gone on with", counters.transfers_resumed);
    stats.add("node: in-sync set left", counters.insync_left);
    stats.add("node: dead session frames", counters.dead_session_frames);
}

fn new_host(core: &Shared, knobs: &Knobs, site: usize) -> Host {
    let others: Vec<String> = (0..knobs.members).filter(|other| *other != site).map(Host::address).collect();
    let ahead = Rc::new(Cell::new(0));
    let spread = knobs.clock_rate_spread_ppm;
    let rate_ppm = 1_000_000 - spread / 2 + core.borrow_mut().rng.below(spread + 1);
    let rate_ppm = knobs.aimed_rate_ppm(site).unwrap_or(rate_ppm);
    let modes = [FlushMode::Inline, FlushMode::Beside, FlushMode::Beside, FlushMode::Auto];
    let flush = modes[core.borrow_mut().rng.below(modes.len() as u64) as usize];
    let durability = if knobs.mishaps.os_durability { Durability::Os } else { Durability::Fsync };
    let role = match site {
        _ if knobs.is_elected() && site < knobs.members + knobs.joiners => RoleFlag::Auto,
        0 => RoleFlag::Leader,
        _ => RoleFlag::Follower,
    };
    let election = knobs.elected.map_or_else(ElectionConfig::default, |elected| ElectionConfig {
        timeout_ms: elected.timeout_ms,
        reads: elected.reads,
        replicas: (knobs.members + knobs.joiners..knobs.hosts).map(Host::address).collect(),
        join: site >= knobs.members,
    });
    // Whoever leads dials a read replica.
    let leader = if knobs.is_elected() { String::new() } else { Host::address(0) };
    let config = NodeConfig {
        port: 9000,
        own_address: Host::address(site),
        role,
        peers: if role == RoleFlag::Follower || election.join { Vec::new() } else { others },
        leader: if role == RoleFlag::Follower { leader } else { String::new() },
        ack: knobs.ack,
        min_insync: knobs.min_insync,
        insync_timeout_ms: knobs.insync_timeout_ms,
        heartbeat_ms: knobs.heartbeat_ms,
        wal: WalConfig { segment_bytes: knobs.segment_bytes, durability },
        flush,
        flush_refused: None,
        receipts: true,
        feed: knobs.feed,
        snapshot: knobs.snapshot,
        pin: knobs.pin,
        election,
    };
    Host {
        site,
        core: core.clone(),
        mem: MemDisk::new(),
        archive: knobs.archive.map(crate::archives::Archive::new),
        mirror: Rc::default(),
        ahead: ahead.clone(),
        flush_due: Rc::default(),
        clock: HostClock { core: core.clone(), ahead, rate_ppm, zero: 0 },
        config,
        process: None,
        incarnation: 0,
        accepts: Vec::new(),
        dialled: Vec::new(),
        busy_until: 0,
        paused: false,
        stops_in_turn: None,
        stopped: None,
        turn_began: 0,
        stops: Vec::new(),
        token: 0,
        next_turn: None,
        seen: None,
        told: Default::default(),
        cuts: 0,
        dials_made: 0,
        heard: (0, 0),
        insync_left: 0,
        spin: (0, 0),
        ending: false,
        rotten: false,
        snapshots_rot: None,
        left: 0,
        at_risk: false,
        backup: None,
        waits: Vec::new(),
        pin: None,
        load_checked: false,
        installs: 0,
        flip: None,
        state_fault: None,
        late: None,
        away: false,
        troubles: Vec::new(),
        printed: Vec::new(),
    }
}
