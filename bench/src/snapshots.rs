//! What `scripts/snapshot_compare.sh` has measured: each store with and without a snapshot under way, its restart and
//! its memory, and kvstore beside the other.
//!
//! Results are files `NAME@SYSTEM@RUN.json`, as for [`crate::targets`]: those of loads (`put`, `put-saving`), and
//! single figures.
//!
//! A load with a snapshot and the one without it that was measured just before or after it are a pair: what the machine
//! did in those seconds it did to both. So each pair has a ratio, and what is wanted is wanted of the median of those.
//! The slowest request is compared by what it took longer, which may be one slow sync of the log: the slowest that any
//! run without a snapshot had.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::measure::Spread;
use crate::tables::read;
use crate::targets::{Results, Wanted, errors, median, read_results};

const MIB: f64 = (1 << 20) as f64;

/// What is known of one system.
struct Figures<'r> {
    results: &'r Results,
    system: String,
    keys: f64,
}

impl Figures<'_> {
    fn median(&self, name: &str, pointer: &str) -> Option<f64> {
        median(self.results, name, &self.system, pointer)
    }

    /// The greatest of all runs: what a median would hide.
    fn greatest(&self, name: &str, pointer: &str) -> Option<f64> {
        let runs = self.results.get(&(name.to_owned(), self.system.clone()))?;
        Spread::of(runs.iter().filter_map(|json| json.pointer(pointer)?.as_f64())).map(|spread| spread.max)
    }

    fn rows(&self) -> [Row; 8] {
        let load = |title, pointer, wanted| {
            Row::of(title, [self.median("put", pointer), self.median("put-saving", pointer)], wanted)
        };
        let worst = [self.greatest("put", MAX), self.greatest("put-saving", MAX)];
        let per_key = |name: &str, pointer: &str| self.median(name, pointer).map(|bytes| bytes / self.keys);
        [
            load("PUT per s, without and with", "/ops_per_s", Wanted::Nothing),
            load("p99.9 us, without and with", "/response_us/p999", Wanted::Nothing),
            load("slowest us, without and with, median", MAX, Wanted::Nothing),
            Row::of("slowest us of all runs", worst, Wanted::Nothing),
            Row::single(
                "memory of a snapshot, MiB",
                self.greatest("peak_bytes", "/peak_bytes").map(|b| b / MIB),
            ),
            Row::single("restart, ms", self.median("restart_us", "/restart_us").map(|us| us / 1_000.0)),
            Row::single("resident bytes per key, filled", per_key("filled_bytes", "/filled_bytes")),
            Row::single("resident bytes per key, loaded", per_key("loaded_bytes", "/loaded_bytes")),
        ]
    }
}

const MAX: &str = "/response_us/max";

/// What the runs of one store say pair by pair.
struct Pairs(Vec<[Value; 2]>);

impl Pairs {
    /// The runs of which both results are there.
    fn read(dir: &Path, system: &str, runs: usize) -> Result<Pairs, String> {
        let file = |load: &str, run: usize| dir.join(format!("{load}@{system}@{run}.json"));
        let files = (1..=runs).map(|run| [file("put", run), file("put-saving", run)]);
        let whole = files.filter(|pair| pair.iter().all(|file| file.exists()));
        whole.map(|[put, saving]| Ok([read(&put)?, read(&saving)?])).collect::<Result<_, _>>().map(Pairs)
    }

    fn spread(&self, pointer: &str, compare: fn(f64, f64) -> f64) -> Option<Spread> {
        let number = |json: &Value| json.pointer(pointer).and_then(Value::as_f64);
        Spread::of(self.0.iter().filter_map(|[put, saving]| Some(compare(number(put)?, number(saving)?))))
    }

    /// `slow_sync_us`: of the log, without a snapshot.
    fn write(&self, text: &mut String, system: &str, slow_sync_us: Option<f64>) {
        let ratios = |pointer| self.spread(pointer, |put, saving| saving / put);
        let mut line =
            |title: &str, spread: Option<Spread>, digits: usize, wanted: &str, met: Option<bool>| {
                let Some(Spread { median, min, max }) = spread else { return };
                let verdict = met.map_or("", |met| if met { "met" } else { "MISSED" });
                let shown = format!("{median:.digits$} ({min:.digits$} to {max:.digits$})");
                let line = format!("{system:<9}{title:<38}{shown:<30} {wanted:<12} {verdict}");
                let _ = writeln!(text, "{}", line.trim_end());
            };
        let (speed, tail) = (ratios("/ops_per_s"), ratios("/response_us/p999"));
        let judged = |spread: &Option<Spread>, wanted: Wanted| {
            spread.as_ref().map(|spread| wanted.judge(spread.median) == "met")
        };
        let (is_fast, is_even) = (judged(&speed, Wanted::AtLeast(0.85)), judged(&tail, Wanted::AtMost(1.5)));
        line("PUT per s, with by without", speed, 2, ">= 0.85", is_fast);
        line("p99.9, with by without", tail, 2, "<= 1.5", is_even);
        let over = self.spread(MAX, |put, saving| saving - put);
        let is_one_sync = over.as_ref().zip(slow_sync_us).map(|(over, slow)| over.median <= slow);
        let wanted = slow_sync_us.map_or(String::new(), |slow| format!("<= {slow:.0}"));
        line("slowest us, with less without", over, 0, &wanted, is_one_sync);
    }
}

/// One line: the number or the two, and what is wanted of the second by the first.
struct Row {
    title: &'static str,
    numbers: [Option<f64>; 2],
    wanted: Wanted,
}

impl Row {
    fn of(title: &'static str, numbers: [Option<f64>; 2], wanted: Wanted) -> Row {
        Row { title, numbers, wanted }
    }

    fn single(title: &'static str, number: Option<f64>) -> Row {
        Row { title, numbers: [None, number], wanted: Wanted::Nothing }
    }

    fn write(&self, text: &mut String, system: &str) {
        let show = |number: Option<f64>| number.map_or(String::new(), |number| format!("{number:.0}"));
        let [first, second] = self.numbers;
        write_line(
            text,
            (system, self.title),
            [show(first), show(second)],
            ratio(second, first),
            self.wanted,
        );
    }
}

fn ratio(number: Option<f64>, to: Option<f64>) -> Option<f64> {
    Some(number? / to?).filter(|ratio| ratio.is_finite())
}

fn write_line(
    text: &mut String,
    (system, title): (&str, &str),
    [first, second]: [String; 2],
    ratio: Option<f64>,
    wanted: Wanted,
) {
    let (shown, verdict) =
        ratio.map_or((String::new(), ""), |ratio| (format!("{ratio:.2}"), wanted.judge(ratio)));
    let wanted = wanted.show();
    let line = format!("{system:<9}{title:<38}{first:>10} {second:>10} {shown:>7}  {wanted:<9} {verdict}");
    let _ = writeln!(text, "{}", line.trim_end());
}

/// Rows of kvstore beside another one, by their place among [`Figures::rows`], and what is wanted.
const BESIDE: [(usize, Wanted); 3] =
    [(5, Wanted::AtMost(0.5)), (6, Wanted::AtMost(0.8)), (7, Wanted::AtMost(0.8))];

/// The table of the results in a directory, of stores with so many keys.
pub fn table(dir: &Path, keys: u64) -> Result<String, String> {
    let (results, _) = read_results(dir)?;
    let of = |system: &str| Figures { results: &results, system: system.to_owned(), keys: keys as f64 };
    let mut text =
        format!("{keys} keys of 16 bytes, values of 64, 50 connections; medians of interleaved runs\n\n");
    let ours = of("kvstore").rows();
    ours.iter().for_each(|row| row.write(&mut text, "kvstore"));
    let runs = results.values().map(Vec::len).max().unwrap_or(0);
    let write_pairs = |text: &mut String, system: &str| -> Result<(), String> {
        let pairs = Pairs::read(dir, system, runs)?;
        let _ = writeln!(text, "{system:<9}medians of {} pair(s), and their spread:", pairs.0.len());
        pairs.write(text, system, of(system).greatest("put-sync", "/put-sync"));
        Ok(())
    };
    write_pairs(&mut text, "kvstore")?;
    for system in ["redis", "valkey"] {
        let theirs = of(system).rows();
        if theirs.iter().all(|row| row.numbers[1].is_none()) {
            continue;
        }
        text.push('\n');
        theirs.iter().for_each(|row| row.write(&mut text, system));
        write_pairs(&mut text, system)?;
        for (place, wanted) in BESIDE {
            let (our, their) = (ours[place].numbers[1], theirs[place].numbers[1]);
            let show = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.0}"));
            let title = format!("{}, {system} and kvstore", ours[place].title);
            write_line(&mut text, ("", &title), [show(their), show(our)], ratio(our, their), wanted);
        }
    }
    let errors = errors(&results);
    if !errors.is_empty() {
        let _ = writeln!(text, "Errors:\n{}", errors.join("\n"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_store_is_held_against_itself_and_beside_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let put =
            |name: &str, json: serde_json::Value| fs::write(dir.path().join(name), json.to_string()).unwrap();
        let load = |ops: f64, max: f64| {
            let us = serde_json::json!({ "p999": 1_000.0, "max": max });
            serde_json::json!({ "ops_per_s": ops, "response_us": us, "errors": {} })
        };
        put("put@kvstore@1.json", load(100.0, 5.0));
        put("put-saving@kvstore@1.json", load(80.0, 7.0));
        put("put-saving@kvstore@2.json", load(82.0, 9.0));
        put("put-sync@kvstore@1.json", serde_json::json!({ "put-sync": 1.5 }));
        put("restart_us@kvstore@1.json", serde_json::json!({ "restart_us": 1_000_000 }));
        put("restart_us@redis@1.json", serde_json::json!({ "restart_us": 4_000_000 }));
        let text = table(dir.path(), 10).unwrap();
        let line = |words: &str| text.lines().find(|line| line.contains(words)).unwrap().to_owned();
        assert!(line("PUT per s, without").ends_with("0.81"), "{text}");
        // The second run has no other half.
        assert!(text.contains("medians of 1 pair(s)"), "{text}");
        let pair = |words: &str| line(words).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(pair("PUT per s, with by").ends_with("0.80 (0.80 to 0.80) >= 0.85 MISSED"), "{text}");
        assert!(pair("p99.9, with by").ends_with("1.00 (1.00 to 1.00) <= 1.5 met"), "{text}");
        assert!(pair("slowest us, with less").ends_with("2 (2 to 2) <= 2 MISSED"), "{text}");
        assert!(line("slowest us of all").contains("9"), "{text}");
        assert!(line("redis and kvstore").ends_with("0.25  <= 0.5    met"), "{text}");
        assert!(!text.contains("valkey"), "{text}");
    }
}
