//! A descriptor that refuses every write, for those who watch with strace.
//!
//! It is one of the data directory, opened with `O_PATH`: the kernel answers a write to it with EBADF before it looks
//! at a byte. Nothing is written anywhere, and strace shows the call with its text.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::ledger::{Syscall, count};

/// Takes notes and writes none.
#[derive(Debug)]
pub struct Refusing(OwnedFd);

impl Refusing {
    /// Opens the directory for nothing.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open(data_dir: &Path) -> io::Result<Refusing> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Refusing(rustix::fs::open(data_dir, flags, Mode::empty())?))
    }

    /// Shows the note to whoever traces this process.
    pub fn show(&self, note: &[u8]) {
        count(Syscall::Write);
        let refused = rustix::io::write(&self.0, note);
        assert!(refused.is_err(), "a descriptor opened with O_PATH takes no bytes");
    }
}
