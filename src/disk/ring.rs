//! One `fdatasync` at a time that nobody waits for, through io_uring.
//!
//! A flush is one entry in the ring: an fsync of the data of a file. A thread of the kernel does it (the file
//! systems have no other way), and the ring becomes readable when it is done, so that a poll wakes up by it. No
//! bytes of this process are lent to the kernel: the batch is written with a plain `pwrite` before. That is the
//! reason for this shape. Measured alone (p50 of 128 bytes and of 8 KiB, interleaved with the others): `pwritev2`
//! inline 94 us and 153 us; `pwrite` and a flush through the ring 98 and 152; a write with `RWF_DSYNC` through the
//! ring 98 and 157; a write linked with a flush 99 and 142. The loop is held 1 us and 3 us by the `pwrite`.
//!
//! Left out: submission by a polling thread of the kernel (burns a processor), registered files (nothing to gain at
//! one entry per batch), `O_DIRECT` (batches are not aligned to blocks), and `IORING_SETUP_SINGLE_ISSUER` with
//! `COOP_TASKRUN` (98 us with and without).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, opcode, types};

use crate::ledger::{Syscall, count};

/// Entries: one flush, and a probe before there is any.
const ENTRIES: u32 = 2;

/// A ring with at most one flush in it.
pub struct FlushRing {
    ring: IoUring,
    /// Whether a flush was handed over and its result not taken.
    busy: bool,
}

impl FlushRing {
    /// Makes a ring and sends an empty entry through it: a sandbox may allow the one and not the other.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` where the kernel has no io_uring or does not allow it, and whatever else keeps it from
    /// working.
    pub fn new() -> io::Result<FlushRing> {
        let mut ring = FlushRing { ring: IoUring::new(ENTRIES)?, busy: false };
        ring.push(&opcode::Nop::new().build());
        ring.submit(1)?;
        ring.take()
            .unwrap_or_else(|| Err(io::Error::other("an empty entry of io_uring did not come back")))?;
        Ok(ring)
    }

    /// Asks for an `fdatasync` of this file. What it covers is what was written before.
    ///
    /// # Errors
    /// If the kernel did not take the entry. Then nothing was begun, and the ring is of no use any more.
    pub(super) fn begin(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        assert!(!self.busy, "one flush at a time");
        let flush = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC);
        self.push(&flush.build());
        match self.submit(0)? {
            1 => self.busy = true,
            taken => return Err(io::Error::other(format!("io_uring took {taken} entries of 1"))),
        }
        Ok(())
    }

    /// The result of the flush, once it has one.
    pub(super) fn poll(&mut self) -> Option<io::Result<()>> {
        if !self.busy {
            return None;
        }
        let result = self.take()?;
        self.busy = false;
        Some(result)
    }

    /// Waits for the flush.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        assert!(self.busy, "there is a flush to wait for");
        loop {
            if let Some(result) = self.poll() {
                return result;
            }
            match self.submit(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Entries taken by the kernel. Returns once `want` results are there.
    fn submit(&mut self, want: usize) -> io::Result<usize> {
        count(Syscall::UringEnter);
        self.ring.submit_and_wait(want)
    }

    fn take(&mut self) -> Option<io::Result<()>> {
        let result = self.ring.completion().next()?.result();
        Some(if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) })
    }

    #[allow(unsafe_code)]
    fn push(&mut self, entry: &io_uring::squeue::Entry) {
        // SAFETY: the entry (an fsync or nothing) names no memory of this process. The descriptor is open while
        // the entry is submitted, which follows at once; from then on the kernel holds the file by itself.
        unsafe { self.ring.submission().push(entry) }.expect("the ring holds nothing but this entry");
    }
}

impl AsRawFd for FlushRing {
    /// Readable when a flush has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl std::fmt::Debug for FlushRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlushRing").field("busy", &self.busy).finish_non_exhaustive()
    }
}
