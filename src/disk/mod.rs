//! What the rest of the node may do with files: one flat directory, handles, and the two ways of making
//! things durable. `real` is the only user of the operating system's files; tests bring disks that fail.
//!
//! Promises an implementation makes, and a caller may rely on nothing else:
//! - what was written is readable at once, and durable only after `sync_data` of that file returned `Ok`;
//! - a created, renamed or removed name is durable only after `sync_dir` returned `Ok`;
//! - after a failed `sync_data` or `write_at` nothing is known about that file: the caller must end.

use std::io;

mod blocks;
mod open_error;
mod overlay;
mod real;
mod refusing;
mod ring;
mod staged;
mod viewed;

pub use open_error::OpenError;
pub use overlay::Overlay;
pub use real::{FileSystem, RealDisk};
pub use refusing::Refusing;
pub use ring::FlushRing;
pub use staged::{StageError, Staged, exists};
pub use viewed::{Holder, ViewedDisk};

/// Bytes of a block of a disk, and of a page: what an append may write as a whole. Disks in use ask for 512 or 4096.
pub const BLOCK_SIZE: usize = 4096;

/// A handle to an open file of a [`Disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// How a flush that was asked for stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Flush {
    /// The data is durable.
    Done,
    /// The data will be durable once [`Disk::flush_poll`] says so.
    Pending,
}

/// A directory of files. Names are plain (no separators).
pub trait Disk {
    /// The directory as an operator knows it, for messages.
    fn describe(&self) -> String;
    /// All file names, sorted.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist and allocates `size` bytes that read as zeros (ENOSPC is
    /// reported here, never by a later write below `size`). Opens it for reading and writing.
    fn create(&mut self, name: &str, size: u64) -> io::Result<FileId>;
    /// Opens an existing file for reading and writing.
    fn open(&mut self, name: &str) -> io::Result<FileId>;
    /// Closes a handle.
    fn close(&mut self, file: FileId);
    /// Bytes of the file.
    fn len(&mut self, file: FileId) -> io::Result<u64>;
    /// Reads at an offset; short only at the end of the file.
    fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes at an offset; may be short, never 0 without an error.
    fn write_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// `fdatasync`.
    fn sync_data(&mut self, file: FileId) -> io::Result<()>;
    /// Writes all of `bytes`, behind which the file holds nothing but zeros up to the next multiple of
    /// [`BLOCK_SIZE`] at least: a disk may write whole blocks.
    fn append_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(file, offset, bytes)
    }
    /// As [`Disk::append_at`], and makes *these bytes* durable, in one call where the system has one. What was
    /// written to the file before and not synced stays as it was.
    fn append_sync_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(file, offset, bytes)?;
        self.sync_data(file)
    }
    /// Writes zeros where the file reads as zeros, to whole blocks of an allocated file, so that appends there cost
    /// less. Nothing is durable by that, and it has no error: what a disk does not write it tells the append.
    /// `false`: no use asking again for this file.
    fn zero_ahead(&mut self, _file: FileId, _offset: u64, _len: u64) -> bool {
        false
    }
    /// Nothing is appended to the file any more: what is held for that is given back.
    fn end_appends(&mut self, _file: FileId) {}
    /// Asks for an `fdatasync` that may end later. At most one is under way per disk.
    fn flush_begin(&mut self, file: FileId) -> io::Result<Flush> {
        self.sync_data(file).map(|()| Flush::Done)
    }
    /// The result of the flush under way, once it has one. Each is given once.
    fn flush_poll(&mut self) -> Option<io::Result<()>> {
        None
    }
    /// Asks for these bytes to be on their way to the disk soon, so that a later sync finds little to do. It waits
    /// for nothing, proves nothing, and has no error: what fails is reported by the next sync of the file.
    fn start_writeback(&mut self, _file: FileId, _offset: u64, _len: u64) {}
    /// Asks for these bytes to be read from the disk soon, so that reading them finds them in memory. It waits for
    /// nothing, and whether it helps shows nowhere.
    fn read_ahead(&mut self, _file: FileId, _offset: u64, _len: u64) {}
    /// Waits for the flush under way, and gives its result.
    fn flush_wait(&mut self) -> io::Result<()> {
        unreachable!("this disk answers each flush at once")
    }
    /// Makes created, renamed and removed names durable.
    fn sync_dir(&mut self) -> io::Result<()>;
    /// Renames, replacing the target.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name. Open handles stay usable until closed.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Writes all of `bytes`: a short write goes on where it stopped (D8).
    fn write_all_at(&mut self, file: FileId, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write_at(file, offset, bytes)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Fills `buffer`; an end of file before that is an error.
    fn read_exact_at(&mut self, file: FileId, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let read = self.read_at(file, offset, buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += read as u64;
            buffer = &mut buffer[read..];
        }
        Ok(())
    }
}

/// What an operator can do about an error of a disk, to stand behind its text in a message.
pub fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => "free some space on that disk and start again",
        Kind::ReadOnlyFilesystem => {
            "remount the file system writable; if it went read-only by itself, the kernel log says why"
        }
        Kind::PermissionDenied => "run as the owner of the directory, or give it to this user with chown",
        Kind::NotADirectory => "name a directory with --data-dir, or move the file out of the way",
        Kind::NotFound => "create the parent directory, or mount the file system that should be there",
        _ => "look into the kernel log for errors of that disk before starting again",
    }
}
