//! What one run has measured, and what several runs say together.
//!
//! *Service time* runs from the write of a request to its reply. *Response time* runs from when the request
//! was due: in an open loop a request that had to wait behind a stalled one is charged for the waiting, as
//! its sender would be. In a closed loop a request is due when it is sent, so both are the same.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Nanoseconds of the longest latency told apart from longer ones: one hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Three digits: a step of 1 ns below 2 us, of 1 us at 1 ms.
const DIGITS: u8 = 3;

/// The percentiles of every report: name, and the quantile.
pub const PERCENTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999), ("max", 1.0)];

/// An empty histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("the bounds are constants")
}

/// Microseconds at a quantile.
pub fn quantile_us(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1_000.0
}

/// One run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Write to reply.
    pub service_ns: Histogram<u64>,
    /// Due to reply; `None` in a closed loop, where it is the service time.
    pub response_ns: Option<Histogram<u64>>,
    /// How many did not succeed, by what was said. They are in no histogram.
    pub errors: BTreeMap<String, u64>,
    /// Successes in the measured time.
    pub completed: u64,
    /// The measured time.
    pub seconds: f64,
}

impl Run {
    /// Nothing measured yet.
    pub fn new(open_loop: bool, seconds: f64) -> Run {
        Run {
            service_ns: histogram(),
            response_ns: open_loop.then(histogram),
            errors: BTreeMap::new(),
            completed: 0,
            seconds,
        }
    }

    /// Counts a success.
    #[inline]
    pub fn record(&mut self, service_ns: u64, response_ns: u64) {
        self.service_ns.saturating_record(service_ns.max(1));
        if let Some(histogram) = &mut self.response_ns {
            histogram.saturating_record(response_ns.max(1));
        }
    }

    /// Counts what did not succeed.
    pub fn record_error(&mut self, name: &str, count: u64) {
        if count > 0 {
            *self.errors.entry(name.to_owned()).or_default() += count;
        }
    }

    /// Due to reply.
    pub fn response_ns(&self) -> &Histogram<u64> {
        self.response_ns.as_ref().unwrap_or(&self.service_ns)
    }

    /// Successes per second.
    pub fn ops_per_s(&self) -> f64 {
        self.completed as f64 / self.seconds
    }

    fn to_json(&self) -> Value {
        json!({
            "ops_per_s": round(self.ops_per_s()),
            "service_us": percentiles_json(&self.service_ns),
            "response_us": percentiles_json(self.response_ns()),
            "operations": self.response_ns().len(),
            "errors": self.errors,
        })
    }
}

fn percentiles_json(histogram: &Histogram<u64>) -> Value {
    let percentile = |(name, q): (&str, f64)| (name.to_owned(), round(quantile_us(histogram, q)).into());
    Value::Object(PERCENTILES.into_iter().map(percentile).collect())
}

fn round(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

/// The middle of several measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let below = if sorted.len() % 2 == 0 { sorted[middle - 1] } else { sorted[middle] };
        Some(Spread { median: f64::midpoint(below, sorted[middle]), min, max })
    }
}

/// Several runs of the same load.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// In the order they were made.
    pub runs: Vec<Run>,
}

impl Summary {
    /// Operations per second.
    pub fn ops_per_s(&self) -> Spread {
        self.spread(Run::ops_per_s)
    }

    /// Microseconds of service time at a quantile.
    pub fn service_us(&self, quantile: f64) -> Spread {
        self.spread(|run| quantile_us(&run.service_ns, quantile))
    }

    /// Microseconds of response time at a quantile.
    pub fn response_us(&self, quantile: f64) -> Spread {
        self.spread(|run| quantile_us(run.response_ns(), quantile))
    }

    /// What did not succeed, over all runs.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        for (name, count) in self.runs.iter().flat_map(|run| &run.errors) {
            *sum.entry(name.clone()).or_default() += count;
        }
        sum
    }

    /// Medians, spread, and each run.
    pub fn to_json(&self) -> Value {
        let medians = |of: &dyn Fn(f64) -> Spread| -> Value {
            PERCENTILES.iter().map(|(name, q)| ((*name).to_owned(), json!(round(of(*q).median)))).collect()
        };
        let range = |spread: Spread| json!([round(spread.min), round(spread.max)]);
        let ranges = |of: &dyn Fn(f64) -> Spread| -> Value {
            PERCENTILES.iter().map(|(name, q)| ((*name).to_owned(), range(of(*q)))).collect()
        };
        json!({
            "ops_per_s": round(self.ops_per_s().median),
            "service_us": medians(&|q| self.service_us(q)),
            "response_us": medians(&|q| self.response_us(q)),
            "errors": self.errors(),
            "spread": {
                "ops_per_s": range(self.ops_per_s()),
                "service_us": ranges(&|q| self.service_us(q)),
                "response_us": ranges(&|q| self.response_us(q)),
            },
            "runs": self.runs.iter().map(Run::to_json).collect::<Vec<_>>(),
        })
    }

    fn spread(&self, of: impl Fn(&Run) -> f64) -> Spread {
        Spread::of(self.runs.iter().map(of)).expect("a summary is made of at least one run")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_no_mean() {
        let spread = |numbers: &[f64]| Spread::of(numbers.iter().copied());
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(spread(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn a_result_has_the_published_fields() {
        let mut run = Run::new(true, 2.0);
        run.record(100_000, 250_000);
        run.completed = 1;
        run.record_error("Busy", 3);
        let json = Summary { runs: vec![run.clone(), run] }.to_json();
        assert_eq!(json["ops_per_s"], 0.5);
        assert_eq!(json["errors"]["Busy"], 6);
        for (name, _) in PERCENTILES {
            let near = |value: &Value, us: f64| (value.as_f64().unwrap() / us - 1.0).abs() < 1e-3;
            assert!(near(&json["service_us"][name], 100.0), "{json}");
            assert!(near(&json["response_us"][name], 250.0), "{json}");
        }
        assert_eq!(json["runs"].as_array().unwrap().len(), 2);
    }
}
