//! Histograms and the ledger of system calls, as tables.

use serde_json::{Map, Value};

use super::error::printable;
use super::table::{aligned, grouped, micros};

/// The columns of the latency table: name, and field of the document.
const PERCENTILES: [(&str, &str); 5] =
    [("p50", "p50_us"), ("p90", "p90_us"), ("p99", "p99_us"), ("p99.9", "p999_us"), ("max", "max_us")];

/// The histograms: a line per stage, times in microseconds.
pub fn render_latency(stages: &Value) -> String {
    let mut rows = vec![vec!["microseconds".to_owned(), "count".to_owned()]];
    rows[0].extend(PERCENTILES.map(|(name, _)| name.to_owned()));
    for (name, durations) in stages.as_object().into_iter().flatten() {
        let count = durations.get("count").and_then(Value::as_u64).unwrap_or(0);
        let mut row = vec![printable(name), grouped(count)];
        // Of nothing there is no percentile; a 0.0 would look like a fast one.
        row.extend(PERCENTILES.map(|(_, field)| match durations.get(field).and_then(Value::as_f64) {
            Some(us) if count > 0 => micros(us),
            _ => "-".to_owned(),
        }));
        rows.push(row);
    }
    aligned(&rows, &[1, 2, 3, 4, 5, 6])
}

/// A state of the ledger.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    counts: Vec<(String, u64)>,
    role: String,
    writes: u64,
    reads: u64,
    records: u64,
}

impl Ledger {
    /// What the node's document says.
    pub fn new(document: &Value) -> Ledger {
        let number = |field: &str| document.get(field).and_then(Value::as_u64).unwrap_or(0);
        let empty = Map::new();
        let counts = document.get("counts").and_then(Value::as_object).unwrap_or(&empty);
        Ledger {
            counts: (counts.iter())
                .map(|(name, count)| (printable(name), count.as_u64().unwrap_or(0)))
                .collect(),
            role: document.get("role").and_then(Value::as_str).map_or("node".to_owned(), printable),
            writes: number("writes"),
            reads: number("reads"),
            records: number("records"),
        }
    }

    /// All calls.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// What happened after `earlier`: calls that were not made since are left out. A node that was started
    /// anew counts from zero, and then there is nothing to compare.
    pub fn since(&self, earlier: &Ledger) -> Ledger {
        let before =
            |name: &str| earlier.counts.iter().find(|(known, _)| known == name).map_or(0, |(_, n)| *n);
        let mut counts: Vec<(String, u64)> = (self.counts.iter())
            .map(|(name, count)| (name.clone(), count.saturating_sub(before(name))))
            .collect();
        counts.retain(|(_, count)| *count > 0);
        Ledger {
            counts,
            role: self.role.clone(),
            writes: self.writes.saturating_sub(earlier.writes),
            reads: self.reads.saturating_sub(earlier.reads),
            records: self.records.saturating_sub(earlier.records),
        }
    }

    /// What the calls were made for: the answers to clients where writes are taken, else the records.
    fn operations(&self) -> u64 {
        if self.role == "leader" { self.writes + self.reads } else { self.records + self.reads }
    }

    /// The calls since the process began. `per operation` is of the leader only: the records of a follower
    /// are counted from the first of its log, not from its start.
    pub fn render(&self) -> String {
        let operations = if self.role == "leader" { self.operations() } else { 0 };
        format!("{}\n\n{}", self.headline("since its start"), self.table("count", operations, self.total()))
    }

    /// The calls of the last second.
    pub fn render_rate(&self) -> String {
        let table = self.table("per second", self.operations(), self.total());
        format!("{}\n\n{table}", self.headline("in the last second"))
    }

    fn headline(&self, when: &str) -> String {
        let (writes, reads) = (grouped(self.writes), grouped(self.reads));
        if self.role == "leader" {
            format!("leader: {writes} writes and {reads} reads answered {when}")
        } else if when == "since its start" {
            format!(
                "{}: {reads} reads answered {when}; records up to LSN {}",
                self.role,
                grouped(self.records)
            )
        } else {
            format!(
                "{}: {} records applied and {reads} reads answered {when}",
                self.role,
                grouped(self.records)
            )
        }
    }

    fn table(&self, unit: &str, operations: u64, total: u64) -> String {
        let line = |name: &str, count: u64| {
            let each = match operations {
                0 => "-".to_owned(),
                _ => format!("{:.2}", count as f64 / operations as f64),
            };
            vec![name.to_owned(), grouped(count), each]
        };
        let mut rows = vec![["system call", unit, "per operation"].map(str::to_owned).to_vec()];
        let mut counts: Vec<&(String, u64)> = self.counts.iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        rows.extend(counts.into_iter().map(|(name, count)| line(name, *count)));
        rows.push(line("total", total));
        aligned(&rows, &[1, 2])
    }
}
