//! Histograms of durations: fixed memory, no allocation after the start.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Longest duration told apart: one minute.
const MAX_NS: u64 = 60_000_000_000;
/// Significant digits: 1 % is finer than two runs of anything agree.
const DIGITS: u8 = 2;

/// Durations of one stage, in nanoseconds.
#[derive(Debug)]
pub struct Durations(Histogram<u64>);

impl Durations {
    /// Nothing recorded. Takes about 30 KiB.
    pub fn new() -> Durations {
        Durations(Histogram::new_with_max(MAX_NS, DIGITS).expect("the bounds are constants that fit"))
    }

    /// One duration.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// The same duration for `count` operations.
    pub fn record_n(&mut self, ns: u64, count: u64) {
        self.0.saturating_record_n(ns, count);
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// Count and percentiles, in microseconds with one decimal.
    pub fn document(&self) -> Value {
        let at = |quantile: f64| us(self.0.value_at_quantile(quantile));
        json!({
            "count": self.0.len(),
            "p50_us": at(0.50),
            "p90_us": at(0.90),
            "p99_us": at(0.99),
            "p999_us": at(0.999),
            "max_us": us(self.0.max()),
        })
    }
}

impl Default for Durations {
    fn default() -> Durations {
        Durations::new()
    }
}

/// Nanoseconds as microseconds with one decimal.
pub fn us(ns: u64) -> f64 {
    (ns as f64 / 100.0).round() / 10.0
}
