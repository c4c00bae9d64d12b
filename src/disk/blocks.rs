//! Writing the log by whole blocks, past the page cache.
//!
//! What a durable append costs depends on two things that a log can choose. Measured here (ext4 on a virtual disk,
//! `pwritev2` with `RWF_DSYNC` of 4 KiB, 64 KiB and 1 MiB, three processes at once: p50 in us, and in brackets the
//! processor time of one process):
//!
//! | into | through the page cache | past it (`O_DIRECT`) |
//! |---|---|---|
//! | space only allocated | 182 (42), 275 (62), 1140 (540) | 154 (31), 221 (33), 1008 (73) |
//! | zeros written before | 121 (26), 154 (35), 714 (154) | 108 (19), 146 (21), 588 (68) |
//!
//! An allocated block is *unwritten* to the file system: the first sync behind it commits to the journal that it is
//! written now. And a copy in the page cache is of little use to a log that nobody reads soon. So the log has zeros
//! written ahead of it ([`OpenFile::zero_ahead`]), and overwrites them past the cache ([`OpenFile::append`]).
//!
//! `O_DIRECT` takes whole blocks at aligned places from aligned memory. A batch ends within a block, so that block is
//! written with zeros behind the batch, and by the next append again, with the same bytes in front. The page cache does
//! no less, it goes to the disk by whole pages; and what a torn write may leave is the same: each sector is old or new,
//! and sectors of bytes written before are equal in both.
//!
//! The file is opened a second time, through its descriptor, so that everything else (reads, headers, recovery) goes
//! through the page cache as ever. The kernel keeps both views the same: such a write first writes back and then drops
//! the cached pages that it meets. Where `O_DIRECT` is not taken (it is refused before anything is written), or `/proc`
//! is not mounted, the log is written like any file.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2, retry_on_intr};

use super::BLOCK_SIZE as BLOCK;
use crate::ledger::{Syscall, count};

/// Bytes of one write of zeros, at most.
const ZEROS_SIZE: usize = 1 << 20;

#[repr(align(4096))]
struct Zeros([u8; ZEROS_SIZE]);
static ZEROS: Zeros = Zeros([0; ZEROS_SIZE]);

/// How an append goes to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// Past the page cache, and durable.
    Disk,
    /// Into the page cache, for a sync that follows. By whole blocks too: a part of a block that is not cached is read
    /// from the disk first, which would hold the loop (zeros that were written past the cache are not in it).
    Cache,
}

/// An open file, and how it is appended to.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub fd: OwnedFd,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// Nothing was appended to it yet.
    Open,
    /// Like any file.
    Plain,
    /// By whole blocks.
    Blocks(Box<Blocks>),
}

impl OpenFile {
    /// A file that nothing was appended to.
    pub fn new(fd: OwnedFd) -> OpenFile {
        OpenFile { fd, way: Way::Open }
    }

    /// From now on it is appended to by whole blocks, if that was not decided otherwise.
    pub fn try_blocks(&mut self) {
        if let Way::Open = self.way {
            self.way = Blocks::open(&self.fd).map_or(Way::Plain, |blocks| Way::Blocks(Box::new(blocks)));
        }
    }

    /// Appends by whole blocks. `false`: nothing was written, and it must be written like any file.
    pub fn append(&mut self, offset: u64, bytes: &[u8], via: Via) -> io::Result<bool> {
        let Way::Blocks(blocks) = &mut self.way else { return Ok(false) };
        if !blocks.hold(offset, bytes.len()) {
            blocks.end = None;
            return Ok(false);
        }
        match blocks.append(&self.fd, offset, bytes, via) {
            Err(error) if is_refusal(&error) => {
                self.end_appends();
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }

    /// Writes zeros by whole blocks: not durable, for it changes nothing that is read. `false`: they are of no use.
    pub fn zero_ahead(&mut self, offset: u64, len: u64) -> bool {
        let Way::Blocks(blocks) = &self.way else { return false };
        blocks.write_zeros(offset, len).is_ok()
    }

    /// It is written in another way: the block in memory may be an old one.
    pub fn forget_block(&mut self) {
        if let Way::Blocks(blocks) = &mut self.way {
            blocks.end = None;
        }
    }

    /// Nothing more is appended to it, or not by whole blocks.
    pub fn end_appends(&mut self) {
        if let Way::Blocks(_) = std::mem::replace(&mut self.way, Way::Plain) {
            count(Syscall::Close);
        }
    }
}

/// Refused before anything was written: not aligned as this disk wants it, or a flag that the file system lacks.
fn is_refusal(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::OPNOTSUPP].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// A file open for writes of whole blocks, and the block that the last append ended in.
#[derive(Debug)]
struct Blocks {
    direct: OwnedFd,
    /// Bytes of the file: a write of whole blocks must not make it longer.
    size: u64,
    memory: Aligned,
    /// The end of the last append. Its unfinished block stands at the front of `memory`.
    end: Option<u64>,
}

impl Blocks {
    /// Opens the file of this descriptor again, past the page cache.
    fn open(file: &OwnedFd) -> io::Result<Blocks> {
        count(Syscall::Fstat);
        let size = u64::try_from(fs::fstat(file)?.st_size).expect("the size of a file is not negative");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        count(Syscall::Open);
        let direct =
            fs::openat(fs::CWD, path, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Blocks { direct, size, memory: Aligned::default(), end: None })
    }

    /// Whether the blocks of such an append lie within the file.
    fn hold(&self, offset: u64, len: usize) -> bool {
        (offset + len as u64).next_multiple_of(BLOCK as u64) <= self.size
    }

    /// Writes `bytes`, and zeros up to the end of their last block.
    fn append(&mut self, file: &OwnedFd, offset: u64, bytes: &[u8], via: Via) -> io::Result<()> {
        let head = (offset % BLOCK as u64) as usize;
        let used = head + bytes.len();
        let begin = offset - head as u64;
        let known = if self.end.take() == Some(offset) { head } else { 0 };
        let area = self.memory.area(used.next_multiple_of(BLOCK), known);
        if known < head {
            read_exact(file, begin, &mut area[..head])?;
        }
        area[head..used].copy_from_slice(bytes);
        area[used..].fill(0);
        match via {
            Via::Disk => write_durably(&self.direct, begin, area)?,
            Via::Cache => write_all(file, begin, area)?,
        }
        area.copy_within(used - used % BLOCK..used, 0);
        self.end = Some(offset + bytes.len() as u64);
        Ok(())
    }

    fn write_zeros(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let size = len.min(ZEROS_SIZE as u64) as usize;
            write_all(&self.direct, offset, &ZEROS.0[..size])?;
            offset += size as u64;
            len -= size as u64;
        }
        Ok(())
    }
}

/// Memory that begins at a multiple of [`BLOCK`].
#[derive(Debug, Default)]
struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
}

impl Aligned {
    /// The first `size` bytes, of which the first `keep` are as they were.
    fn area(&mut self, size: usize, keep: usize) -> &mut [u8] {
        if self.bytes.len() < self.begin + size {
            let mut bytes = vec![0; size.next_power_of_two() + BLOCK];
            let begin = bytes.as_ptr().align_offset(BLOCK);
            bytes[begin..begin + keep].copy_from_slice(&self.bytes[self.begin..self.begin + keep]);
            *self = Aligned { bytes, begin };
        }
        &mut self.bytes[self.begin..self.begin + size]
    }
}

fn read_exact(file: &OwnedFd, offset: u64, mut into: &mut [u8]) -> io::Result<()> {
    let mut at = offset;
    while !into.is_empty() {
        count(Syscall::Pread);
        match retry_on_intr(|| pread(file, &mut *into, at))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                at += read as u64;
                into = &mut into[read..];
            }
        }
    }
    Ok(())
}

fn write_all(file: &OwnedFd, mut offset: u64, mut area: &[u8]) -> io::Result<()> {
    while !area.is_empty() {
        count(Syscall::Pwrite);
        let written = whole_blocks(retry_on_intr(|| pwrite(file, area, offset))?)?;
        offset += written as u64;
        area = &area[written..];
    }
    Ok(())
}

fn write_durably(direct: &OwnedFd, mut offset: u64, mut area: &[u8]) -> io::Result<()> {
    while !area.is_empty() {
        count(Syscall::PwriteSync);
        let slices = [io::IoSlice::new(area)];
        // Not retried on EINTR, like a sync: nothing tells how far it came.
        let written = whole_blocks(pwritev2(direct, &slices, offset, ReadWriteFlags::DSYNC)?)?;
        offset += written as u64;
        area = &area[written..];
    }
    Ok(())
}

/// What a write that was short has written of whole blocks. The one that it stopped in is written again: the next
/// write must be aligned too.
fn whole_blocks(written: usize) -> io::Result<usize> {
    match written - written % BLOCK {
        0 => Err(io::ErrorKind::WriteZero.into()),
        whole => Ok(whole),
    }
}
