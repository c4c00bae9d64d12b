//! Results of many measurements side by side: every file a row, or medians against targets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::measure::{PERCENTILES, Spread};
use crate::report::microseconds;

fn read(path: &Path) -> Result<Value, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// One row per file: response times, operations per second, errors, and how it stands to its floor.
pub fn table(files: &[PathBuf]) -> Result<String, String> {
    let results = files.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let label = |json: &Value| json["label"].as_str().unwrap_or("?").to_owned();
    let width = results.iter().map(|json| label(json).chars().count()).max().unwrap_or(0).max(8);
    let mut text = format!("{:<width$} {:>10}", "load", "ops/s");
    ["p50", "p90", "p99", "p99.9", "p99.99", "max"]
        .iter()
        .for_each(|name| text.push_str(&format!(" {name:>8}")));
    let _ = writeln!(text, " {:>8} {:>10} {:>10}", "errors", "ops/floor", "p50/floor");
    for json in &results {
        let _ = write!(text, "{:<width$} {:>10.0}", label(json), json["ops_per_s"].as_f64().unwrap_or(0.0));
        for (name, _) in PERCENTILES {
            let us = json["response_us"][name].as_f64();
            let _ = write!(text, " {:>8}", us.map_or("-".to_owned(), microseconds));
        }
        let errors: u64 = json["errors"].as_object().into_iter().flatten().filter_map(|e| e.1.as_u64()).sum();
        let ratio = |name: &str| match json["ratios"][name].as_f64() {
            Some(_) if json["void"] == true => "void".to_owned(),
            Some(ratio) => format!("{ratio:.2}"),
            None => "-".to_owned(),
        };
        let _ = writeln!(text, " {errors:>8} {:>10} {:>10}", ratio("ops_per_s"), ratio("p50"));
    }
    text.push_str("\nResponse times in microseconds, medians of the runs.\n");
    Ok(text)
}

/// What is compared.
#[derive(Clone, Copy, PartialEq)]
enum Metric {
    OpsPerSecond,
    P50,
    P99,
    P999,
}

impl Metric {
    fn name(self) -> &'static str {
        match self {
            Metric::OpsPerSecond => "ops/s",
            Metric::P50 => "p50 us",
            Metric::P99 => "p99 us",
            Metric::P999 => "p99.9 us",
        }
    }

    fn pointer(self) -> &'static str {
        match self {
            Metric::OpsPerSecond => "/ops_per_s",
            Metric::P50 => "/response_us/p50",
            Metric::P99 => "/response_us/p99",
            Metric::P999 => "/response_us/p999",
        }
    }

    fn show(self, number: f64) -> String {
        if self == Metric::OpsPerSecond { format!("{number:.0}") } else { microseconds(number) }
    }

    fn is_met(self, ratio: f64, target: f64) -> bool {
        if self == Metric::OpsPerSecond { ratio >= target } else { ratio <= target }
    }

    fn sign(self) -> &'static str {
        if self == Metric::OpsPerSecond { ">=" } else { "<=" }
    }
}

struct Target {
    load: &'static str,
    title: &'static str,
    metric: Metric,
    /// The system compared with, and the ratio of kvstore to it that is wanted.
    against: &'static [(&'static str, f64)],
}

/// Names of systems that stand for each other in the targets.
const REDIS_LIKE: [&str; 2] = ["redis", "valkey"];

const TARGETS: &[Target] = &[
    Target {
        load: "put-c1-n3",
        title: "PUT, 1 connection, 3 nodes",
        metric: Metric::P50,
        against: &[("floor", 1.15), ("redis", 0.65), ("etcd", 0.35), ("kvstore-insync", 1.15)],
    },
    Target {
        load: "put-c50-n3",
        title: "PUT, 50 connections, 3 nodes",
        metric: Metric::OpsPerSecond,
        against: &[("floor", 0.80), ("redis", 2.5), ("etcd", 10.0), ("kvstore-insync", 1.15)],
    },
    Target {
        load: "put-c50-p16-n3",
        title: "PUT, 50 x 16, 3 nodes",
        metric: Metric::OpsPerSecond,
        against: &[("floor", 0.50), ("redis", 10.0), ("kvstore-insync", 1.15)],
    },
    Target {
        load: "put-c1-n1",
        title: "PUT, 1 connection, 1 node",
        metric: Metric::P50,
        against: &[("floor", 1.10), ("redis", 1.0), ("etcd", 1.0)],
    },
    Target {
        load: "put-c50-n1",
        title: "PUT, 50 connections, 1 node",
        metric: Metric::OpsPerSecond,
        against: &[("floor", 0.85), ("redis", 1.15), ("etcd", 1.0)],
    },
    Target {
        load: "get-c50-n1",
        title: "GET, 50 connections",
        metric: Metric::OpsPerSecond,
        against: &[("redis", 1.0), ("etcd", 1.0)],
    },
    Target {
        load: "get-c50-p16-n1",
        title: "GET, 50 x 16",
        metric: Metric::OpsPerSecond,
        against: &[("redis", 1.5)],
    },
    Target {
        load: "put-c1-n3-half",
        title: "PUT, 1 connection, 3 nodes, half rate",
        metric: Metric::P999,
        against: &[("floor", 1.5), ("redis", 1.0), ("etcd", 1.0)],
    },
    Target {
        load: "get-c1-beside-puts",
        title: "GET, 1 connection, beside 20,000 PUT/s",
        metric: Metric::P99,
        against: &[("fdatasync", 1.5), ("kvstore-idle", 2.0)],
    },
    Target {
        load: "put-c1-n3-1k",
        title: "PUT 1 KiB, 1 connection, 3 nodes",
        metric: Metric::P50,
        against: &[("floor", 1.15), ("redis", 0.65), ("etcd", 0.35)],
    },
    Target {
        load: "put-c50-n3-1k",
        title: "PUT 1 KiB, 50 connections, 3 nodes",
        metric: Metric::OpsPerSecond,
        against: &[("floor", 0.80), ("redis", 2.5), ("etcd", 10.0)],
    },
    Target {
        load: "put-c50-p16-n3-1k",
        title: "PUT 1 KiB, 50 x 16, 3 nodes",
        metric: Metric::OpsPerSecond,
        against: &[("floor", 0.50), ("redis", 10.0)],
    },
];

/// Of each load and system, the results of all runs.
type Results = BTreeMap<(String, String), Vec<Value>>;

/// Medians over the runs in a directory, and their ratios beside the targets.
pub fn targets(dir: &Path) -> Result<String, String> {
    let (results, void_count) = read_results(dir)?;
    let mut text = format!(
        "{:<40}{:<10}{:>10}  {:<22}{:>10} {:>7}  {:<9} \n",
        "load", "metric", "kvstore", "against", "", "ratio", "target"
    );
    for target in TARGETS {
        write_target(&mut text, target, &results);
    }
    let runs = results.values().map(Vec::len).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "\nMedians of up to {runs} interleaved run(s); ratio = kvstore / other. A ratio within 1.3 of 1 from \
         one pair says nothing."
    );
    if void_count > 0 {
        let _ = writeln!(text, "{void_count} floor run(s) were void and left out.");
    }
    let errors: Vec<String> = results.iter().filter_map(|(key, runs)| describe_errors(key, runs)).collect();
    if !errors.is_empty() {
        let _ = writeln!(text, "Errors:\n{}", errors.join("\n"));
    }
    Ok(text)
}

fn read_results(dir: &Path) -> Result<(Results, usize), String> {
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

fn median(results: &Results, load: &str, system: &str, pointer: &str) -> Option<f64> {
    let runs = results.get(&(load.to_owned(), system.to_owned()))?;
    let numbers = runs.iter().filter_map(|json| json.pointer(pointer)?.as_f64());
    Spread::of(numbers).map(|spread| spread.median)
}

fn write_target(text: &mut String, target: &Target, results: &Results) {
    let metric = target.metric;
    let ours = median(results, target.load, "kvstore", metric.pointer());
    let show = |number: Option<f64>| number.map_or("-".to_owned(), |number| metric.show(number));
    let mut begin = format!("{:<40}{:<10}{:>10}", target.title, metric.name(), show(ours));
    for (system, wanted) in target.against {
        let systems = if *system == REDIS_LIKE[0] { &REDIS_LIKE[..] } else { &[*system][..] };
        for system in systems {
            let pointer =
                if *system == "fdatasync" { "/floor/parts/fdatasync_alone_us/p50" } else { metric.pointer() };
            let Some(theirs) = median(results, target.load, system, pointer) else { continue };
            let (ratio, verdict) = judge(metric, ours, theirs, *system == "kvstore-insync", *wanted);
            let _ = writeln!(
                text,
                "{begin:<60}  {system:<22}{:>10} {ratio:>7}  {:<9} {verdict}",
                metric.show(theirs),
                format!("{} {wanted}", metric.sign()),
            );
            begin.clear();
        }
    }
    if !begin.is_empty() {
        let _ = writeln!(text, "{begin}");
    }
}

/// The ratio and whether it is what was wanted. `insync` is to be compared with `quorum`, not to beat it:
/// either may be slower by the factor.
fn judge(
    metric: Metric,
    ours: Option<f64>,
    theirs: f64,
    within: bool,
    wanted: f64,
) -> (String, &'static str) {
    let Some(ours) = ours.filter(|_| theirs > 0.0) else { return ("-".to_owned(), "") };
    let ratio = ours / theirs;
    let met = if within { ratio <= wanted && ratio >= 1.0 / wanted } else { metric.is_met(ratio, wanted) };
    (format!("{ratio:.2}"), if met { "met" } else { "MISSED" })
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
        assert!(line("floor").ends_with("1.10  <= 1.15   met"), "{text}");
        assert!(line("valkey").contains("0.88") && line("valkey").ends_with("MISSED"), "{text}");
        assert!(text.contains("1 floor run(s) were void"), "{text}");
    }
}
