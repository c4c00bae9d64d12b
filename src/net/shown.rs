//! What people see of a running process: its name, which follows the role, and while a state is loaded a line of
//! progress on a terminal. Elsewhere than on a terminal the log says how far a load is.

use std::ffi::CString;
use std::io::IsTerminal;

use crate::ledger::{Syscall, count};
use crate::logsink;
use crate::node::Node;
use crate::progress::{line, megabytes};
use crate::time::Time;

/// Milliseconds between two lines of progress.
const PROGRESS_EVERY_MS: u64 = 100;

/// See the head of this file.
pub struct Shown {
    /// The role that the process is named for.
    named_for: &'static str,
    on_terminal: bool,
    has_progress: bool,
    next_at: Time,
}

impl Shown {
    /// Nothing is shown yet.
    pub fn new() -> Shown {
        let on_terminal = std::io::stderr().is_terminal();
        Shown { named_for: "", on_terminal, has_progress: false, next_at: Time(0) }
    }

    /// Shows what has changed.
    pub fn update(&mut self, node: &Node) {
        self.follow_role_with_name(node);
        if self.on_terminal {
            self.follow_load(node);
        }
    }

    /// `ps`, `top` and strace show the role: `kv-leader:9001`.
    fn follow_role_with_name(&mut self, node: &Node) {
        if self.named_for == node.role_name() {
            return;
        }
        self.named_for = node.role_name();
        if let Ok(name) = CString::new(node.process_name()) {
            count(Syscall::Prctl);
            // A process without its name works as well.
            let _ = rustix::thread::set_name(&name);
        }
    }

    fn follow_load(&mut self, node: &Node) {
        match node.load_progress() {
            Some(progress) if progress.at >= self.next_at => {
                self.next_at = progress.at.after_ms(PROGRESS_EVERY_MS);
                self.has_progress = true;
                let bytes = megabytes(progress.done_bytes, progress.total_bytes);
                logsink::show_progress(Some(&line("loading", progress.percent, &bytes, progress.eta_s)));
            }
            None if self.has_progress => {
                self.has_progress = false;
                logsink::show_progress(None);
            }
            _ => {}
        }
    }
}
