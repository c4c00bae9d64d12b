//! `--watch`: the same answer every second, until Ctrl-C, or until nobody reads it any more.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ClientError;

/// Between two looks.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Cursor home, the page, then what an earlier, longer page left below is erased. Erasing first would
/// flicker.
const HOME: &str = "\x1b[H";
const ERASE_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";

/// How watching ended.
pub(super) enum Ended {
    /// The reader of stdout is gone: it has seen enough.
    ReaderGone,
    /// stdout cannot be written.
    Output(io::Error),
}

/// Prints what `page` returns, every second. On a terminal each page replaces the one before; elsewhere
/// they follow each other, `page` ending with what parts them.
pub(super) fn watch(mut page: impl FnMut() -> Result<String, ClientError>) -> Result<Ended, ClientError> {
    let on_terminal = io::stdout().is_terminal();
    let mut next = Instant::now();
    loop {
        let text = page()?;
        let shown = if on_terminal { replacing(&text) } else { text };
        let mut stdout = io::stdout().lock();
        match stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Ended::ReaderGone),
            Err(error) => return Ok(Ended::Output(error)),
        }
        next += INTERVAL;
        if reader_leaves_before(next) {
            return Ok(Ended::ReaderGone);
        }
        // After a pause (Ctrl-Z) the missed pages are not made up for.
        next = next.max(Instant::now());
    }
}

fn replacing(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("{line}{ERASE_LINE}\n")).collect();
    format!("{HOME}{lines}{ERASE_BELOW}")
}

/// Sleeps; true as soon as the pipe that stdout is has no reader any more.
fn reader_leaves_before(until: Instant) -> bool {
    let stdout = io::stdout();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // No events are asked for: errors and hang-ups are told anyway.
        let mut fds = [PollFd::new(&stdout, PollFlags::empty())];
        if poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0) {
            return true;
        }
    }
}
