//! Histograms of durations: fixed memory, no allocation after the start, a dozen instructions to record.
//!
//! Buckets are log-linear: 32 to each power of two, so a bucket is at most 3.2 % wide. (The crate
//! hdrhistogram does the same at about 60 instructions for each recording, and a write is recorded three
//! times: it took 7 % of the node's instructions under a pipelined load.)

use serde_json::{Value, json};

/// Buckets to a power of two, as a power of two.
const SUB_BITS: u32 = 5;
const SUB_COUNT: usize = 1 << SUB_BITS;
/// Durations from 2^36 ns (69 s) on share the last bucket.
const MAX_NS: u64 = 1 << 36;
const BUCKETS: usize = bucket(MAX_NS) + 1;

/// Durations of one stage, in nanoseconds.
#[derive(Debug)]
pub struct Durations {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

/// Below 2^5 the bucket is the value; above, 32 buckets for each power of two.
const fn bucket(ns: u64) -> usize {
    let ns = if ns < MAX_NS { ns } else { MAX_NS };
    if ns < SUB_COUNT as u64 {
        return ns as usize;
    }
    let shift = ns.ilog2() - SUB_BITS;
    (((shift + 1) as usize) << SUB_BITS) + ((ns >> shift) as usize & (SUB_COUNT - 1))
}

/// The largest value of a bucket.
const fn bucket_end(index: usize) -> u64 {
    if index < SUB_COUNT {
        return index as u64;
    }
    let shift = (index >> SUB_BITS) - 1;
    ((((index & (SUB_COUNT - 1)) + SUB_COUNT + 1) as u64) << shift) - 1
}

impl Durations {
    /// Nothing recorded. Takes 8 KiB.
    pub fn new() -> Durations {
        Durations { counts: vec![0; BUCKETS], count: 0, max: 0 }
    }

    /// One duration.
    pub fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    /// The same duration for `count` operations.
    pub fn record_n(&mut self, ns: u64, count: u64) {
        self.counts[bucket(ns)] += count;
        self.count += count;
        self.max = self.max.max(ns);
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.counts.fill(0);
        (self.count, self.max) = (0, 0);
    }

    /// The duration that this share of the recorded ones does not exceed, up to 3.2 % above the true value.
    pub fn quantile(&self, quantile: f64) -> u64 {
        let rank = ((self.count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return bucket_end(index).min(self.max);
            }
        }
        self.max
    }

    /// Count and percentiles, in microseconds with one decimal.
    pub fn document(&self) -> Value {
        json!({
            "count": self.count,
            "p50_us": us(self.quantile(0.50)),
            "p90_us": us(self.quantile(0.90)),
            "p99_us": us(self.quantile(0.99)),
            "p999_us": us(self.quantile(0.999)),
            "max_us": us(self.max),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_gapless_in_order_and_narrow() {
        let mut previous = 0;
        for index in 1..BUCKETS - 1 {
            let (start, end) = (previous + 1, bucket_end(index));
            assert_eq!((bucket(start), bucket(end)), (index, index));
            assert!((end - start) as f64 <= start as f64 * 0.032);
            previous = end;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let mut durations = Durations::new();
        (1..=100_000).for_each(|ns| durations.record(ns));
        for (quantile, truth) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0), (1.0, 100_000.0)] {
            let seen = durations.quantile(quantile) as f64;
            assert!(seen >= truth && seen <= truth * 1.032, "{quantile}: {seen}");
        }
        durations.reset();
        assert_eq!((durations.count(), durations.quantile(0.5)), (0, 0));
    }
}
