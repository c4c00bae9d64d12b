//! Clusters that elect their leader: what differs from fixed roles in what a run does, and in what must hold.
//!
//! There is no operator who promotes: nodes form their cluster, campaign, and hand over. So nothing excuses a loss.
//! Beside the checks that all runs have:
//!
//! - *Election safety*: one node leads in a term, and a node gives one vote in a term. A vote that is told is looked
//!   for on a copy of that node's disk after a power loss, at the moment it is handed to the network.
//! - *Leader completeness*: who begins to lead has every write that was acknowledged in an earlier term, and a write
//!   that is acknowledged later is in the log of every leader of a higher term.
//! - *State machine safety*: what two nodes have applied at an LSN is the same record.
//! - *Linearizability* over all leaders: one order of LSNs for the whole run, and a search per key without LSNs.
//! - In the end, without faults, somebody leads, and terms do not grow any more.
//!
//! One run of eight has `--durability=os`. What that promises is what a page cache keeps: nothing is lost by processes
//! that end, and by a machine that loses its power whatever it had not written back. Then the voters of a majority may
//! be without a write that their acknowledgements made one, from a single power loss (the other holder need only be
//! away), so of such a run nothing could be said of any write. So in these runs no machine loses its power and no sync
//! fails, everything else breaks, and all that is said above holds without an excuse. Identity, term and vote are
//! synced there too: the check of a told vote takes the power away, as everywhere.

use std::collections::BTreeMap;

use kvstore::ids::{Chain, ClusterId, NodeId, Term};
use kvstore::meta::MetaStore;
use kvstore::node::Observed;
use kvstore::replication::commit::AckPolicy;
use kvstore::replication::election::ballot::Phase;
use kvstore::replication::election::reads::ReadMode;
use kvstore::replication::election::timing::ElectionTiming;
use kvstore::rng::Rng;
use kvstore::wire::MessageType;
use kvstore::wire::peer::{Vote, VoteReply};

use crate::client::{Ask, Sent};
use crate::core::{Core, MS, Shared};
use crate::host::Host;
use crate::knobs::Knobs;
use crate::mem_disk::{Keep, MemDisk};
use crate::world::World;

/// Everything that the set of elected clusters must have seen.
pub const EXPECTED: &[&str] = &[
    "aimed: a hand-over to a leader that the old one does not hear",
    "aimed: a restart of who heard the leader",
    "aimed: a stalled read",
    "aimed: an older term's records",
    "aimed: a second leader, from the list before a change",
    "aimed: the end of a lease",
    "aimed: the first leader of two that change leads again",
    "aimed: two leaders change one list",
    "broken for good: out, its directory was emptied",
    "check: a cluster that lost members is whole in the end",
    "check: a leader has heard a majority within the timeout",
    "check: a number is answered as by another leader",
    "check: a number is answered as the first time",
    "check: a vote that was told is there after a restart",
    "check: a vote was on the disk before it was told",
    "check: history of a key put in order",
    "check: nobody without a committed record could be elected",
    "check: state of an installed snapshot is that of the log",
    "client: acknowledged write",
    "client: follower read checked",
    "client: number used again",
    "client: read checked",
    "client: redirected",
    "client: session opened",
    "disk: ENOSPC",
    "disk: bit rot",
    "disk: bit rot on a leader",
    "disk: crash point reached",
    "disk: late flush",
    "disk: misdirected write behind the log",
    "disk: misdirected write over a copy of META",
    "disk: misdirected write over the log",
    "disk: short write",
    "disk: slow",
    "disk: stall",
    "disk: stall beyond 5 s",
    "disk: sync failed",
    "disk: ten times slower for the whole run",
    "memory: a bit flips",
    "memory: a bit of an answer flips",
    "net: half open",
    "net: leader unreachable for one node",
    "net: link flaps every 200 ms",
    "net: one-way partition",
    "node: cut",
    "node: disk full refused a write",
    "node: refused a member whose directory was emptied",
    "node: repairs a damaged log",
    "node: repairs what its leader has heard of",
    "node: session",
    "operator: member add",
    "operator: member remove",
    "operator: rolling restart of all nodes",
    "operator: transfer",
    "process: a follower's directory rolled back",
    "process: a follower lost its directory and is to be replaced",
    "process: a leader lost its directory and is to be replaced",
    "process: a leader's directory rolled back",
    "process: a node that learns lost its directory",
    "process: kill",
    "process: killed, and its page cache is all there is",
    "process: orderly end",
    "process: pause",
    "process: pause in the middle of a turn",
    "process: power loss",
    "process: a former member wiped",
    "process: wiped",
    "role: a lost member is replaced at another address",
    "role: a lost member is replaced at its own address",
    "role: elected",
    "role: hand-over refused",
    "role: handed over",
    "role: member added",
    "role: member removed",
    "role: stopped leading",
    "second phase: a lost member is replaced",
    "second phase: everything is healed",
    "second phase: some stay broken",
    "snapshot: segments removed",
    "state: a scan finds a flipped bit",
    "state: disputed",
    "state: outvoted",
    "transfer: installed",
];

/// The knobs that only such a cluster has.
#[derive(Clone, Copy, Debug)]
pub struct Elected {
    pub timeout_ms: u64,
    pub reads: ReadMode,
}

impl Knobs {
    /// Turns the knobs of a seed into those of a cluster that elects its leader.
    pub fn elect(&mut self, rng: &mut Rng) {
        let mut pick = |from: &[u64]| from[rng.below(from.len() as u64) as usize];
        self.members = pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5]) as usize;
        self.hosts = self.members + pick(&[0, 0, 0, 1, 2]) as usize;
        self.ack = AckPolicy::Majority;
        self.min_insync = 1;
        // A timeout shorter than some round trips of the run, or than a record takes on its links, elects nobody for
        // long.
        let narrow = self.socket_buffer <= 512 || self.chunk_max <= 64;
        let slow = narrow || self.net_delay_max_ns > 5_000_000 || self.sync_ns > 1_000_000;
        self.large_ppm *= u64::from(!slow);
        let timeout_ms = pick(if slow { &[500, 1_000, 2_000] } else { &[100, 200, 500, 1_000] });
        let reads = [ReadMode::Lease, ReadMode::Lease, ReadMode::Quorum][pick(&[0, 1, 2]) as usize];
        self.elected = Some(Elected { timeout_ms, reads });
        self.heartbeat_ms = ElectionTiming::from_ms(timeout_ms).heartbeat_ms(self.heartbeat_ms);
        // Half of the spread is either side of the true rate, and the lease bears five percent.
        self.clock_rate_spread_ppm = pick(&[0, 100, 20_000, 100_000]);
        self.local_read_ppm = pick(&[0, 50_000, 300_000]);
        self.operator_every_ns = pick(&[0, 0, 1_000, 3_000]) * MS;
        self.force_ppm = 0;
        self.discard_ppm = 0;
        let mishaps = &mut self.mishaps;
        // More often than with fixed roles: most of these find no barrier, see `victims.rs`.
        let decays = self.snapshot.log_bytes == Some(u64::MAX) || self.transfers;
        self.weights.wipe = pick(&[0, 0, 0, 2]) * u64::from(!self.removal || self.transfers);
        self.weights.rot = pick(&[0, 0, 2]) * u64::from(decays);
        mishaps.rot_leader = pick(&[0, 0, 0, 3]) * u64::from(decays);
        mishaps.misdirect = pick(&[0, 0, 3]) * u64::from(decays);
        mishaps.roll_back = pick(&[0, 0, 3]);
        mishaps.slow_site = mishaps.slow_site.filter(|site| *site < self.hosts);
        if mishaps.os_durability {
            // See the head of this file: processes die there, and no page cache loses anything.
            (self.weights.power_loss, self.weights.sync_error) = (0, 0);
            // What ends up elsewhere is what was synced long ago.
            mishaps.misdirect = 0;
        }
        // Two nodes of one identity are two votes of one member.
        mishaps.twin = 0;
        // One run of five changes its members: then no disk loses a part of what it holds.
        if pick(&[0, 0, 0, 0, 1]) == 1 {
            (self.members, self.joiners) = (pick(&[1, 2, 3, 3]) as usize, pick(&[1, 2, 2]) as usize);
            self.hosts = self.members + self.joiners;
            self.operator_every_ns = pick(&[300, 1_000]) * MS;
            self.weights.wipe = 0;
            self.weights.rot = 0;
            let mishaps = &mut self.mishaps;
            (mishaps.rot_leader, mishaps.misdirect, mishaps.roll_back) = (0, 0, 0);
            (mishaps.rot_snapshot, mishaps.slow_site) = (0, None);
            // Three out of four of those lose members that are then replaced: most of them have members to spare.
            self.loss_ppm = pick(&[0, 1, 1, 1]) * 300_000;
            if self.loss_ppm > 0 {
                (self.members, self.joiners) =
                    (pick(&[1, 2, 3, 3, 3, 4, 5]) as usize, pick(&[1, 1, 2]) as usize);
                self.hosts = self.members + self.joiners;
                self.operator_every_ns = pick(&[100, 300]) * MS;
                self.chaos_ns = self.chaos_ns.max(10_000 * MS);
            }
        }
        // One run of five is aimed.
        let aim = pick(&[0, 0, 0, 0, 1]) * pick(&[1, 2, 3, 4, 5, 6]);
        if let Some(aim) = aim.checked_sub(1) {
            self.aim_at(aim, &mut pick);
        }
    }

    /// Whether no machine loses its power in this run.
    pub fn has_power_for_good(&self) -> bool {
        self.is_elected() && self.mishaps.os_durability
    }

    /// Whether leaders are elected in this run.
    pub fn is_elected(&self) -> bool {
        self.elected.is_some()
    }
}

/// What was seen of elections in a run.
#[derive(Debug, Default)]
pub struct Elections {
    /// Who led in which term, and when that was seen first.
    leaders: BTreeMap<Term, (usize, u64)>,
    /// Whom a host gave its vote, by term and host.
    votes: BTreeMap<(Term, usize), NodeId>,
    /// The one that was founded.
    cluster: Option<ClusterId>,
    /// The record that was applied at an LSN.
    applied: BTreeMap<u64, Chain>,
    /// The highest term some time before the end.
    settled: Option<Term>,
}

impl Elections {
    /// After a turn of a host that did not crash in it.
    pub fn after_turn(&mut self, core: &mut Core, host: &Host, seen: &Observed) {
        let site = host.site;
        self.check_cluster(core, host, seen.leads);
        if seen.leads {
            let knobs = &core.knobs;
            assert!(site < knobs.members + knobs.joiners, "host {site} leads, and is a read replica");
            let is_in = crate::lists::of_log(core, host).has(site);
            assert!(is_in, "host {site} leads, and the newest list of members in its log is without it");
            let turn_ended = core.now + host.ahead.get();
            let (leader, since) = *self.leaders.entry(seen.term).or_insert_with(|| {
                core.stats.count("role: elected");
                (site, turn_ended)
            });
            assert!(leader == site, "hosts {leader} and {site} both lead in term {}", seen.term);
            crate::quorums::check_heard(core, host, since);
        }
        // What a node tells of commits ends with its own disk; what it has applied as a leader may not.
        let beyond_its_disk = seen.applied > seen.durable;
        assert!(
            seen.applied <= seen.commit || !seen.complete || beyond_its_disk,
            "host {site} applied LSN {}, and knows LSN {} to be committed",
            seen.applied,
            seen.commit
        );
        let mirror = host.mirror.borrow();
        if let Some(entry) = mirror.get(seen.applied.0) {
            let known = *self.applied.entry(entry.lsn).or_insert(entry.chain);
            assert!(known == entry.chain, "host {site} applied another record at LSN {}", entry.lsn);
        }
    }

    /// Nobody founds a second cluster, whoever comes back empty. A founder that nobody had heard of yet may do it again
    /// with an older directory: so the one counts that somebody led first.
    fn check_cluster(&mut self, core: &mut Core, host: &Host, leads: bool) {
        let (cluster, _) = host.process.as_ref().expect("it had a turn").node.cluster();
        match self.cluster {
            Some(first) => assert!(
                first == cluster || cluster.is_none(),
                "host {} is of cluster {cluster}, and {first} was founded",
                host.site
            ),
            None if leads => {
                core.stats.count("role: a cluster has its first leader");
                self.cluster = Some(cluster);
            }
            None => {}
        }
    }

    /// Whether anybody has ever been elected: forming takes all hosts.
    pub fn have_begun(&self) -> bool {
        !self.leaders.is_empty()
    }

    /// This host has another directory, which knows this term: what it votes in that one and later ones is not bound
    /// by what it has voted before.
    pub fn forget_votes(&mut self, site: usize, back_to: u64) {
        self.votes.retain(|(term, host), _| *host != site || term.as_u64() < back_to);
    }

    /// A host has started. In the term that its directory is in it has the vote that it told there, if it told one.
    pub fn after_start(&self, core: &mut Core, site: usize, mem: &MemDisk) {
        if mem.has_crashed() {
            return;
        }
        let mut copy = mem.fork();
        copy.heal();
        // A fresh directory has no record, and where the disk is about to crash a copy of it does too.
        let Ok(Some(store)) = MetaStore::load(&mut copy) else { return };
        let (term, vote) = (store.get().term, store.get().vote);
        let Some(told) = self.votes.get(&(term, site)) else { return };
        assert!(
            *told == vote,
            "host {site} voted for {told} in term {term}; after a restart it has voted for {vote}"
        );
        core.stats.count("check: a vote that was told is there after a restart");
    }

    /// This host has told these votes.
    pub fn on_votes(&mut self, site: usize, told: Vec<Told>) {
        for Told { term, vote } in told {
            let known = *self.votes.entry((term, site)).or_insert(vote);
            assert!(known == vote, "host {site} votes for {vote} and for {known} in term {term}");
        }
    }
}

/// A vote that was handed to the network.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    term: Term,
    vote: NodeId,
}

impl Told {
    /// What a frame tells of this host's own vote, if it does: VOTE for itself, or the VOTE_REPLY that gives it.
    fn term_of(kind: MessageType, body: &[u8]) -> Option<Term> {
        match kind {
            MessageType::Vote => {
                let ballot = Vote::decode(body).expect("well formed").ballot;
                (ballot.phase != Phase::Pre).then_some(ballot.term)
            }
            MessageType::VoteReply => {
                let reply = VoteReply::decode(body).expect("well formed").0;
                (reply.verdict.is_ok() && reply.phase != Phase::Pre).then_some(reply.asked_term)
            }
            _ => None,
        }
    }

    /// Looks at a frame at the moment it is handed to the network. A vote that it tells is in META, in its term, on
    /// what a power loss would leave of this disk.
    pub fn in_frame(
        core: &Shared,
        site: usize,
        mem: &MemDisk,
        kind: MessageType,
        body: &[u8],
    ) -> Option<Told> {
        let term = Told::term_of(kind, body).filter(|_| !mem.has_crashed())?;
        let mut copy = mem.fork();
        let mut core = core.borrow_mut();
        // Not from the generator of the run: a check must not change what happens.
        copy.crash(if core.now.is_multiple_of(2) { Keep::None } else { Keep::Random(core.now) });
        copy.heal();
        copy.set_capacity(None);
        let loaded = MetaStore::load(&mut copy).unwrap_or_else(|why| panic!("host {site} voted: {why}"));
        let meta = loaded.expect("who votes has a record");
        assert!(!meta.get().members.is_empty(), "host {site} votes, and its directory is of no cluster");
        let (on_disk, vote) = (meta.get().term, meta.get().vote);
        if on_disk > term {
            // It has given another one in the same turn, and gives none in this term any more.
            core.stats.count("check: a vote was told when a later term was on the disk");
            return None;
        }
        assert!(
            on_disk == term && !vote.is_none(),
            "host {site} votes in term {term}; after a power loss it is in term {on_disk} and has voted for {vote}"
        );
        core.stats.count("check: a vote was on the disk before it was told");
        Some(Told { term, vote })
    }
}

/// Whether this is a request whose answer has its place in the one order of an elected cluster: everything but a read
/// that may be stale, as it was asked for or as a read replica serves all of them.
pub fn is_ordered(core: &Core, site: usize, sent: &Sent) -> bool {
    core.knobs.is_elected()
        && match sent.ask {
            Ask::Put { .. } | Ask::Delete { .. } => true,
            Ask::Get { local, .. } => !local && site < core.knobs.members + core.knobs.joiners,
            _ => false,
        }
}

impl World {
    /// The serving host that leads, and in whose term all that serve are.
    pub fn elected_leader(&self) -> Option<usize> {
        let seen = |site: usize| self.hosts[site].seen.as_ref();
        let term = self.serving().filter_map(|site| seen(site).map(|seen| seen.term)).max()?;
        self.serving().find(|site| self.leads(*site) && seen(*site).is_some_and(|seen| seen.term == term))
    }

    /// Near the end of the second phase: from here on nobody needs an election.
    pub fn note_settled_terms(&mut self) {
        let terms = self.serving().filter_map(|site| self.hosts[site].seen.as_ref().map(|seen| seen.term));
        self.oracle.elections.settled = terms.max();
    }

    /// In the end.
    pub fn check_terms_settled(&self) {
        for site in self.serving() {
            let term = self.hosts[site].seen.as_ref().map(|seen| seen.term);
            assert!(
                term == self.oracle.elections.settled,
                "host {site} is in term {term:?} in the end, long after term {:?}: nobody had a reason",
                self.oracle.elections.settled
            );
        }
    }
}
