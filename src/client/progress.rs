//! How far a command is that takes long, on a terminal; nothing elsewhere.
//!
//! A node answers `snapshot` and `backup` when the snapshot is durable, on a connection on which nothing else is
//! answered meanwhile. So its progress is asked for on another one.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Client;
use super::connection::OwnedReply;
use super::error::{ClientError, Loss};
use crate::progress::{self, BEGIN, CLEAR, END};
use crate::wire::client::Request;

/// Between two lines.
const SHOW_EVERY: Duration = Duration::from_millis(100);
/// Between two questions to the node.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// The line on stderr. It is gone when this is.
pub(super) struct Line {
    is_shown: bool,
    shown: Option<Instant>,
}

impl Line {
    pub fn new() -> Line {
        Line { is_shown: io::stderr().is_terminal(), shown: None }
    }

    /// Shows what `text` makes, unless the last line is too young.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        if !self.is_shown || self.shown.is_some_and(|shown| shown.elapsed() < SHOW_EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        // A terminal that is gone must not end the command.
        let _ = write!(io::stderr(), "{BEGIN}{}{END}", text());
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "{CLEAR}");
        }
    }
}

impl Client {
    /// As [`Client::call`], for a request that a node answers when it has made a snapshot: shows its progress.
    pub(super) fn call_for_snapshot(&mut self, request: &Request<'_>) -> Result<OwnedReply, ClientError> {
        let mut line = Line::new();
        if !line.is_shown {
            return self.call(request);
        }
        let timeout = self.timeout;
        let result = self.call_showing(request, timeout, &mut line);
        self.timeout = timeout;
        result
    }

    fn call_showing(
        &mut self,
        request: &Request<'_>,
        timeout: Duration,
        line: &mut Line,
    ) -> Result<OwnedReply, ClientError> {
        let began = Instant::now();
        self.send(request)?;
        self.flush()?;
        let mut other = Client::new(&self.address, ASK_EVERY)?;
        loop {
            self.timeout = ASK_EVERY.min(timeout);
            match self.receive() {
                Err(error) if is_timeout(&error) && began.elapsed() < timeout => {}
                Err(error) => {
                    // A late answer must not be taken for that to another request.
                    self.go_home();
                    return Err(error);
                }
                reply => return reply,
            }
            // Who cannot be asked now may be asked again later; the command goes on.
            if let Some(text) = other.status().ok().and_then(|status| snapshot_line(&status.value)) {
                line.show(|| text);
            }
        }
    }
}

fn is_timeout(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::OutcomeUnknown { why: Loss::TimedOut(_), .. }
            | ClientError::ReadLost { why: Loss::TimedOut(_), .. }
    )
}

/// How far the snapshot of this status document is.
fn snapshot_line(status: &Value) -> Option<String> {
    let snapshot = &status["snapshot"];
    if snapshot["state"] != "running" {
        return None;
    }
    let what = match (snapshot["waits_for_commit"].as_bool(), snapshot["bytes"].as_u64()) {
        (Some(true), _) => "written; waits for its last record to be committed".to_owned(),
        (_, Some(bytes)) => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => String::new(),
    };
    Some(progress::line("snapshot", snapshot["progress"].as_u64()?, &what, snapshot["eta_s"].as_u64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_snapshot_has_a_line_and_no_other() {
        let running =
            serde_json::json!({"state": "running", "progress": 40, "bytes": 12_300_000, "eta_s": 3});
        let line = snapshot_line(&serde_json::json!({ "snapshot": running })).unwrap();
        assert!(line.starts_with("snapshot [####") && line.ends_with("] 40 %  12.3 MB  ETA 3 s"), "{line}");
        let waits = serde_json::json!({"state": "running", "progress": 100, "waits_for_commit": true});
        let line = snapshot_line(&serde_json::json!({ "snapshot": waits })).unwrap();
        assert!(line.contains("99 %  written; waits"), "{line}");
        assert_eq!(snapshot_line(&serde_json::json!({"snapshot": {"state": "done"}})), None);
        assert_eq!(snapshot_line(&serde_json::json!({})), None);
    }
}
