//! A node's state as a table a person likes to read.
//!
//! First the verdict in one line: who leads, who is in sync, and what an acknowledgement means right now.
//! Then the node, its log and data, a line per peer, and the counters. A field that is missing is left out
//! or shown as `-`: the node may be older than this client. A field this client does not know is shown at
//! the end: the node may be newer.

use serde_json::{Map, Value};

use super::election_text;
use super::error::printable;
use super::table::{aligned, grouped, lasting, lasting_ms, plain, plural, sized};
use crate::ids::Term;

/// Fields that have a place of their own; any other is listed at the end.
const FIELDS_KNOWN: &[&str] = &[
    "node_id",
    "cluster_id",
    "role",
    "term",
    "term_text",
    "last_lsn",
    "durable_lsn",
    "commit_lsn",
    "applied_lsn",
    "first_lsn",
    "keys",
    "data_bytes",
    "memory_bytes",
    "overhead_bytes",
    "bytes_per_key",
    "log_bytes",
    "snapshot",
    "archive",
    "loading",
    "complete",
    "state_hash",
    "leader",
    "leader_id",
    "in_sync",
    "ack",
    "min_insync",
    "durability",
    "flush",
    "flush_refused",
    "flush_stalled_ms",
    "read_only_reason",
    "repair",
    "uptime_s",
    "version",
    "pid",
    "address",
    "connections",
    "log_generation",
    "counters",
    "latency",
    "peers",
    "in_flight_bytes",
    "insync_timeout_ms",
    "election",
    // Shown by `kv_client latency`.
    "latency",
];

/// The table for a status document.
pub fn render(document: &Value) -> String {
    let status = Status(document);
    let mut out = format!("{}\n\n", verdict(status));
    out.push_str(&aligned(&facts(status), &[]));
    if !status.peers().is_empty() {
        out.push('\n');
        out.push_str(&peer_table(status.peers()));
    }
    let empty = Map::new();
    out.push_str(&latency_table(document.get("latency").and_then(Value::as_object).unwrap_or(&empty)));
    let counters = document.get("counters").and_then(Value::as_object).unwrap_or(&empty);
    out.push_str(&section("counters", counters.iter()));
    let fields = document.as_object().unwrap_or(&empty).iter();
    out.push_str(&section("other", fields.filter(|(name, _)| !FIELDS_KNOWN.contains(&name.as_str()))));
    out
}

/// The whole document, or that of one peer, with absence made easy.
#[derive(Clone, Copy)]
struct Status<'a>(&'a Value);

impl<'a> Status<'a> {
    fn text(self, field: &str) -> Option<String> {
        self.0.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(printable)
    }

    fn number(self, field: &str) -> Option<u64> {
        self.0.get(field).and_then(Value::as_u64)
    }

    fn flag(self, field: &str) -> Option<bool> {
        self.0.get(field).and_then(Value::as_bool)
    }

    fn term(self) -> String {
        let from_number = || self.number("term").map(|raw| Term::from_u64(raw).to_string());
        self.text("term_text").or_else(from_number).unwrap_or_else(|| "?".to_owned())
    }

    fn peers(self) -> &'a [Value] {
        self.0.get("peers").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn peers_in_sync(self) -> usize {
        self.peers().iter().filter(|peer| Status(peer).flag("in_sync") == Some(true)).count()
    }
}

fn verdict(status: Status<'_>) -> String {
    let (term, leader) = (status.term(), status.text("leader"));
    let mut line = match status.text("role").as_deref() {
        Some("leader") => leader_verdict(status, &term),
        Some("follower") => match election_text::election(status.0) {
            Some(election) => return election_text::follower_verdict(election, &term, leader.as_deref()),
            None => follower_verdict(status, &term, leader),
        },
        Some("deposed") => match leader {
            Some(leader) => format!(
                "deposed in term {term} — takes no writes — {leader} leads — next: kv_client follow {leader}"
            ),
            None => format!("deposed in term {term} — takes no writes — another node leads, not known which"),
        },
        Some(role) => format!("{role} in term {term}"),
        None => format!("a node in term {term} that does not say its role"),
    };
    if let Some(reason) = status.text("read_only_reason") {
        line.push_str(&format!(" — TAKES NO WRITES: {reason}"));
    }
    if let Some(ms) = status.number("flush_stalled_ms") {
        line.push_str(&format!(" — ITS DISK HANGS: a flush has not ended for {}", lasting_ms(ms)));
    }
    line
}

fn leader_verdict(status: Status<'_>, term: &str) -> String {
    let nodes = status.peers().len() + 1;
    let in_sync = status.peers_in_sync() + 1;
    let meaning = acknowledged_means(status, nodes, in_sync);
    if nodes == 1 {
        return format!("leader in term {term} — a single node, no peers — acknowledged means: {meaning}");
    }
    format!("leader in term {term} — {in_sync} of {nodes} nodes in sync — acknowledged means: {meaning}")
}

fn acknowledged_means(status: Status<'_>, nodes: usize, in_sync: usize) -> String {
    let what = match status.text("durability").as_deref() {
        Some("os") => "handed to the operating system, not synced to disk,",
        _ => "on disk",
    };
    let whose = match status.text("ack").as_deref() {
        _ if nodes == 1 => "on this node".to_owned(),
        Some("insync") if in_sync == 1 => "on every in-sync node (now this one alone)".to_owned(),
        Some("insync") => "on every in-sync node".to_owned(),
        Some("quorum") => format!("on a majority, {} of {nodes} nodes", nodes / 2 + 1),
        Some("majority") => format!("on any majority, {} of {nodes} nodes", nodes / 2 + 1),
        Some("leader") => "on this node alone".to_owned(),
        Some(other) => format!("as --ack={other} says"),
        None => return "not told".to_owned(),
    };
    format!("{what} {whose}")
}

fn follower_verdict(status: Status<'_>, term: &str, leader: Option<String>) -> String {
    let whose = match leader {
        Some(leader) => format!("follower of {leader} in term {term}"),
        None => format!("follower in term {term} — has not heard of a leader"),
    };
    // Where a majority decides, nobody is told that it is in sync, and nothing goes by it.
    let told = status.flag("in_sync").filter(|_| status.text("ack").as_deref() != Some("majority"));
    match told {
        Some(true) => format!("{whose} — in sync when it last heard its leader"),
        Some(false) => {
            format!("{whose} — NOT in sync: reads may be old, and it may lack acknowledged writes")
        }
        None => whose,
    }
}

/// The labelled lines under the verdict. A line whose every part is missing is left out.
fn facts(status: Status<'_>) -> Vec<Vec<String>> {
    let with = |label: &str, text: Option<String>| text.map(|text| format!("{label}{text}"));
    let count = |label: &str, field: &str| with(label, status.number(field).map(grouped));
    let bytes = |field: &str, what: &str| status.number(field).map(|size| format!("{} {what}", sized(size)));
    let elections = election_text::election(status.0).map_or_else(Vec::new, election_text::lines);
    let records = (status.number("first_lsn").zip(status.number("last_lsn")))
        .map(|(first, last)| format!("LSN {} to {}", grouped(first), grouped(last)))
        .or_else(|| count("last LSN ", "last_lsn"));
    [
        line("address", vec![status.text("address"), with("pid ", status.number("pid").map(plain))]),
        line("node id", vec![status.text("node_id")]),
        line("cluster id", vec![status.text("cluster_id")]),
        line("version", vec![status.text("version"), with("up ", status.number("uptime_s").map(lasting))]),
        line("leader", vec![status.text("leader"), with("id ", status.text("leader_id"))]),
        line(
            "log",
            vec![
                records,
                count("durable ", "durable_lsn"),
                count("committed ", "commit_lsn"),
                count("applied ", "applied_lsn"),
                with("generation ", status.number("log_generation").map(plain)),
                bytes("log_bytes", "on disk"),
            ],
        ),
        line("loading", vec![loading_text(status)]),
        line("snapshot", vec![snapshot_text(status)]),
        line("archive", vec![archive_text(status)]),
        line(
            "data",
            vec![
                status.number("keys").map(|keys| format!("{} key{}", grouped(keys), plural(keys))),
                bytes("data_bytes", "of keys and values"),
                bytes("memory_bytes", "of memory"),
                bytes("bytes_per_key", "per key"),
                bytes("overhead_bytes", "beside the data"),
            ],
        ),
        line("state hash", vec![status.text("state_hash")]),
        line(
            "writes",
            vec![
                with("ack ", status.text("ack")),
                with("min in-sync ", status.number("min_insync").map(plain)),
                with("durability ", status.text("durability")),
                with("flush ", status.text("flush")),
                with("as io_uring does not work: ", status.text("flush_refused")),
                with("in-sync timeout ", status.number("insync_timeout_ms").map(lasting_ms)),
                bytes("in_flight_bytes", "in flight"),
            ],
        ),
        line("connections", vec![status.number("connections").map(grouped)]),
    ]
    .into_iter()
    .chain(elections.into_iter().map(|(label, parts)| line(label, parts)))
    .flatten()
    .collect()
}

fn loading_text(status: Status<'_>) -> Option<String> {
    let loading = Status(status.0.get("loading").filter(|loading| loading.is_object())?);
    let left = loading.number("eta_s").map_or_else(String::new, |eta_s| format!(", about {eta_s} s left"));
    Some(format!("{} %{left}", loading.number("progress")?))
}

fn snapshot_text(status: Status<'_>) -> Option<String> {
    let snapshot = Status(status.0.get("snapshot").filter(|snapshot| snapshot.is_object())?);
    let lsns = (snapshot.number("s").zip(snapshot.number("e")))
        .map_or_else(String::new, |(s, e)| format!(" of LSN {} to {}", grouped(s), grouped(e)));
    let size = snapshot.number("bytes").map_or_else(String::new, |bytes| format!(", {}", sized(bytes)));
    let text = match snapshot.text("state").as_deref() {
        Some("running") if snapshot.flag("waits_for_commit") == Some(true) => {
            format!("written{lsns}{size}; waits for its last LSN to be committed")
        }
        Some("running") => {
            let eta = snapshot.number("eta_s").map_or_else(String::new, |s| format!(", about {s} s left"));
            format!("running, {} %{eta}{size}", snapshot.number("progress").unwrap_or(0))
        }
        Some("done") => format!("newest{lsns}{size}"),
        _ => "none yet".to_owned(),
    };
    let since = snapshot.number("log_bytes_since").zip(snapshot.number("log_bytes_next"));
    let since = since.map_or_else(String::new, |(since, next)| {
        format!("; {} of log since, the next at {}", sized(since), sized(next))
    });
    let error =
        snapshot.text("last_error").map_or_else(String::new, |error| format!("; last error: {error}"));
    Some(format!("{text}{since}{error}"))
}

fn archive_text(status: Status<'_>) -> Option<String> {
    let archive = Status(status.0.get("archive").filter(|archive| archive.is_object())?);
    let lsn = archive.number("lsn").map_or_else(String::new, |lsn| format!(" up to LSN {}", grouped(lsn)));
    let waiting = match (archive.number("segments_waiting"), archive.number("bytes_waiting")) {
        (Some(count), Some(bytes)) if count > 0 => {
            format!("; {count} segment{} wait, {}", plural(count), sized(bytes))
        }
        _ => String::new(),
    };
    let missed = match archive.number("missed").unwrap_or(0) {
        0 => String::new(),
        missed => format!("; {missed} GAP{}", plural(missed).to_uppercase()),
    };
    let error = archive.text("last_error").map_or_else(String::new, |error| format!("; FAILING: {error}"));
    Some(format!("{}{lsn}{waiting}{missed}{error}", archive.text("directory")?))
}

fn line(label: &str, parts: Vec<Option<String>>) -> Option<Vec<String>> {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    // Not by commas: these group the digits.
    (!parts.is_empty()).then(|| vec![label.to_owned(), parts.join("; ")])
}

fn peer_table(peers: &[Value]) -> String {
    const HEADER: [&str; 9] = [
        "peer",
        "state",
        "in sync",
        "match LSN",
        "lag (records)",
        "lag (bytes)",
        "to send",
        "last ACK",
        "last error",
    ];
    let mut rows = vec![HEADER.map(str::to_owned).to_vec()];
    rows.extend(peers.iter().map(|peer| peer_row(Status(peer))));
    aligned(&rows, &[3, 4, 5, 6, 7])
}

fn peer_row(peer: Status<'_>) -> Vec<String> {
    let in_sync = peer.flag("in_sync").map(|flag| if flag { "yes" } else { "NO" }.to_owned());
    let last_ack = peer.number("last_ack_ms_ago").map(|ms| format!("{} ago", lasting_ms(ms)));
    [
        peer.text("address"),
        peer.text("state").map(|state| state_text(peer, &state)),
        in_sync,
        peer.number("match_lsn").map(grouped),
        peer.number("lag").map(grouped),
        peer.number("lag_bytes").map(sized),
        peer.number("buffered_bytes").map(sized),
        last_ack,
        peer.text("last_error"),
    ]
    .map(|cell| cell.unwrap_or_else(|| "-".to_owned()))
    .to_vec()
}

/// A follower that gets a snapshot: how much of it it has.
fn state_text(peer: Status<'_>, state: &str) -> String {
    let snapshot = peer.0.get("snapshot").map(Status);
    let number = |name| snapshot.as_ref().and_then(|snapshot| snapshot.number(name));
    match (number("percent"), number("received_bytes"), number("bytes")) {
        (Some(percent), Some(received), Some(bytes)) => {
            format!("snapshot {percent} % ({} of {})", sized(received), sized(bytes))
        }
        _ => state.replace('_', " "),
    }
}

/// Where the time went, in microseconds; stages in which nothing was measured are left out.
fn latency_table(stages: &Map<String, Value>) -> String {
    const COLUMNS: [&str; 5] = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"];
    let measured = stages.iter().filter(|(_, stage)| Status(stage).number("count").is_some_and(|n| n > 0));
    let rows: Vec<Vec<String>> = measured
        .map(|(name, stage)| {
            let times = COLUMNS.map(|column| match stage.get(column).and_then(Value::as_f64) {
                Some(us) => format!("{us:.1}"),
                None => "-".to_owned(),
            });
            let count = Status(stage).number("count").map_or_else(String::new, grouped);
            [format!("  {}", printable(name)), count].into_iter().chain(times).collect()
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let header = ["latency (us)", "count", "p50", "p90", "p99", "p99.9", "max"].map(str::to_owned).to_vec();
    format!("\n{}", aligned(&[vec![header], rows].concat(), &[1, 2, 3, 4, 5, 6]))
}

/// Names and values under a heading, numbers aligned; nothing at all if there are none.
fn section<'a>(heading: &str, entries: impl Iterator<Item = (&'a String, &'a Value)>) -> String {
    let rows: Vec<Vec<String>> = entries
        .map(|(name, value)| {
            let shown = match value {
                Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), grouped),
                Value::String(text) => printable(text),
                other => other.to_string(),
            };
            vec![format!("  {}", printable(name)), shown]
        })
        .collect();
    if rows.is_empty() { String::new() } else { format!("\n{heading}\n{}", aligned(&rows, &[1])) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_that_gets_a_snapshot_shows_how_much_of_it_it_has() {
        let snapshot = serde_json::json!({"percent": 43, "received_bytes": 45_088_768, "bytes": 104_857_600});
        let peer = serde_json::json!({"address": "n:1", "state": "snapshot", "snapshot": snapshot});
        let text = render(&serde_json::json!({"peers": [peer]}));
        assert!(text.contains("snapshot 43 % (43.0 MiB of 100.0 MiB)"), "{text}");
    }

    #[test]
    fn an_archive_that_takes_nothing_says_what_waits_and_why() {
        let archive = serde_json::json!({"directory": "/a", "state": "failing", "lsn": 1_700, "segments_waiting": 2,
            "bytes_waiting": 134_217_728, "missed": 1, "last_error": "no room"});
        let text = render(&serde_json::json!({"archive": archive}));
        let wanted = "/a up to LSN 1,700; 2 segments wait, 128.0 MiB; 1 GAP; FAILING: no room";
        assert!(text.contains(wanted), "{text}");
        assert!(!render(&serde_json::json!({"archive": null})).contains("archive"));
    }

    #[test]
    fn latencies_are_a_table_of_what_was_measured() {
        let measured = serde_json::json!(
            {"count": 1_200, "p50_us": 150.0, "p90_us": 200.5, "p99_us": 300.0, "p999_us": 900.0, "max_us": 1_000.0}
        );
        let text = render(&serde_json::json!({"latency": {"put total": measured, "get": {"count": 0}}}));
        let expected = "\
latency (us)  count    p50    p90    p99  p99.9     max
  put total   1,200  150.0  200.5  300.0  900.0  1000.0
";
        assert!(text.ends_with(expected), "{text}");
        // A follower keeps no receipts of its own.
        assert!(!render(&serde_json::json!({"latency": null})).contains("latency"));
    }

    #[test]
    fn a_document_without_fields_is_no_reason_to_fail() {
        let text = render(&serde_json::json!({}));
        assert!(text.starts_with("a node in term ? that does not say its role\n"), "{text}");
    }
}
