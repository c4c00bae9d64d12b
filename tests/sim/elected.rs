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

use std::collections::BTreeMap;

use kvstore::ids::{Chain, NodeId, Term};
use kvstore::meta::MetaStore;
use kvstore::node::Observed;
use kvstore::replication::commit::AckPolicy;
use kvstore::replication::election::ballot::Phase;
use kvstore::replication::election::reads::ReadMode;
use kvstore::replication::election::timing::ElectionTiming;
use kvstore::rng::Rng;
#[cfg(feature = "sabotage")]
use kvstore::sabotage::Variant;
use kvstore::wire::MessageType;
use kvstore::wire::peer::{Vote, VoteReply};

use crate::client::{Ask, Sent};
use crate::core::{Core, Shared};
use crate::host::Host;
use crate::knobs::Knobs;
use crate::mem_disk::{Keep, MemDisk};
use crate::world::World;

/// Everything that the set of elected clusters must have seen.
pub const EXPECTED: &[&str] = &[
    "check: a vote was on the disk before it was told",
    "check: history of a key put in order",
    "client: acknowledged write",
    "client: read checked",
    "client: redirected",
    "client: number used again",
    "client: session opened",
    "check: a number is answered as by another leader",
    "check: a number is answered as the first time",
    "disk: crash point reached",
    "disk: late flush",
    "disk: stall",
    "disk: sync failed",
    "net: half open",
    "net: leader unreachable for one node",
    "net: link flaps every 200 ms",
    "net: one-way partition",
    "node: cut",
    "node: session",
    "operator: rolling restart of all nodes",
    "process: kill",
    "process: orderly end",
    "process: pause",
    "process: power loss",
    "role: elected",
    "role: stopped leading",
    "second phase: everything is healed",
    "second phase: some stay broken",
    "snapshot: segments removed",
    "transfer: installed",
];

/// Variants of elections that a few hundred seeds catch. The others need a second fault at the right moment:
/// `tests/elections/model.rs` and the tests beside it break them on purpose.
#[cfg(feature = "sabotage")]
pub const CAUGHT: &[Variant] = &[
    Variant::VoteNotDurable,
    Variant::NoPreVote,
    Variant::ReadBeforeTermRecord,
    Variant::FollowerAppliesUncommitted,
    Variant::UnappliedNumbersForgotten,
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
        self.hosts = pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5]) as usize;
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
        self.operator_every_ns = 0;
        self.force_ppm = 0;
        self.discard_ppm = 0;
        // A disk that loses what it promised costs a vote too.
        self.weights.wipe = 0;
        self.weights.rot = 0;
        let mishaps = &mut self.mishaps;
        (mishaps.os_durability, mishaps.slow_site) =
            (false, mishaps.slow_site.filter(|site| *site < self.hosts));
        (mishaps.misdirect, mishaps.rot_leader, mishaps.roll_back, mishaps.twin) = (0, 0, 0, 0);
        mishaps.rot_snapshot = 0;
        // Who is outvoted stays without a state until its operator restarts it: nobody does here.
        mishaps.flip_memory = 0;
    }

    /// Whether leaders are elected in this run.
    pub fn is_elected(&self) -> bool {
        self.elected.is_some()
    }
}

/// What was seen of elections in a run.
#[derive(Debug, Default)]
pub struct Elections {
    /// Who led in which term.
    leaders: BTreeMap<Term, usize>,
    /// Whom a host gave its vote, by term and host.
    votes: BTreeMap<(Term, usize), NodeId>,
    /// The record that was applied at an LSN.
    applied: BTreeMap<u64, Chain>,
    /// The highest term some time before the end.
    settled: Option<Term>,
}

impl Elections {
    /// After a turn of a host that did not crash in it.
    pub fn after_turn(&mut self, core: &mut Core, host: &Host, seen: &Observed) {
        let site = host.site;
        if seen.leads {
            let leader = *self.leaders.entry(seen.term).or_insert_with(|| {
                core.stats.count("role: elected");
                site
            });
            assert!(leader == site, "hosts {leader} and {site} both lead in term {}", seen.term);
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

    /// Whether anybody has ever been elected: forming takes all hosts.
    pub fn have_begun(&self) -> bool {
        !self.leaders.is_empty()
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
/// that may be stale.
pub fn is_ordered(core: &Core, sent: &Sent) -> bool {
    core.knobs.is_elected() && matches!(sent.ask, Ask::Put { .. } | Ask::Delete { .. } | Ask::Get { .. })
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
