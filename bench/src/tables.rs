//! Results of many measurements side by side, every file a row.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::measure::PERCENTILES;
use crate::report::microseconds;

/// A result that --json wrote.
pub fn read(path: &Path) -> Result<Value, String> {
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
