//! A process started from this very binary. It ends with its standard input, and by its own id.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{self, Command, Stdio};

/// A path as a flag.
pub fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", path.display()))
}

pub struct Child {
    process: process::Child,
    name: String,
    input: process::ChildStdin,
    output: BufReader<process::ChildStdout>,
}

impl Child {
    pub fn start(flags: &[&str]) -> Result<Child, String> {
        let name = flags[0].to_owned();
        let describe = |error: std::io::Error| format!("{name}: cannot be started: {error}");
        let binary = std::env::current_exe().map_err(describe)?;
        let mut process = Command::new(binary)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(describe)?;
        let input = process.stdin.take().expect("asked for as a pipe");
        let output = BufReader::new(process.stdout.take().expect("asked for as a pipe"));
        Ok(Child { process, name, input, output })
    }

    /// The address that a process says it listens on, as its first line.
    pub fn read_address(&mut self) -> Result<SocketAddr, String> {
        let line = self.read_line()?;
        line.parse().map_err(|_| format!("{} said {line:?} instead of its address", self.name))
    }

    /// The next line; an end is an error, the process has said on standard error what was wrong.
    pub fn read_line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(size) if size > 0 => Ok(line.trim_end().to_owned()),
            Ok(_) => Err(format!("{} ended before it was ready", self.name)),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    /// Sends a byte, without waiting for anything.
    pub fn write_byte(&mut self) -> Result<(), String> {
        self.input.write_all(b"x").map_err(|error| format!("{}: {error}", self.name))
    }

    /// Waits for a byte.
    pub fn read_byte(&mut self) -> Result<(), String> {
        self.output.read_exact(&mut [0]).map_err(|error| format!("{}: {error}", self.name))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
