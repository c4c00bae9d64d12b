//! A load under way, and how far it is: for the log, for `status`, and for a terminal.

use serde_json::{Value, json};

use super::Node;
use super::load::{Loader, Sources};
use super::role::StartRole;
use crate::log_info;
use crate::time::Time;

/// A load under way: the node has no role yet.
pub(super) struct Loading {
    pub loader: Loader,
    pub sources: Sources,
    pub start: StartRole,
    pub began: Time,
    next_line: Time,
}

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// When.
    pub at: Time,
    /// Of a hundred, 99 at most.
    pub percent: u64,
    /// Bytes of snapshot and log read.
    pub done_bytes: u64,
    /// Bytes to be read, about.
    pub total_bytes: u64,
    /// Seconds left, if that can be told.
    pub eta_s: Option<u64>,
}

impl Loading {
    pub fn new(loader: Loader, sources: Sources, start: StartRole, now: Time) -> Loading {
        Loading { loader, sources, start, began: now, next_line: now }
    }

    fn progress(&self, at: Time) -> LoadProgress {
        let (done_bytes, total_bytes) = (self.loader.done_bytes(), self.loader.total_bytes().max(1));
        let percent = (done_bytes.min(total_bytes) * 100 / total_bytes).min(99);
        let took_ns = u128::from(at.since(self.began));
        let left_ns =
            took_ns * u128::from(total_bytes.saturating_sub(done_bytes)) / u128::from(done_bytes.max(1));
        let eta_s = (done_bytes > 0).then_some((left_ns / 1_000_000_000) as u64);
        LoadProgress { at, percent, done_bytes, total_bytes, eta_s }
    }
}

impl Node {
    /// How far the loading of the state is; `None`: it is loaded.
    pub fn load_progress(&self) -> Option<LoadProgress> {
        self.load.as_ref().map(|loading| loading.progress(self.clock.now()))
    }

    /// A line for the log, now and then.
    pub(super) fn log_load_progress(&mut self) {
        let every_ms = self.config.snapshot.progress_ms;
        let Some(LoadProgress { at, percent, done_bytes, total_bytes, eta_s }) = self.load_progress() else {
            return;
        };
        let Some(loading) = self.load.as_mut().filter(|loading| at >= loading.next_line) else { return };
        loading.next_line = at.after_ms(every_ms);
        let left = eta_s.map_or_else(String::new, |eta_s| format!(", about {eta_s} s left"));
        log_info!("node", "loading, {percent} %: {done_bytes} of {total_bytes} bytes{left}");
    }

    /// For `status`.
    pub(super) fn loading_document(&self) -> Value {
        let Some(LoadProgress { percent, eta_s, .. }) = self.load_progress() else { return Value::Null };
        json!({"progress": percent, "eta_s": eta_s, "text": self.incomplete_text()})
    }
}
