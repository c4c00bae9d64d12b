//! The second phase: nothing breaks any more (what is broken for good: `broken.rs`), an operator who knows what
//! he does repairs the roles, and within bounded time everything must be well: requests answered, followers equal,
//! buffers empty, nobody dialling in a tight loop, and every acknowledged write there.

use std::collections::BTreeMap;

use kvstore::wire::client::Status;

use crate::archives::Archive;
use crate::broken::Broken;
use crate::client::{Ask, Sent};
use crate::core::{Core, Event, MS};
use crate::host::Host;
use crate::socks::Sock;
use crate::world::World;

/// The second phase lasts so long.
pub const HEAL_NS: u64 = 50_000 * MS;
/// Clients send nothing new in the last part of it.
const QUIET_NS: u64 = 20_000 * MS;
/// A connection may have lost its other side for so long: `PEER_IDLE_MS`, or `TRANSFER_SILENCE_MS` where a snapshot is
/// on its way, which is longer, on a clock that is slow by a tenth.
const RELIC_NS: u64 = 17_000 * MS;
/// By then the chosen host leads and serves.
const SETTLED_NS: u64 = 20_000 * MS;
/// Connects of one host in the last ten seconds, per other host, at most: a steady state needs none.
const DIALS_MAX: u64 = 15;

/// What the operator has done so far.
#[derive(Default)]
pub struct Heal {
    pub chosen: Option<usize>,
    /// Hosts that stay broken.
    pub broken: BTreeMap<usize, Broken>,
    /// Writes that the chosen host acknowledged late in this phase.
    served: u64,
    restarted: bool,
    last_follow: Vec<u64>,
    dials_before: Vec<u64>,
    /// Connections without another side, longer ago than a node may wait for what comes next on one.
    relics_before: Vec<usize>,
    pub steps: u64,
}

impl Heal {
    /// A client got an answer from this host to what it had asked at this time.
    pub fn on_got(&mut self, core: &Core, site: usize, sent: &Sent, status: Status, healed_at: Option<u64>) {
        let write = matches!(sent.ask, Ask::Put { .. } | Ask::Delete { .. });
        let done = write && matches!(status, Status::Ok | Status::NotFound);
        let late = healed_at.is_some_and(|healed_at| sent.at > healed_at + SETTLED_NS);
        let chosen = core.knobs.is_elected() || self.chosen == Some(site);
        self.served += u64::from(done && late && chosen);
    }
}

impl World {
    /// Nothing breaks from now on.
    pub fn begin_heal(&mut self) {
        self.end_mishaps();
        self.end_aim();
        self.choose_broken();
        let broken = self.heal.broken.clone();
        let heals = |site: &usize| broken.get(site).is_none_or(|broken| *broken == Broken::Out);
        let mut core = self.core.borrow_mut();
        core.trace(|| "what serves is healed".to_owned());
        self.healed_at = Some(core.now);
        let sites = core.knobs.hosts + core.knobs.clients + 1;
        for from in (0..sites).filter(heals) {
            for to in (0..sites).filter(heals) {
                while !core.net.works(from, to) {
                    core.unblock(from, to);
                }
            }
        }
        core.heap.retain(|_, event| !matches!(event, Event::Unblock { .. } | Event::CrashNow { .. }));
        core.give_up_dead(|site| !heals(&site));
        core.knobs.flip_ppm = 0;
        core.knobs.stall_ppm = 0;
        core.knobs.late_flush_ppm = 0;
        core.knobs.slow_disk_ppm = 0;
        core.knobs.net_slow_ppm = 0;
        core.knobs.lazy_reader_ppm = 0;
        core.after(0, Event::Operator);
        drop(core);
        for site in (0..self.hosts.len()).filter(|site| !self.stays_broken(*site)).collect::<Vec<_>>() {
            let host = &mut self.hosts[site];
            host.mem.heal();
            host.mem.set_capacity(None);
            let armed = |archive: &Archive| archive.mem.crash_is_armed();
            let armed = host.mem.crash_is_armed() || host.archive.as_ref().is_some_and(armed);
            self.heal_archive(site);
            if armed {
                // A crash point that was not reached yet would be a fault of the second phase.
                self.end_process(site, false);
            }
            if self.hosts[site].process.is_none() {
                self.core.borrow_mut().after(10 * MS, Event::Start(site));
            }
            self.hosts[site].paused = false;
            self.wake(site);
        }
        self.heal.last_follow = vec![0; self.hosts.len()];
        self.heal.dials_before = vec![0; self.hosts.len()];
        self.break_for_good();
    }

    /// Twice a second: the next thing that a careful operator would do.
    pub fn heal_step(&mut self) {
        let now = self.core.borrow().now;
        let since = now - self.healed_at.expect("it is healed");
        self.core.borrow_mut().after(500 * MS, Event::Operator);
        self.heal.steps += 1;
        if since + QUIET_NS >= HEAL_NS {
            self.clients.iter_mut().for_each(|client| client.quiet = true);
        }
        if since + RELIC_NS <= HEAL_NS {
            let core = self.core.borrow();
            self.heal.relics_before =
                self.hosts.iter().flat_map(|host| crate::bounds::relics(&core, host)).collect();
        }
        if since + 10_000 * MS <= HEAL_NS {
            self.heal.dials_before = self.hosts.iter().map(|host| host.dials_made).collect();
        }
        let elected = self.core.borrow().knobs.is_elected();
        if elected && since + 15_000 * MS <= HEAL_NS {
            self.note_settled_terms();
        }
        // What is under way may still end by itself.
        if since < 4_000 * MS || self.serving().any(|site| self.hosts[site].process.is_none()) {
            return;
        }
        // Nobody has to be told who leads where leaders are elected.
        if self.replace_the_lost() || self.settle_flips() || elected {
            return;
        }
        let chosen = match self.heal.chosen {
            Some(chosen) => chosen,
            None => self.choose_leader(),
        };
        self.heal.chosen = Some(chosen);
        if !self.leads(chosen) {
            if self.heal.steps.is_multiple_of(8) {
                self.command(chosen, Ask::Promote { force: true });
            }
            return;
        }
        let peers = self.hosts[chosen].seen.as_ref().map_or(0, |seen| seen.peers.len());
        if peers + 1 < self.hosts.len() && !self.heal.restarted {
            self.heal.restarted = true;
            let others = (0..self.hosts.len()).filter(|site| *site != chosen).map(Host::address);
            self.hosts[chosen].config.peers = others.collect();
            self.end_process(chosen, false);
            return;
        }
        for site in self.serving().filter(|site| *site != chosen).collect::<Vec<_>>() {
            let process = self.hosts[site].process.as_ref().expect("all are up");
            let role = process.node.role_name();
            let equal = process.node.positions().0
                == self.hosts[chosen].process.as_ref().expect("up").node.positions().0;
            if (role != "follower" || !equal) && now - self.heal.last_follow[site] > 12_000 * MS {
                let asked_before = self.heal.last_follow[site] > 0;
                self.heal.last_follow[site] = now;
                // Nothing is cut where two histories have one name, and a node that never got a record may belong
                // to a cluster whose only leader is gone: an empty directory is the way out of both.
                let empty = self.hosts[site].mirror.borrow().last() == 0;
                if asked_before && (empty || self.oracle.a_leader_began_a_term_twice()) {
                    self.end_process(site, false);
                    return self.empty_directory(site);
                }
                self.command(site, Ask::Follow { site: chosen, discard: true });
                return;
            }
        }
    }

    /// Who leads in the highest term; if nobody does, the one with everything that was acknowledged.
    pub fn choose_leader(&mut self) -> usize {
        // Also one whose process is down in this moment, or that was told to follow since: of two leaders that never
        // met the older one goes on, and what the other one acknowledged may be on its disk alone (`--ack=leader`).
        let seen = |site: usize| self.hosts[site].seen.as_ref().filter(|_| !self.hosts[site].rotten);
        let newest = (0..self.hosts.len()).filter_map(|site| seen(site).map(|seen| seen.term)).max();
        let leads = |site: &usize| seen(*site).is_some_and(|seen| seen.leads && Some(seen.term) == newest);
        let leader = (0..self.hosts.len()).find(leads);
        // One that came back with an older disk leads without what the others have.
        let leader = leader.filter(|_| !self.oracle.a_leader_lost_its_disk());
        let chosen = leader.unwrap_or_else(|| {
            let missing = |site: &usize| {
                let mirror = self.hosts[*site].mirror.borrow();
                let lost = self.oracle.acked.iter().filter(|write| !write.given_up);
                let lost = lost.filter(|write| !mirror.holds(write.lsn, write.chain)).count();
                (std::cmp::Reverse(lost), mirror.entries.last().map(|entry| (entry.term, entry.lsn)))
            };
            // A log that rots is found to be damaged, and thrown away, when its host starts.
            let fit = |site: &usize| {
                let host = &self.hosts[*site];
                !host.rotten && host.seen.as_ref().is_some_and(|seen| seen.complete)
            };
            let whole = (0..self.hosts.len()).filter(fit).max_by_key(missing);
            whole.expect(
                "what is acknowledged is in sync somewhere, and no mixture; no log rots without another one",
            )
        });
        self.core.borrow_mut().trace(|| format!("operator chooses host {chosen}"));
        chosen
    }

    /// The end of the run.
    pub fn check_healed(&mut self) {
        let elected = self.core.borrow().knobs.is_elected();
        if elected {
            self.heal.chosen = self.elected_leader();
            self.check_terms_settled();
        }
        let chosen = self.heal.chosen.expect("some host can lead");
        let loose = !self.oracle.forced.is_empty() || self.oracle.discards_in_chaos;
        let leader = self.hosts[chosen].process.as_ref().unwrap_or_else(|| panic!("host {chosen} is not up"));
        let state = leader.node.observe();
        assert!(state.leads, "host {chosen} does not lead in the end: {state:?}");
        assert!(
            state.commit == state.last,
            "host {chosen}: not everything is committed in the end: {state:?}"
        );
        let hash = leader.node.keyspace().state_hash();
        assert!(self.heal.served > 0, "host {chosen} leads, and acknowledged nothing");
        for site in self.serving() {
            let host = &self.hosts[site];
            let Some(process) = &host.process else { panic!("host {site} is not up in the end") };
            let seen = process.node.observe();
            assert!(host.flip.is_none(), "host {site}: nobody noticed {:?} in its memory", host.flip);
            // Whom a node differed from may be broken for good, and then nobody says that it no longer does.
            let fault = seen.state_fault.filter(|fault| fault.stops_serving() || self.heal.broken.is_empty());
            assert!(fault.is_none(), "host {site} finds its state {fault:?} in the end");
            assert!(
                seen.last == state.last,
                "host {site} is not equal in the end: {seen:?}, leader {state:?}"
            );
            assert!(seen.applied == state.last, "host {site} has not applied everything: {seen:?}");
            assert!(process.node.keyspace().state_hash() == hash, "host {site} has another state");
            // Only who is not heard has something left for those that stay broken.
            let other = |sock: &Sock| self.core.borrow().net.conns[sock.conn].ends[1 - sock.side].site;
            let to_healed = |sock: &&Sock| self.broken(other(sock)).is_none();
            for sock in process.socks.slots.iter().flatten().filter(to_healed) {
                assert!(sock.output.is_empty(), "host {site}: {} bytes never left", sock.output.len());
            }
            let relics = crate::bounds::relics(&self.core.borrow(), host);
            let old = relics.iter().find(|conn| self.heal.relics_before.contains(conn));
            assert!(
                old.is_none(),
                "host {site} holds connection {old:?}, which has had no other side for long"
            );
            let dials = host.dials_made - self.heal.dials_before[site];
            let most = DIALS_MAX * self.hosts.len() as u64;
            assert!(dials <= most, "host {site} dialled {dials} times in the last ten seconds");
        }
        for site in self.serving() {
            self.hosts[site].check_archive_came_to_rest();
            self.oracle.drill(&self.hosts[site]);
        }
        for client in &self.clients[..self.clients.len() - 1] {
            let Some(conn) = client.conn else { continue };
            let dialogue = &self.dialogues[&conn];
            let late = self.core.borrow().now - 8_000 * MS;
            let unanswered = dialogue.sent[dialogue.received..].iter().filter(|sent| sent.at < late).count();
            assert!(
                unanswered == 0,
                "client {}: {unanswered} requests without an answer at host {}",
                client.site,
                dialogue.site
            );
        }
        let mirror = self.hosts[chosen].mirror.borrow();
        for write in self.oracle.acked.iter().filter(|write| !write.given_up) {
            let held = mirror.holds(write.lsn, write.chain);
            let excused = loose || !elected && self.oracle.lost_somewhere(write);
            assert!(held || excused, "LSN {} of term {} was acknowledged and is lost", write.lsn, write.term);
        }
        drop(mirror);
        self.check_whole(chosen);
        self.compare_logs(chosen);
    }

    /// What is on the disks is the same, record by record.
    fn compare_logs(&self, chosen: usize) {
        let reference = self.hosts[chosen].mirror.borrow();
        for host in self.serving().map(|site| &self.hosts[site]) {
            let log =
                crate::host::read_log(&host.mem).unwrap_or_else(|why| panic!("host {}: {why}", host.site));
            assert!(
                log.last() == reference.last(),
                "host {}: its disk has {} records",
                host.site,
                log.last()
            );
            for (mine, theirs) in log.entries.iter().zip(&reference.entries) {
                assert!(mine.chain == theirs.chain, "host {}: LSN {} differs on disk", host.site, mine.lsn);
            }
        }
    }
}
