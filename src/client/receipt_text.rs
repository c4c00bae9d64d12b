//! The receipt of a write, for people: one table whose bars share one time axis.
//!
//! The axis begins when the client sends the request, or, where the client's view is not known, when the
//! leader turns to the read that brings it. The leader's stages follow each other and
//! add up to its total; a follower's bar begins when the leader's batch is complete, because that is what its
//! ACK is timed from. No clocks are compared: a follower tells durations, so *where* its own share lies
//! between the two ends of its bar is not known, and neither is where the node's total lies within the
//! client's round trip. Both are drawn in the middle, and the legend says so.

use serde_json::Value;

use super::error::printable;
use super::table::{aligned, grouped, micros, plural};
use crate::ids::Term;
use crate::trace::STAGES;

/// Columns of the time axis.
const AXIS_WIDTH: usize = 48;

/// What stands beside each stage, in the order of [`STAGES`]: the sign of its bar, and what it is.
const STAGE_WORDS: [(char, &str); STAGES.len()] = [
    ('=', "request to record"),
    ('=', "rest of the turn's requests"),
    ('=', "records to the followers' sockets"),
    ('#', "write and flush of the log, one call"),
    ('.', "wait for followers"),
    ('=', "reply to its socket"),
];

/// A wait that ends because a follower left the in-sync set lasts this long at least: the least
/// `--insync-timeout-ms`.
const LEFT_OUT_US_MIN: f64 = 10_000.0;

const LEGEND: &str = "\
- the leader's total   = a processor   # a disk   . waiting   ~ network and wake-ups, both ways together
A node tells durations, never times of its clock: its share is drawn in the middle of the bar around it.
";

/// A JSON document of the node, with absence made easy.
#[derive(Clone, Copy)]
struct Receipt<'a>(&'a Value);

impl<'a> Receipt<'a> {
    fn us(self, field: &str) -> f64 {
        self.0.get(field).and_then(Value::as_f64).unwrap_or(0.0)
    }

    fn stage(self, stage: &str) -> f64 {
        self.0.get("stages_us").and_then(|stages| stages.get(stage)).and_then(Value::as_f64).unwrap_or(0.0)
    }

    fn number(self, field: &str) -> u64 {
        self.0.get(field).and_then(Value::as_u64).unwrap_or(0)
    }

    fn address(self) -> String {
        self.0.get("address").and_then(Value::as_str).map_or_else(|| "?".to_owned(), printable)
    }

    /// The first of those that have it: a leader lists itself first.
    fn leader(self) -> String {
        self.list("durable_on").first().and_then(Value::as_str).map_or_else(String::new, printable)
    }

    fn list(self, field: &str) -> &'a [Value] {
        self.0.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn followers(self) -> impl Iterator<Item = Receipt<'a>> {
        self.list("followers").iter().map(Receipt)
    }

    /// When the batch was complete: what a follower's ACK is timed from.
    fn turn_us(self) -> f64 {
        self.stage("decode") + self.stage("queue")
    }

    /// Until its ACK, if that has come.
    fn ack_us(self) -> Option<f64> {
        self.0.get("ack_us").and_then(Value::as_f64)
    }
}

/// The table of a receipt. `round_trip_us` is the client's own view, if it made the write itself.
pub fn render(receipt: &Value, round_trip_us: Option<f64>) -> String {
    let receipt = Receipt(receipt);
    let mut out = format!("{}\n\n", headline(receipt));
    out.push_str(&waterfall(receipt, round_trip_us));
    out.push('\n');
    out.push_str(LEGEND);
    for sentence in [longest(receipt), outside(receipt, round_trip_us)].into_iter().flatten() {
        out.push_str(&sentence);
        out.push('\n');
    }
    out
}

fn headline(receipt: Receipt<'_>) -> String {
    let durable: Vec<String> =
        receipt.list("durable_on").iter().filter_map(Value::as_str).map(printable).collect();
    let writes = receipt.number("batch_writes");
    format!(
        "LSN {} in term {} — durable on {} of {} nodes: {} — {} write{} in its group commit",
        grouped(receipt.number("lsn")),
        Term::from_u64(receipt.number("term")),
        durable.len(),
        receipt.number("nodes"),
        durable.join(", "),
        grouped(writes),
        plural(writes),
    )
}

/// One bar: signs from a time to another.
#[derive(Clone, Copy)]
struct Bar {
    sign: char,
    from_us: f64,
    us: f64,
}

fn bar(sign: char, from_us: f64, us: f64) -> Bar {
    Bar { sign, from_us, us }
}

/// The time that the axis shows.
#[derive(Clone, Copy)]
struct Axis {
    from_us: f64,
    to_us: f64,
}

impl Axis {
    fn column(self, at_us: f64) -> usize {
        let span = (self.to_us - self.from_us).max(0.1);
        (((at_us - self.from_us) / span * AXIS_WIDTH as f64).round() as usize).min(AXIS_WIDTH)
    }

    /// Bars in the order in which they cover each other. What took time at all is at least one sign long.
    fn draw(self, bars: &[Bar]) -> String {
        let mut line = [' '; AXIS_WIDTH];
        for bar in bars.iter().filter(|bar| bar.us > 0.0) {
            let from = self.column(bar.from_us).min(AXIS_WIDTH - 1);
            let to = self.column(bar.from_us + bar.us).max(from + 1);
            line[from..to].fill(bar.sign);
        }
        format!("|{}|", line.iter().collect::<String>())
    }

    fn ends(self) -> String {
        let width = AXIS_WIDTH - 1;
        let to = format!("{} us", micros(self.to_us - self.from_us));
        format!("{:<1$}{to}", "0.0", (width + 3).saturating_sub(to.len()))
    }
}

fn waterfall(receipt: Receipt<'_>, round_trip_us: Option<f64>) -> String {
    let total = receipt.us("total_us");
    let before = round_trip_us.map_or(0.0, |round_trip| (round_trip - total).max(0.0) / 2.0);
    let last_ack = receipt.followers().filter_map(Receipt::ack_us).fold(0.0, f64::max);
    let to_us = (total + before).max(receipt.turn_us() + last_ack);
    let axis = Axis { from_us: -before, to_us };
    let mut rows = vec![row("", "us".to_owned(), "share".to_owned(), axis.ends())];
    if let Some(round_trip) = round_trip_us {
        let bars = [bar('~', -before, round_trip), bar('-', 0.0, total)];
        rows.push(row("client's round trip", micros(round_trip), String::new(), axis.draw(&bars)));
    }
    let whole = axis.draw(&[bar('-', 0.0, total)]);
    rows.push(row(&format!("leader {}", receipt.leader()), micros(total), "100.0 %".to_owned(), whole));
    let mut at = 0.0;
    for (stage, (sign, what)) in STAGES.iter().zip(STAGE_WORDS) {
        let us = receipt.stage(stage);
        let label = format!("  {stage:<7} {what}");
        rows.push(row(&label, micros(us), share(us, total), axis.draw(&[bar(sign, at, us)])));
        at += us;
    }
    let residue = receipt.us("residue_us");
    rows.push(row("  residue not in any stage", micros(residue), share(residue, total), String::new()));
    rows.extend(receipt.followers().flat_map(|follower| follower_rows(follower, receipt.turn_us(), axis)));
    aligned(&rows, &[1, 2])
}

fn follower_rows(follower: Receipt<'_>, turn_us: f64, axis: Axis) -> Vec<Vec<String>> {
    let label = format!("follower {}", follower.address());
    let Some(ack) = follower.ack_us() else {
        return vec![row(&label, "-".to_owned(), String::new(), "no ACK when this was written".to_owned())];
    };
    let late = follower.0.get("before_commit").and_then(Value::as_bool) == Some(false);
    let label = if late { format!("{label}, not waited for") } else { label };
    let [decode, sync, network] = ["decode_us", "sync_us", "network_us"].map(|field| follower.us(field));
    let own = turn_us + network / 2.0;
    let bars = [bar('~', turn_us, ack), bar('=', own, decode), bar('#', own + decode, sync)];
    let part = |what: &str, us: f64| row(&format!("  {what}"), micros(us), share(us, ack), String::new());
    vec![
        row(&label, micros(ack), "100.0 %".to_owned(), axis.draw(&bars)),
        part("decode  records to its log's buffer", decode),
        part("sync    write and flush of its log", sync),
        part("network and wake-ups: the rest", network),
    ]
}

fn row(label: &str, us: String, share: String, bar: String) -> Vec<String> {
    vec![label.to_owned(), us, share, bar]
}

fn share(us: f64, of_us: f64) -> String {
    if of_us > 0.0 { format!("{:.1} %", us * 100.0 / of_us) } else { String::new() }
}

/// The stage that took most, and for a wait what was waited for.
fn longest(receipt: Receipt<'_>) -> Option<String> {
    let (stage, us) = longest_stage(receipt)?;
    let total = receipt.us("total_us");
    let why = match waited_for(receipt).filter(|_| stage == "commit") {
        Some(Waited::For(last)) => {
            let (disk, network) = (last.us("sync_us"), last.us("network_us"));
            let what = if disk >= network { "its disk" } else { "the network and wake-ups" };
            format!(", waiting for {}, most of it for {what}", last.address())
        }
        Some(Waited::InVain(silent)) => {
            format!(", waiting for {} until it left the in-sync set", silent.address())
        }
        None => String::new(),
    };
    Some(format!("Longest: {stage}, {} us, {} of the leader's time{why}.", micros(us), share(us, total)))
}

/// Whom the leader waited for before it could commit.
enum Waited<'a> {
    /// The last one whose ACK came in time.
    For(Receipt<'a>),
    /// One whose ACK did not come: the wait went on after the last ACK for longer than any turn takes.
    InVain(Receipt<'a>),
}

fn waited_for(receipt: Receipt<'_>) -> Option<Waited<'_>> {
    let in_time = |follower: &Receipt<'_>| follower.0["before_commit"] == true;
    let last = receipt.followers().filter(in_time).max_by(|a, b| a.us("ack_us").total_cmp(&b.us("ack_us")));
    let committed_us: f64 = ["send", "sync", "commit"].map(|stage| receipt.stage(stage)).iter().sum();
    let after_last_us =
        committed_us - last.map_or(receipt.stage("send") + receipt.stage("sync"), |l| l.us("ack_us"));
    let silent = receipt.followers().find(|follower| !in_time(follower));
    match (silent, last) {
        (Some(silent), _) if after_last_us >= LEFT_OUT_US_MIN => Some(Waited::InVain(silent)),
        (_, last) => last.map(Waited::For),
    }
}

fn longest_stage(receipt: Receipt<'_>) -> Option<(&'static str, f64)> {
    let stages = STAGES.iter().map(|stage| (*stage, receipt.stage(stage)));
    stages.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, us)| *us > 0.0)
}

fn outside(receipt: Receipt<'_>, round_trip_us: Option<f64>) -> Option<String> {
    let round_trip = round_trip_us?;
    let rest = micros(round_trip - receipt.us("total_us"));
    Some(format!(
        "Not the node's: {rest} us of the client's {} us, for both system calls, both wake-ups and the network.",
        micros(round_trip)
    ))
}

/// The slowest writes: a line for each, slowest first.
pub fn render_slowest(receipts: &[Value]) -> String {
    if receipts.is_empty() {
        return "no writes since this node began to lead, or since the last reset\n".to_owned();
    }
    let mut header = vec!["LSN".to_owned(), "total us".to_owned()];
    header.extend(STAGES.map(str::to_owned));
    header.extend(["writes", "longest"].map(str::to_owned));
    let mut rows = vec![header];
    for receipt in receipts.iter().map(Receipt) {
        let mut cells = vec![grouped(receipt.number("lsn")), micros(receipt.us("total_us"))];
        cells.extend(STAGES.map(|stage| micros(receipt.stage(stage))));
        cells.push(grouped(receipt.number("batch_writes")));
        cells.push(longest_in_short(receipt));
        rows.push(cells);
    }
    aligned(&rows, &[0, 1, 2, 3, 4, 5, 6, 7, 8])
}

fn longest_in_short(receipt: Receipt<'_>) -> String {
    let Some((stage, us)) = longest_stage(receipt) else { return "-".to_owned() };
    let whom = match waited_for(receipt).filter(|_| stage == "commit") {
        Some(Waited::For(last)) => {
            format!(": {}, its sync {} us", last.address(), micros(last.us("sync_us")))
        }
        Some(Waited::InVain(silent)) => format!(": {}, no ACK", silent.address()),
        None => String::new(),
    };
    format!("{stage} {}{whom}", share(us, receipt.us("total_us")))
}

/// What the slowest writes have in common: a sentence that names the culprit, then all shares.
pub fn render_tail(tail: &Value) -> String {
    let tail = Receipt(tail);
    let shares = tail.list("shares");
    let (Some(culprit), known @ 1..) = (shares.first(), tail.number("writes_known")) else {
        return "no writes are known: none since this node began to lead\n".to_owned();
    };
    let slowest = tail.number("writes_slowest");
    let what = |share: &Value| share.get("what").and_then(Value::as_str).map_or("?".to_owned(), printable);
    let percent = |share: &Value| format!("{:.1} %", Receipt(share).us("percent"));
    let mut out = format!(
        "In the slowest {} of the last {} write{} (above p{}, {} to {} us) most time went to {}: {}, \
         {} us on average.\n\n",
        grouped(slowest),
        grouped(known),
        plural(known),
        tail.us("percentile"),
        micros(tail.us("fastest_of_them_us")),
        micros(tail.us("slowest_us")),
        what(culprit),
        percent(culprit),
        micros(Receipt(culprit).us("mean_us")),
    );
    let mut rows = vec![["what", "share", "mean us", ""].map(str::to_owned).to_vec()];
    rows.extend(shares.iter().map(|share| {
        let bar = "#".repeat((Receipt(share).us("percent") / 2.5).round().clamp(0.0, 40.0) as usize);
        vec![what(share), percent(share), micros(Receipt(share).us("mean_us")), bar]
    }));
    out.push_str(&aligned(&rows, &[1, 2]));
    if let [first, ..] = tail.list("lsns") {
        let all: Vec<String> = tail.list("lsns").iter().map(Value::to_string).collect();
        out.push_str(&format!(
            "\nThe slowest of them, LSN {}. See one: kv_client explain {first}\n",
            all.join(" ")
        ));
    }
    out
}
