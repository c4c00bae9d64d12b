//! The states of several nodes as one table: who leads, how far each one is, and who does not answer.
//!
//! The first line is the verdict. Two nodes that say they lead are shown as two: the one with the lower term does not
//! know yet, and takes no writes that count.

use serde_json::Value;

use super::Surveyed;
use super::error::printable;
use super::table::{aligned, grouped, lasting, plural};
use crate::ids::Term;

const HEADER: [&str; 10] =
    ["node", "role", "term", "leader", "in sync", "last LSN", "committed", "applied", "state hash", "up"];
/// Columns of numbers.
const RIGHT: [usize; 4] = [5, 6, 7, 9];

/// The table.
pub fn render(nodes: &[Surveyed]) -> String {
    let mut rows = vec![HEADER.map(str::to_owned).to_vec()];
    rows.extend(nodes.iter().filter_map(|node| Some(row(&node.address, node.status.as_ref().ok()?))));
    let mut out = format!("{}\n\n", verdict(nodes));
    if rows.len() > 1 {
        out.push_str(&aligned(&rows, &RIGHT));
    }
    for node in nodes {
        if let Err(error) = &node.status {
            out.push_str(&format!("{}  NO ANSWER: {error}\n", node.address));
        }
    }
    out
}

/// The address of the node that leads in the highest term among those that say they lead.
pub fn leader_of(nodes: &[Surveyed]) -> Option<&str> {
    let leaders = leaders(nodes);
    leaders.iter().max_by_key(|(_, term)| *term).map(|(address, _)| *address)
}

fn leaders(nodes: &[Surveyed]) -> Vec<(&str, u64)> {
    nodes
        .iter()
        .filter_map(|node| Some((node.address.as_str(), node.status.as_ref().ok()?)))
        .filter(|(_, status)| text(status, "role").as_deref() == Some("leader"))
        .map(|(address, status)| (address, number(status, "term").unwrap_or(0)))
        .collect()
}

fn verdict(nodes: &[Surveyed]) -> String {
    let answered = nodes.iter().filter(|node| node.status.is_ok()).count();
    let how_many = match nodes.len() - answered {
        0 => format!("all {answered} node{} answer", plural(answered as u64)),
        _ => format!("{answered} of {} nodes answer", nodes.len()),
    };
    let mut leaders = leaders(nodes);
    leaders.sort_by_key(|(_, term)| std::cmp::Reverse(*term));
    match leaders[..] {
        [] => format!("no node says that it leads — {how_many}"),
        [(address, term)] => format!("{address} leads in term {} — {how_many}", Term::from_u64(term)),
        [(first, term), (second, older), ..] => format!(
            "{} nodes say that they lead: {first} in term {}, {second} in term {} — {how_many}",
            leaders.len(),
            Term::from_u64(term),
            Term::from_u64(older)
        ),
    }
}

fn row(address: &str, status: &Value) -> Vec<String> {
    let count = |field| number(status, field).map(grouped);
    [
        Some(address.to_owned()),
        text(status, "role"),
        number(status, "term").map(|term| Term::from_u64(term).to_string()),
        text(status, "leader"),
        in_sync(status),
        count("last_lsn"),
        count("commit_lsn"),
        count("applied_lsn"),
        text(status, "state_hash"),
        number(status, "uptime_s").map(lasting),
    ]
    .map(|cell| cell.unwrap_or_else(|| "-".to_owned()))
    .to_vec()
}

/// A leader tells how many of its peers are, a follower whether it was when it last heard its leader. One whose leader
/// is elected is not told: a majority decides, and nothing goes by it.
fn in_sync(status: &Value) -> Option<String> {
    if text(status, "role").as_deref() != Some("leader") {
        if text(status, "ack").as_deref() == Some("majority") {
            return None;
        }
        return status.get("in_sync")?.as_bool().map(|flag| if flag { "yes" } else { "NO" }.to_owned());
    }
    let peers = status.get("peers")?.as_array()?;
    let count =
        peers.iter().filter(|peer| peer.get("in_sync").and_then(Value::as_bool) == Some(true)).count();
    Some(format!("{count} of {}", peers.len()))
}

fn text(status: &Value, field: &str) -> Option<String> {
    status.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(printable)
}

fn number(status: &Value, field: &str) -> Option<u64> {
    status.get(field).and_then(Value::as_u64)
}
