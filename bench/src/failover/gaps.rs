//! How long clients waited because of a failure.
//!
//! Two numbers for each: how long *no* client had a write acknowledged, and for each client how long *it* had none. The
//! second is what a user sees, and never the smaller one. Both reach from the last acknowledgement before the failure,
//! or a later one, to the next: the longest such time that began before the failure was over.

use super::faults::{Event, Kind};
use super::history::Call;

/// How far behind a failure's begin a wait may begin that is still put down to it.
const REACH_NS: u64 = 3_000_000_000;

/// The waits at one failure, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Gaps {
    /// In which no client had a write acknowledged.
    pub all: u64,
    /// For each client.
    pub each: Vec<u64>,
}

/// Times of acknowledged writes, sorted: of all clients, and of each.
pub struct Acks {
    pub all: Vec<u64>,
    each: Vec<Vec<u64>>,
}

impl Acks {
    /// Those of a history.
    pub fn of(calls: &[Call], clients: usize) -> Acks {
        let mut acks = Acks { all: Vec::new(), each: vec![Vec::new(); clients] };
        for call in calls.iter().filter(|call| call.is_write()) {
            if let Some((at, _)) = call.answered() {
                acks.all.push(at);
                acks.each[call.client].push(at);
            }
        }
        acks.all.sort_unstable();
        acks.each.iter_mut().for_each(|times| times.sort_unstable());
        acks
    }

    /// The waits at this failure.
    pub fn gaps(&self, event: &Event) -> Gaps {
        let until = event.settled.min(event.at + REACH_NS);
        let longest = |times: &[u64]| {
            let waits = times.windows(2).filter(|pair| pair[1] > event.at && pair[0] < until);
            waits.map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
        };
        Gaps { all: longest(&self.all), each: self.each.iter().map(|times| longest(times)).collect() }
    }
}

/// p50, p90, p99 and the maximum, in milliseconds, of the nearest rank: p99 of fewer than 100 is the maximum.
pub fn percentiles(ns: &[u64]) -> [f64; 4] {
    let mut sorted = ns.to_vec();
    sorted.sort_unstable();
    let rank = |percent: usize| (sorted.len() * percent).div_ceil(100).max(1) - 1;
    [50, 90, 99, 100].map(|percent| sorted.get(rank(percent)).map_or(0.0, |ns| *ns as f64 / 1e6))
}

/// A line for each kind of failure and whose it was.
pub fn table(events: &[Event], gaps: &[Gaps]) -> String {
    let mut kinds: Vec<(Kind, bool)> = events.iter().map(|event| (event.kind, event.was_leader)).collect();
    kinds.sort_unstable_by_key(|(kind, was_leader)| (*kind, !was_leader));
    kinds.dedup();
    let header = ["ms without an acknowledged write", "", "p50", "p90", "p99", "max"];
    let mut rows = vec![header.map(str::to_owned)];
    for (kind, was_leader) in kinds {
        let of_kind: Vec<&Gaps> = (events.iter().zip(gaps))
            .filter(|(event, _)| (event.kind, event.was_leader) == (kind, was_leader))
            .map(|(_, gaps)| gaps)
            .collect();
        let whose = if was_leader { "leader" } else { "follower" };
        let all: Vec<u64> = of_kind.iter().map(|gaps| gaps.all).collect();
        let each: Vec<u64> = of_kind.iter().flat_map(|gaps| gaps.each.iter().copied()).collect();
        for (who, ns) in [("no client", all), ("each client", each)] {
            let [p50, p90, p99, max] = percentiles(&ns).map(|ms| format!("{ms:.1}"));
            rows.push([
                format!("{}, {whose}, {} x", kind.name(), of_kind.len()),
                who.to_owned(),
                p50,
                p90,
                p99,
                max,
            ]);
        }
    }
    aligned(&rows)
}

fn aligned(rows: &[[String; 6]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let width = *width;
            out.push_str(&if column < 2 { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") });
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{End, Key, What};

    const MS: u64 = 1_000_000;

    fn ack(client: usize, at_ms: u64) -> Call {
        let end = End::Answered { at: at_ms * MS, lsn: at_ms, term: 1 };
        Call { client, key: Key(0), what: What::Put(at_ms), from: 0, end }
    }

    fn event(at_ms: u64, settled_ms: u64) -> Event {
        Event { kind: Kind::Kill, node: 0, was_leader: true, at: at_ms * MS, settled: settled_ms * MS }
    }

    #[test]
    fn a_gap_reaches_from_the_last_write_before_to_the_first_after() {
        let calls = [ack(0, 8), ack(1, 9), ack(0, 310), ack(1, 500), ack(0, 501), ack(1, 502), ack(0, 2_000)];
        let acks = Acks::of(&calls, 2);
        let gaps = acks.gaps(&event(10, 600));
        assert_eq!((gaps.all / MS, gaps.each.iter().map(|ns| ns / MS).collect()), (1_498, vec![1_499, 491]));
        let gaps = acks.gaps(&event(10, 400));
        assert_eq!((gaps.all / MS, gaps.each.iter().map(|ns| ns / MS).collect()), (301, vec![302, 491]));
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let of = |count: u64| percentiles(&(1..=count).map(|ms| ms * MS).collect::<Vec<_>>());
        assert_eq!(of(100), [50.0, 90.0, 99.0, 100.0]);
        assert_eq!(of(50), [25.0, 45.0, 50.0, 50.0]);
        assert_eq!(of(0), [0.0; 4]);
    }
}
