//! The report for people: the verdict first, then what it rests on, file by file.

use std::fmt::Write;

use super::{Content, FileLook, Report, Whole};
use crate::disk::Holder;
use crate::ids::Lsn;
use crate::meta::{Meta, StoredRole};
use crate::node::{DryRun, Outcome};
use crate::snapshot::PartLook;
use crate::wal::{SegmentLook, SegmentState};

/// Terms that are shown; the document has all of them.
const TERMS_SHOWN: usize = 10;

/// The text, which ends with a newline.
pub fn text(report: &Report) -> String {
    let mut out = Lines(String::new());
    out.line("directory", &report.directory);
    match report.holder {
        Holder::Pid(pid) => out.line(
            "in use",
            &format!(
                "by the process with pid {pid}: the log goes on while it is read, and its end may look torn"
            ),
        ),
        Holder::Unknown => out.line("in use", "the system does not tell whether a node runs here"),
        Holder::Nobody => {}
    }
    if let Some(whole) = &report.whole {
        tell_whole(&mut out, whole);
    }
    let width = report.files.iter().map(|file| file.name.len()).max().unwrap_or(0);
    for file in &report.files {
        out.line(&format!("{:<width$}", file.name), &file_text(file));
    }
    for problem in report.problems() {
        out.line("PROBLEM", &problem);
    }
    out.0
}

struct Lines(String);

impl Lines {
    fn line(&mut self, name: &str, text: &str) {
        writeln!(self.0, "{name:<12} {text}").expect("a string takes all");
    }
}

fn tell_whole(out: &mut Lines, whole: &Whole) {
    if whole.is_archive() {
        out.line(
            "a start",
            "no data directory: it has segments, and neither META.a nor META.b, as an archive",
        );
    } else {
        tell_start(out, &whole.start);
    }
    if let Some((version, meta)) = &whole.meta {
        tell_identity(out, *version, meta);
    }
    for (first, last) in &whole.ranges {
        out.line("records", &format!("LSN {first} to {last}"));
    }
    let left_out = whole.terms.len().saturating_sub(TERMS_SHOWN);
    if left_out > 0 {
        out.line("terms", &format!("{left_out} older ones"));
    }
    for start in &whole.terms[left_out..] {
        out.line(
            "term",
            &format!(
                "{} from LSN {}, leader {}, chain {}",
                start.term, start.first_lsn, start.leader, start.chain
            ),
        );
    }
}

fn tell_start(out: &mut Lines, start: &DryRun) {
    let verdict = match &start.outcome {
        Outcome::Fresh => "would begin a new node: there is nothing in it".to_owned(),
        Outcome::Refuses(why) => format!("would refuse: {why}"),
        Outcome::Opens { first_lsn, last_lsn, snapshot, repairs_until } => {
            let from = snapshot.as_ref().map_or_else(String::new, |name| format!(", and {name}"));
            let held = match last_lsn < first_lsn {
                true => format!("an empty log behind LSN {last_lsn}"),
                false => format!("LSN {first_lsn} to {last_lsn} in the log"),
            };
            let repairs = repairs_until.map_or_else(String::new, |until| {
                format!(", and fetch what is missing up to LSN {until} from its leader before it serves")
            });
            format!("would open, with {held}{from}{repairs}")
        }
    };
    out.line("a start", &verdict);
    start.notes.iter().for_each(|note| out.line("", note));
}

fn tell_identity(out: &mut Lines, version: u64, meta: &Meta) {
    let cluster = match meta.cluster_id.is_none() {
        true => "none yet".to_owned(),
        false => meta.cluster_id.to_string(),
    };
    out.line("node", &format!("{}, cluster {cluster}", meta.node_id));
    out.line("record", &format!("version {version}, term {}, {}", meta.term, role_text(meta.role)));
    if !meta.leader_address.is_empty() {
        out.line("leader", &meta.leader_address);
    }
    if !meta.peers.is_empty() {
        out.line("peers", &meta.peers.join(", "));
    }
    for member in meta.members.iter() {
        let own = if member.node_id == meta.node_id { ", this node" } else { "" };
        out.line("member", &format!("{} at {}{own}", member.node_id, member.address));
    }
    if !meta.vote.is_none() {
        out.line("vote", &format!("for {} in term {}", meta.vote, meta.term));
    }
    let base = match meta.base_lsn {
        Lsn::ZERO => String::new(),
        base => format!(", installed behind LSN {base} (chain {})", meta.base_chain),
    };
    out.line("log", &format!("generation {}, begun behind LSN {}{base}", meta.log_generation, meta.cut_lsn));
    if meta.repair.is_due() {
        out.line("repairing", &format!("until LSN {}", meta.repair.until));
    }
}

pub(super) fn role_text(role: StoredRole) -> &'static str {
    match role {
        StoredRole::Unset => "never started in a role",
        StoredRole::LeaderByFlags => "leader",
        StoredRole::FollowerByFlags => "follower",
        StoredRole::LeaderByPromotion => "leader by promotion",
        StoredRole::FollowerByCommand => "follower by command",
        StoredRole::Deposed => "deposed",
        StoredRole::Elected => "member of an elected cluster",
    }
}

fn file_text(file: &FileLook) -> String {
    match &file.content {
        Content::Meta(Ok(record)) => format!("version {}, good", record.0),
        Content::Segment(look) => segment_text(look),
        Content::Snapshot(Ok(info)) => format!(
            "S {}, E {}, {} entries, {} of {} bytes, good",
            info.id.s, info.id.e, info.entries, info.bytes, file.bytes
        ),
        Content::Meta(Err(why)) | Content::Snapshot(Err(why)) | Content::Part(Err(why)) => {
            format!("DAMAGED: {why}")
        }
        Content::Part(Ok(part)) => part_text(part),
        Content::Kept(Ok(kept)) => {
            let damage = kept.damaged.map_or("good".to_owned(), |(byte, lsn)| {
                format!("DAMAGED at byte {byte}, where LSN {lsn} should be")
            });
            let (first, last, generation) = (kept.first_lsn, kept.last_lsn, kept.generation);
            format!(
                "LSN {first} to {last}, taken back by the cut that began generation {generation}, {damage}"
            )
        }
        Content::Kept(Err(why)) => format!("DAMAGED: {why}"),
        Content::Note(Ok(note)) => format!(
            "the archive of node {}, cluster {}: copied up to LSN {}",
            note.node_id, note.cluster_id, note.lsn
        ),
        Content::Note(Err(why)) => format!("DAMAGED: {why}"),
        Content::Leftover => format!("{} bytes; was being made, and a start removes it", file.bytes),
        Content::Unknown => format!("{} bytes; no file of a node's", file.bytes),
    }
}

fn part_text(part: &PartLook) -> String {
    let id = part.id.map_or("not finished, without a header".to_owned(), |id| {
        format!("S {}, E {}, {} of {} bytes whole", id.s, id.e, part.whole_bytes, part.declared_bytes)
    });
    let ends = part.problem.as_ref().map_or("all of it holds".to_owned(), |why| format!("ends: {why}"));
    format!("{id}, {} entries; {ends}; a start removes it", part.entries)
}

fn segment_text(look: &SegmentLook) -> String {
    let held = look.content.as_ref().map_or_else(
        || "header not readable".to_owned(),
        |content| {
            let terms: Vec<String> = content.terms.iter().map(|start| start.term.to_string()).collect();
            let begins = match terms.len() {
                0 => String::new(),
                1..=3 => format!(", begins term {}", terms.join(", ")),
                more => format!(", begins {more} terms"),
            };
            let lsns = match content.records() {
                0 => format!("no records, from LSN {} on", content.first_lsn),
                records => format!("LSN {} to {}, {records} records", content.first_lsn, content.last_lsn),
            };
            let (used, generation) = (content.bytes, content.generation);
            format!("{lsns}, {used} of {} bytes, generation {generation}{begins}", look.file_bytes)
        },
    );
    let state = match &look.state {
        SegmentState::Whole => "good".to_owned(),
        SegmentState::Litter { byte, bytes } => {
            format!("good, with {bytes} bytes behind byte {byte} that mean nothing")
        }
        SegmentState::Torn { byte, bytes } => format!("ends with a torn tail of {bytes} B at byte {byte}"),
        SegmentState::CutPending { byte } => format!("a cut behind byte {byte} is not completed"),
        SegmentState::TakenBack => "taken back by a cut that is not completed".to_owned(),
        SegmentState::Replaced => "a snapshot was installed in its place".to_owned(),
        SegmentState::Damaged { byte, lsn, reason } => {
            format!("DAMAGED at byte {byte}, where LSN {lsn} should be: {reason}")
        }
    };
    format!("{held}; {state}")
}
