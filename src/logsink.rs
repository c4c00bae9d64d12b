//! Where log lines go: stderr, without ever waiting for whoever reads it.
//!
//! A pipe or terminal whose reader has stopped must not stall the loop, and `O_NONBLOCK` would be set for
//! every process that shares the descriptor. So each line is written only after the kernel says that at
//! least a pipe's atomic size fits; until then lines wait in a bounded buffer, and beyond that they are
//! dropped and counted.

use std::io::{self, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use simplelog::{ConfigBuilder, LevelFilter, WriteLogger};

/// Bytes that may be written when the kernel reports room (`PIPE_BUF`).
const WRITE_SIZE_MAX: usize = 4096;
/// Bytes that wait at most.
const BUFFER_SIZE_MAX: usize = 256 << 10;

/// Sends log lines of this level and above to stderr.
pub fn install(level: LevelFilter) {
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .build();
    // The second installation in one process fails, and then the first one goes on.
    let _ = WriteLogger::init(level, config, StderrSink::default());
}

#[derive(Debug, Default)]
struct StderrSink {
    /// Bytes not written yet; simplelog writes a line in pieces.
    waiting: Vec<u8>,
    dropped_lines: u64,
    line_dropped: bool,
}

impl Write for StderrSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ends_line = bytes.ends_with(b"\n");
        if self.waiting.len() + bytes.len() > BUFFER_SIZE_MAX {
            self.line_dropped = true;
        }
        if !self.line_dropped {
            self.waiting.extend_from_slice(bytes);
        }
        if ends_line {
            if std::mem::take(&mut self.line_dropped) {
                self.dropped_lines += 1;
                self.finish_partial_line();
            }
            self.drain();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain();
        Ok(())
    }
}

impl StderrSink {
    fn finish_partial_line(&mut self) {
        if self.waiting.last().is_some_and(|byte| *byte != b'\n') {
            self.waiting.push(b'\n');
        }
    }

    fn drain(&mut self) {
        while !self.waiting.is_empty() && stderr_has_room() {
            let size = self.waiting.len().min(WRITE_SIZE_MAX);
            match rustix::io::write(rustix::stdio::stderr(), &self.waiting[..size]) {
                Ok(written) => {
                    self.waiting.drain(..written);
                }
                // A closed stderr takes nothing ever again; lines are not worth a process.
                Err(_) => self.waiting.clear(),
            }
        }
        if self.waiting.is_empty() && self.dropped_lines > 0 {
            let dropped = std::mem::take(&mut self.dropped_lines);
            self.waiting =
                format!("(the reader of this log was slow: {dropped} line(s) were dropped)\n").into_bytes();
        }
    }
}

fn stderr_has_room() -> bool {
    let stderr = rustix::stdio::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::OUT)
}
