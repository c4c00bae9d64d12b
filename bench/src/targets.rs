//! Medians over interleaved runs, and their ratios beside what is wanted of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::measure::Spread;
use crate::report::microseconds;
use crate::tables::read;

/// What is compared.
#[derive(Clone, Copy, PartialEq)]
enum Metric {
    OpsPerSecond,
    P50,
    P99,
    P999,
}

use Metric::{OpsPerSecond, P50, P99, P999};

impl Metric {
    fn name(self) -> &'static str {
        match self {
            OpsPerSecond => "ops/s",
            P50 => "p50 us",
            P99 => "p99 us",
            P999 => "p99.9 us",
        }
    }

    fn pointer(self) -> &'static str {
        match self {
            OpsPerSecond => "/ops_per_s",
            P50 => "/response_us/p50",
            P99 => "/response_us/p99",
            P999 => "/response_us/p999",
        }
    }

    fn show(self, number: f64) -> String {
        if self == OpsPerSecond { format!("{number:.0}") } else { microseconds(number) }
    }
}

/// The ratio that is wanted, of kvstore to another system or of one load to another.
#[derive(Clone, Copy)]
pub enum Wanted {
    /// No more than so much.
    AtMost(f64),
    /// No less than so much.
    AtLeast(f64),
    /// Neither better nor worse by more than this factor.
    Within(f64),
    /// Shown for orientation.
    Nothing,
}

use Wanted::{AtLeast, AtMost, Nothing, Within};

impl Wanted {
    /// For the column of targets.
    pub fn show(self) -> String {
        match self {
            AtMost(factor) => format!("<= {factor}"),
            AtLeast(factor) => format!(">= {factor}"),
            Within(factor) => format!("within {factor}"),
            Nothing => String::new(),
        }
    }

    /// Whether that is so; nothing where nothing is wanted.
    pub fn judge(self, ratio: f64) -> &'static str {
        let met = match self {
            AtMost(factor) => ratio <= factor,
            AtLeast(factor) => ratio >= factor,
            Within(factor) => (1.0 / factor..=factor).contains(&ratio),
            Nothing => return "",
        };
        if met { "met" } else { "MISSED" }
    }
}

/// A load (the first part of a file's name), its title, what is compared, and with whom.
type Target = (&'static str, &'static str, Metric, &'static [(&'static str, Wanted)]);

/// "redis" stands for valkey too, with or without a suffix.
const TARGETS: &[Target] = &[
    (
        "put-c1-n3",
        "PUT, 1 connection, 3 nodes",
        P50,
        &[
            ("floor", AtMost(1.15)),
            ("redis", AtMost(0.65)),
            ("etcd", AtMost(0.35)),
            ("kvstore-insync", Within(1.15)),
        ],
    ),
    (
        "put-c50-n3",
        "PUT, 50 connections, 3 nodes",
        OpsPerSecond,
        &[
            ("floor", AtLeast(0.80)),
            ("redis", AtLeast(2.5)),
            ("etcd", AtLeast(10.0)),
            ("kvstore-insync", Within(1.15)),
        ],
    ),
    (
        "put-c50-p16-n3",
        "PUT, 50 x 16, 3 nodes",
        OpsPerSecond,
        &[
            ("floor", AtLeast(0.50)),
            ("redis", AtLeast(10.0)),
            ("redis-batch", Nothing),
            ("kvstore-insync", Within(1.15)),
        ],
    ),
    (
        "put-c1-n1",
        "PUT, 1 connection, 1 node",
        P50,
        &[("floor", AtMost(1.10)), ("redis", Nothing), ("etcd", Nothing)],
    ),
    (
        "put-c50-n1",
        "PUT, 50 connections, 1 node",
        OpsPerSecond,
        &[("floor", AtLeast(0.85)), ("redis", AtLeast(1.15)), ("etcd", Nothing)],
    ),
    ("get-c50-n1", "GET, 50 connections", OpsPerSecond, &[("redis", AtLeast(1.0)), ("etcd", Nothing)]),
    ("get-c50-p16-n1", "GET, 50 x 16", OpsPerSecond, &[("redis", AtLeast(1.5))]),
    (
        "put-c1-n3-half",
        "PUT, 1 connection, 3 nodes, half rate",
        P999,
        &[("floor", AtMost(1.5)), ("redis", Nothing), ("etcd", Nothing)],
    ),
    (
        "get-c1-beside-puts",
        "GET, 1 connection, beside 20,000 PUT/s",
        P99,
        // The first where the flush is part of the loop, the second where it is beside it.
        &[("fdatasync", AtMost(1.5)), ("kvstore-idle", AtMost(2.0))],
    ),
    (
        "put-c1-n3-1k",
        "PUT 1 KiB, 1 connection, 3 nodes",
        P50,
        &[("floor", AtMost(1.15)), ("redis", AtMost(0.65)), ("etcd", AtMost(0.35))],
    ),
    (
        "put-c50-n3-1k",
        "PUT 1 KiB, 50 connections, 3 nodes",
        OpsPerSecond,
        &[("floor", AtLeast(0.80)), ("redis", AtLeast(2.5)), ("etcd", AtLeast(10.0))],
    ),
    (
        "put-c50-p16-n3-1k",
        "PUT 1 KiB, 50 x 16, 3 nodes",
        OpsPerSecond,
        &[("floor", AtLeast(0.50)), ("redis", AtLeast(10.0)), ("redis-batch", Nothing)],
    ),
    ("elected-c1-n3", "PUT, 1 connection, elected leader", P50, &[("fixed-insync", AtMost(1.05))]),
    ("elected-c50-n3", "PUT, 50 connections, elected leader", P50, &[("fixed-insync", AtMost(1.05))]),
];

/// Of each load and system, the results of all runs.
pub type Results = BTreeMap<(String, String), Vec<Value>>;

/// Medians over the runs in a directory, and their ratios beside the targets.
pub fn targets(dir: &Path) -> Result<String, String> {
    let (results, void_count) = read_results(dir)?;
    let mut text = format!(
        "{:<40}{:<10}{:>10}  {:<16}{:>10} {:>7}  {:<11}\n",
        "load", "metric", "kvstore", "against", "", "ratio", "target"
    );
    // A load that nobody was measured with is one of another script.
    let is_measured = |load: &str| results.keys().any(|(measured, _)| measured == load);
    for target in TARGETS.iter().filter(|target| is_measured(target.0)) {
        write_target(&mut text, target, &results);
    }
    let runs = results.values().map(Vec::len).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "\nMedians of up to {runs} interleaved run(s); ratio = kvstore / other. A ratio within 1.3 of 1 from \
         one pair says nothing;\none within 1.2 needs ten runs or more."
    );
    if void_count > 0 {
        let _ = writeln!(text, "{void_count} floor run(s) were void and left out.");
    }
    let errors = errors(&results);
    if !errors.is_empty() {
        let _ = writeln!(text, "Errors:\n{}", errors.join("\n"));
    }
    Ok(text)
}

/// All result files of a directory, and how many were void.
pub fn read_results(dir: &Path) -> Result<(Results, usize), String> {
    let describe = |error: std::io::Error| format!("{}: {error}", dir.display());
    let mut results = Results::new();
    let mut void_count = 0;
    for entry in fs::read_dir(dir).map_err(describe)? {
        let path = entry.map_err(describe)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut words = name.strip_suffix(".json").unwrap_or_default().split('@');
        let (Some(load), Some(system), Some(_run)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let json = read(&path)?;
        // What fdatasync takes is measured by itself; it cannot be void.
        if json["void"] == true && system != "fdatasync" {
            void_count += 1;
        } else {
            results.entry((load.to_owned(), system.to_owned())).or_default().push(json);
        }
    }
    Ok((results, void_count))
}

/// The median over the runs of a system; `None` if there is none.
pub fn median(results: &Results, load: &str, system: &str, pointer: &str) -> Option<f64> {
    let runs = results.get(&(load.to_owned(), system.to_owned()))?;
    let numbers = runs.iter().filter_map(|json| json.pointer(pointer)?.as_f64());
    Spread::of(numbers).map(|spread| spread.median)
}

fn write_target(text: &mut String, target: &Target, results: &Results) {
    let (load, title, metric, against) = *target;
    let ours = median(results, load, "kvstore", metric.pointer());
    let show = |number: Option<f64>| number.map_or("-".to_owned(), |number| metric.show(number));
    let mut begin = format!("{title:<40}{:<10}{:>10}", metric.name(), show(ours));
    for (system, wanted) in against {
        let mut names = vec![(*system).to_owned(), system.replace("redis", "valkey")];
        names.dedup();
        for system in names {
            let pointer = if system == "fdatasync" { FDATASYNC } else { metric.pointer() };
            let Some(theirs) = median(results, load, &system, pointer) else { continue };
            let ratio = ours.map(|ours| ours / theirs).filter(|ratio| ratio.is_finite());
            let _ = writeln!(
                text,
                "{begin:<60}  {system:<16}{:>10} {:>7}  {:<11} {}",
                metric.show(theirs),
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
                wanted.show(),
                ratio.map_or("", |ratio| wanted.judge(ratio)),
            );
            begin.clear();
        }
    }
    if !begin.is_empty() {
        let _ = writeln!(text, "{begin}");
    }
}

/// What the floor's own measurement says of the disk alone.
const FDATASYNC: &str = "/floor/parts/fdatasync_alone_us/p50";

/// What went wrong in any of the runs.
pub fn errors(results: &Results) -> Vec<String> {
    results.iter().filter_map(|(key, runs)| describe_errors(key, runs)).collect()
}

fn describe_errors((load, system): &(String, String), runs: &[Value]) -> Option<String> {
    let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, count) in runs.iter().filter_map(|json| json["errors"].as_object()).flatten() {
        *errors.entry(name).or_default() += count.as_u64().unwrap_or(0);
    }
    let words: Vec<String> = errors.iter().map(|(name, count)| format!("{count} x {name}")).collect();
    (!words.is_empty()).then(|| format!("  {load}, {system}: {}", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_held_against_the_targets() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, p50: f64, void: bool| {
            let json = serde_json::json!({ "response_us": { "p50": p50 }, "errors": {}, "void": void });
            fs::write(dir.path().join(name), json.to_string()).unwrap();
        };
        put("put-c1-n3@kvstore@1.json", 100.0, false);
        put("put-c1-n3@kvstore@2.json", 900.0, false);
        put("put-c1-n3@kvstore@3.json", 220.0, false);
        put("put-c1-n3@floor@1.json", 200.0, false);
        put("put-c1-n3@floor@2.json", 9.0, true);
        put("put-c1-n3@valkey@1.json", 250.0, false);
        let text = targets(dir.path()).unwrap();
        let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap().to_owned();
        assert!(line("floor").ends_with("1.10  <= 1.15     met"), "{text}");
        assert!(line("valkey").contains("0.88") && line("valkey").ends_with("MISSED"), "{text}");
        assert!(text.contains("1 floor run(s) were void"), "{text}");
        assert!(!text.contains("elected"), "a load of another script: {text}");
    }
}
