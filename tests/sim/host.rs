//! A machine: its disk, and the process on it while there is one. A turn here follows the event loop of
//! `net` step by step, over simulated streams.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use kvstore::conn::{ConnId, Delivered, DialId, Io, Wire};
use kvstore::disk::Disk;
use kvstore::ids::Chain;
use kvstore::limits::{READ_PER_TURN_CLIENT, READ_PER_TURN_PEER};
use kvstore::meta::MetaStore;
use kvstore::node::{FatalReason, Node, NodeConfig, Observed};
use kvstore::snapshot::{self, Listed};
use kvstore::time::{Clock, Time};
use kvstore::wal::{Base, OpenError, Wal};

use crate::core::Shared;
use crate::disk::{HostClock, SimDisk};
use crate::mem_disk::MemDisk;
use crate::mirror::Mirror;
use crate::socks::{Phase, Sock, Socks};

/// A running process.
pub struct Process {
    pub node: Node,
    pub socks: Socks,
    backlog: Vec<ConnId>,
    sweep_at: Option<Time>,
}

/// What the machine must find again after a restart.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The highest LSN told to be on this disk, and the chain there.
    pub lsn: u64,
    pub chain: Chain,
    /// The term in force when something left last.
    pub term: u64,
    /// The highest LSN at which a read was served.
    pub read_lsn: u64,
    /// As above, with this turn: connections are looked at one after the other, not in the order of their reads.
    pub read_newest: u64,
    /// The same two of reads that may be stale, by this process.
    pub local_lsn: u64,
    pub local_newest: u64,
    /// The commit LSN in the last synced mark.
    pub mark_commit: u64,
}

/// See the head of this file.
pub struct Host {
    pub site: usize,
    pub core: Shared,
    pub mem: MemDisk,
    /// Where its closed segments are copied to.
    pub archive: Option<crate::archives::Archive>,
    pub mirror: Rc<RefCell<Mirror>>,
    pub ahead: Rc<Cell<u64>>,
    /// When the flush under way ends: that wakes the loop.
    pub flush_due: Rc<Cell<Option<u64>>>,
    pub clock: HostClock,
    pub config: NodeConfig,
    pub process: Option<Process>,
    pub incarnation: u64,
    /// Connections that wait to be accepted.
    pub accepts: Vec<(usize, String)>,
    /// Dials answered since the last turn.
    pub dialled: Vec<(DialId, Result<usize, String>)>,
    pub busy_until: u64,
    pub paused: bool,
    /// Its process is about to stop in the middle of a turn.
    pub stops_in_turn: Option<Stop>,
    /// The turn in whose middle its process has stopped.
    pub stopped: Option<Turn>,
    /// When its last turn began.
    pub turn_began: u64,
    /// Turns in whose middle the process stood still: when each began and when it went on.
    pub stops: Vec<(u64, u64)>,
    pub token: u64,
    pub next_turn: Option<u64>,
    pub seen: Option<Observed>,
    pub told: Told,
    /// Cuts counted in this process when they were last looked at.
    pub cuts: u64,
    pub dials_made: u64,
    /// Term and round of the newest frame heard from a leader.
    pub heard: (u64, u64),
    /// Followers that had left the in-sync set, as counted after the last turn.
    pub insync_left: u64,
    /// A moment, and how many turns there were within ten microseconds from it.
    pub spin: (u64, u64),
    /// The process was asked to end.
    pub ending: bool,
    /// A durable bit of its log has flipped: it must refuse to start, or repair.
    pub rotten: bool,
    /// Its newest snapshot (false), or all of them (true), are damaged, and it has not been started since.
    pub snapshots_rot: Option<bool>,
    /// What it warned of: what a forced promotion or a discard may lose.
    pub printed: Vec<String>,
    /// Where its log ended when its process ended in order; 0: nothing is known of that.
    pub left: u64,
    /// The machine lost its power since the last start, and had been told that the page cache is enough.
    pub at_risk: bool,
    /// An older copy of its directory.
    pub backup: Option<crate::backups::Backup>,
    /// For each follower of this leader: the LSN it is waited for, and the turns since.
    pub waits: Vec<crate::oracle::Wait>,
    /// What keeps the log of this process.
    pub pin: Option<kvstore::node::PinId>,
    /// What comes in between while a snapshot is on its way to it, and after how many of its turns.
    pub troubles: Vec<(crate::away::Trouble, u64)>,
    /// What a leader has sent to it and is on its way for longer than the session it belongs to.
    pub late: Option<crate::late::Late>,
    /// It stays down until its leader's log has gone on without it.
    pub away: bool,
    /// The state that this process loaded was compared with the log.
    pub load_checked: bool,
    /// Snapshots that this process had installed when its state was looked at.
    pub installs: u64,
    /// A bit has flipped in its state.
    pub flip: Option<crate::flips::Flip>,
    /// What it last said of its state.
    pub state_fault: Option<kvstore::replication::divergence::Fault>,
}

/// A process stops for so long before it reads a client's socket, when it has read so many others in this turn.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pub for_ns: u64,
    pub behind: usize,
}

/// The part of a turn that reads sockets.
pub struct Turn {
    now: Time,
    /// What the poll has told of, and is still to be read: with what comes meanwhile.
    todo: VecDeque<ConnId>,
    done: usize,
    input_left: bool,
}

/// How a turn ended.
pub enum TurnEnd {
    GoesOn,
    /// It has not: the process was stopped in its middle, for so long.
    Stopped(u64),
    /// The crash point of the disk was reached.
    Crashed,
    Fatal(FatalReason),
    /// An orderly end.
    Ended,
}

impl Host {
    pub fn address(site: usize) -> String {
        format!("10.0.0.{}:9000", site + 1)
    }

    pub fn disk(&self) -> SimDisk {
        SimDisk {
            mem: self.mem.clone(),
            core: self.core.clone(),
            ahead: self.ahead.clone(),
            mirror: self.mirror.clone(),
            flush_due: self.flush_due.clone(),
            name: format!("host{}", self.site),
            snapshot: None,
            site: self.site,
            archive: self.archive.clone(),
            open: Vec::new(),
        }
    }

    /// Starts the process: opens the node. `Err`: it refuses, or crashed on the way.
    pub fn start(&mut self, seed: u64) -> Result<(), TurnEnd> {
        self.ahead.set(0);
        self.flush_due.set(None);
        self.mirror.borrow_mut().on = false;
        let now = self.core.borrow().now;
        self.clock.zero = now;
        let opened =
            Node::open(Box::new(self.disk()), Box::new(self.clock.clone()), seed, self.config.clone());
        if self.mem.has_crashed() {
            return Err(TurnEnd::Crashed);
        }
        let mut node = opened.map_err(TurnEnd::Fatal)?;
        self.keep_archive(&mut node);
        let transfers = self.core.borrow().knobs.transfers;
        self.pin = (!transfers).then(|| node.pin_log(kvstore::ids::Lsn::ZERO));
        self.load_checked = false;
        self.installs = 0;
        (self.flip, self.state_fault) = (None, None);
        (self.told.local_lsn, self.told.local_newest) = (0, 0);
        if let Some(small) = self.core.borrow().knobs.mishaps.budgets {
            node.set_budgets(small.of_node());
        }
        let durable =
            read_log(&self.mem).unwrap_or_else(|why| panic!("host {}: a log just opened: {why}", self.site));
        self.mirror.borrow_mut().reload(durable);
        let socks = Socks::new(
            self.core.clone(),
            self.site,
            self.ahead.clone(),
            self.mirror.clone(),
            self.mem.clone(),
        );
        self.process = Some(Process { node, socks, backlog: Vec::new(), sweep_at: None });
        self.busy_until = now + self.ahead.get();
        (self.stops_in_turn, self.stopped) = (None, None);
        self.cuts = 0;
        self.ending = false;
        Ok(())
    }

    /// Whether it has begun to repair a log that rotted.
    pub fn repairs_rot(&self) -> bool {
        let repairs = |process: &Process| process.node.observe().repair_until.0 > 0;
        self.rotten && self.process.as_ref().is_some_and(repairs)
    }

    /// A loop that wakes up again and again without time going on would burn a processor.
    pub fn check_spin(&mut self) {
        let now = self.core.borrow().now;
        // A deadline that has passed and stays comes again within a nanosecond, as clocks round.
        let same = now < self.spin.0 + 10_000;
        self.spin = if same { (self.spin.0, self.spin.1 + 1) } else { (now, 1) };
        if self.spin.1 > 10_000 {
            let process = self.process.as_ref().expect("it has turns");
            panic!(
                "host {} spins at {:?}: next deadline {:?}, backlog {:?}, {:?}",
                self.site,
                self.clock.now(),
                process.node.next_deadline(),
                process.backlog,
                process.node.observe()
            );
        }
    }

    /// One turn, in the order of the event loop.
    pub fn turn(&mut self) -> TurnEnd {
        self.ahead.set(0);
        self.next_turn = None;
        let result = self.run_turn();
        let warnings = crate::trace::take_warnings();
        if let Some(archive) = &self.archive {
            archive.after_turn(self.site, &warnings);
        }
        self.printed.extend(warnings.into_iter().filter(|line| crate::promises::gives_up(line)));
        self.busy_until = self.core.borrow().now + self.ahead.get();
        if self.mem.has_crashed() || self.archive.as_ref().is_some_and(|archive| archive.mem.has_crashed()) {
            return TurnEnd::Crashed;
        }
        match result {
            Err(reason) => TurnEnd::Fatal(reason),
            Ok(true) => TurnEnd::Ended,
            Ok(false) => match self.stops_in_turn.take_if(|_| self.stopped.is_some()) {
                Some(stop) => TurnEnd::Stopped(stop.for_ns),
                None => TurnEnd::GoesOn,
            },
        }
    }

    /// True: the process has ended in order.
    fn run_turn(&mut self) -> Result<bool, FatalReason> {
        if let Some(turn) = self.stopped.take() {
            self.stops.push((self.turn_began, self.core.borrow().now));
            return self.rest_of_turn(turn);
        }
        let now = self.clock.now();
        self.turn_began = self.core.borrow().now;
        let Some(process) = &mut self.process else { return Ok(false) };
        process.socks.now = now;
        process.node.begin_turn(now);
        for (conn, remote) in std::mem::take(&mut self.accepts) {
            let id = process.socks.insert(conn, 1);
            process.node.on_accept(id, remote);
        }
        for (dial, outcome) in std::mem::take(&mut self.dialled) {
            match outcome {
                Ok(conn) => {
                    let id = process.socks.insert(conn, 0);
                    process.node.on_dialed(&mut process.socks, dial, id);
                }
                Err(why) => process.node.on_dial_failed(&mut process.socks, dial, &why)?,
            }
        }
        if self.mem.has_crashed() {
            return Ok(false);
        }
        let todo = process.has_input();
        process.backlog.clear();
        self.rest_of_turn(Turn { now, todo, done: 0, input_left: false })
    }

    fn rest_of_turn(&mut self, mut turn: Turn) -> Result<bool, FatalReason> {
        let Some(process) = &mut self.process else { return Ok(false) };
        while let Some(id) = turn.todo.pop_front() {
            let stops = |stop: Stop| turn.done >= stop.behind && !process.node.is_peer(id);
            if self.stops_in_turn.is_some_and(stops) {
                turn.todo.push_front(id);
                self.stopped = Some(turn);
                return Ok(false);
            }
            process.take_input_of(id, &mut turn)?;
        }
        let Turn { now, input_left, .. } = turn;
        process.node.finish_turn(&mut process.socks, input_left)?;
        process.sweep(now)?;
        process.node.flush(&mut process.socks)?;
        process.node.note_replied();
        let late = process.node.shutdown_deadline().is_some_and(|deadline| self.clock.now() >= deadline);
        if self.ending && process.node.may_end() && (late || !process.has_unsent()) {
            process.node.close_log()?;
            return Ok(true);
        }
        process.socks.free_doomed();
        Ok(false)
    }

    /// When the loop must wake up by itself: a moment of virtual time.
    pub fn wants_turn_at(&mut self) -> Option<u64> {
        let now_global = self.core.borrow().now;
        let process = self.process.as_mut()?;
        if process.is_runnable() {
            return Some(now_global);
        }
        if process.node.is_loading() {
            // A slice takes as long as one of a real size: so there are clients that ask meanwhile.
            return Some(now_global + 2_000_000);
        }
        let deadlines = [process.node.next_deadline(), process.sweep_at, process.node.shutdown_deadline()];
        let now = self.clock.now();
        // The poll sleeps whole milliseconds.
        let sleep_until = |deadline: Time| {
            let wait_ms = deadline.since(now).div_ceil(1_000_000);
            self.clock.global(now.after_ms(wait_ms))
        };
        let timer = deadlines.into_iter().flatten().min().map(sleep_until);
        [timer, self.flush_due.get()].into_iter().flatten().min()
    }
}

impl Process {
    fn is_runnable(&mut self) -> bool {
        let (node, socks) = (&self.node, &mut self.socks);
        let mut runnable = false;
        for id in &self.backlog {
            let Some(sock) = socks.get_mut(*id) else { continue };
            let mut intake = std::mem::take(&mut sock.intake);
            runnable |= intake.may_deliver(node, socks.output_if_open(*id), *id);
            socks.get_mut(*id).expect("it was there").intake = intake;
        }
        let length = |id| self.socks.output_if_open(id).map_or(usize::MAX, |out| out.len());
        runnable || self.node.wants_feeding(length)
    }

    fn has_unsent(&self) -> bool {
        self.socks.slots.iter().flatten().any(|sock| sock.phase == Phase::Open && !sock.output.is_empty())
    }

    /// The sockets that the poll tells of, and those with something left.
    fn has_input(&self) -> VecDeque<ConnId> {
        let busy = |sock: &&Sock| sock.readable || sock.intake.has_frame() || !sock.output.is_empty();
        self.socks.slots.iter().flatten().filter(busy).map(|sock| sock.id).collect()
    }

    fn take_input_of(&mut self, id: ConnId, turn: &mut Turn) -> Result<(), FatalReason> {
        let Some(sock) = self.socks.get_mut(id) else { return Ok(()) };
        turn.done += usize::from(sock.readable);
        match sock.phase {
            Phase::Open => {
                if !sock.output.is_empty()
                    && !sock.write_blocked
                    && let Some(why) = self.socks.flush_one(id)
                {
                    self.over(id, &why)?;
                }
                self.read_and_deliver(id, turn.now)?;
            }
            Phase::Draining(_) => {
                self.socks.flush_one(id);
            }
            Phase::Doomed => {}
        }
        let left = |sock: &Sock| sock.phase == Phase::Open && (sock.readable || sock.intake.has_frame());
        if self.socks.get(id).is_some_and(left) {
            self.backlog.push(id);
            let throttled = self.socks.get(id).is_some_and(|sock| sock.intake.is_throttled());
            turn.input_left |= self.node.is_peer(id) && !throttled;
        }
        Ok(())
    }

    fn read_and_deliver(&mut self, id: ConnId, now: Time) -> Result<(), FatalReason> {
        let budget = if self.node.is_peer(id) { READ_PER_TURN_PEER } else { READ_PER_TURN_CLIENT };
        let mut read = 0;
        loop {
            if !self.deliver(id, now)? {
                return Ok(());
            }
            let core = self.socks.core.clone();
            let Some(sock) = self.socks.get_mut(id).filter(|sock| sock.phase == Phase::Open) else {
                return Ok(());
            };
            if !sock.readable || read >= budget {
                return Ok(());
            }
            if !self.admit(id) {
                return Ok(());
            }
            let Some(sock) = self.socks.get_mut(id) else { return Ok(()) };
            let space = sock.intake.space();
            let wanted = space.len();
            let mut core = core.borrow_mut();
            let received = core.receive(sock.conn, sock.side, space);
            let ended = core.net.conns[sock.conn].pipes[1 - sock.side].fin;
            drop(core);
            match received {
                Ok(0) => {
                    sock.readable = false;
                    return Ok(());
                }
                Ok(size) => {
                    sock.intake.filled(size);
                    // A short read has drained the socket, as in `net`.
                    sock.readable = size == wanted || ended;
                    read += size;
                }
                Err(why) => return self.over(id, why),
            }
        }
    }

    /// As in `net`: a frame for which the memory budget has no room is refused before it is read.
    fn admit(&mut self, id: ConnId) -> bool {
        let core = self.socks.core.clone();
        let Some(small) = core.borrow().knobs.mishaps.budgets else { return true };
        let used: usize = self.socks.slots.iter().flatten().map(|sock| sock.intake.extra_memory()).sum();
        let Some(sock) = self.socks.get_mut(id) else { return false };
        let (has, wants) = (sock.intake.extra_memory(), sock.intake.extra_wanted());
        if wants > has && used + wants - has > small.input_bytes as usize && !self.node.is_peer(id) {
            sock.intake.discard_frame();
            self.node.refuse_unread(&mut self.socks, id, wants);
            core.borrow_mut().stats.count("node: BUSY, request not read");
        }
        true
    }

    fn deliver(&mut self, id: ConnId, now: Time) -> Result<bool, FatalReason> {
        let Some(sock) = self.socks.get_mut(id) else { return Ok(false) };
        let mut intake = std::mem::take(&mut sock.intake);
        let before = (self.node.positions().0, self.node.bytes_received());
        let delivered = intake.deliver(&mut self.node, &mut self.socks, id, now)?;
        self.check_growth(id, before);
        if intake.deadline().is_some() && self.sweep_at.is_none() {
            self.sweep_at = Some(now.after_ms(1_000));
        }
        if let Some(sock) = self.socks.get_mut(id) {
            sock.intake = intake;
        }
        match delivered {
            Delivered::All => Ok(true),
            Delivered::Blocked => {
                let throttled = self.socks.get(id).is_some_and(|sock| sock.intake.is_throttled());
                let what = if throttled { "node: client throttled" } else { "node: input left for later" };
                self.socks.core.borrow_mut().stats.count(what);
                Ok(false)
            }
            Delivered::Fenced(why) => {
                self.node.counters.fenced += 1;
                let site = self.socks.site;
                let mut core = self.socks.core.borrow_mut();
                core.stats.count("node: fenced a connection");
                core.trace(|| format!("host {site} fenced a connection: {why}"));
                drop(core);
                self.over(id, &format!("fenced: {why}"))?;
                Ok(false)
            }
        }
    }

    fn over(&mut self, id: ConnId, why: &str) -> Result<(), FatalReason> {
        self.node.on_closed(&mut self.socks, id, why)?;
        self.socks.doom(id);
        Ok(())
    }

    fn sweep(&mut self, now: Time) -> Result<(), FatalReason> {
        if self.sweep_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        self.sweep_at = None;
        let mut late = Vec::new();
        for sock in self.socks.slots.iter().flatten() {
            let deadline = match sock.phase {
                Phase::Draining(deadline) => Some(deadline),
                Phase::Open => sock.intake.deadline(),
                Phase::Doomed => None,
            };
            match deadline {
                Some(deadline) if now >= deadline => late.push((sock.id, sock.phase == Phase::Open)),
                Some(_) => self.sweep_at = Some(now.after_ms(1_000)),
                None => {}
            }
        }
        for (id, open) in late {
            if open {
                self.over(id, "its frame was not finished in time")?;
            } else {
                self.socks.doom(id);
            }
        }
        Ok(())
    }
}

/// Everything that a restart would find on this disk, after `kill -9`, read by the product's own recovery on
/// a copy. What the log has lost at its front is what somebody wrote who had the same history.
pub fn read_log(mem: &MemDisk) -> Result<Mirror, String> {
    let copy = mem.fork();
    copy.kill_process();
    read_log_of(copy)
}

/// As [`read_log`], of a copy that nobody needs any more.
pub fn read_log_of(mut copy: MemDisk) -> Result<Mirror, String> {
    copy.heal();
    copy.set_capacity(None);
    let Some(meta) = MetaStore::load(&mut copy).map_err(|error| error.to_string())? else {
        return Ok(Mirror::default());
    };
    let mut wal = open_log(&mut copy, &meta)?;
    let (first, last) = (wal.first_lsn(), wal.last_lsn());
    let mut mirror = Mirror::default();
    let file = copy.create("probe", 1).map_err(|error| error.to_string())?;
    let mut chain =
        wal.chain_at(&mut copy, first.prev()).map_err(|error| error.to_string())?.unwrap_or_default();
    let front = crate::library::front(first.0 - 1, chain);
    let unknown = || format!("the log begins behind LSN {} with a history that nobody wrote", first.0 - 1);
    mirror.take_front(front.ok_or_else(unknown)?, file);
    let mut bytes = Vec::new();
    wal.replay(&mut copy, first, last, &mut |record| {
        bytes.clear();
        record.encode(&mut bytes);
        chain = chain.extend(&bytes);
        mirror.push(record, chain, file);
    })
    .map_err(|error| error.to_string())?;
    Ok(mirror)
}

/// The log as a node opens it: behind the newest snapshot that it agrees with, or from its beginning.
fn open_log(copy: &mut MemDisk, meta: &MetaStore) -> Result<Wal, String> {
    let meta = meta.get();
    let config =
        kvstore::wal::WalConfig { segment_bytes: 64 << 10, durability: kvstore::wal::Durability::Fsync };
    let identity = kvstore::wal::Identity {
        cluster_id: meta.cluster_id,
        generation: meta.log_generation,
        cut_lsn: meta.cut_lsn,
        base_lsn: meta.base_lsn,
        base_chain: meta.base_chain,
    };
    let listed = snapshot::list(copy, None).map_err(|error| error.to_string())?;
    let bases = listed.into_iter().filter_map(|file| match file {
        Listed::Snapshot(info) => {
            Some(Base { lsn: info.id.s, chain: info.chain, history: info.history, durable_lsn: info.id.s })
        }
        Listed::Unreadable { .. } => None,
    });
    for base in bases.chain([Base::default()]) {
        match Wal::open(copy, identity, &base, 1, config) {
            Ok(opened) => return Ok(opened.wal),
            Err(OpenError::BaseDisagrees { .. }) => {}
            // A leader's snapshot that was not installed: the log does not reach it.
            Err(OpenError::Damaged(_)) if base.lsn > identity.base_lsn => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("the log agrees with no beginning".to_owned())
}
