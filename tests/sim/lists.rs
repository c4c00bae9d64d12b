//! Runs whose members are changed by their operator: who has a say, by the logs.
//!
//! A node goes by the newest list in its log, committed or not; before the first one by that of the forming. Nobody is
//! believed: the lists are read from what the disks were told to write. What must hold of majorities (`quorums.rs`,
//! `replies.rs`) holds of the majorities of these lists, and whoever leads is in its own.
//!
//! A list names identities, and an identity is that of a directory. The *seat* of a member whose directory was emptied
//! is lost: it counts for the size of every majority, and nobody sits there any more, whatever runs at that address.
//!
//! The operator adds a host that waits, or one that was removed, with whatever directory it has; removes a member, the
//! leader too (it says no, and hands over first); and does so while everything else breaks. Whoever was removed may
//! lose its directory, and is then added as the new node that it is. Members that lose it before, and the bar for both:
//! `replaced.rs`.

use kvstore::ids::NodeId;
use kvstore::replication::members::Member;

use crate::client::Ask;
use crate::core::Core;
use crate::host::Host;
use crate::world::World;

/// Which node each site is.
#[derive(Clone, Debug, Default)]
pub struct Directories(Vec<Directory>);

#[derive(Clone, Copy, Debug, Default)]
struct Directory {
    /// None while nobody has started with it.
    node: Option<NodeId>,
    /// When it took the place of the one before; none if it is the one that the site began with.
    since: Option<u64>,
}

impl Directories {
    pub fn new(sites: usize) -> Directories {
        Directories(vec![Directory::default(); sites])
    }

    /// A process runs with it.
    pub fn note(&mut self, site: usize, node: NodeId) {
        self.0[site].node = Some(node);
    }

    /// There is another one in its place from now on.
    pub fn lose(&mut self, site: usize, now: u64) {
        self.0[site] = Directory { node: None, since: Some(now) };
    }
}

/// A place in a list of members.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    pub site: usize,
    /// When the directory of the node that had it was lost, and with it that node.
    pub lost_at: Option<u64>,
}

/// Who has a say.
#[derive(Clone, Debug, Default)]
pub struct List(Vec<Seat>);

impl List {
    fn of(core: &Core, list: Option<&(u64, Vec<Member>)>) -> List {
        let directory = |site: usize| core.directories.0[site];
        let Some((_, members)) = list else {
            let formed = |site: usize| Seat { site, lost_at: directory(site).since };
            return List((0..core.knobs.members).map(formed).collect());
        };
        let seat = |member: &Member| {
            let site = (0..core.knobs.hosts).find(|site| Host::address(*site) == member.address);
            let site = site.expect("members are hosts");
            let Directory { node, since } = directory(site);
            Seat { site, lost_at: since.filter(|_| node != Some(member.node_id)) }
        };
        List(members.iter().map(seat).collect())
    }

    pub fn seats(&self) -> &[Seat] {
        &self.0
    }

    /// Seats, the lost ones too.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn majority(&self) -> usize {
        self.len() / 2 + 1
    }

    /// Who is there to vote.
    pub fn whole(&self) -> impl Iterator<Item = usize> + use<'_> {
        self.0.iter().filter(|seat| seat.lost_at.is_none()).map(|seat| seat.site)
    }

    /// Whose seat is lost.
    pub fn lost(&self) -> impl Iterator<Item = usize> + use<'_> {
        self.0.iter().filter(|seat| seat.lost_at.is_some()).map(|seat| seat.site)
    }

    /// Whether this host is a member, with the directory that it has.
    pub fn has(&self, site: usize) -> bool {
        self.whole().any(|other| other == site)
    }

    /// Whether there is a member at its address, be it another node.
    pub fn names(&self, site: usize) -> bool {
        self.0.iter().any(|seat| seat.site == site)
    }
}

/// The newest list in this log.
pub fn of_log(core: &Core, host: &Host) -> List {
    List::of(core, host.mirror.borrow().lists.last())
}

/// The same, and the list before it.
pub fn newest_two(core: &Core, host: &Host) -> [List; 2] {
    let mirror = host.mirror.borrow();
    let mut newest = mirror.lists.iter().rev();
    [List::of(core, newest.next()), List::of(core, newest.next())]
}

/// The list that this leader goes by and that is not in its log yet: it is in its identity record first, and counts
/// from then on. It is believed as far as it is the next one: one member more or less than the newest in the log.
pub fn about_to_be_logged(core: &Core, host: &Host) -> Option<List> {
    let (_, members) = host.process.as_ref()?.node.cluster();
    let next = List::of(core, Some(&(0, members.iter().cloned().collect())));
    let newest = of_log(core, host);
    let news = next.0.iter().filter(|seat| !newest.names(seat.site)).count();
    let gone = newest.0.iter().filter(|seat| !next.names(seat.site)).count();
    (news + gone == 1).then_some(next)
}

impl World {
    /// The host whose log ends in the highest term, and of those at the highest LSN.
    pub fn longest_log(&self) -> &Host {
        let end = |host: &&Host| {
            let mirror = host.mirror.borrow();
            mirror.entries.last().map(|entry| (entry.term, entry.lsn))
        };
        self.hosts.iter().max_by_key(end).expect("there are hosts")
    }

    /// Whether this host is to serve in the end: a member by that log, or a replica.
    pub fn is_to_serve(&self, site: usize) -> bool {
        let core = self.core.borrow();
        !core.knobs.changes_members() || of_log(&core, self.longest_log()).has(site)
    }

    /// A host that no member's log names any more loses its directory.
    fn lose_a_former_member(&mut self, members: &List) {
        let is_named = |site: &usize| {
            let core = self.core.borrow();
            let names = |member| newest_two(&core, &self.hosts[member]).iter().any(|list| list.names(*site));
            members.whole().any(names)
        };
        let had_log = |site: &usize| self.hosts[*site].mirror.borrow().last() > 0;
        let former =
            (0..self.hosts.len()).find(|site| !self.is_replica(*site) && had_log(site) && !is_named(site));
        // It may be about to be added again, as the node that it was.
        let Some(site) = former.filter(|site| self.may_be_lost(*site)) else { return };
        self.note_loss();
        self.end_process(site, false);
        self.new_disk(site);
        self.waits_to_be_added(site);
        let mut core = self.core.borrow_mut();
        core.stats.count("process: a former member wiped");
        core.trace(|| format!("host {site}, which is no member any more, has lost its data directory"));
    }

    /// The operator starts the node of this host with `--join` from now on. With the flags of a founder it would form
    /// another cluster, if all whom they name were as empty: at once, if it once formed this one alone.
    pub fn waits_to_be_added(&mut self, site: usize) {
        let config = &mut self.hosts[site].config;
        config.election.join = true;
        config.peers.clear();
    }

    /// One member is added, or removed.
    pub fn ask_to_change(&mut self) {
        let Some(leader) = (0..self.hosts.len()).rev().find(|site| self.leads(*site)) else { return };
        let list = of_log(&self.core.borrow(), &self.hosts[leader]);
        if self.replaces(leader, &list) {
            return;
        }
        if self.core.borrow_mut().chance(150_000) {
            self.lose_a_former_member(&list);
        }
        if self.core.borrow_mut().chance_of(|knobs| knobs.loss_ppm) {
            // Mostly one that is a member.
            let mut core = self.core.borrow_mut();
            let (site, member) = (core.some_host(), core.chance(800_000));
            drop(core);
            let members: Vec<usize> = list.whole().collect();
            self.lose_a_member(if member { members[site % members.len()] } else { site });
        }
        let mut core = self.core.borrow_mut();
        let site = core.some_host();
        let others = self.hosts.len() - list.len();
        // Towards few and towards many, so that each is reached now and then.
        let add = if others == 0 { false } else { list.len() == 1 || core.chance(600_000) };
        let fits: Vec<usize> = (0..self.hosts.len()).filter(|other| list.names(*other) != add).collect();
        let site = if fits.is_empty() { site } else { fits[site % fits.len()] };
        let hands_over = !add && site == leader;
        drop(core);
        if hands_over && self.core.borrow_mut().chance(700_000) {
            return self.command(leader, Ask::Transfer { to: None });
        }
        match add {
            true => self.command(leader, Ask::ChangeMembers { add, site }),
            false => self.ask_to_remove(leader, &list, site),
        }
    }
}
