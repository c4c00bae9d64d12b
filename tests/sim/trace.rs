//! Log lines of the nodes in the trace, and the text of a panic.

use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static VERBOSE: Cell<bool> = const { Cell::new(false) };
    static WARNINGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Printer;

impl log::Log for Printer {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if VERBOSE.get() {
            println!("               {:>5} {}", record.level(), record.args());
        }
        if record.level() == log::Level::Warn {
            WARNINGS.with_borrow_mut(|lines| lines.push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// Keeps the warnings of nodes, and prints all that they log if the trace is asked for.
pub fn install(verbose: bool) {
    VERBOSE.set(verbose);
    log::set_logger(&Printer).expect("nobody else logs here");
    log::set_max_level(if verbose { log::LevelFilter::Debug } else { log::LevelFilter::Warn });
}

/// The warnings since the last call.
pub fn take_warnings() -> Vec<String> {
    WARNINGS.take()
}

/// Forgets the last panic.
pub fn begin_run() {
    PANIC.take();
    WARNINGS.take();
}

/// Keeps the text of a panic instead of printing it.
pub fn note_panic(info: &PanicHookInfo<'_>) {
    PANIC.set(info.to_string().replace('\n', " "));
}

/// What the last panic said.
pub fn panic_text() -> String {
    PANIC.take()
}

/// The commit this was built from, as far as git knows.
pub fn commit() -> String {
    let output = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
