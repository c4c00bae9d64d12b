//! The warnings of this thread's nodes, for traces.

use std::cell::RefCell;

use log::{Level, LevelFilter, Log, Metadata, Record};

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Capture;

impl Log for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// From now on warnings are kept. Once per process; again is harmless.
pub fn capture() {
    if log::set_logger(&Capture).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// The lines since the last call.
pub fn take() -> Vec<String> {
    LINES.take()
}
