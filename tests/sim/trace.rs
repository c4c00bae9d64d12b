//! Log lines of the nodes in the trace, and the text of a panic.

use std::cell::{Cell, RefCell};
use std::panic::PanicHookInfo;

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static VERBOSE: Cell<bool> = const { Cell::new(false) };
}

struct Printer;

impl log::Log for Printer {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        VERBOSE.get()
    }

    fn log(&self, record: &log::Record<'_>) {
        if VERBOSE.get() {
            println!("               {:>5} {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Prints what nodes log, if the trace is asked for.
pub fn install(verbose: bool) {
    VERBOSE.set(verbose);
    if verbose {
        log::set_logger(&Printer).expect("nobody else logs here");
        log::set_max_level(log::LevelFilter::Debug);
    }
}

/// Forgets the last panic.
pub fn begin_run() {
    PANIC.take();
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
