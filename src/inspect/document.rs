//! The report for machines: one JSON document. LSNs, bytes and terms are numbers; a term is also given as text.

use serde_json::{Map, Value, json};

use super::{Content, FileLook, Report, Whole};
use crate::disk::Holder;
use crate::ids::Lsn;
use crate::meta::Meta;
use crate::node::{DryRun, Outcome};
use crate::replication::history::TermStart;
use crate::replication::members::Member;
use crate::wal::{SegmentLook, SegmentState};

/// The document.
pub fn document(report: &Report) -> Value {
    let pid = match report.holder {
        Holder::Pid(pid) => Some(pid),
        Holder::Nobody | Holder::Unknown => None,
    };
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    put("directory", json!(report.directory));
    put("held_by_pid", json!(pid));
    if let Some(Whole { meta, ranges, terms, start }) = &report.whole {
        put("start", start_document(start));
        put("identity", meta.as_ref().map_or(Value::Null, meta_document));
        put(
            "ranges",
            ranges.iter().map(|(first, last)| json!({"first_lsn": first.0, "last_lsn": last.0})).collect(),
        );
        put("terms", terms.iter().map(term_document).collect());
    }
    put("files", report.files.iter().map(file_document).collect());
    put("problems", json!(report.problems()));
    Value::Object(fields)
}

fn start_document(DryRun { outcome, notes }: &DryRun) -> Value {
    match outcome {
        Outcome::Fresh => json!({"outcome": "fresh", "notes": notes}),
        Outcome::Refuses(why) => json!({"outcome": "refuses", "why": why, "notes": notes}),
        Outcome::Opens { first_lsn, last_lsn, snapshot, repairs_until } => json!({
            "outcome": if repairs_until.is_some() { "repairs" } else { "opens" },
            "first_lsn": first_lsn.0,
            "last_lsn": last_lsn.0,
            "snapshot": snapshot,
            "repairs_until_lsn": repairs_until.map(|lsn| lsn.0),
            "notes": notes,
        }),
    }
}

fn term_document(start: &TermStart) -> Value {
    json!({
        "term": start.term.as_u64(),
        "term_text": start.term.to_string(),
        "leader_id": start.leader.to_string(),
        "first_lsn": start.first_lsn.0,
        "chain": start.chain.to_string(),
    })
}

fn meta_document((version, meta): &(u64, Meta)) -> Value {
    json!({
        "version": version,
        "cluster_id": (!meta.cluster_id.is_none()).then(|| meta.cluster_id.to_string()),
        "node_id": meta.node_id.to_string(),
        "term": meta.term.as_u64(),
        "term_text": meta.term.to_string(),
        "role": super::text::role_text(meta.role),
        "leader_id": (!meta.leader_id.is_none()).then(|| meta.leader_id.to_string()),
        "leader_address": meta.leader_address,
        "own_address": meta.own_address,
        "peers": meta.peers,
        "members": meta.members.iter().map(member_document).collect::<Vec<_>>(),
        "vote": (!meta.vote.is_none()).then(|| meta.vote.to_string()),
        "in_sync": meta.in_sync,
        "log_generation": meta.log_generation,
        "cut_lsn": meta.cut_lsn.0,
        "base_lsn": meta.base_lsn.0,
        "base_chain": meta.base_chain.to_string(),
        "discard_allowed": meta.discard_allowed,
        "repair_until_lsn": meta.repair.is_due().then_some(meta.repair.until.0),
    })
}

fn member_document(member: &Member) -> Value {
    json!({"node_id": member.node_id.to_string(), "address": member.address})
}

fn file_document(file: &FileLook) -> Value {
    let (kind, content) = match &file.content {
        Content::Meta(Ok(record)) => ("meta", meta_document(record)),
        Content::Meta(Err(why)) => ("meta", json!({"error": why})),
        Content::Segment(look) => ("segment", segment_document(look)),
        Content::Snapshot(Ok(info)) => (
            "snapshot",
            json!({
                "s": info.id.s.0,
                "e": info.id.e.0,
                "chain": info.chain.to_string(),
                "used_bytes": info.bytes,
                "entries": info.entries,
                "data_bytes": info.data_bytes,
                "cluster_id": info.cluster_id.to_string(),
                "maker": info.maker.to_string(),
                "peers": info.peers,
            }),
        ),
        Content::Snapshot(Err(why)) => ("snapshot", json!({"error": why})),
        Content::Part(Ok(part)) => (
            "unfinished snapshot",
            json!({
                "s": part.id.map(|id| id.s.0),
                "e": part.id.map(|id| id.e.0),
                "declared_bytes": part.declared_bytes,
                "whole_bytes": part.whole_bytes,
                "entries": part.entries,
                "ends": part.problem,
            }),
        ),
        Content::Part(Err(why)) => ("unfinished snapshot", json!({"error": why})),
        Content::Kept(Ok(kept)) => (
            "cut records",
            json!({
                "generation": kept.generation,
                "first_lsn": kept.first_lsn.0,
                "last_lsn": kept.last_lsn.0,
                "damaged": kept.damaged.map(|(byte, lsn)| json!({"byte": byte, "lsn": lsn.0})),
            }),
        ),
        Content::Kept(Err(why)) => ("cut records", json!({"error": why})),
        Content::Note(Ok(note)) => (
            "archive note",
            json!({
                "cluster_id": note.cluster_id.to_string(),
                "node_id": note.node_id.to_string(),
                "lsn": note.lsn.0,
                "chain": note.chain.to_string(),
            }),
        ),
        Content::Note(Err(why)) => ("archive note", json!({"error": why})),
        Content::Leftover => ("leftover", Value::Null),
        Content::Unknown => ("unknown", Value::Null),
    };
    json!({"name": file.name, "bytes": file.bytes, "kind": kind, "live": file.is_live(), "content": content})
}

fn segment_document(look: &SegmentLook) -> Value {
    let content = look.content.as_ref();
    let lsn = |take: fn(&crate::wal::SegmentContent) -> Lsn| content.map(|content| take(content).0);
    let (state, byte, bytes, why) = match &look.state {
        SegmentState::Whole => ("whole", None, None, None),
        SegmentState::Litter { byte, bytes } => ("litter", Some(byte), Some(bytes), None),
        SegmentState::Torn { byte, bytes } => ("torn", Some(byte), Some(bytes), None),
        SegmentState::CutPending { byte } => ("cut pending", Some(byte), None, None),
        SegmentState::TakenBack => ("taken back", None, None, None),
        SegmentState::Replaced => ("replaced", None, None, None),
        SegmentState::Damaged { byte, reason, .. } => ("damaged", Some(byte), None, Some(reason)),
    };
    json!({
        "first_lsn": lsn(|content| content.first_lsn),
        "last_lsn": lsn(|content| content.last_lsn),
        "records": content.map(crate::wal::SegmentContent::records),
        "used_bytes": content.map(|content| content.bytes),
        "generation": content.map(|content| content.generation),
        "cluster_id": content.map(|content| content.cluster_id.to_string()),
        "durable_lsn": lsn(|content| content.durable_lsn),
        "commit_lsn": lsn(|content| content.commit_lsn),
        "chain": content.map(|content| content.chain.to_string()),
        "terms": content.map(|content| content.terms.iter().map(term_document).collect::<Vec<_>>()),
        "state": state,
        "at_byte": byte,
        "state_bytes": bytes,
        "why": why,
    })
}
