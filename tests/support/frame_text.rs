//! Frames as one readable line: type and fields, with names in place of node ids.

use std::collections::BTreeMap;
use std::fmt::Write;

use kvstore::ids::{ClusterId, NodeId};
use kvstore::wire::client::{Reply, Request, WriteOp};
use kvstore::wire::peer::{
    Ack, AppendEntries, Fence, FenceReply, Form, FormKind, FormReply, HandOver, Hello, Open, OpenReply,
    Refuse, SnapshotAck, SnapshotChunk, SnapshotOffer, Vote, VoteReply,
};
use kvstore::wire::{Effect, Frame, MessageType, Record};

/// Who has which node id.
pub type Names = BTreeMap<NodeId, String>;

/// The type and the fields of a frame.
pub fn frame_text(names: &Names, frame: Frame<'_>) -> String {
    let message_type = MessageType::from_u8(frame.type_byte).expect("nodes send only known types");
    let fields = fields(names, message_type, frame.body).expect("nodes send only what can be decoded");
    format!("{} {fields}", upper_snake(&format!("{message_type:?}"))).trim_end().to_owned()
}

fn upper_snake(camel: &str) -> String {
    let mut out = String::new();
    for (index, letter) in camel.char_indices() {
        if index > 0 && letter.is_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

type Decoded = Result<String, kvstore::wire::DecodeError>;

fn fields(names: &Names, message_type: MessageType, body: &[u8]) -> Decoded {
    use MessageType as Type;
    Ok(match message_type {
        Type::Hello | Type::HelloReply => {
            let hello = Hello::decode(body).expect("nodes of one build speak one version");
            let (term, from, cluster) = (hello.term, &hello.address, cluster(hello.cluster_id));
            format!(
                "from {from}, {cluster}, term {term}{}",
                led_by(names, hello.leader, &hello.leader_address)
            )
        }
        Type::Refuse => {
            let refuse = Refuse::decode(body)?;
            let leader = led_by(names, refuse.leader, &refuse.leader_address);
            format!("{:?}, term {}{leader}: {}", refuse.code, refuse.term, refuse.message)
        }
        Type::Open => open_text(names, &Open::decode(body)?),
        Type::OpenReply => {
            let OpenReply { term, match_lsn, match_chain, commit_lsn, cut_from, repair_until } =
                OpenReply::decode(body)?;
            let repairs =
                if repair_until.0 > 0 { format!(", repairs until {repair_until}") } else { String::new() };
            let cut = if cut_from.0 > 0 { format!(", cut from {cut_from}") } else { String::new() };
            format!("term {term}, match {match_lsn}, chain {match_chain}, commit {commit_lsn}{cut}{repairs}")
        }
        Type::Fence => {
            let Fence { probe, term, candidate, address } = Fence::decode(body)?;
            let kind = if probe { "probe" } else { "binding" };
            format!("{kind}, term {term}, candidate {} at {address}", name(names, candidate))
        }
        Type::FenceReply => {
            let reply = FenceReply::decode(body)?;
            let accepted = if reply.accepted { "accepted" } else { "not accepted" };
            let leads = if reply.leads { ", leads" } else { "" };
            let incomplete = if reply.complete { "" } else { ", state not complete" };
            format!(
                "{accepted}, term {}, last {} of term {}, commit {}{leads}{incomplete}",
                reply.term, reply.last_lsn, reply.last_term, reply.commit_lsn
            )
        }
        Type::AppendEntries => {
            let mut records = String::new();
            let frame = AppendEntries::decode(body, |record, _| {
                write!(records, "[{}] ", record_text(names, &record)).expect("a string takes all");
                Ok(())
            })?;
            let in_sync = if frame.tail.in_sync { "in sync" } else { "not in sync" };
            let tail = frame.tail;
            let (ask, right, differs) = (tail.state.ask_lsn, tail.state.equal_lsn, tail.state.differs_lsn);
            let asks = if ask.0 > 0 { format!(", asks for the state at {ask}") } else { String::new() };
            let judged = match (differs.0 > 0, tail.state.outvoted) {
                (false, _) => String::new(),
                (true, false) => format!(", its state right at {right} and disputed at {differs}"),
                (true, true) => format!(", its state right at {right} and outvoted at {differs}"),
            };
            format!(
                "{records}commit {}, round {}, chain {}, {in_sync}{asks}{judged}",
                tail.commit_lsn, tail.round, tail.chain
            )
        }
        Type::AppendEntriesAck => {
            let ack = Ack::decode(body)?;
            let state =
                ack.state.map_or_else(String::new, |state| format!(", has the state at {}", state.lsn));
            format!("last {}, round {}{state}", ack.last_lsn, ack.round)
        }
        Type::SnapshotOffer => {
            let offer = SnapshotOffer::decode(body)?;
            format!("term {}, lsn {}..{}, {} entries", offer.term, offer.tag.s, offer.tag.e, offer.entries)
        }
        Type::SnapshotChunk => {
            let chunk = SnapshotChunk::decode(body)?;
            let (from, to) = (chunk.offset, chunk.offset + chunk.bytes.len() as u64);
            format!("term {}, lsn {}..{}, bytes {from}..{to}", chunk.term, chunk.tag.s, chunk.tag.e)
        }
        Type::SnapshotAck => {
            let ack = SnapshotAck::decode(body)?;
            let installed = ack
                .installed
                .map_or_else(String::new, |(lsn, chain)| format!(", installed: match {lsn}, chain {chain}"));
            format!("term {}, lsn {}..{}, has {}{installed}", ack.term, ack.tag.s, ack.tag.e, ack.offset)
        }
        Type::Vote => {
            let Vote { ballot, address } = Vote::decode(body)?;
            let (phase, term, from) = (ballot.phase, ballot.term, name(names, ballot.candidate));
            let (last, of) = (ballot.last_lsn, ballot.last_term);
            format!("{phase:?}, term {term}, candidate {from} at {address}, last {last} of term {of}")
        }
        Type::VoteReply => {
            let VoteReply(reply) = VoteReply::decode(body)?;
            let verdict = match reply.verdict {
                Ok(()) => "granted".to_owned(),
                Err(refusal) => format!("refused ({refusal:?})"),
            };
            let (phase, asked) = (reply.phase, reply.asked_term);
            format!("{phase:?} of term {asked} {verdict}, term {}, commit {}", reply.term, reply.commit_lsn)
        }
        Type::Form => {
            let Form { cluster_id, members, kind, .. } = Form::decode(body)?;
            let members = members.iter().map(|member| name(names, member.node_id)).collect::<Vec<_>>();
            let what = match kind {
                FormKind::Probe => "probe of ",
                FormKind::Found => "",
                FormKind::Learn => "learn in ",
            };
            format!("{what}{}, members {}", cluster(cluster_id), members.join(" "))
        }
        Type::FormReply => {
            let FormReply { accepted, node_id, cluster_id, message } = FormReply::decode(body)?;
            let accepted = if accepted { "accepted" } else { "not accepted" };
            format!("{accepted} by {}, {} {message}", name(names, node_id), cluster(cluster_id))
        }
        Type::HandOver => {
            let HandOver { term, last_lsn } = HandOver::decode(body)?;
            format!("term {term}, last {last_lsn}")
        }
        Type::Reply => {
            let (Reply { status, lsn, term, payload }, age_ms) = Reply::decode_with_age(body)?;
            let payload = String::from_utf8_lossy(payload);
            let separator = if payload.is_empty() { "" } else { ": " };
            let age = age_ms.map_or_else(String::new, |ms| format!(", age {ms} ms"));
            format!("{status:?}, lsn {lsn}, term {term}{age}{separator}{payload}")
        }
        _ => request_text(Request::decode(message_type, body)?.expect("all other types are requests")),
    })
}

fn open_text(names: &Names, open: &Open) -> String {
    let starts: Vec<String> = open
        .history
        .starts()
        .iter()
        .map(|start| format!("{} of {} from {}", start.term, name(names, start.leader), start.first_lsn))
        .collect();
    format!(
        "term {}, leader {}, to {}, peers {}, lsn {}..{}, chain {}, terms [{}]",
        open.term,
        name(names, open.leader),
        open.your_address,
        open.peers.join(" "),
        open.first_lsn,
        open.last_lsn,
        open.last_chain,
        starts.join(", ")
    )
}

fn record_text(names: &Names, record: &Record<'_>) -> String {
    let text = String::from_utf8_lossy;
    match record.effect {
        Effect::Put { key, value } => format!("{} PUT {}={}", record.lsn, text(key), text(value)),
        Effect::Delete { key } => format!("{} DELETE {}", record.lsn, text(key)),
        Effect::Term { term, leader } => format!("{} TERM {term} of {}", record.lsn, name(names, leader)),
        Effect::Session { .. } => format!("{} SESSION", record.lsn),
        Effect::PutNumbered { key, value, by } => {
            format!(
                "{} PUT {}={}, {} of session {}",
                record.lsn,
                text(key),
                text(value),
                by.number,
                by.session
            )
        }
        Effect::DeleteNumbered { key, by } => {
            format!("{} DELETE {}, {} of session {}", record.lsn, text(key), by.number, by.session)
        }
        Effect::Members { .. } => {
            let members = record.members().unwrap_or_default();
            let members = members.iter().map(|member| name(names, member.node_id)).collect::<Vec<_>>();
            format!("{} MEMBERS {}", record.lsn, members.join(" "))
        }
    }
}

fn request_text(request: Request<'_>) -> String {
    let text = String::from_utf8_lossy;
    match request {
        Request::Put { key, value } => format!("{}={}", text(key), text(value)),
        Request::PutExplained { key, value } => format!("{}={}, with its receipt", text(key), text(value)),
        Request::Inspect(inspect) => format!("{inspect:?}"),
        Request::Get { key } | Request::Delete { key } => text(key).into_owned(),
        Request::GetWith { key, reads } => format!("{}, {}", text(key), reads.name()),
        Request::Ping | Request::Status => String::new(),
        Request::OpenSession => String::new(),
        Request::Numbered { session, number, write: WriteOp::Put { key, value } } => {
            format!("{}={}, {number} of session {}", text(key), text(value), session.lsn)
        }
        Request::Numbered { session, number, write: WriteOp::Delete { key } } => {
            format!("{}, {number} of session {}", text(key), session.lsn)
        }
        Request::Backup(step) => format!("{step:?}"),
        Request::Snapshot { wait } => if wait { "" } else { "--no-wait" }.to_owned(),
        Request::Promote { force } => if force { "--force" } else { "" }.to_owned(),
        Request::Transfer { address } => format!("to {address:?}"),
        Request::ChangeMembers { add, address } => {
            format!("{} {address}", if add { "add" } else { "remove" })
        }
        Request::Follow { address, discard } => {
            format!("{address}{}", if discard { " --discard" } else { "" })
        }
    }
}

fn name(names: &Names, id: NodeId) -> String {
    match names.get(&id) {
        Some(name) => name.clone(),
        None if id.is_none() => "nobody".to_owned(),
        None => format!("unknown node {id}"),
    }
}

fn led_by(names: &Names, id: NodeId, address: &str) -> String {
    if id.is_none() { String::new() } else { format!(" led by {} at {address}", name(names, id)) }
}

fn cluster(id: ClusterId) -> String {
    if id.is_none() { "no cluster yet".to_owned() } else { format!("cluster {}", &id.to_string()[..6]) }
}

/// What a file of a data directory is, whatever its number.
pub fn kind_of_file(name: &str) -> &str {
    match name {
        "META.a" => "first copy of identity",
        "META.b" => "second copy of identity",
        spare if spare.ends_with(".tmp") => "next segment",
        log if log.starts_with("wal-") => "log",
        other => other,
    }
}
