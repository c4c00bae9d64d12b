//! Data directories that are older than they should be, or that there are two of.

use kvstore::ids::NodeId;
use kvstore::node::RoleFlag;

use crate::archives::Archive;
use crate::core::{Event, MS};
use crate::host::{Host, Told, read_log};
use crate::mem_disk::{Keep, MemDisk};
use crate::mirror::Mirror;
use crate::world::World;

/// A copy of a data directory.
pub struct Backup {
    pub mem: MemDisk,
    pub told: Told,
    pub node: NodeId,
}

/// The copy of a directory runs as a second node for so long at most.
const TWIN_NS: u64 = 6_000 * MS;

/// A copy of this disk as `cp -a` of a directory at rest makes it: everything in it is durable.
fn copy_of(mem: &MemDisk) -> MemDisk {
    let copy = mem.fork();
    copy.crash(Keep::All);
    copy.set_capacity(None);
    copy
}

impl World {
    /// A backup is taken; or, if there is one, a machine breaks and is put back to it.
    pub fn roll_back(&mut self, site: usize) {
        let with_backup = (0..self.hosts.len()).find(|site| self.hosts[*site].backup.is_some());
        match with_backup {
            Some(old) => self.restore(old),
            None if !self.rolled_back => self.take_backup(site),
            None => {}
        }
    }

    fn take_backup(&mut self, site: usize) {
        let host = &mut self.hosts[site];
        let Some(process) = &host.process else { return };
        // A copy of a directory in which a page was lost is a copy of what reads show, as anybody would make it.
        if host.mem.has_crashed() || host.rotten || self.twin.is_some_and(|twin| twin == site) {
            return;
        }
        let node = process.node.node_id();
        host.backup = Some(Backup { mem: copy_of(&host.mem), told: host.told.clone(), node });
        let mut core = self.core.borrow_mut();
        core.stats.count("process: backup taken");
        core.trace(|| format!("a backup of host {site} is taken"));
    }

    /// The older copy takes the place of the disk.
    pub fn restore(&mut self, site: usize) {
        let spare = self.is_spare(site);
        let host = &self.hosts[site];
        let same_node = |backup: &Backup| {
            host.process.as_ref().is_none_or(|process| process.node.node_id() == backup.node)
        };
        if !spare || self.rolled_back || self.twin.is_some() || !host.backup.as_ref().is_some_and(same_node) {
            return;
        }
        self.end_process(site, true);
        self.rolled_back = true;
        let backup = self.hosts[site].backup.take().expect("it was looked at");
        let leads = self.hosts[site].seen.as_ref().is_some_and(|seen| seen.leads);
        let left = read_log(&backup.mem).unwrap_or_else(|why| panic!("a backup of host {site}: {why}"));
        self.disk_loses(site, &left, backup.told.term, Some(backup.node));
        let host = &mut self.hosts[site];
        host.mem = backup.mem;
        host.told = backup.told;
        (host.rotten, host.snapshots_rot) = (false, None);
        host.seen = None;
        host.mirror.borrow_mut().stands_still_at(left);
        let mut core = self.core.borrow_mut();
        core.stats.count(if leads {
            "process: a leader's directory rolled back"
        } else {
            "process: a follower's directory rolled back"
        });
        let last = self.hosts[site].mirror.borrow().last();
        core.trace(|| format!("host {site} is put back to an older directory, which ends at LSN {last}"));
    }

    /// The directory of one follower is started as another node: two nodes have one identity.
    pub fn start_twin(&mut self, site: usize) {
        let follows = |site: usize| {
            let process = self.hosts[site].process.as_ref();
            process.is_some_and(|process| process.node.role_name() == "follower") && site != 0
        };
        let of = (0..self.hosts.len())
            .find(|other| *other != site && follows(*other) && self.hosts[*other].mirror.borrow().last() > 0);
        let Some(of) = of.filter(|_| follows(site) && self.twin.is_none() && self.is_spare(site)) else {
            return;
        };
        if self.hosts[of].mem.has_crashed() || self.hosts[of].rotten {
            return;
        }
        self.end_process(site, false);
        let copy = copy_of(&self.hosts[of].mem);
        let left = read_log(&copy).unwrap_or_else(|why| panic!("a copy of host {of}: {why}"));
        let told = self.hosts[of].told.clone();
        self.disk_loses(site, &left, told.term, None);
        let host = &mut self.hosts[site];
        host.mem = copy;
        host.told = told;
        (host.rotten, host.snapshots_rot) = (false, None);
        host.seen = None;
        host.backup = None;
        host.mirror.borrow_mut().stands_still_at(left);
        self.twin = Some(site);
        let mut core = self.core.borrow_mut();
        core.stats.count("process: second node of one identity");
        core.trace(|| format!("host {site} is started with a copy of the directory of host {of}"));
        core.after(TWIN_NS, Event::TwinEnds);
    }

    /// The operator has read why the second one is refused, and gives it a directory of its own.
    pub fn end_twin(&mut self) {
        let Some(site) = self.twin.take() else { return };
        self.end_process(site, false);
        self.empty_directory(site);
    }

    /// This host has a new, empty disk.
    pub fn new_disk(&mut self, site: usize) {
        self.disk_loses(site, &Mirror::default(), 0, None);
        let mut core = self.core.borrow_mut();
        let now = core.now;
        core.directories.lose(site, now);
        drop(core);
        let term = |other: &usize| self.hosts[*other].seen.as_ref().map(|seen| seen.term);
        let leaders = (0..self.hosts.len()).filter(|other| *other != site && self.leads(*other));
        let leader = leaders.max_by_key(term).unwrap_or((site + 1) % self.hosts.len());
        let elected = self.core.borrow().knobs.is_elected();
        let host = &mut self.hosts[site];
        if !elected {
            // With the flags of a leader it would begin a cluster of its own.
            host.config.role = RoleFlag::Follower;
            host.config.leader = Host::address(leader);
            host.config.peers = Vec::new();
        }
        (host.rotten, host.snapshots_rot) = (false, None);
        host.mem = MemDisk::new();
        // A new node needs an archive of its own.
        host.archive = host.archive.take().map(|archive| Archive::new(archive.config));
        *host.mirror.borrow_mut() = Mirror::default();
        host.seen = None;
        host.told = Told::default();
        host.backup = None;
        if self.twin == Some(site) {
            self.twin = None;
        }
    }
}
