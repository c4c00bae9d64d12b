//! strace around a node: calls that fail or take long, a kill at one call of a run, and the list of calls that a
//! run made, from which such a call is drawn.
//!
//! A kill is delivered when the call is entered, and the call is not executed: between two calls nothing outside
//! of the process changes, so a process that dies before every call has died at every moment there is.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use super::cluster::Seeded;

/// Whether strace may trace here. Where it may not, tests that need it say so and prove nothing.
pub fn works() -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=none", "true"]);
    let works = strace.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|done| done.success());
    if !works {
        eprintln!("SKIPPED: strace is not there or may not trace; no system call was interfered with");
    }
    works
}

/// One call of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    /// Counted among the calls of this name, from 1.
    pub nth: usize,
}

fn wrapper(arguments: &[&str], output: &str) -> Vec<String> {
    let fixed = ["strace", "-f", "-qq", "-o", output];
    fixed.iter().chain(arguments).map(|&argument| argument.to_owned()).collect()
}

/// The command line that interferes with calls of the process behind it. strace ends as that process does.
pub fn injecting(injections: &[&str], output: &str) -> Vec<String> {
    let injections: Vec<String> = injections.iter().map(|text| format!("--inject={text}")).collect();
    wrapper(&injections.iter().map(String::as_str).collect::<Vec<_>>(), output)
}

/// The command line that kills the process behind it when it enters this call.
pub fn killing_at(call: &Call) -> Vec<String> {
    let trace = format!("--trace={}", call.name);
    let inject = format!("--inject={}:signal=KILL:when={}", call.name, call.nth);
    // Not with --seccomp-bpf, which would spare the other calls their stops: strace 6.1 then injects no signal.
    wrapper(&[&trace, &inject], "/dev/null")
}

/// The command line that writes down every call into this file.
pub fn recording(path: &Path) -> Vec<String> {
    wrapper(&[], &path.to_string_lossy())
}

/// The calls of a recorded run, from which kills are drawn.
#[derive(Debug)]
pub struct Recorded {
    calls: Vec<Call>,
    /// Those among them that change files, or make changes durable.
    on_disk: Vec<Call>,
}

/// Calls that change files or directories. Kills are drawn among them as often as among all others together,
/// which are mostly reads and writes of sockets.
const ON_DISK: [&str; 12] = [
    "pwrite64",
    "pwritev2",
    "fdatasync",
    "fsync",
    "fallocate",
    "ftruncate",
    "rename",
    "renameat",
    "renameat2",
    "unlinkat",
    "mkdir",
    "openat",
];

impl Recorded {
    /// Reads what [`recording`] wrote, from `before` calls ahead of the first one that names `file` on.
    pub fn read(path: &Path, file: &str, before: usize) -> Recorded {
        let text = std::fs::read_to_string(path).expect("strace wrote its output");
        let mut counts = BTreeMap::<&str, usize>::new();
        let (mut calls, mut named_at) = (Vec::new(), None);
        for line in text.lines() {
            let Some((call, arguments)) = line.split_once('(') else { continue };
            // In front of the name stands the process id; `<... x resumed>` is the rest of an earlier line.
            let Some(name) = call.split_whitespace().nth(1).filter(|name| !name.starts_with('<')) else {
                continue;
            };
            let nth = counts.entry(name).or_default();
            *nth += 1;
            if named_at.is_none() && arguments.contains(file) {
                named_at = Some(calls.len());
            }
            calls.push(Call { name: name.to_owned(), nth: *nth });
        }
        let named_at = named_at.unwrap_or_else(|| panic!("no call of {} names {file}", calls.len()));
        calls.drain(..named_at.saturating_sub(before));
        let on_disk: Vec<Call> =
            calls.iter().filter(|call| ON_DISK.contains(&call.name.as_str())).cloned().collect();
        assert!(on_disk.len() > 10, "a node that writes makes such calls; recorded were {}", calls.len());
        Recorded { calls, on_disk }
    }

    /// One of them.
    pub fn draw(&self, random: &mut Seeded) -> Call {
        let among = if random.below(2) == 0 { &self.calls } else { &self.on_disk };
        among[random.below(among.len() as u64) as usize].clone()
    }
}
