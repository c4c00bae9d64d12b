//! SIGTERM and SIGINT: the first ends the node in order, the second at once.

use std::io::{self, Read};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mio::net::UnixStream;
use signal_hook::consts::{SIGINT, SIGTERM};

const SIGNALS: [i32; 2] = [SIGTERM, SIGINT];

/// A pipe that a signal writes to: the end to read, and one end to write for each signal.
#[derive(Debug)]
pub struct SignalPipe {
    read: StdUnixStream,
    writes: [StdUnixStream; SIGNALS.len()],
}

impl SignalPipe {
    /// A pipe that nothing writes to yet.
    pub fn new() -> io::Result<SignalPipe> {
        let (read, write) = StdUnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        Ok(SignalPipe { read, writes: [write.try_clone()?, write] })
    }
}

/// The readable end of the pipe.
#[derive(Debug)]
pub struct Signals {
    stream: UnixStream,
}

impl Signals {
    /// Installs the handlers.
    pub fn install(pipe: SignalPipe) -> io::Result<Signals> {
        let asked = Arc::new(AtomicBool::new(false));
        for (signal, write) in SIGNALS.into_iter().zip(pipe.writes) {
            // Order matters: the second signal finds the flag that the first one set behind this line.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked))?;
            signal_hook::flag::register(signal, Arc::clone(&asked))?;
            signal_hook::low_level::pipe::register(signal, write)?;
        }
        Ok(Signals { stream: UnixStream::from_std(pipe.read) })
    }

    /// For the poll.
    pub fn source(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Empties the pipe after its event.
    pub fn drain(&mut self) {
        let mut bytes = [0; 16];
        while matches!(self.stream.read(&mut bytes), Ok(size) if size == bytes.len()) {}
    }
}
