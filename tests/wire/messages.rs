//! Every message type with arbitrary contents: there and back, cut short, longer than known, and random.

use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, SessionId, Term, WriteNumber};
use kvstore::limits::{ADDRESS_SIZE_MAX, AUTH_SIZE_MAX, MEMBERS_MAX, PEERS_MAX, SNAPSHOT_CHUNK_SIZE_MAX};
use kvstore::replication::election::ballot::{Ballot, BallotReply, Phase, Refusal};
use kvstore::replication::history::{TermHistory, TermStart};
use kvstore::replication::members::{Member, Members};
use kvstore::wire::client::{BackupStep, Inspect, Reply, Request, Status, WriteOp};
use kvstore::wire::peer::{
    Ack, AckDurations, AppendEntries, AppendTail, Fence, FenceReply, Form, FormKind, FormReply, HandOver,
    Hello, Open, OpenReply, PROTOCOL_VERSIONS, Refuse, RefuseCode, SnapshotAck, SnapshotChunk, SnapshotOffer,
    SnapshotTag, StateAt, StateNews, Vote, VoteReply,
};
use kvstore::wire::{Effect, MESSAGE_TYPES, MessageType, Record};
use proptest::prelude::*;

use crate::check_messages::{check_message, recoded};

/// A frame, and how many bytes at its end are the trailer (0: the message is sent without one).
#[derive(Clone, Debug)]
struct Sample {
    frame: Vec<u8>,
    trailer_size: usize,
    /// A receiver needs the trailer's fields.
    trailer_needed: bool,
}

impl Sample {
    fn new(trailer_size: usize, encode: impl FnOnce(&mut Vec<u8>)) -> Sample {
        let mut frame = Vec::new();
        encode(&mut frame);
        Sample { frame, trailer_size, trailer_needed: trailer_size > EMPTY_TRAILER }
    }

    /// Messages of earlier versions have an empty trailer here.
    fn with_optional_trailer(mut self) -> Sample {
        self.trailer_needed = false;
        self
    }

    fn message_type(&self) -> MessageType {
        MessageType::from_u8(self.frame[4]).expect("a known type was encoded")
    }

    fn body(&self) -> &[u8] {
        &self.frame[5..]
    }
}

const EMPTY_TRAILER: usize = 4;

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn term() -> impl Strategy<Value = Term> {
    any::<u64>().prop_map(Term::from_u64)
}

fn node_id() -> impl Strategy<Value = NodeId> {
    any::<[u8; 16]>().prop_map(NodeId)
}

fn chain() -> impl Strategy<Value = Chain> {
    any::<u32>().prop_map(Chain)
}

/// Any bytes; the large ones are a pattern, because drawing each byte takes longer than the test.
fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let pattern = |(size, first): (usize, u8)| (0..size).map(|at| first.wrapping_add(at as u8)).collect();
    let large = (0..=max, any::<u8>()).prop_map(pattern);
    prop_oneof![8 => prop::collection::vec(any::<u8>(), 0..40), 1 => large]
}

/// Any text of at most `max` bytes, of the full size now and then.
fn text(max: usize) -> impl Strategy<Value = String> {
    let any_text = prop::collection::vec(any::<char>(), 0..40).prop_map(move |letters| {
        let mut text: String = letters.into_iter().collect();
        while text.len() > max {
            text.pop();
        }
        text
    });
    prop_oneof![4 => any_text, 1 => Just("x".repeat(max))]
}

fn address() -> impl Strategy<Value = String> {
    text(ADDRESS_SIZE_MAX)
}

fn inspect() -> impl Strategy<Value = Inspect> {
    prop_oneof![
        any::<u64>().prop_map(|lsn| Inspect::Receipt(Lsn(lsn))),
        any::<u64>().prop_map(Inspect::Slowest),
        any::<u64>().prop_map(Inspect::Tail),
        prop::sample::select(vec![Inspect::Latency, Inspect::Syscalls, Inspect::Reset]),
    ]
}

fn request() -> impl Strategy<Value = Sample> {
    let numbered = (lsn(), any::<u64>(), any::<u64>());
    (0..16_usize, bytes(70_000), bytes(100_000), any::<bool>(), address(), (inspect(), numbered)).prop_map(
        |(kind, key, value, flag, address, (inspect, (lsn, nonce, number)))| {
            let session = SessionId { lsn, nonce };
            let request = match kind {
                0 => Request::Put { key: &key, value: &value },
                1 => Request::Get { key: &key },
                2 => Request::Delete { key: &key },
                3 => Request::Ping,
                4 => Request::Status,
                5 => Request::Promote { force: flag },
                6 => Request::Inspect(inspect),
                7 => Request::PutExplained { key: &key, value: &value },
                8 => Request::Snapshot { wait: flag },
                9 => Request::Backup(if flag { BackupStep::Begin } else { BackupStep::Next }),
                10 => Request::OpenSession,
                11 => {
                    let write = WriteOp::Put { key: &key, value: &value };
                    Request::Numbered { session, number, write }
                }
                12 => Request::Numbered { session, number, write: WriteOp::Delete { key: &key } },
                13 => Request::Transfer { address: &address },
                14 => Request::ChangeMembers { address: &address, add: flag },
                _ => Request::Follow { address: &address, discard: flag },
            };
            let trailer_size = match kind {
                7 => EMPTY_TRAILER,
                11 | 12 => EMPTY_TRAILER + 8 + 8 + 8,
                _ => 0,
            };
            let sample = Sample::new(trailer_size, |out| request.encode(out));
            assert_eq!(Request::decode(sample.message_type(), sample.body()), Ok(Some(request)));
            // Without its trailer a numbered write is a plain one.
            if matches!(kind, 11 | 12) { sample.with_optional_trailer() } else { sample }
        },
    )
}

fn reply() -> impl Strategy<Value = Sample> {
    (prop::sample::select(&Status::ALL[..]), lsn(), term(), bytes(100_000)).prop_map(
        |(status, lsn, term, payload)| {
            let reply = Reply { status, lsn, term, payload: &payload };
            let sample = Sample::new(EMPTY_TRAILER, |out| reply.encode(out));
            assert_eq!(Reply::decode(sample.body()), Ok(reply));
            sample
        },
    )
}

fn hello() -> impl Strategy<Value = Sample> {
    let versions = (0..=PROTOCOL_VERSIONS.1, PROTOCOL_VERSIONS.0..=u16::MAX);
    let ids = (any::<[u8; 16]>().prop_map(ClusterId), node_id(), node_id());
    let rest = (address(), address(), bytes(AUTH_SIZE_MAX), any::<bool>());
    (versions, any::<(u64, u64)>(), ids, term(), rest).prop_map(|(versions, bits, ids, term, rest)| {
        let (cluster_id, node_id, leader) = ids;
        let (address, leader_address, auth, is_reply) = rest;
        let (features, cmd_types) = bits;
        let hello = Hello {
            versions,
            features,
            cmd_types,
            cluster_id,
            node_id,
            term,
            address,
            leader,
            leader_address,
            auth,
        };
        let sample = Sample::new(EMPTY_TRAILER, |out| hello.encode(is_reply, out));
        assert_eq!(Hello::decode(sample.body()), Ok(hello));
        sample
    })
}

fn refuse() -> impl Strategy<Value = Sample> {
    use RefuseCode::*;
    let codes = [
        Version,
        Cluster,
        Identity,
        StaleTerm,
        TwoLeaders,
        NotFollower,
        Disagreement,
        CutBelowCommit,
        Session,
        CmdType,
        LogTooShort,
        ShuttingDown,
        RolledBack,
        Other,
    ];
    (prop::sample::select(codes.to_vec()), term(), node_id(), address(), text(usize::from(u16::MAX)))
        .prop_map(|(code, term, leader, leader_address, message)| {
            let refuse = Refuse { code, term, leader, leader_address, message };
            let sample = Sample::new(EMPTY_TRAILER, |out| refuse.encode(out));
            assert_eq!(Refuse::decode(sample.body()), Ok(refuse));
            sample
        })
}

fn open() -> impl Strategy<Value = Sample> {
    let steps = prop::collection::vec((1..1_000_u64, 1..1_000_u64, node_id(), chain()), 0..30);
    let history = steps.prop_map(|steps| {
        let (mut term, mut first_lsn) = (0, 0);
        let start = |(term_step, lsn_step, leader, chain)| {
            (term, first_lsn) = (term + term_step, first_lsn + lsn_step);
            TermStart { term: Term::from_u64(term), leader, first_lsn: Lsn(first_lsn), chain }
        };
        TermHistory::from_starts(steps.into_iter().map(start).collect()).expect("terms and LSNs rise")
    });
    let addresses = (address(), prop::collection::vec(address(), 0..=PEERS_MAX));
    (history, addresses, node_id(), (0..9_u64, 0..9_u64), (lsn(), lsn()), chain()).prop_map(
        |(
            history,
            (your_address, peers),
            leader,
            (later_term, later_lsn),
            (first_lsn, heard_lsn),
            last_chain,
        )| {
            let last = history.last().map_or((0, 0), |last| (last.term.as_u64(), last.first_lsn.0));
            let (term, last_lsn) = (Term::from_u64(last.0 + later_term), Lsn(last.1 + later_lsn));
            let first_lsn = Lsn(first_lsn.0 % (last_lsn.0 + 2));
            let open = Open {
                term,
                leader,
                your_address,
                peers,
                first_lsn,
                last_lsn,
                last_chain,
                history,
                heard_lsn,
                elected: later_term % 2 == 1,
            };
            let sample = Sample::new(EMPTY_TRAILER + 8, |out| open.encode(out)).with_optional_trailer();
            assert_eq!(Open::decode(sample.body()), Ok(open));
            sample
        },
    )
}

#[test]
fn an_open_of_a_log_that_begins_behind_its_end_is_refused() {
    let encoded = |first_lsn: u64| {
        let (term, leader, last_chain) = (Term::ZERO, NodeId([1; 16]), Chain::ZERO);
        let (your_address, peers, history) = (String::new(), Vec::new(), TermHistory::default());
        let (first_lsn, last_lsn) = (Lsn(first_lsn), Lsn(7));
        let (heard_lsn, elected) = (Lsn::ZERO, false);
        let open = Open {
            term,
            leader,
            your_address,
            peers,
            first_lsn,
            last_lsn,
            last_chain,
            history,
            heard_lsn,
            elected,
        };
        let mut out = Vec::new();
        open.encode(&mut out);
        out
    };
    assert!(Open::decode(&encoded(8)[5..]).is_ok(), "an empty log");
    assert_eq!(Open::decode(&encoded(9)[5..]).unwrap_err().field, "first_lsn");
}

fn open_reply() -> impl Strategy<Value = Sample> {
    let lsns = (lsn(), lsn(), lsn(), lsn());
    (term(), chain(), lsns).prop_map(
        |(term, match_chain, (match_lsn, commit_lsn, cut_from, repair_until))| {
            let reply = OpenReply { term, match_lsn, match_chain, commit_lsn, cut_from, repair_until };
            let sample = Sample::new(EMPTY_TRAILER + 8, |out| reply.encode(out)).with_optional_trailer();
            assert_eq!(OpenReply::decode(sample.body()), Ok(reply));
            sample
        },
    )
}

fn fence() -> impl Strategy<Value = Sample> {
    (any::<bool>(), term(), node_id(), address()).prop_map(|(probe, term, candidate, address)| {
        let fence = Fence { probe, term, candidate, address };
        let sample = Sample::new(EMPTY_TRAILER, |out| fence.encode(out));
        assert_eq!(Fence::decode(sample.body()), Ok(fence));
        sample
    })
}

fn fence_reply() -> impl Strategy<Value = Sample> {
    (any::<(bool, bool, bool)>(), term(), term(), lsn(), lsn(), (term(), lsn())).prop_map(
        |((accepted, leads, complete), term, last_term, last_lsn, commit_lsn, repair)| {
            let reply =
                FenceReply { accepted, term, last_term, last_lsn, commit_lsn, leads, repair, complete };
            let sample = Sample::new(EMPTY_TRAILER + 16, |out| reply.encode(out)).with_optional_trailer();
            assert_eq!(FenceReply::decode(sample.body()), Ok(reply));
            sample
        },
    )
}

fn state_news() -> impl Strategy<Value = StateNews> {
    (lsn(), lsn(), lsn(), any::<bool>()).prop_map(|(ask_lsn, equal_lsn, differs_lsn, outvoted)| StateNews {
        ask_lsn,
        equal_lsn,
        differs_lsn,
        outvoted,
    })
}

fn append_entries() -> impl Strategy<Value = Sample> {
    let record =
        (0..6_usize, lsn(), prop::collection::vec(any::<u8>(), 1..40), bytes(50_000), term(), node_id());
    let tail = (any::<bool>(), lsn(), any::<u64>(), chain(), state_news());
    (prop::collection::vec(record, 0..20), tail).prop_map(|(records, tail)| {
        let mut encoded = Vec::new();
        let mut sizes = Vec::new();
        for (kind, lsn, key, value, term, leader) in &records {
            let effect = match kind {
                0 => Effect::Put { key, value },
                1 => Effect::Delete { key },
                2 => Effect::Session { nonce: term.as_u64() },
                3 => Effect::PutNumbered {
                    key,
                    value,
                    by: WriteNumber { session: *lsn, number: term.as_u64() },
                },
                4 => Effect::DeleteNumbered { key, by: WriteNumber { session: *lsn, number: term.as_u64() } },
                _ => Effect::Term { term: *term, leader: *leader },
            };
            let start = encoded.len();
            Record { lsn: *lsn, effect }.encode(&mut encoded);
            sizes.push((*lsn, encoded.len() - start));
        }
        let (in_sync, commit_lsn, round, chain, state) = tail;
        let tail = AppendTail { in_sync, commit_lsn, round, chain, state };
        let entries = AppendEntries { record_count: records.len() as u32, records: &encoded, tail };
        let sample = Sample::new(4 + 8 + 8 + 4 + 24, |out| entries.encode(out));
        let mut seen = Vec::new();
        let decoded = AppendEntries::decode(sample.body(), |record, bytes| {
            seen.push((record.lsn, bytes.len()));
            Ok(())
        });
        assert_eq!((decoded, seen), (Ok(entries), sizes));
        sample
    })
}

fn ack() -> impl Strategy<Value = Sample> {
    let state = prop::option::of((1..=u64::MAX, any::<u128>()));
    (lsn(), any::<u64>(), any::<[u32; 3]>(), state).prop_map(|(last_lsn, round, spent, state)| {
        let [decode_ns, write_ns, sync_ns] = spent;
        let state = state.map(|(lsn, hash)| StateAt { lsn: Lsn(lsn), hash });
        let ack = Ack { last_lsn, round, spent: AckDurations { decode_ns, write_ns, sync_ns }, state };
        let sample = Sample::new(4 + 8 + 4 + 4 + 4 + 24, |out| ack.encode(out));
        assert_eq!(Ack::decode(sample.body()), Ok(ack));
        sample
    })
}

fn tag() -> impl Strategy<Value = SnapshotTag> {
    (1..=u64::MAX, any::<u64>(), any::<u32>()).prop_map(|(s, more, crc)| SnapshotTag {
        s: Lsn(s),
        e: Lsn(s.saturating_add(more)),
        crc,
    })
}

fn snapshot_offer() -> impl Strategy<Value = Sample> {
    (term(), tag(), any::<u64>(), any::<u64>()).prop_map(|(term, tag, bytes, entries)| {
        let offer = SnapshotOffer { term, tag, bytes, entries };
        let sample = Sample::new(EMPTY_TRAILER, |out| offer.encode(out));
        assert_eq!(SnapshotOffer::decode(sample.body()), Ok(offer));
        sample
    })
}

fn snapshot_chunk() -> impl Strategy<Value = Sample> {
    (term(), tag(), any::<u64>(), bytes(SNAPSHOT_CHUNK_SIZE_MAX)).prop_map(|(term, tag, offset, bytes)| {
        let chunk = SnapshotChunk { term, tag, offset, bytes: &bytes };
        let sample = Sample::new(EMPTY_TRAILER, |out| chunk.encode(out));
        assert_eq!(SnapshotChunk::decode(sample.body()), Ok(chunk));
        sample
    })
}

fn snapshot_ack() -> impl Strategy<Value = Sample> {
    (term(), tag(), any::<u64>(), prop::option::of((lsn(), chain()))).prop_map(
        |(term, tag, offset, installed)| {
            let ack = SnapshotAck { term, tag, offset, installed };
            let fields_size = if installed.is_some() { 8 + 4 } else { 0 };
            let mut sample = Sample::new(EMPTY_TRAILER + fields_size, |out| ack.encode(out));
            sample.trailer_needed = true;
            assert_eq!(SnapshotAck::decode(sample.body()), Ok(ack));
            sample
        },
    )
}

#[test]
fn a_snapshot_that_ends_before_it_begins_and_a_chunk_beyond_the_limit_are_refused() {
    let encoded = |s: u64, e: u64| {
        let mut out = Vec::new();
        let tag = SnapshotTag { s: Lsn(s), e: Lsn(e), crc: 1 };
        SnapshotChunk { term: Term::ZERO, tag, offset: 0, bytes: &[1; 10] }.encode(&mut out);
        out
    };
    assert!(SnapshotChunk::decode(&encoded(7, 7)[5..]).is_ok());
    assert_eq!(SnapshotChunk::decode(&encoded(8, 7)[5..]).unwrap_err().field, "snapshot e");
    assert_eq!(SnapshotChunk::decode(&encoded(0, 7)[5..]).unwrap_err().field, "snapshot e");
    let mut huge = encoded(7, 7)[5..].to_vec();
    huge[36..40].copy_from_slice(&(SNAPSHOT_CHUNK_SIZE_MAX as u32 + 1).to_be_bytes());
    assert_eq!(SnapshotChunk::decode(&huge).unwrap_err().field, "chunk");
}

fn phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![Phase::Pre, Phase::Real, Phase::HandOver])
}

fn vote() -> impl Strategy<Value = Sample> {
    (phase(), term(), node_id(), term(), lsn(), address()).prop_map(
        |(phase, term, candidate, last_term, last_lsn, address)| {
            let vote = Vote { ballot: Ballot { phase, term, candidate, last_term, last_lsn }, address };
            let sample = Sample::new(EMPTY_TRAILER, |out| vote.encode(out));
            assert_eq!(Vote::decode(sample.body()), Ok(vote));
            sample
        },
    )
}

fn vote_reply() -> impl Strategy<Value = Sample> {
    use Refusal::*;
    let refusals =
        vec![NotMember, StaleTerm, HearsLeader, OlderLog, BelowCommit, Incomplete, VotedAlready, Other];
    let verdict = prop_oneof![Just(Ok(())), prop::sample::select(refusals).prop_map(Err)];
    (phase(), term(), verdict, term(), lsn(), any::<u32>()).prop_map(
        |(phase, asked_term, verdict, term, commit_lsn, refuses_for_ms)| {
            let reply =
                VoteReply(BallotReply { phase, asked_term, verdict, term, commit_lsn, refuses_for_ms });
            let sample = Sample::new(EMPTY_TRAILER, |out| reply.encode(out));
            assert_eq!(VoteReply::decode(sample.body()), Ok(reply));
            sample
        },
    )
}

fn form() -> impl Strategy<Value = Sample> {
    let cluster = (1..=u128::MAX).prop_map(|id| ClusterId(id.to_be_bytes()));
    let ids = prop::collection::btree_map(1..=u128::MAX, text(ADDRESS_SIZE_MAX - 1), 1..=MEMBERS_MAX);
    let kind = prop::sample::select(vec![FormKind::Probe, FormKind::Found, FormKind::Learn]);
    (cluster, ids, kind, lsn()).prop_map(|(cluster_id, ids, kind, members_lsn)| {
        // The first byte tells the addresses apart.
        let member = |(index, (id, rest)): (u8, (u128, String))| {
            let address = format!("{}{rest}", char::from(b'a' + index));
            Member { node_id: NodeId(id.to_be_bytes()), address }
        };
        let members = Members::from_sorted((0..).zip(ids).map(member).collect()).expect("they differ");
        let form = Form { cluster_id, members, members_lsn, kind };
        let sample = Sample::new(EMPTY_TRAILER + 8, |out| form.encode(out)).with_optional_trailer();
        assert_eq!(Form::decode(sample.body()), Ok(form));
        sample
    })
}

fn form_reply() -> impl Strategy<Value = Sample> {
    let ids = (node_id(), any::<[u8; 16]>().prop_map(ClusterId));
    (any::<bool>(), ids, text(usize::from(u16::MAX))).prop_map(
        |(accepted, (node_id, cluster_id), message)| {
            let reply = FormReply { accepted, node_id, cluster_id, message };
            let sample = Sample::new(EMPTY_TRAILER, |out| reply.encode(out));
            assert_eq!(FormReply::decode(sample.body()), Ok(reply));
            sample
        },
    )
}

fn hand_over() -> impl Strategy<Value = Sample> {
    (term(), lsn()).prop_map(|(term, last_lsn)| {
        let hand_over = HandOver { term, last_lsn };
        let sample = Sample::new(EMPTY_TRAILER, |out| hand_over.encode(out));
        assert_eq!(HandOver::decode(sample.body()), Ok(hand_over));
        sample
    })
}

#[test]
fn members_out_of_order_or_twice_or_of_no_cluster_are_refused() {
    let member = |id: u8, address: &str| Member { node_id: NodeId([id; 16]), address: address.to_owned() };
    let members = Members::new(vec![member(1, "a:1"), member(2, "b:1")]).expect("they differ");
    let mut frame = Vec::new();
    let (cluster_id, kind) = (ClusterId([7; 16]), FormKind::Found);
    Form { cluster_id, members, members_lsn: Lsn::ZERO, kind }.encode(&mut frame);
    let body = &frame[5..];
    assert!(Form::decode(body).is_ok());
    let changed = |at: usize, byte: u8| {
        let mut body = body.to_vec();
        body[at] = byte;
        Form::decode(&body).unwrap_err().field
    };
    // The first member's id begins at 18, its address at 36; the second's id at 39.
    assert_eq!(changed(18, 9), "members", "they are in no order");
    assert_eq!(changed(36, b'b'), "members", "two have one address");
    assert_eq!(changed(17, 17), "members", "too many");
    assert_eq!(Form::decode(&[&[0; 16], &body[16..]].concat()).unwrap_err().field, "cluster_id");
    assert_eq!(Form::decode(&[&body[..16], &[0, 0], &body[57..]].concat()).unwrap_err().field, "members");
}

/// Any message; each kind asserts its own round trip while it is made.
fn sample() -> impl Strategy<Value = Sample> {
    prop_oneof![
        4 => request(),
        1 => reply(),
        1 => hello(),
        1 => refuse(),
        1 => open(),
        1 => open_reply(),
        1 => fence(),
        1 => fence_reply(),
        1 => append_entries(),
        1 => ack(),
        1 => snapshot_offer(),
        1 => snapshot_chunk(),
        1 => snapshot_ack(),
        1 => vote(),
        1 => vote_reply(),
        1 => form(),
        1 => form_reply(),
        1 => hand_over(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_message_survives_the_wire(sample in sample()) {
        prop_assert_eq!(&recoded(sample.message_type(), sample.body()).expect("it was encoded"), &sample.frame);
    }

    #[test]
    fn what_a_later_version_adds_to_the_trailer_is_skipped(
        sample in sample(),
        more in prop::collection::vec(any::<u8>(), 1..50),
        flags in any::<u16>(),
    ) {
        let mut body = sample.body().to_vec();
        if sample.trailer_size == 0 {
            body.extend_from_slice(&[0, 2, 0, 0]);
        }
        let trailer = body.len() - sample.trailer_size.max(EMPTY_TRAILER);
        let length = u16::from_be_bytes([body[trailer], body[trailer + 1]]) + more.len() as u16;
        body[trailer..trailer + 2].copy_from_slice(&length.to_be_bytes());
        // The lowest three bits of the flags have a meaning today, in one message or another.
        body[trailer + 2] = (flags >> 8) as u8;
        body[trailer + 3] = (flags as u8 & !7) | (body[trailer + 3] & 7);
        body.extend_from_slice(&more);
        prop_assert_eq!(&recoded(sample.message_type(), &body).expect("later fields are skipped"), &sample.frame);
    }

    #[test]
    fn a_message_cut_short_or_followed_by_more_is_refused(
        sample in sample(),
        at in any::<prop::sample::Index>(),
        more in any::<u8>(),
    ) {
        let (body, message_type) = (sample.body(), sample.message_type());
        if !body.is_empty() {
            let size = at.index(body.len());
            let trailer_left_out = !sample.trailer_needed && size == body.len() - sample.trailer_size;
            prop_assert_eq!(recoded(message_type, &body[..size]).is_ok(), trailer_left_out, "{} bytes", size);
        }
        let longer = [body, &[more]].concat();
        prop_assert!(recoded(message_type, &longer).is_err(), "a byte behind the end is seen");
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_understood(
        message_type in prop::sample::select(MESSAGE_TYPES),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        check_message(&[&[message_type as u8], &body[..]].concat());
    }

    #[test]
    fn a_message_with_flipped_bits_is_refused_or_understood(
        sample in sample(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u8), 1..4),
    ) {
        let mut input = sample.frame[4..].to_vec();
        for (at, bit) in flips {
            let at = at.index(input.len());
            input[at] ^= 1 << bit;
        }
        check_message(&input);
    }
}
