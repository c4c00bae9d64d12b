//! The receipt of one write, and what the slowest have in common.

use serde_json::{Map, Value, json};

use super::{STAGES, StageTimes, us};
use crate::ids::Lsn;
use crate::wire::peer::AckDurations;

/// Where the time of one write went.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The write.
    pub lsn: Lsn,
    /// Writes of the group commit it rode in.
    pub batch_count: u32,
    /// Nanoseconds of each of [`STAGES`].
    pub stages: StageTimes,
    /// From the first byte decoded to the reply handed to its socket, in nanoseconds.
    pub total_ns: u64,
    /// Whether the reply has left; if not, the last stage is still running.
    pub answered: bool,
    /// The followers, in the order of the leader's peers.
    pub followers: Vec<FollowerShare>,
}

/// A follower's part in a write.
#[derive(Clone, Copy, Debug)]
pub struct FollowerShare {
    /// Nanoseconds from the turn to its ACK; `None`: not acknowledged yet.
    pub ack_ns: Option<u64>,
    /// Whether its ACK came before the commit.
    pub in_time: bool,
    /// What it measured itself, over all it acknowledged with that ACK.
    pub spent: AckDurations,
}

impl FollowerShare {
    fn own_ns(&self) -> u64 {
        u64::from(self.spent.decode_ns) + u64::from(self.spent.write_ns) + u64::from(self.spent.sync_ns)
    }

    fn network_ns(&self) -> u64 {
        self.ack_ns.unwrap_or(0).saturating_sub(self.own_ns())
    }
}

impl Receipt {
    /// As JSON; `addresses` are the leader's peers. Durations are microseconds.
    pub fn document(&self, term: u64, own_address: &str, addresses: &[&str]) -> Value {
        let stages: Map<String, Value> =
            STAGES.iter().zip(self.stages).map(|(stage, ns)| ((*stage).to_owned(), us(ns).into())).collect();
        let accounted: u64 = self.stages.iter().sum();
        let acked = addresses.iter().zip(&self.followers).filter(|(_, follower)| follower.ack_ns.is_some());
        let durable_on: Vec<&str> =
            std::iter::once(own_address).chain(acked.map(|(address, _)| *address)).collect();
        json!({
            "lsn": self.lsn.0,
            "term": term,
            "nodes": addresses.len() + 1,
            "durable_on": durable_on,
            "batch_writes": self.batch_count,
            "total_us": us(self.total_ns),
            "stages_us": stages,
            "residue_us": us(self.total_ns.saturating_sub(accounted)),
            "answered": self.answered,
            "followers": addresses.iter().zip(&self.followers).map(|(address, follower)| json!({
                "address": address,
                "ack_us": follower.ack_ns.map(us),
                "before_commit": follower.in_time,
                "decode_us": us(follower.spent.decode_ns.into()),
                "sync_us": us(follower.spent.sync_ns.into()),
                "network_us": us(follower.network_ns()),
            })).collect::<Vec<_>>(),
        })
    }
}

/// Of the slowest writes, which stage on which node took what share. `receipts` are all that are known,
/// `percentile` is between 0 and 100.
pub fn tail_document(
    mut receipts: Vec<Receipt>,
    percentile: f64,
    own_address: &str,
    addresses: &[&str],
) -> Value {
    receipts.sort_by_key(|receipt| std::cmp::Reverse(receipt.total_ns));
    let known = receipts.len();
    let share = (1.0 - percentile / 100.0).clamp(0.0, 1.0);
    receipts.truncate(((known as f64 * share).ceil() as usize).max(1));
    let total: u64 = receipts.iter().map(|receipt| receipt.total_ns).sum();
    let mut shares: Vec<(String, u64)> = Vec::new();
    let mut add = |what: String, ns: u64| match shares.iter_mut().find(|(known, _)| *known == what) {
        Some((_, sum)) => *sum += ns,
        None => shares.push((what, ns)),
    };
    for receipt in &receipts {
        for (stage, ns) in STAGES.iter().zip(receipt.stages).filter(|(stage, _)| **stage != "commit") {
            add(format!("{own_address} {stage}"), ns);
        }
        attribute_commit(receipt, own_address, addresses, &mut add);
    }
    shares.retain(|(_, ns)| *ns > 0);
    shares.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    json!({
        "percentile": percentile,
        "writes_known": known,
        "writes_slowest": receipts.len(),
        "fastest_of_them_us": receipts.last().map(|receipt| us(receipt.total_ns)),
        "slowest_us": receipts.first().map(|receipt| us(receipt.total_ns)),
        "shares": shares.iter().map(|(what, ns)| json!({
            "what": what,
            "percent": (*ns as f64 * 1000.0 / total.max(1) as f64).round() / 10.0,
            "mean_us": us(ns / receipts.len().max(1) as u64),
        })).collect::<Vec<_>>(),
        "lsns": receipts.iter().take(16).map(|receipt| receipt.lsn.0).collect::<Vec<_>>(),
    })
}

/// Nanoseconds: a wait that ends because a follower left the in-sync set lasts this long at least (the least
/// `--insync-timeout-ms`). What is shorter is the leader's own turn.
const LEFT_OUT_NS_MIN: u64 = 10_000_000;

/// The wait for followers belongs to the last one that answered in time: to its disk as far as that explains
/// it, and to the network for the rest, until its ACK came. What is left after that is the leader's own, or, if
/// it is as long as no turn is, the fault of who did not answer.
fn attribute_commit(
    receipt: &Receipt,
    own_address: &str,
    addresses: &[&str],
    add: &mut impl FnMut(String, u64),
) {
    let wait = receipt.stages[4];
    let in_time = addresses.iter().zip(&receipt.followers).filter(|(_, follower)| follower.in_time);
    let mut explained = 0;
    if let Some((address, last)) = in_time.max_by_key(|(_, follower)| follower.ack_ns) {
        // Both count from the turn.
        let wait_began = receipt.stages[2] + receipt.stages[3];
        explained = last.ack_ns.unwrap_or(0).saturating_sub(wait_began).min(wait);
        let disk = explained.min(u64::from(last.spent.sync_ns));
        add(format!("{address} sync"), disk);
        add(format!("{address} network and wake-up"), explained - disk);
    }
    let left = wait - explained;
    let mut silent = addresses.iter().zip(&receipt.followers).filter(|(_, follower)| !follower.in_time);
    match silent.next() {
        Some((address, _)) if left >= LEFT_OUT_NS_MIN => add(format!("{address} without an ACK"), left),
        _ => add(format!("{own_address} commit"), left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A write whose wait for followers took `wait_ms`, after 1 ms of everything else.
    fn receipt(wait_ms: u64, acks_ms: [Option<u64>; 2], its_sync_ms: u32) -> Receipt {
        let spent = AckDurations { decode_ns: 0, write_ns: 0, sync_ns: its_sync_ms * MS as u32 };
        let share =
            |ack: Option<u64>| FollowerShare { ack_ns: ack.map(|ms| ms * MS), in_time: ack.is_some(), spent };
        Receipt {
            lsn: Lsn(2),
            batch_count: 1,
            stages: [0, 0, 0, MS, wait_ms * MS, 0],
            total_ns: (1 + wait_ms) * MS,
            answered: true,
            followers: acks_ms.map(share).to_vec(),
        }
    }

    fn culprit(receipt: Receipt) -> String {
        let tail = tail_document(vec![receipt], 99.9, "leader", &["a", "b"]);
        tail["shares"][0]["what"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_wait_is_the_fault_of_who_answered_last() {
        assert_eq!(culprit(receipt(20, [Some(2), Some(21)], 18)), "b sync");
        assert_eq!(culprit(receipt(20, [Some(2), Some(21)], 1)), "b network and wake-up");
        assert_eq!(culprit(receipt(9, [Some(2), Some(3)], 1)), "leader commit");
    }

    #[test]
    fn a_wait_for_one_that_never_answered_is_not_the_fault_of_the_other() {
        assert_eq!(culprit(receipt(500, [Some(1), None], 1)), "b without an ACK");
        assert_eq!(culprit(receipt(500, [None, None], 1)), "a without an ACK");
        // With a quorum nobody waits for the slowest: a short rest is the leader's own turn.
        assert_eq!(culprit(receipt(9, [Some(2), None], 1)), "leader commit");
    }
}
