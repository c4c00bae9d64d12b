//! Successful writes per 10 ms around each failure, one small picture each, in one SVG that stands by itself.

use std::fmt::Write as _;

use super::faults::Event;
use super::gaps::Gaps;

/// A bar.
const BUCKET_NS: u64 = 10_000_000;
/// Shown before the failure, and behind it.
const BEFORE: u64 = 30;
const BEHIND: u64 = 170;
const COLUMNS: usize = 3;
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 130.0;
const PLOT: f64 = 80.0;
const MARGIN: f64 = 20.0;

/// Draws them. `acks` are the times of acknowledged writes, sorted.
pub fn svg(title: &str, events: &[Event], gaps: &[Gaps], acks: &[u64]) -> String {
    let panels: Vec<Vec<usize>> = events.iter().map(|event| buckets(acks, event.at)).collect();
    let highest = panels.iter().flatten().copied().max().unwrap_or(0).max(1);
    let rows = events.len().div_ceil(COLUMNS).max(1);
    let (width, height) = (WIDTH * COLUMNS as f64 + MARGIN, 60.0 + HEIGHT * rows as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n\
         <text x=\"{MARGIN}\" y=\"42\" fill=\"#666\">acknowledged writes per 10 ms, from {} ms before the failure to \
         {} ms behind it; the highest bar is {highest}</text>\n",
        BEFORE * 10,
        BEHIND * 10
    );
    for (number, ((event, gaps), counts)) in events.iter().zip(gaps).zip(&panels).enumerate() {
        let x = MARGIN + WIDTH * (number % COLUMNS) as f64;
        let y = 60.0 + HEIGHT * (number / COLUMNS) as f64;
        let _ = writeln!(out, "<g transform=\"translate({x:.0} {y:.0})\">");
        let _ = writeln!(
            out,
            "<text y=\"10\">{:.1} s: {}; none for {:.0} ms</text>",
            event.at as f64 / 1e9,
            event.title(),
            gaps.all as f64 / 1e6
        );
        panel(&mut out, counts, highest);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// Counts per bar; the failure is at the left edge of bar [`BEFORE`].
fn buckets(acks: &[u64], at: u64) -> Vec<usize> {
    let from = at.saturating_sub(BEFORE * BUCKET_NS);
    (0..BEFORE + BEHIND)
        .map(|bar| {
            let begin = from + bar * BUCKET_NS;
            acks.partition_point(|ack| *ack < begin + BUCKET_NS) - acks.partition_point(|ack| *ack < begin)
        })
        .collect()
}

fn panel(out: &mut String, counts: &[usize], highest: usize) {
    let bottom = 16.0 + PLOT;
    let bar = (WIDTH - MARGIN) / counts.len() as f64;
    let mut path = format!("M0 {bottom:.1}");
    for (index, count) in counts.iter().enumerate() {
        let y = bottom - PLOT * *count as f64 / highest as f64;
        let _ = write!(path, "V{y:.1}H{:.1}", (index + 1) as f64 * bar);
    }
    let _ = write!(path, "V{bottom:.1}Z");
    let failure = BEFORE as f64 * bar;
    let _ = writeln!(
        out,
        "<path d=\"{path}\" fill=\"#0b61a4\"/>\
         <line x1=\"0\" y1=\"{bottom}\" x2=\"{:.1}\" y2=\"{bottom}\" stroke=\"#999\"/>\
         <line x1=\"{failure:.1}\" y1=\"14\" x2=\"{failure:.1}\" y2=\"{bottom}\" stroke=\"#c8501e\"/>",
        WIDTH - MARGIN
    );
    for ms in (0..BEHIND * 10).step_by(500) {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#666\" text-anchor=\"middle\">{ms}</text>",
            failure + ms as f64 / 10.0 * bar,
            bottom + 12.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Kind;

    #[test]
    fn a_panel_for_each_failure_with_its_writes_in_their_bars() {
        let at = 1_000_000_000;
        let event = Event { kind: Kind::Kill, node: 1, was_leader: true, at, settled: 2 * at };
        let acks = [at - 1, at, at + 9_999_999, at + 10_000_000];
        let counts = buckets(&acks, at);
        assert_eq!(counts[BEFORE as usize - 1..BEFORE as usize + 3], [1, 2, 1, 0]);
        let gaps = Gaps { all: 312_000_000, each: Vec::new() };
        let svg = svg("a title", &[event.clone(), event], &[gaps.clone(), gaps], &acks);
        assert_eq!(svg.matches("kill -9 of the leader, node 2; none for 312 ms").count(), 2);
        assert!(!svg.contains("NaN") && svg.matches("http").count() == 1, "{svg}");
    }
}
