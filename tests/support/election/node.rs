//! One member: the pure rules, wired as a node wires them, over a record in a disk that crashes.

use kvstore::ids::{ClusterId, Lsn, NodeId, Term};
use kvstore::meta::{Meta, MetaStore, StoredRole};
use kvstore::replication::commit::majority_lsn;
use kvstore::replication::election::ballot::{Ballot, BallotReply, Phase};
use kvstore::replication::election::campaign::{Campaign, Loss, Outcome};
use kvstore::replication::election::quorum_clock::QuorumClock;
use kvstore::replication::election::reads::{ReadMode, ReadVerdict, judge};
use kvstore::replication::election::timing::{ElectionTimer, ElectionTiming};
use kvstore::replication::election::voter::{
    Decision, VoterView, decide, may_campaign, may_take_over, refuses_for_ms,
};
use kvstore::replication::history::TermHistory;
use kvstore::replication::members::{Members, Membership};
use kvstore::rng::Rng;
use kvstore::time::Time;

use super::log::{Entry, Log};
use super::messages::{Message, Told};
use crate::mem_disk::{Keep, MemDisk};

#[derive(Debug)]
pub struct PeerState {
    pub session: u64,
    streaming: bool,
    match_lsn: Lsn,
    next: Lsn,
    last_sent: Time,
    last_heard: Time,
}

#[derive(Debug)]
pub struct Leader {
    pub quorum: QuorumClock,
    pub peers: Vec<PeerState>,
    pub term_lsn: Lsn,
    round: u64,
    /// Reads that wait for a round: when they came, and what was committed anywhere then.
    pub waiting: Vec<(Time, Lsn)>,
    handed_over: bool,
}

#[derive(Debug)]
pub struct Session {
    leader: usize,
    id: u64,
    term: Term,
    round: u64,
}

#[derive(Debug)]
pub enum Role {
    Follower(Option<Session>),
    Leader(Box<Leader>),
}

pub struct Node {
    pub index: usize,
    pub id: NodeId,
    members: Members,
    timing: ElectionTiming,
    disk: MemDisk,
    meta: Option<MetaStore>,
    pub log: Log,
    pub commit: Lsn,
    pub applied: Lsn,
    heard_commit: Lsn,
    timer: ElectionTimer,
    pub role: Role,
    campaign: Option<(Campaign, Time, Time)>,
    pub rng: Rng,
    pub entries_per_frame: u64,
    sessions: u64,
    pub out: Vec<(usize, Message)>,
    pub told: Vec<Told>,
}

impl Node {
    pub fn new(index: usize, members: &Members, timing: ElectionTiming, now: Time, mut rng: Rng) -> Node {
        let id = members[index].node_id;
        let mut disk = MemDisk::new();
        let meta = Meta {
            node_id: id,
            cluster_id: ClusterId([9; 16]),
            role: StoredRole::Elected,
            members: Membership::settled(members.clone(), Lsn::ZERO),
            ..Meta::default()
        };
        let meta = MetaStore::create(&mut disk, meta).expect("the disk takes all");
        Node {
            index,
            id,
            members: members.clone(),
            timing,
            disk,
            meta: Some(meta),
            log: Log::default(),
            commit: Lsn::ZERO,
            applied: Lsn::ZERO,
            heard_commit: Lsn::ZERO,
            timer: ElectionTimer::new(timing, now, &mut rng),
            role: Role::Follower(None),
            campaign: None,
            rng,
            entries_per_frame: 8,
            sessions: 0,
            out: Vec::new(),
            told: Vec::new(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.meta.is_some()
    }

    pub fn meta(&self) -> &Meta {
        self.meta.as_ref().expect("only a node that is up is asked").get()
    }

    pub fn term(&self) -> Term {
        self.meta().term
    }

    pub fn leader(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leader(leader) if self.is_up() => Some(leader),
            _ => None,
        }
    }

    pub fn crash(&mut self) {
        let survives = self.rng.below(4);
        self.log.lose(survives);
        self.disk.crash(Keep::Random(self.rng.next_u64()));
        self.meta = None;
    }

    pub fn start(&mut self, now: Time) {
        self.meta = MetaStore::load(&mut self.disk).expect("it can be read");
        assert!(self.is_up(), "the record is there");
        (self.commit, self.applied, self.heard_commit) = (Lsn::ZERO, Lsn::ZERO, Lsn::ZERO);
        self.role = Role::Follower(None);
        self.campaign = None;
        self.timer = ElectionTimer::new(self.timing, now, &mut self.rng);
    }

    fn update(&mut self, change: impl FnOnce(&mut Meta)) {
        let meta = self.meta.as_mut().expect("only a node that is up changes");
        meta.update(&mut self.disk, change).expect("the disk takes all");
    }

    /// The clock comes first, whatever arrives: a leader that nobody hears steps down before it does anything.
    pub fn clock_first(&mut self, now: Time) {
        if self.leader().is_some_and(|leader| !leader.quorum.has_quorum(now)) {
            self.step_down(now);
        }
    }

    fn step_down(&mut self, now: Time) {
        self.role = Role::Follower(None);
        self.timer.stand_back(now, &mut self.rng);
    }

    fn enter_term(&mut self, term: Term, now: Time) {
        if term <= self.term() {
            return;
        }
        if self.leader().is_some() {
            self.step_down(now);
        }
        self.role = Role::Follower(None);
        self.campaign = None;
        self.update(|meta| meta.enter_term(term));
    }

    pub fn on_tick(&mut self, now: Time) {
        self.clock_first(now);
        if self.leader().is_some() {
            return self.leader_tick(now);
        }
        match &mut self.campaign {
            Some((_, deadline, _)) if now >= *deadline => {
                self.campaign = None;
                self.timer.campaign_over(now, &mut self.rng);
            }
            // A question may be lost: it is asked again.
            Some((campaign, _, ask_at)) if now >= *ask_at => {
                *ask_at = now.after_ms(20);
                let ballot = campaign.ballot();
                self.send_to_others(|_| Message::Vote(ballot));
            }
            None if now >= self.timer.campaign_at() => self.begin_campaign(now),
            _ => {}
        }
    }

    fn begin_campaign(&mut self, now: Time) {
        self.log.settle();
        let (term, log_end) = (self.term(), (self.log.last_term(), self.log.last()));
        if may_campaign(self.log.last(), self.heard_commit, false).is_err() {
            return self.timer.campaign_over(now, &mut self.rng);
        }
        let campaign = Campaign::begin(&self.members, self.id, term, log_end).expect("terms are left");
        self.run_campaign(campaign, now);
    }

    fn run_campaign(&mut self, campaign: Campaign, now: Time) {
        self.role = Role::Follower(None);
        let deadline = now.after_ms(50 + self.rng.below(300));
        let own_vote = campaign.own_vote();
        if let Some(vote) = own_vote {
            self.make_own_vote_durable(vote.term, campaign.ballot().phase);
        }
        let ballot = campaign.ballot();
        self.campaign = Some((campaign, deadline, now.after_ms(20)));
        self.send_to_others(|_| Message::Vote(ballot));
        self.campaign_moves(None, now);
    }

    fn make_own_vote_durable(&mut self, term: Term, phase: Phase) {
        let id = self.id;
        self.update(|meta| {
            meta.enter_term(term);
            meta.vote = id;
        });
        self.told.push(Told::Stood(term, phase));
        self.told.push(Told::Voted(term, id));
    }

    fn campaign_moves(&mut self, outcome: Option<Outcome>, now: Time) {
        let Some((campaign, ..)) = &mut self.campaign else { return };
        match outcome.unwrap_or(campaign.outcome()) {
            Outcome::Waiting => {}
            Outcome::Won if campaign.own_vote().is_none() => {
                let vote = campaign.stand();
                let ballot = campaign.ballot();
                self.make_own_vote_durable(vote.term, Phase::Real);
                self.send_to_others(|_| Message::Vote(ballot));
                self.campaign_moves(None, now);
            }
            Outcome::Won => self.lead(now),
            Outcome::Lost(loss) => {
                self.campaign = None;
                match loss {
                    Loss::HigherTerm(term) => self.enter_term(term, now),
                    Loss::BelowCommit(lsn) => self.heard_commit = self.heard_commit.max(lsn),
                    Loss::Refused => {}
                }
                self.timer.campaign_over(now, &mut self.rng);
            }
        }
    }

    fn lead(&mut self, now: Time) {
        let (campaign, ..) = self.campaign.take().expect("it was won");
        let term = campaign.ballot().term;
        assert_eq!((term, self.id), (self.term(), self.meta().vote), "it leads in the term of its vote");
        let id = self.id;
        self.update(|meta| meta.leader_id = id);
        self.told.push(Told::Leads(term));
        self.log.append(Entry { term, leader: self.id, value: 0 });
        let followers = self.members.len() - 1;
        let peer = |_| PeerState {
            session: 0,
            streaming: false,
            match_lsn: Lsn::ZERO,
            next: Lsn::ZERO,
            last_sent: Time(0),
            last_heard: Time(0),
        };
        self.role = Role::Leader(Box::new(Leader {
            quorum: QuorumClock::new(self.timing, now, followers),
            peers: (0..self.members.len()).map(peer).collect(),
            term_lsn: self.log.last(),
            round: 0,
            waiting: Vec::new(),
            handed_over: false,
        }));
        self.leader_tick(now);
    }

    fn leader_tick(&mut self, now: Time) {
        let heartbeat_ns = self.timing.heartbeat_ms(100) * 1_000_000;
        for to in self.others() {
            let Role::Leader(leader) = &mut self.role else { return };
            let peer = &mut leader.peers[to];
            let silent = peer.session == 0 || now.since(peer.last_heard) > self.timing.timeout_ns() / 2;
            let due = now.since(peer.last_sent) >= heartbeat_ns;
            match (silent, peer.streaming) {
                (true, _) if due => self.open_session(to, now),
                (false, true) if due || peer.next <= self.log.last() => self.send_append(to, now),
                _ => {}
            }
        }
    }

    fn open_session(&mut self, to: usize, now: Time) {
        self.sessions += 1;
        let session = self.sessions << 8 | self.index as u64;
        let term = self.term();
        let Role::Leader(leader) = &mut self.role else { return };
        let peer = &mut leader.peers[to];
        (peer.session, peer.streaming, peer.last_sent, peer.last_heard) = (session, false, now, now);
        leader.quorum.session(follower(self.index, to));
        let (history, last) = (self.log.history.clone(), self.log.last());
        self.out.push((to, Message::Open { session, term, history, last }));
    }

    fn send_append(&mut self, to: usize, now: Time) {
        let entries_per_frame = self.entries_per_frame;
        let Role::Leader(leader) = &mut self.role else { return };
        leader.round += 1;
        let peer = &mut leader.peers[to];
        let first = peer.next;
        let end = self.log.last().0.min(first.0 + entries_per_frame - 1);
        let entries: Vec<Entry> = (first.0..=end).filter_map(|lsn| self.log.entry(Lsn(lsn))).collect();
        peer.next = Lsn(first.0 + entries.len() as u64);
        peer.last_sent = now;
        leader.quorum.sent(follower(self.index, to), leader.round, now);
        let (session, round, commit) = (peer.session, leader.round, self.commit);
        self.out.push((to, Message::Append { session, first, entries, commit, round }));
    }

    pub fn on_message(&mut self, from: usize, message: Message, now: Time) {
        self.clock_first(now);
        match message {
            Message::Vote(ballot) => self.on_vote(from, &ballot, now),
            Message::VoteReply(reply) => {
                let Some((campaign, ..)) = &mut self.campaign else { return };
                let outcome = campaign.on_reply(self.members[from].node_id, &reply);
                self.campaign_moves(Some(outcome), now);
            }
            Message::Open { session, term, history, last } => {
                self.on_open(from, session, term, (&history, last), now)
            }
            Message::OpenReply { session, match_lsn } => {
                let Some(peer) = self.live_peer(from, session, now) else { return };
                (peer.match_lsn, peer.next, peer.streaming) = (match_lsn, match_lsn.next(), true);
                self.send_append(from, now);
                self.advance_commit();
            }
            Message::Refuse { session, term } => {
                if self.live_peer(from, session, now).is_some() {
                    self.enter_term(term, now);
                }
            }
            Message::Append { session, first, entries, commit, round } => {
                self.on_append(from, session, (first, &entries), (commit, round), now)
            }
            Message::Ack { session, last, round } => self.on_ack(from, session, last, round, now),
            Message::HandOver { session, term } => self.on_hand_over(from, session, term, now),
        }
    }

    fn on_vote(&mut self, from: usize, ballot: &Ballot, now: Time) {
        self.log.settle();
        let voter = VoterView {
            term: self.term(),
            vote: self.meta().vote,
            refuse_until: self.timer.refuse_until(),
            leads_with_quorum: self.leader().is_some_and(|leader| leader.quorum.has_quorum(now)),
            last_term: self.log.last_term(),
            last_lsn: self.log.last(),
            heard_commit: self.heard_commit,
            candidate_was_removed: !self.members.contains(ballot.candidate),
            incomplete: false,
        };
        let decision = decide(now, ballot, &voter);
        match decision {
            Decision::Grant(vote) => {
                self.enter_term(vote.term, now);
                self.update(|meta| meta.vote = vote.vote);
                self.told.push(Told::Voted(vote.term, vote.vote));
                self.timer.stand_back(now, &mut self.rng);
            }
            Decision::AlreadyGranted => self.told.push(Told::Voted(ballot.term, ballot.candidate)),
            Decision::WouldGrant => self.told.push(Told::WouldVote(ballot.term, ballot.candidate)),
            Decision::Refuse { adopt_term, .. } => {
                adopt_term.into_iter().for_each(|term| self.enter_term(term, now));
            }
        }
        let reply = BallotReply {
            phase: ballot.phase,
            asked_term: ballot.term,
            verdict: match decision {
                Decision::Refuse { reason, .. } => Err(reason),
                _ => Ok(()),
            },
            term: self.term(),
            commit_lsn: self.heard_commit,
            refuses_for_ms: refuses_for_ms(now, &decision, &voter),
        };
        self.out.push((from, Message::VoteReply(reply)));
    }

    fn on_open(
        &mut self,
        from: usize,
        session: u64,
        term: Term,
        (history, last): (&TermHistory, Lsn),
        now: Time,
    ) {
        if term < self.term() {
            let term = self.term();
            return self.out.push((from, Message::Refuse { session, term }));
        }
        // An older connection of the same leader may be read late: it knows less of this term than is here.
        let rolled_back = self.log.last_term() == term && self.log.last() > last;
        if rolled_back {
            return;
        }
        if matches!(&self.role, Role::Follower(Some(live)) if live.term == term && live.id >= session) {
            return;
        }
        self.enter_term(term, now);
        self.campaign = None;
        assert!(self.leader().is_none(), "two leaders in term {term}");
        let leader = self.members[from].node_id;
        self.update(|meta| meta.leader_id = leader);
        self.timer.heard_leader(now);
        let match_lsn =
            self.log.history.match_lsn(self.log.last(), history, last).expect("no log is damaged");
        assert!(match_lsn >= self.commit, "a cut behind {match_lsn} below the commit LSN {}", self.commit);
        self.log.cut(match_lsn);
        self.role = Role::Follower(Some(Session { leader: from, id: session, term, round: 0 }));
        self.out.push((from, Message::OpenReply { session, match_lsn }));
    }

    fn on_append(
        &mut self,
        from: usize,
        session: u64,
        (first, entries): (Lsn, &[Entry]),
        (commit, round): (Lsn, u64),
        now: Time,
    ) {
        let Role::Follower(Some(live)) = &mut self.role else { return };
        if (live.leader, live.id) != (from, session) {
            return;
        }
        assert_eq!(first, self.log.last().next(), "frames of a session come without gaps");
        live.round = round;
        self.timer.heard_leader(now);
        entries.iter().for_each(|entry| self.log.append(*entry));
        self.heard_commit = self.heard_commit.max(commit);
        self.follower_applies();
        self.send_ack();
    }

    fn send_ack(&mut self) {
        let Role::Follower(Some(live)) = &self.role else { return };
        let ack = Message::Ack { session: live.id, last: self.log.durable(), round: live.round };
        self.out.push((live.leader, ack));
    }

    fn follower_applies(&mut self) {
        let Role::Follower(Some(_)) = &self.role else { return };
        let to = self.heard_commit.min(self.log.durable());
        self.commit = self.commit.max(to);
        self.apply();
    }

    fn apply(&mut self) {
        while self.applied < self.commit {
            let lsn = self.applied.next();
            let Some(entry) = self.log.entry(lsn) else { break };
            self.applied = lsn;
            self.told.push(Told::Applied(lsn, entry));
        }
    }

    fn live_peer(&mut self, from: usize, session: u64, now: Time) -> Option<&mut PeerState> {
        let Role::Leader(leader) = &mut self.role else { return None };
        let peer = leader.peers.get_mut(from).filter(|peer| peer.session == session)?;
        peer.last_heard = now;
        Some(peer)
    }

    fn on_ack(&mut self, from: usize, session: u64, last: Lsn, round: u64, now: Time) {
        let index = self.index;
        let Some(peer) = self.live_peer(from, session, now) else { return };
        peer.match_lsn = peer.match_lsn.max(last);
        let Role::Leader(leader) = &mut self.role else { return };
        leader.quorum.echoed(follower(index, from), round);
        self.told.push(Told::Heard(from));
        self.advance_commit();
        self.leader_tick(now);
    }

    /// A disk has made everything up to there durable.
    pub fn on_synced(&mut self, generation: u64, lsn: Lsn, now: Time) {
        self.clock_first(now);
        self.log.synced(generation, lsn);
        self.advance_commit();
        self.follower_applies();
        self.send_ack();
    }

    fn advance_commit(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let on_disk = |(index, peer): (usize, &PeerState)| match index == self.index {
            true => self.log.durable(),
            false => peer.match_lsn,
        };
        let mut lsns: Vec<Lsn> = leader.peers.iter().enumerate().map(on_disk).collect();
        let committed = majority_lsn(leader.term_lsn, &mut lsns);
        if committed > self.commit {
            self.commit = committed;
            self.heard_commit = self.heard_commit.max(committed);
            self.told.push(Told::Committed(committed));
            self.apply();
        }
    }

    /// A client's write.
    pub fn write(&mut self, value: u64, now: Time) {
        self.clock_first(now);
        if self.leader().is_some_and(|leader| !leader.handed_over) {
            let (term, leader) = (self.term(), self.id);
            self.log.append(Entry { term, leader, value });
            self.leader_tick(now);
        }
    }

    /// A client's read, asked and judged at once: whether it is answered.
    pub fn read(&mut self, mode: ReadMode, arrived: Time, now: Time) -> bool {
        self.clock_first(now);
        let Some(leader) = self.leader() else { return false };
        let (term_lsn, applied) = (leader.term_lsn, self.applied);
        judge(mode, (arrived, now), &leader.quorum, (term_lsn, applied)) == ReadVerdict::Now
    }

    /// Reads that waited for a round and are answered now: what each must have seen.
    pub fn take_answered(&mut self, now: Time) -> Vec<Lsn> {
        let waiting = match &mut self.role {
            Role::Leader(leader) => std::mem::take(&mut leader.waiting),
            Role::Follower(_) => return Vec::new(),
        };
        let (answered, left): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(arrived, _)| self.read(ReadMode::Quorum, *arrived, now));
        if let Role::Leader(leader) = &mut self.role {
            leader.waiting = left;
        }
        answered.into_iter().map(|(_, must_see)| must_see).collect()
    }

    /// An operator moves leadership: the lease is given up before the message leaves.
    pub fn hand_over(&mut self, to: usize, now: Time) {
        self.clock_first(now);
        let (term, last) = (self.term(), self.log.last());
        let Role::Leader(leader) = &mut self.role else { return };
        let peer = &leader.peers[to];
        if !peer.streaming || peer.match_lsn < last {
            return;
        }
        leader.quorum.give_up_lease();
        leader.handed_over = true;
        self.out.push((to, Message::HandOver { session: peer.session, term }));
        self.step_down(now);
    }

    fn on_hand_over(&mut self, from: usize, session: u64, given_up: Term, now: Time) {
        let Role::Follower(Some(live)) = &self.role else { return };
        if (live.leader, live.id) != (from, session) || !may_take_over(given_up, self.term()) {
            return;
        }
        self.log.settle();
        let (term, log_end) = (self.term(), (self.log.last_term(), self.log.last()));
        let campaign = Campaign::take_over(&self.members, self.id, term, log_end).expect("terms are left");
        self.run_campaign(campaign, now);
    }

    fn others(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|index| *index != self.index).collect()
    }

    fn send_to_others(&mut self, message: impl Fn(usize) -> Message) {
        self.others().into_iter().for_each(|to| self.out.push((to, message(to))));
    }
}

/// Where the quorum clock counts this member: all but the leader itself, in order.
fn follower(own: usize, member: usize) -> usize {
    member - usize::from(member > own)
}
