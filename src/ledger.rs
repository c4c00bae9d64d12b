//! The ledger of system calls: every call that the loop makes is counted here, by the name that strace
//! shows. One counter per kind for the whole process, because that is what strace sees too.
//!
//! Left out on purpose: calls of the allocator (`brk`, `mmap`, `munmap`), which no request causes by itself,
//! and those before the loop runs.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! syscalls {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// A kind of system call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Syscall { $(#[doc = $text] $name),* }

        const NAMES: &[&str] = &[$($text),*];
    };
}

syscalls! {
    EpollWait = "epoll_wait",
    EpollCtl = "epoll_ctl",
    Recv = "recvfrom",
    Send = "sendto",
    Accept = "accept4",
    Close = "close",
    Setsockopt = "setsockopt",
    Getsockopt = "getsockopt",
    Getpeername = "getpeername",
    Socket = "socket",
    Connect = "connect",
    Fcntl = "fcntl",
    Pwrite = "pwrite64",
    PwriteSync = "pwritev2",
    Fdatasync = "fdatasync",
    UringEnter = "io_uring_enter",
    Fsync = "fsync",
    Pread = "pread64",
    Open = "openat",
    Fallocate = "fallocate",
    Fadvise = "fadvise64",
    Rename = "renameat",
    Unlink = "unlinkat",
    Fstat = "fstat",
    Getdents = "getdents64",
    LogPoll = "ppoll",
    Write = "write",
    Prctl = "prctl",
    Getpid = "getpid",
}

static COUNTS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// Counts one call. Relaxed is enough: one thread makes the calls and reads the ledger.
pub fn count(call: Syscall) {
    COUNTS[call as usize].fetch_add(1, Ordering::Relaxed);
}

/// All counts, by name, zeros included.
pub fn snapshot() -> impl Iterator<Item = (&'static str, u64)> {
    NAMES.iter().zip(&COUNTS).map(|(name, count)| (*name, count.load(Ordering::Relaxed)))
}
