//! What a node does with peers that misbehave: the test speaks the peer protocol to a real node, as a leader
//! whose frames come twice, out of order, damaged, or on a connection that is no longer the session's.

use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use kvstore::replication::history::{TermHistory, TermStart};
use kvstore::wire::peer::{
    Ack, AppendEntries, AppendTail, Hello, Open, OpenReply, PROTOCOL_VERSIONS, Refuse, RefuseCode, StateNews,
};
use kvstore::wire::{CMD_TYPES_KNOWN, Effect, MessageType, Record};
use serde_json::Value;

use crate::cluster::{Cluster, DEADLINE, Node, Raw};

const ADDRESS: &str = "127.0.0.1:1";

/// A leader's log and identity, without a node behind it.
#[derive(Clone)]
struct Script {
    cluster_id: ClusterId,
    node_id: NodeId,
    term: Term,
    history: TermHistory,
    last: Lsn,
    chain: Chain,
}

impl Script {
    /// A leader in this term with an empty log.
    fn new(term: Term) -> Script {
        Script {
            cluster_id: ClusterId([9; 16]),
            node_id: NodeId([7; 16]),
            term,
            history: TermHistory::default(),
            last: Lsn::ZERO,
            chain: Chain::ZERO,
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            versions: PROTOCOL_VERSIONS,
            features: 0,
            cmd_types: CMD_TYPES_KNOWN,
            cluster_id: self.cluster_id,
            node_id: self.node_id,
            term: self.term,
            address: ADDRESS.to_owned(),
            leader: self.node_id,
            leader_address: ADDRESS.to_owned(),
            auth: Vec::new(),
        }
    }

    fn open(&self, node: &Node) -> Open {
        Open {
            term: self.term,
            leader: self.node_id,
            your_address: node.address(),
            peers: vec![node.address()],
            first_lsn: Lsn(1),
            last_lsn: self.last,
            last_chain: self.chain,
            history: self.history.clone(),
            heard_lsn: Lsn::ZERO,
            elected: false,
        }
    }

    /// The next record as a frame.
    fn append(&mut self, effect: Effect<'_>) -> Vec<u8> {
        let mut records = Vec::new();
        self.last = self.last.next();
        Record { lsn: self.last, effect }.encode(&mut records);
        self.chain = self.chain.extend(&records);
        if let Effect::Term { term, leader } = effect {
            self.history.push(TermStart { term, leader, first_lsn: self.last, chain: self.chain });
        }
        self.frame(1, &records)
    }

    fn put(&mut self, value: &[u8]) -> Vec<u8> {
        self.append(Effect::Put { key: b"k", value })
    }

    fn frame(&self, record_count: u32, records: &[u8]) -> Vec<u8> {
        let tail = AppendTail {
            in_sync: true,
            commit_lsn: self.last,
            round: self.last.0,
            chain: self.chain,
            state: StateNews::default(),
        };
        let mut frame = Vec::new();
        AppendEntries { record_count, records, tail }.encode(&mut frame);
        frame
    }

    /// Says hello and opens a session; what the node answers to the latter.
    fn dial(&self, node: &Node) -> (Raw, MessageType, Vec<u8>) {
        let mut raw = node.raw();
        let mut bytes = Vec::new();
        self.hello().encode(false, &mut bytes);
        self.open(node).encode(&mut bytes);
        raw.write(&bytes);
        let (message_type, body) = raw.frame().expect("an answer");
        if message_type != MessageType::HelloReply {
            return (raw, message_type, body);
        }
        let (message_type, body) = raw.frame().expect("an answer to OPEN");
        (raw, message_type, body)
    }

    /// As [`Script::dial`], with a session that opens.
    fn session(&self, node: &Node) -> (Raw, OpenReply) {
        let (raw, message_type, body) = self.dial(node);
        assert_eq!(message_type, MessageType::OpenReply, "{:?}", Refuse::decode(&body));
        (raw, OpenReply::decode(&body).unwrap())
    }

    fn refused(&self, node: &Node) -> Refuse {
        let (mut raw, message_type, body) = self.dial(node);
        assert_eq!(message_type, MessageType::Refuse);
        assert!(raw.is_closed());
        Refuse::decode(&body).unwrap()
    }
}

fn acked(raw: &mut Raw) -> u64 {
    let (message_type, body) = raw.frame().expect("the session stands");
    assert_eq!(message_type, MessageType::AppendEntriesAck);
    Ack::decode(&body).unwrap().last_lsn.0
}

/// A follower without a leader of its own, and a scripted one with a session and three records.
fn follower_of_script() -> (Cluster, Script, Raw) {
    let mut cluster = Cluster::prepare(2, &[]);
    cluster.nodes[1].start();
    let mut script = Script::new(Term { promotion: 0, start: 1 });
    let (mut raw, opened) = script.session(&cluster.nodes[1]);
    assert_eq!(opened.match_lsn, Lsn::ZERO);
    let (term, leader) = (script.term, script.node_id);
    raw.write(&script.append(Effect::Term { term, leader }));
    assert_eq!(acked(&mut raw), 1);
    for value in [b"2", b"3"] {
        raw.write(&script.put(value));
        assert_eq!(acked(&mut raw), script.last.0);
    }
    (cluster, script, raw)
}

fn last_lsn(node: &Node) -> Value {
    node.status()["last_lsn"].clone()
}

#[test]
fn frames_of_an_older_session_change_nothing() {
    let (cluster, mut script, mut old) = follower_of_script();
    let node = &cluster.nodes[1];
    let (mut new, opened) = script.session(node);
    assert_eq!((opened.match_lsn, opened.match_chain), (script.last, script.chain));
    let on_the_old_one = script.clone().put(b"from a dead session");
    // It may be closed already, which is the same.
    let _ = std::io::Write::write_all(&mut old.stream, &on_the_old_one);
    assert!(old.is_closed());
    new.write(&script.put(b"4"));
    assert_eq!(acked(&mut new), 4);
    assert_eq!(node.client().get(b"k").unwrap().value, Some(b"4".to_vec()));
}

#[test]
fn a_record_that_comes_twice_or_too_early_ends_the_session_and_changes_nothing() {
    let (cluster, mut script, mut raw) = follower_of_script();
    let node = &cluster.nodes[1];
    let before = node.status()["state_hash"].clone();
    let fourth = script.put(b"4");
    let behind_the_gap = script.clone().put(b"5");
    raw.write(&behind_the_gap);
    assert!(raw.is_closed(), "a gap");
    let line = node.log.wait_for_line(0, "a gap in the session", DEADLINE);
    assert!(line.contains("fenced"), "{line}");
    assert_eq!((last_lsn(node), node.status()["state_hash"].clone()), (3.into(), before));

    // The match LSN says where to go on; the frame that was not taken is sent in the new session.
    let (mut raw, opened) = script.session(node);
    assert_eq!(opened.match_lsn, Lsn(3));
    raw.write(&fourth);
    assert_eq!(acked(&mut raw), 4);
    raw.write(&fourth);
    assert!(raw.is_closed(), "a replay");
    assert_eq!(last_lsn(node), 4);
    assert_eq!(node.status()["counters"]["cuts"], 0);
}

#[test]
fn a_frame_damaged_on_its_way_never_reaches_the_log() {
    let (cluster, mut script, mut raw) = follower_of_script();
    let node = &cluster.nodes[1];
    let mut frame = script.put(b"value");
    let at = frame.windows(5).position(|window| window == b"value").unwrap();
    frame[at] ^= 0x20;
    raw.write(&frame);
    assert!(raw.is_closed());
    node.log.wait_for_line(0, "damaged on its way", DEADLINE);
    assert_eq!(last_lsn(node), 3);
}

#[test]
fn an_append_without_a_session_is_ignored_and_requests_of_a_peer_are_fenced() {
    let (cluster, mut script, _session) = follower_of_script();
    let node = &cluster.nodes[1];
    let mut stranger = script.clone();
    stranger.node_id = NodeId([8; 16]);
    let mut raw = node.raw();
    let mut bytes = Vec::new();
    stranger.hello().encode(false, &mut bytes);
    bytes.extend(script.put(b"4"));
    raw.write(&bytes);
    assert_eq!(raw.frame().unwrap().0, MessageType::HelloReply);
    node.wait_status("counting the frame", |status| status["counters"]["dead_session_frames"] == 1);
    assert_eq!(last_lsn(node), 3);
    raw.request(&kvstore::wire::client::Request::Put { key: b"k", value: b"v" });
    assert!(raw.is_closed(), "a peer is no client");
}

#[test]
fn a_lower_term_is_refused_and_told_the_higher_one() {
    let (cluster, script, mut raw) = follower_of_script();
    let node = &cluster.nodes[1];
    let mut newer = script.clone();
    (newer.node_id, newer.term) = (NodeId([8; 16]), Term { promotion: 1, start: 0 });
    let (_new, opened) = newer.session(node);
    assert_eq!(opened.match_lsn, script.last);
    assert!(raw.is_closed(), "the older session is dead");
    let refuse = script.refused(node);
    assert_eq!((refuse.code, refuse.term), (RefuseCode::StaleTerm, newer.term));
    assert_eq!(refuse.leader, newer.node_id, "it says who leads");
}

#[test]
fn another_leader_in_the_same_term_is_refused_and_logged() {
    let cluster = Cluster::start(2, &[]);
    let status = cluster.nodes[1].status();
    let mut other = Script::new(Term::from_u64(status["term"].as_u64().unwrap()));
    other.cluster_id = ClusterId(id(&status["cluster_id"]));
    let refuse = other.refused(&cluster.nodes[1]);
    assert_eq!(refuse.code, RefuseCode::TwoLeaders);
    assert!(refuse.message.contains("make one of them follow the other"), "{}", refuse.message);
    cluster.nodes[1].log.wait_for_line(0, "two leaders in term 0.1", DEADLINE);
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    cluster.expect_equal(&[0, 1]);
}

#[test]
fn a_leader_whose_follower_met_a_higher_term_is_told_and_stops_taking_writes() {
    let cluster = Cluster::start(2, &[]);
    let status = cluster.nodes[1].wait_status("told that its records are committed", |status| {
        status["commit_lsn"] == status["last_lsn"] && status["commit_lsn"] != 0
    });
    let mut higher = Script::new(Term { promotion: 3, start: 0 });
    higher.cluster_id = ClusterId(id(&status["cluster_id"]));
    let refused = higher.refused(&cluster.nodes[1]).code;
    assert_eq!(refused, RefuseCode::CutBelowCommit, "its empty log would cut what is committed");
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    cluster.expect_equal(&[0, 1]);

    // A hello with a higher term at the leader itself is enough.
    let mut raw = cluster.nodes[0].raw();
    let mut bytes = Vec::new();
    higher.hello().encode(false, &mut bytes);
    raw.write(&bytes);
    assert_eq!(raw.frame().unwrap().0, MessageType::HelloReply);
    assert_eq!(cluster.nodes[0].status()["role"], "deposed");
    let error = cluster.nodes[0].client().put(b"k", b"v").unwrap_err();
    assert!(error.to_string().contains(ADDRESS), "{error}");
}

fn id(text: &Value) -> [u8; 16] {
    let text = text.as_str().unwrap();
    std::array::from_fn(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap())
}

#[test]
fn another_protocol_version_is_refused_in_words() {
    let (cluster, script, _session) = follower_of_script();
    let node = &cluster.nodes[1];
    let mut hello = script.hello();
    hello.versions = (7, 9);
    let mut bytes = Vec::new();
    hello.encode(false, &mut bytes);
    let mut raw = node.raw();
    raw.write(&bytes);
    let (message_type, body) = raw.frame().unwrap();
    assert_eq!(message_type, MessageType::Refuse);
    let refuse = Refuse::decode(&body).unwrap();
    assert_eq!(refuse.code, RefuseCode::Version);
    assert!(refuse.message.contains("versions 7 to 9 there and 1 to 1 here"), "{}", refuse.message);
    assert!(raw.is_closed());
    node.log.wait_for_line(0, "versions 7 to 9", DEADLINE);
}

#[test]
fn a_node_with_the_id_of_the_one_it_speaks_to_is_refused() {
    let (cluster, mut script, mut session) = follower_of_script();
    let node = &cluster.nodes[1];
    let next = script.put(b"4");
    let mut twin = script.clone();
    twin.node_id = NodeId(id(&node.status()["node_id"]));
    let refuse = twin.refused(node);
    assert_eq!(refuse.code, RefuseCode::Identity);
    session.write(&next);
    assert_eq!(acked(&mut session), 4, "the session of the first is unaffected");
}

#[test]
fn a_leader_fences_acks_that_cannot_be() {
    // The test listens as the leader's only follower.
    let mut cluster = Cluster::prepare(1, &["--insync-timeout-ms=100"]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    cluster.nodes[0].args.push(format!("--peers={}", listener.local_addr().unwrap().port()));
    cluster.nodes[0].start();
    let impossible = [Lsn(1_000), Lsn(0)];
    for (n, ack_lsn) in impossible.into_iter().enumerate() {
        let mark = cluster.nodes[0].log.mark();
        let mut raw = Raw::over(listener.accept().unwrap().0);
        let (message_type, body) = raw.frame().unwrap();
        assert_eq!(message_type, MessageType::Hello);
        let mut hello = Hello::decode(&body).unwrap();
        (hello.node_id, hello.address) = (NodeId([5; 16]), ADDRESS.to_owned());
        let mut bytes = Vec::new();
        hello.encode(true, &mut bytes);
        raw.write(&bytes);
        let (message_type, body) = raw.frame().unwrap();
        assert_eq!(message_type, MessageType::Open);
        let open = Open::decode(&body).unwrap();
        // In the first session nothing matches; in the second, everything does.
        let (match_lsn, match_chain) =
            if n == 0 { (Lsn::ZERO, Chain::ZERO) } else { (open.last_lsn, open.last_chain) };
        let reply = OpenReply {
            term: open.term,
            match_lsn,
            match_chain,
            commit_lsn: Lsn::ZERO,
            cut_from: Lsn::ZERO,
            repair_until: Lsn::ZERO,
        };
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        Ack { last_lsn: ack_lsn, ..Ack::default() }.encode(&mut bytes);
        raw.write(&bytes);
        while raw.frame().is_some() {}
        cluster.nodes[0].log.wait_for_line(mark, &format!("ACK of LSN {ack_lsn} with"), DEADLINE);
    }
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
}
