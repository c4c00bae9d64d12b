//! A result as text, as JSON, and as an HdrHistogram percentile distribution.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::args::{LoadArgs, ProtocolName};
use crate::floor::Floor;
use crate::measure::{PERCENTILES, Spread, Summary, quantile_us};
use crate::plot::{self, Curve};

/// Everything of one measurement.
pub struct Report<'a> {
    /// The flags.
    pub args: &'a LoadArgs,
    /// Of [`crate::machine::describe`] and [`crate::revision::describe`].
    pub machine: Value,
    /// The store, if one was measured.
    pub store: Option<Summary>,
    /// The floor, if it was asked for.
    pub floor: Option<Floor>,
}

impl Report<'_> {
    /// Fields of the store (or of the floor, measured alone) stand at the top.
    pub fn to_json(&self) -> Value {
        let mut json = json!({ "label": self.label(), "config": config_json(self.args) });
        let top = match (&self.store, &self.floor) {
            (Some(store), _) => store.to_json(),
            (None, Some(floor)) => floor.summary().to_json(),
            (None, None) => json!({}),
        };
        merge(&mut json, top);
        if let Some(floor) = &self.floor {
            json["floor"] = floor.to_json();
            json["void"] = floor.is_void().into();
        }
        if let Some(ratios) = self.ratios() {
            json["ratios"] = ratios.into_iter().map(|(name, ratio)| (name, json!(ratio))).collect();
        }
        merge(&mut json, self.machine.clone());
        json
    }

    /// The same for a person.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n{}\n\n", self.label(), self.describe_load());
        let _ = writeln!(text, "{:<22}{}", "microseconds", heading());
        if let Some(store) = &self.store {
            write_summary(&mut text, "store", store);
        }
        if let Some(floor) = &self.floor {
            write_summary(&mut text, "floor", floor.summary());
        }
        if let Some(ratios) = self.ratios() {
            text.push_str("\nstore / floor: ");
            let words: Vec<String> =
                ratios.iter().map(|(name, ratio)| format!("{name} {ratio:.2}")).collect();
            let _ = writeln!(text, "{}", words.join(", "));
        }
        if let Some(floor) = &self.floor {
            write_floor(&mut text, floor);
        }
        let machine = |name: &str| match &self.machine[name] {
            Value::String(text) => text.clone(),
            Value::Null => "unknown".to_owned(),
            other => other.to_string(),
        };
        let _ = writeln!(
            text,
            "\nmachine: {}, {} x {}, {} on {} (write cache: {}), load average {}",
            machine("kernel"),
            machine("cpu_count"),
            machine("cpu"),
            machine("file_system"),
            machine("device"),
            machine("device_write_cache"),
            machine("load_average"),
        );
        let _ = writeln!(text, "/dev/cpu_dma_latency: {}", machine("cpu_dma_latency"));
        if self.machine["busy_before"] == true {
            text.push_str("warning: the machine was busy before the run; these numbers are worth little\n");
        }
        text
    }

    /// Percentile, operations and microseconds of the response time, all runs together, as HdrHistogram's
    /// plotter reads it.
    pub fn to_hgrm(&self) -> String {
        let mut together = crate::measure::histogram();
        for run in self.main_runs() {
            together.add(run.response_ns()).expect("all histograms have the same bounds");
        }
        hgrm(&together)
    }

    /// One curve per run.
    pub fn to_svg(&self) -> String {
        let store = self.store.iter().flat_map(|summary| &summary.runs).map(|run| ("store", run));
        let floor = self.floor.iter().flat_map(|floor| &floor.summary().runs).map(|run| ("floor", run));
        let curves: Vec<Curve<'_>> =
            store.chain(floor).map(|(group, run)| Curve { group, histogram: run.response_ns() }).collect();
        plot::svg(&self.label(), &self.describe_load(), &curves)
    }

    /// Store over floor: operations per second, and percentiles of the response time.
    fn ratios(&self) -> Option<BTreeMap<String, f64>> {
        let (store, floor) = (self.store.as_ref()?, self.floor.as_ref()?.summary());
        let mut ratios = BTreeMap::new();
        ratios.insert("ops_per_s".to_owned(), store.ops_per_s().median / floor.ops_per_s().median);
        for (name, q) in PERCENTILES {
            ratios.insert(name.to_owned(), store.response_us(q).median / floor.response_us(q).median);
        }
        ratios.retain(|_, ratio| ratio.is_finite());
        Some(ratios)
    }

    fn main_runs(&self) -> &[crate::measure::Run] {
        match (&self.store, &self.floor) {
            (Some(store), _) => &store.runs,
            (None, Some(floor)) => &floor.summary().runs,
            (None, None) => &[],
        }
    }

    /// What the measurement is called.
    pub fn label(&self) -> String {
        self.args.label.clone().unwrap_or_else(|| match &self.args.endpoint {
            Some(endpoint) => format!("{} at {endpoint}", protocol_name(self.args.protocol)),
            None => "the floor of this machine".to_owned(),
        })
    }

    fn describe_load(&self) -> String {
        let args = self.args;
        let pace = match args.rate {
            Some(rate) => format!("open loop at {rate} per second"),
            None => "closed loop".to_owned(),
        };
        let wait = match (args.wait, args.wait_batch) {
            (0, _) => String::new(),
            (wait, false) => format!(", WAIT {wait} behind each"),
            (wait, true) => format!(", WAIT {wait} behind each batch"),
        };
        format!(
            "{}{wait}, {pace}, {} connections x pipeline {}, {} keys, values of {} B, {} run(s) of {} s",
            args.op, args.connections, args.pipeline, args.keys, args.value_size, args.runs, args.duration
        )
    }
}

fn protocol_name(protocol: ProtocolName) -> &'static str {
    match protocol {
        ProtocolName::Kv => "kv",
        ProtocolName::Resp => "resp",
        ProtocolName::Etcd => "etcd",
    }
}

fn config_json(args: &LoadArgs) -> Value {
    json!({
        "endpoint": args.endpoint,
        "protocol": args.endpoint.as_ref().map(|_| protocol_name(args.protocol)),
        "wait": args.wait,
        "wait_batch": args.wait_batch,
        "op": args.op.to_string(),
        "connections": args.connections,
        "pipeline": args.pipeline,
        "keys": args.keys,
        "value_size": args.value_size,
        "duration_s": args.duration,
        "warmup_s": args.warmup,
        "runs": args.runs,
        "rate": args.rate,
        "floor_ack": args.floor.then(|| args.floor_ack.name()),
        "floor_nodes": args.floor.then_some(args.floor_nodes),
    })
}

/// Adds the fields of one document to another.
pub fn merge(into: &mut Value, from: Value) {
    let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) else { return };
    into.extend(from);
}

fn heading() -> String {
    let names = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];
    names.iter().map(|name| format!("{name:>16}")).collect()
}

fn write_summary(text: &mut String, name: &str, summary: &Summary) {
    let rows: [(&str, &dyn Fn(f64) -> Spread); 2] =
        [("service", &|q| summary.service_us(q)), ("response", &|q| summary.response_us(q))];
    for (kind, of) in rows {
        let medians: String =
            PERCENTILES.iter().map(|(_, q)| format!("{:>16}", microseconds(of(*q).median))).collect();
        let _ = writeln!(text, "{:<22}{medians}", format!("{name}, {kind} time"));
        if summary.runs.len() > 1 {
            let range = |q: f64| format!("{}-{}", short(of(q).min), short(of(q).max));
            let ranges: String = PERCENTILES.iter().map(|(_, q)| format!("{:>16}", range(*q))).collect();
            let _ = writeln!(text, "{:<22}{ranges}", "  least - greatest");
        }
    }
    let ops = summary.ops_per_s();
    let _ = write!(text, "{:<22}{:>16.0} operations per second", name, ops.median);
    if summary.runs.len() > 1 {
        let _ = write!(text, " ({:.0} to {:.0})", ops.min, ops.max);
    }
    text.push('\n');
    let errors = summary.errors();
    let words: Vec<String> = errors.iter().map(|(name, count)| format!("{count} x {name}")).collect();
    let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
    let _ = writeln!(text, "{:<22}{words:>16}", format!("{name}, errors"));
}

fn write_floor(text: &mut String, floor: &Floor) {
    if let Some(parts) = floor.parts() {
        text.push('\n');
        for (name, histogram) in parts.named() {
            let numbers: String = PERCENTILES
                .iter()
                .map(|(_, q)| format!("{:>16}", microseconds(quantile_us(histogram, *q))))
                .collect();
            let _ = writeln!(text, "{name:<22}{numbers}");
        }
    }
    if let (Some(p50), Some(limit)) = (floor.check_p50_us(), floor.check_limit_us()) {
        let verdict = if floor.is_void() { "VOID: do not use this run" } else { "valid" };
        let _ = writeln!(
            text,
            "floor at one connection: p50 {} us; 1.3 x its parts are {} us: {verdict}",
            microseconds(p50),
            microseconds(limit)
        );
    }
}

/// Four digits that count.
pub fn microseconds(us: f64) -> String {
    match us {
        us if us < 100.0 => format!("{us:.2}"),
        us if us < 1_000.0 => format!("{us:.1}"),
        us => format!("{us:.0}"),
    }
}

fn short(us: f64) -> String {
    match us {
        us if us < 10_000.0 => format!("{us:.0}"),
        us if us < 100_000.0 => format!("{:.1}ms", us / 1_000.0),
        us => format!("{:.0}ms", us / 1_000.0),
    }
}

fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let us = |ns: f64| ns / 1_000.0;
    let mut total = 0;
    for step in histogram.iter_quantiles(5) {
        let (value, quantile) = (us(step.value_iterated_to() as f64), step.quantile_iterated_to());
        total += step.count_since_last_iteration();
        let _ = write!(text, "{value:12.3} {quantile:14.12} {total:10}");
        match quantile {
            quantile if quantile < 1.0 => writeln!(text, " {:14.2}", 1.0 / (1.0 - quantile)),
            _ => writeln!(text),
        }
        .expect("a string takes everything");
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]",
        us(histogram.mean()),
        us(histogram.stdev()),
        us(histogram.max() as f64),
        histogram.len(),
        histogram.buckets(),
        histogram.distinct_values(),
    );
    text
}
