//! Runs whose members are changed by their operator: who has a say, by the logs.
//!
//! A node goes by the newest list in its log, committed or not; before the first one by that of the forming. Nobody is
//! believed: the lists are read from what the disks were told to write. What must hold of majorities (`quorums.rs`,
//! `replies.rs`) holds of the majorities of these lists, and whoever leads is in its own.
//!
//! The operator adds a host that waits, or one that was removed, with whatever directory it has; removes a member, the
//! leader too (it says no, and hands over first); and does so while everything else breaks. Whoever was removed may
//! lose its directory, and is then added as the new node that it is: a replacement at one address. No disk of a member
//! loses what it promised in such a run: what a barrier is would change with the members.

use crate::client::Ask;
use crate::host::Host;
use crate::world::World;

/// The sites of the newest list in this log. `formed`: so many formed the cluster.
pub fn of_log(host: &Host, formed: usize) -> Vec<usize> {
    let mirror = host.mirror.borrow();
    let newest = mirror.lists.last();
    // Before that it goes by the list that it was told, and is in it only once a record says so.
    let is_told = newest.map_or(0, |(lsn, _)| *lsn) <= host.told_list_at && host.told_list_at > 0;
    if is_told { Vec::new() } else { sites(newest, formed) }
}

/// The same, and those of the list before it.
pub fn newest_two(host: &Host, formed: usize) -> [Vec<usize>; 2] {
    let mirror = host.mirror.borrow();
    let mut newest = mirror.lists.iter().rev();
    [sites(newest.next(), formed), sites(newest.next(), formed)]
}

fn sites(list: Option<&(u64, Vec<String>)>, formed: usize) -> Vec<usize> {
    let Some((_, addresses)) = list else { return (0..formed).collect() };
    (0..SITES_MAX).filter(|site| addresses.contains(&Host::address(*site))).collect()
}

/// No run has more hosts.
const SITES_MAX: usize = 16;

impl World {
    /// Whether this host is to serve in the end: a member by the log that ends in the highest term, or a replica.
    pub fn is_to_serve(&self, site: usize) -> bool {
        let knobs = self.core.borrow().knobs.clone();
        if knobs.joiners == 0 {
            return true;
        }
        let end = |host: &&Host| {
            let mirror = host.mirror.borrow();
            mirror.entries.last().map(|entry| (entry.term, entry.lsn))
        };
        let longest = self.hosts.iter().max_by_key(end).expect("there are hosts");
        of_log(longest, knobs.members).contains(&site)
    }

    /// A host that no member's log names any more loses its directory.
    fn lose_a_former_member(&mut self, members: &[usize]) {
        let formed = self.members();
        let is_named = |site: &usize| {
            members.iter().any(|member| newest_two(&self.hosts[*member], formed).concat().contains(site))
        };
        let had_log = |site: &usize| self.hosts[*site].mirror.borrow().last() > 0;
        let former =
            (0..self.hosts.len()).find(|site| !self.is_replica(*site) && had_log(site) && !is_named(site));
        let Some(site) = former.filter(|site| self.hosts[*site].process.is_some()) else { return };
        let newest =
            |member: &usize| self.hosts[*member].mirror.borrow().lists.last().map_or(0, |(lsn, _)| *lsn);
        let newest = members.iter().map(newest).max().unwrap_or(0);
        self.end_process(site, false);
        self.new_disk(site);
        self.hosts[site].told_list_at = newest;
        let election = &mut self.hosts[site].config.election;
        // With the flags of a founder a node of which the cluster was formed alone would form another one.
        election.join = true;
        self.hosts[site].config.peers.clear();
        let mut core = self.core.borrow_mut();
        core.stats.count("process: a former member wiped");
        core.trace(|| format!("host {site}, which is no member any more, has lost its data directory"));
    }

    /// One member is added, or removed.
    pub fn ask_to_change(&mut self) {
        let Some(leader) = (0..self.hosts.len()).rev().find(|site| self.leads(*site)) else { return };
        let formed = self.members();
        let list = of_log(&self.hosts[leader], formed);
        if self.core.borrow_mut().chance(150_000) {
            self.lose_a_former_member(&list);
        }
        let mut core = self.core.borrow_mut();
        let site = core.some_host();
        let others = self.hosts.len() - list.len();
        // Towards few and towards many, so that each is reached now and then.
        let add = if others == 0 { false } else { list.len() == 1 || core.chance(600_000) };
        let fits: Vec<usize> = (0..self.hosts.len()).filter(|other| list.contains(other) != add).collect();
        let site = if fits.is_empty() { site } else { fits[site % fits.len()] };
        let hands_over = !add && site == leader;
        drop(core);
        if hands_over && self.core.borrow_mut().chance(700_000) {
            return self.command(leader, Ask::Transfer { to: None });
        }
        self.command(leader, Ask::ChangeMembers { add, site });
    }
}
