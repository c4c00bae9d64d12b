//! Receipts of writes, as their clients get them: the stages add up, no stage is longer than the whole, and the
//! whole is no longer than the request was under way.

use kvstore::ids::Lsn;
use kvstore::trace::STAGES;
use kvstore::wire::client::{Inspect, Status};
use serde_json::Value;

use crate::client::{Ask, Sent};
use crate::core::Core;
use crate::socks::Emitted;

/// What six stages and their sum may differ by in a document that shows tenths of microseconds.
const ROUNDING_US: f64 = 0.4;

/// Every so many writes ask for their receipt.
pub fn wants_receipt(id: u64) -> bool {
    id.is_multiple_of(8)
}

/// What a client asks about its time, now and then: the write with this LSN, the slowest, or the histograms.
pub fn draw(core: &mut Core, lsn: u64) -> Inspect {
    match core.rng.below(8) {
        0 => Inspect::Slowest(16),
        1 => Inspect::Tail(900_000),
        2 => Inspect::Latency,
        3 => Inspect::Reset,
        _ => Inspect::Receipt(Lsn(lsn)),
    }
}

/// A reply leaves a node: what it says of time is looked at. `host_ns`: since it was asked, on the node's clock.
pub fn check(core: &mut Core, site: usize, sent: &Sent, reply: &Emitted, host_ns: u64) {
    if reply.status != Status::Ok || !reply.text.starts_with(['{', '[']) {
        return;
    }
    let inspected = match &sent.ask {
        Ask::Put { .. } => None,
        Ask::Inspect(what) => Some(*what),
        _ => return,
    };
    let document: Value = serde_json::from_str(&reply.text)
        .unwrap_or_else(|error| panic!("host {site} tells no JSON: {error}: {}", reply.text));
    match inspected {
        // The reply to a write that is written in this very moment.
        None => {
            adds_up(site, &document, Some(reply.lsn));
            assert!(
                number(&document, "total_us") * 1_000.0 <= host_ns as f64 + 1_000.0,
                "host {site}: a write that was asked for {host_ns} ns ago has this receipt: {document}"
            );
            core.stats.count("check: receipt with a reply");
        }
        Some(Inspect::Receipt(lsn)) => {
            adds_up(site, &document, Some(lsn.0));
            core.stats.count("check: receipt asked for");
        }
        Some(Inspect::Slowest(_)) => {
            let receipts = document.as_array().expect("a list");
            receipts.iter().for_each(|receipt| adds_up(site, receipt, None));
            let totals: Vec<f64> = receipts.iter().map(|receipt| number(receipt, "total_us")).collect();
            assert!(totals.is_sorted_by(|a, b| a >= b), "host {site}: the slowest writes are {totals:?}");
            core.stats.add("check: receipt of a slow write", receipts.len() as u64);
        }
        Some(_) => {}
    }
}

fn number(document: &Value, name: &str) -> f64 {
    document[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {document}"))
}

fn adds_up(site: usize, receipt: &Value, lsn: Option<u64>) {
    let stages: f64 = STAGES.iter().map(|stage| number(&receipt["stages_us"], stage)).sum();
    let (total, residue) = (number(receipt, "total_us"), number(receipt, "residue_us"));
    assert!(
        (stages - total).abs() <= ROUNDING_US && residue == 0.0,
        "host {site}: the stages add up to {stages} us: {receipt}"
    );
    assert!(lsn.is_none_or(|lsn| receipt["lsn"] == lsn), "host {site}: asked for LSN {lsn:?}: {receipt}");
    for follower in receipt["followers"].as_array().expect("a list") {
        // Its own durations are measured on its clock, whose rate differs by 20 % at most here.
        let Some(ack) = follower["ack_us"].as_f64() else { continue };
        let own = number(follower, "decode_us") + number(follower, "sync_us");
        let network = number(follower, "network_us");
        assert!(
            network <= ack + ROUNDING_US,
            "host {site}: {own} us of its own and {network} of {ack}: {receipt}"
        );
    }
}
