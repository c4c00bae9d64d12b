//! Histograms of durations: fixed memory, no allocation after the start, a dozen instructions to record.
//!
//! Buckets are log-linear: 32 to each power of two, so a bucket is at most 3.2 % wide. (The crate hdrhistogram does
//! the same at about 60 instructions for each recording, and a lone write is recorded thirteen times.) There is a
//! bucket for every duration that a u64 holds: a bound, and the comparison with it each time, would save 8 KiB of 16
//! that are never touched. How many were recorded is counted when somebody asks.

use serde_json::{Value, json};

/// Buckets to a power of two, as a power of two.
const SUB_BITS: u32 = 5;
const SUB_COUNT: u64 = 1 << SUB_BITS;
/// A power of two, so that no index needs a check. The last 128 are never used.
const BUCKETS: usize = 2048;
const _: () = assert!(bucket(u64::MAX) < BUCKETS);

/// Durations of one stage, in nanoseconds.
#[derive(Debug)]
pub struct Durations {
    counts: Box<[u64; BUCKETS]>,
    max: u64,
}

/// Below 2^5 the bucket is the value; above, 32 buckets for each power of two.
#[inline(always)]
const fn bucket(ns: u64) -> usize {
    let shift = (ns | SUB_COUNT).ilog2() - SUB_BITS;
    // From the second power of two on, the value's own highest bit adds the 32 buckets below it.
    ((shift as usize) << SUB_BITS) + (ns >> shift) as usize
}

/// The largest value of a bucket.
const fn bucket_end(index: usize) -> u64 {
    let index = index as u64;
    if index < SUB_COUNT {
        return index;
    }
    let shift = (index >> SUB_BITS) - 1;
    // The end of the last bucket is the largest u64: 2^64 - 1, by way of 0.
    (((index & (SUB_COUNT - 1)) + SUB_COUNT + 1) << shift).wrapping_sub(1)
}

impl Durations {
    /// Nothing recorded. Takes 16 KiB of addresses, and of memory the pages whose buckets are used.
    pub fn new() -> Durations {
        let counts = vec![0; BUCKETS].into_boxed_slice();
        Durations { counts: counts.try_into().expect("it has this length"), max: 0 }
    }

    /// One duration.
    #[inline(always)]
    pub fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    /// The same duration for `count` operations.
    #[inline(always)]
    pub fn record_n(&mut self, ns: u64, count: u64) {
        self.add(ns, count);
        self.reach(ns);
    }

    /// The same, where it is known that another one is at least as long, for which [`Durations::reach`] is called.
    #[inline(always)]
    pub fn add(&mut self, ns: u64, count: u64) {
        self.counts[bucket(ns) % BUCKETS] += count;
    }

    /// The longest is at least this long.
    #[inline(always)]
    pub fn reach(&mut self, ns: u64) {
        if ns > self.max {
            self.max = ns;
        }
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.used().iter().sum()
    }

    /// The buckets up to that of the longest.
    fn used(&self) -> &[u64] {
        &self.counts[..=bucket(self.max)]
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.counts.fill(0);
        self.max = 0;
    }

    /// The duration that this share of the recorded ones does not exceed, up to 3.2 % above the true value.
    pub fn quantile(&self, quantile: f64) -> u64 {
        self.quantiles([quantile]).1[0]
    }

    /// How many were recorded, and such durations, of shares that rise.
    fn quantiles<const N: usize>(&self, quantiles: [f64; N]) -> (u64, [u64; N]) {
        let count = self.count();
        let mut filled = self.used().iter().enumerate().filter(|(_, count)| **count > 0);
        let (mut seen, mut end) = (0, 0);
        let durations = quantiles.map(|quantile| {
            let rank = ((count as f64 * quantile).ceil() as u64).clamp(1, count.max(1));
            while seen < rank
                && let Some((index, count)) = filled.next()
            {
                seen += count;
                end = bucket_end(index).min(self.max);
            }
            end
        });
        (count, durations)
    }

    /// Count and percentiles, in microseconds with one decimal.
    pub fn document(&self) -> Value {
        let (count, [p50, p90, p99, p999]) = self.quantiles([0.50, 0.90, 0.99, 0.999]);
        json!({
            "count": count,
            "p50_us": us(p50),
            "p90_us": us(p90),
            "p99_us": us(p99),
            "p999_us": us(p999),
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
        for index in 1..=bucket(u64::MAX) {
            let (start, end) = (previous + 1, bucket_end(index));
            assert_eq!((bucket(start), bucket(end)), (index, index));
            assert!((end - start) as f64 <= start as f64 * 0.032);
            previous = end;
        }
        assert_eq!(previous, u64::MAX);
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
