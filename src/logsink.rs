//! Where log lines go: stderr, without ever waiting for whoever reads it.
//!
//! A line is kept in memory when it is logged and written when the turn is over ([`drain`]), so that a log
//! line never stands between a write and its acknowledgement. A pipe or terminal whose reader has stopped
//! must not stall the loop, and `O_NONBLOCK` would be set for every process that shares the descriptor. So
//! lines are written only when the kernel says that at least a pipe's atomic size fits; until then they wait
//! in a bounded buffer, and beyond that they are dropped and counted.

use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use simplelog::{ConfigBuilder, LevelFilter, WriteLogger};

use crate::ledger::{Syscall, count};
use crate::progress::{BEGIN, CLEAR, END};

/// Bytes that may be written when the kernel reports room (`PIPE_BUF`).
const WRITE_SIZE_MAX: usize = 4096;
/// Bytes that wait at most.
const BUFFER_SIZE_MAX: usize = 256 << 10;

static LINES: Mutex<Lines> =
    Mutex::new(Lines { waiting: Vec::new(), partial: Vec::new(), dropped: 0, has_progress: false });

/// Whether lines wait for [`drain`]. Before the loop runs nobody waits for a reply, and an operator for a line.
static DEFERRED: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Lines {
    /// Whole lines not written yet.
    waiting: Vec<u8>,
    /// The line that is being logged: it comes in pieces.
    partial: Vec<u8>,
    dropped: u64,
    /// The last line of the terminal is one of progress: the next log line takes its place.
    has_progress: bool,
}

/// Sends log lines of this level and above to stderr.
pub fn install(level: LevelFilter) {
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .build();
    // The second installation in one process fails, and then the first one goes on.
    let _ = WriteLogger::init(level, config, Sink);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        drain();
        report(panic);
    }));
}

/// From now on lines wait until [`drain`].
pub fn defer() {
    DEFERRED.store(true, Ordering::Relaxed);
}

/// Writes the lines that wait, as far as the reader takes them now.
pub fn drain() {
    // Poisoned only by a panic in here, and then the process ends anyway.
    if let Ok(mut lines) = LINES.try_lock() {
        lines.drain();
    }
}

/// Puts this line of progress under the log, on a terminal, in the place of the one before; `None` takes it away.
pub fn show_progress(line: Option<&str>) {
    if let Ok(mut lines) = LINES.try_lock() {
        lines.drain();
        lines.show_progress(line);
    }
}

struct Sink;

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(mut lines) = LINES.lock() {
            lines.add(bytes);
            if !DEFERRED.load(Ordering::Relaxed) {
                lines.drain();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        if !bytes.ends_with(b"\n") {
            return;
        }
        if self.waiting.len() + self.partial.len() <= BUFFER_SIZE_MAX {
            self.waiting.append(&mut self.partial);
        } else {
            self.partial.clear();
            self.dropped += 1;
        }
    }

    fn drain(&mut self) {
        if !self.waiting.is_empty() {
            self.show_progress(None);
        }
        let mut done = 0;
        while done < self.waiting.len() && stderr_has_room() {
            let size = (self.waiting.len() - done).min(WRITE_SIZE_MAX);
            count(Syscall::Write);
            match rustix::io::write(rustix::stdio::stderr(), &self.waiting[done..done + size]) {
                Ok(written) => done += written,
                // A closed stderr takes nothing ever again; lines are not worth a process.
                Err(_) => done = self.waiting.len(),
            }
        }
        if done == self.waiting.len() {
            self.waiting.clear();
            self.tell_dropped();
        } else {
            self.waiting.copy_within(done.., 0);
            self.waiting.truncate(self.waiting.len() - done);
        }
    }

    fn show_progress(&mut self, line: Option<&str>) {
        // Behind lines that wait it would stand in the middle of one.
        if (line.is_none() && !self.has_progress) || !stderr_has_room() {
            return;
        }
        let text = line.map_or_else(|| CLEAR.to_owned(), |line| format!("{BEGIN}{line}{END}"));
        count(Syscall::Write);
        // A terminal that is gone shows nothing.
        let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
        self.has_progress = line.is_some();
    }

    fn tell_dropped(&mut self) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            self.waiting =
                format!("(the reader of this log was slow: {dropped} line(s) were dropped)\n").into_bytes();
        }
    }
}

fn stderr_has_room() -> bool {
    let stderr = rustix::stdio::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    count(Syscall::LogPoll);
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}
