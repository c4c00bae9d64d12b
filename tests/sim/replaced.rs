//! Members that lose their directories, and are replaced: what users meet, where `lists.rs` has them removed first.
//!
//! A disk is gone (D17), and its node comes back empty: with the flags that it always had, for they stand in a unit
//! file. It is another node. It forms no cluster, for one of those whom it asks belongs to one; it is nobody's vote;
//! and it is refused in words that say what to do. The operator does that, `kv_client replace OLD NEW`, by the steps
//! of the real one: at the same address the old member is removed and the node there added; at another one a host that
//! waits is added, and then the old member removed. Meanwhile clients write, everything else breaks, the node that
//! learns may lose its directory too, and a step is asked for again until it is done.
//!
//! *What may be lost by it: nothing.* A directory takes its identity with it. Nobody votes or acknowledges in that
//! name again, and what was voted and acknowledged in it was true when it was. So to all others this member has
//! stopped for good, and no write is lost by members that stop, however many do: whoever is elected needs a majority
//! of a list, each of whom still holds what it held, and one of whom acknowledged the write. Therefore nothing is
//! excused. (A disk that comes back *older* speaks in the old name, and needs a bar: `victims.rs`.)
//!
//! *What may end by it is the cluster*: where more than a minority is lost nobody can be elected, or be removed. That
//! would be as promised, and nothing could be judged. So a directory is lost only under this bar:
//!
//! - In each list by which somebody may be elected a majority of whole members is left: in the newest one of the
//!   longest log, in the newest of each of its members, and in the one before while that is not committed, for a cut
//!   brings it back. One of three or four at a time, two of five; of one or two, none.
//! - A leader counts on whom it has heard within an election timeout, when it appends a list. So one who has just been
//!   lost may still be counted on for the next: nobody else is lost for two timeouts, nor while the removal of a whole
//!   member is under way, and none is asked for while a seat is lost.
//! - A node that learns may be in the next list. It is lost only where that list would bear it.
//!
//! In the end every lost seat has been filled or given up by a replacement, and the cluster is whole.

use std::collections::BTreeMap;

use crate::client::Ask;
use crate::core::{Event, MS};
use crate::host::Host;
use crate::lists::{List, newest_two, of_log};
use crate::world::World;

/// What the operator has to replace, and what speaks against another loss.
#[derive(Default)]
pub struct Replacing {
    /// Who takes whose place, by site.
    plans: BTreeMap<usize, usize>,
    last_loss: Option<u64>,
    /// Removals of whole members that were asked for.
    removals: Vec<Removal>,
}

/// A request, and the process that it was sent to.
struct Removal {
    conn: usize,
    index: usize,
    site: usize,
    incarnation: u64,
    at: u64,
}

/// What is left unread on a connection so long was read, or will never be: links are down for up to six seconds, and a
/// leader that stands still for longer than a timeout leads no more when it reads.
const UNREAD_NS_MAX: u64 = 15_000 * MS;
/// An answer is waited for so long before the operator asks again, in the second phase.
const STEP_PATIENCE_NS: u64 = 6_000 * MS;

impl World {
    /// A member loses its directory, or one that is to be a member, if the bar allows it.
    pub fn lose_a_member(&mut self, site: usize) {
        if !self.may_be_lost(site) {
            return;
        }
        let list = of_log(&self.core.borrow(), self.longest_log());
        let what = match (list.has(site), self.leads(site)) {
            (false, _) => "process: a node that learns lost its directory",
            (true, true) => "process: a leader lost its directory and is to be replaced",
            (true, false) => "process: a follower lost its directory and is to be replaced",
        };
        self.note_loss();
        let power = self.core.borrow_mut().chance(500_000);
        self.end_process(site, power);
        self.new_disk(site);
        if self.members() == 1 {
            self.waits_to_be_added(site);
        }
        let mut core = self.core.borrow_mut();
        core.stats.count(what);
        let waiting: Vec<usize> = (0..self.hosts.len()).filter(|other| !list.names(*other)).collect();
        let elsewhere = !waiting.is_empty() && core.chance(500_000);
        let new = if elsewhere { waiting[core.rng.below(waiting.len() as u64) as usize] } else { site };
        core.trace(|| format!("host {site} has lost its data directory; host {new} is to take its place"));
        if list.names(site) {
            self.replacing.plans.insert(site, new);
        }
    }

    /// See the head of this file.
    pub fn may_be_lost(&mut self, site: usize) -> bool {
        let host = &self.hosts[site];
        if host.process.is_none() || host.mirror.borrow().last() == 0 || !self.oracle.elections.have_begun() {
            return false;
        }
        if self.lost_lately() || self.removal_is_under_way() {
            return false;
        }
        self.lists_in_use().iter().all(|list| {
            let size = list.len() + usize::from(!list.names(site));
            let whole = list.whole().filter(|other| *other != site).count();
            whole > size / 2
        })
    }

    /// A directory is lost in this moment.
    pub fn note_loss(&mut self) {
        self.replacing.last_loss = Some(self.core.borrow().now);
    }

    fn lost_lately(&self) -> bool {
        let now = self.core.borrow().now;
        self.replacing.last_loss.is_some_and(|at| now < at + 2 * self.timeout_ns())
    }

    /// By which of them somebody may be elected.
    fn lists_in_use(&self) -> Vec<List> {
        let core = self.core.borrow();
        let committed = self.oracle.last_committed().map_or(0, |(lsn, _)| lsn);
        let of = |host: &Host| {
            let newest_lsn = host.mirror.borrow().lists.last().map_or(0, |(lsn, _)| *lsn);
            let lists = newest_two(&core, host).into_iter();
            lists.take(if newest_lsn > committed { 2 } else { 1 }).collect::<Vec<_>>()
        };
        let mut lists = of(self.longest_log());
        let members: Vec<usize> = lists.iter().flat_map(List::whole).collect();
        lists.extend(members.into_iter().flat_map(|member| of(&self.hosts[member])));
        lists
    }

    fn removal_is_under_way(&mut self) -> bool {
        let (now, hosts, dialogues) = (self.core.borrow().now, &self.hosts, &self.dialogues);
        self.replacing.removals.retain(|removal| {
            let host = &hosts[removal.site];
            let asks = host.process.is_some() && host.incarnation == removal.incarnation;
            asks && dialogues[&removal.conn].emitted <= removal.index && now < removal.at + UNREAD_NS_MAX
        });
        !self.replacing.removals.is_empty()
    }

    /// The removal of a whole member, if it may be asked for now.
    pub fn ask_to_remove(&mut self, leader: usize, list: &List, site: usize) {
        let replaces = self.core.borrow().knobs.loss_ppm > 0;
        if replaces {
            // Of one or two members none may be lost: most runs stay above that.
            let is_small = list.len() <= 3 && !self.core.borrow_mut().chance(30_000);
            if is_small
                || !self.replacing.plans.is_empty()
                || list.lost().next().is_some()
                || self.lost_lately()
            {
                return;
            }
        }
        self.command(leader, Ask::ChangeMembers { add: false, site });
        let operator = self.clients.last().expect("there is an operator");
        let Some(conn) = operator.conn.filter(|_| replaces) else { return };
        let (incarnation, at) = (self.hosts[leader].incarnation, self.core.borrow().now);
        let index = self.dialogues[&conn].sent.len() - 1;
        self.replacing.removals.push(Removal { conn, index, site: leader, incarnation, at });
    }

    /// The operator goes on with a replacement, if there is one. True: that was this step.
    pub fn replaces(&mut self, leader: usize, list: &List) -> bool {
        if self.core.borrow().knobs.loss_ppm == 0 {
            return false;
        }
        let Some((add, site)) = self.next_step(list) else { return false };
        // Now and then something else comes in between.
        if self.healed_at.is_none() && self.core.borrow_mut().chance(200_000) {
            return false;
        }
        let is_empty = self.hosts[site].mirror.borrow().last() == 0;
        let founds = !self.hosts[site].config.election.join;
        if add && is_empty && founds && self.core.borrow_mut().chance(500_000) {
            // As the message says; those who do not read it get their node back all the same.
            self.waits_to_be_added(site);
            if self.hosts[site].process.is_some() {
                self.end_process(site, false);
            }
        }
        self.command(leader, Ask::ChangeMembers { add, site });
        true
    }

    /// What is to be asked next of a leader with this list: whether a member is added, and which.
    fn next_step(&mut self, list: &List) -> Option<(bool, usize)> {
        for old in list.lost() {
            self.replacing.plans.entry(old).or_insert(old);
        }
        for (old, new) in self.replacing.plans.clone() {
            let is_lost = list.lost().any(|site| site == old);
            if list.has(new) && !is_lost {
                self.replacement_ends(old, new);
                continue;
            }
            return Some(match () {
                () if is_lost && (old == new || list.has(new)) => (false, old),
                // Whoever was to come is lost as well.
                () if list.names(new) => (false, new),
                () => (true, new),
            });
        }
        None
    }

    fn replacement_ends(&mut self, old: usize, new: usize) {
        self.replacing.plans.remove(&old);
        let mut core = self.core.borrow_mut();
        core.stats.count(match old == new {
            true => "role: a lost member is replaced at its own address",
            false => "role: a lost member is replaced at another address",
        });
        if self.healed_at.is_some() {
            core.stats.count("second phase: a lost member is replaced");
        }
        core.trace(|| format!("host {new} has taken the place of the member that host {old} was"));
        drop(core);
        // It is stopped, as the operator is told, and started again as a node that waits.
        if old != new && self.hosts[old].mirror.borrow().last() == 0 {
            self.waits_to_be_added(old);
            if self.hosts[old].process.is_some() {
                self.end_process(old, false);
                self.core.borrow_mut().after(10 * MS, Event::Start(old));
            }
        }
    }

    /// The second phase: what is lost is replaced. True: that was this step of the operator.
    pub fn replace_the_lost(&mut self) -> bool {
        let replaces = self.core.borrow().knobs.loss_ppm > 0;
        let Some(leader) = self.elected_leader().filter(|_| replaces) else { return false };
        let (list, now) = (of_log(&self.core.borrow(), &self.hosts[leader]), self.core.borrow().now);
        let operator = self.clients.last().expect("there is an operator");
        let waits = operator.conn.is_some_and(|conn| {
            let dialogue = &self.dialogues[&conn];
            let waited_for = dialogue.sent.get(dialogue.received);
            waited_for.is_some_and(|sent| now < sent.at + STEP_PATIENCE_NS)
        });
        waits || self.replaces(leader, &list)
    }

    /// The end of the run: no seat is lost, and no replacement has stopped half way.
    pub fn check_whole(&mut self, leader: usize) {
        if self.core.borrow().knobs.loss_ppm == 0 {
            return;
        }
        let list = of_log(&self.core.borrow(), &self.hosts[leader]);
        let step = self.next_step(&list);
        assert!(step.is_none(), "host {leader}: in the end the cluster is not whole: {step:?} of {list:?}");
        if self.replacing.last_loss.is_some() {
            self.core.borrow_mut().stats.count("check: a cluster that lost members is whole in the end");
        }
    }
}
