//! A directory that is only looked at: no lock is taken, no file is created, and not even the time of the last access
//! changes where the kernel allows that (`O_NOATIME` is for the owner of a file, and for root).
//!
//! What would change something fails with "read-only file system". Beside a running node every read shows one moment
//! of a file, and two reads may show two: who looks must expect that.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::{Errno, pread, retry_on_intr};

use super::real::{LOCK_NAME, list_files, read_pid};
use super::{Disk, FileId};

/// Whether a process holds a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// None that can be seen from here.
    Nobody,
    /// This one.
    Pid(u32),
    /// The system does not tell.
    Unknown,
}

/// A directory whose files are read and never changed.
#[derive(Debug)]
pub struct ViewedDisk {
    path: PathBuf,
    dir: OwnedFd,
    files: Vec<Option<OwnedFd>>,
}

impl ViewedDisk {
    /// Opens a directory.
    ///
    /// # Errors
    /// If it is none, or may not be read.
    pub fn open(path: &Path) -> io::Result<ViewedDisk> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = fs::open(path, flags, Mode::empty())?;
        Ok(ViewedDisk { path: path.to_owned(), dir, files: Vec::new() })
    }

    /// Opens the directory that a file is in; `None` as a name if the path is that of a directory.
    ///
    /// # Errors
    /// If there is neither, or it may not be read.
    pub fn open_any(path: &Path) -> io::Result<(ViewedDisk, Option<String>)> {
        match ViewedDisk::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {}
            opened => return Ok((opened?, None)),
        }
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok((ViewedDisk::open(parent.unwrap_or(Path::new(".")))?, Some(name.to_owned())))
    }

    /// Who holds the directory. The kernel's table of locks is asked: to try the lock would be to take it, and a node
    /// that starts in that moment would be refused.
    pub fn holder(&self) -> Holder {
        let Ok(lock) = self.open_file(LOCK_NAME) else { return Holder::Nobody };
        let (Ok(stat), Some(table)) = (fs::fstat(&lock), read_text("/proc/locks")) else {
            return Holder::Unknown;
        };
        let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        match find_holder(&table, device, stat.st_ino, read_pid(&lock)) {
            Some(pid) => Holder::Pid(pid),
            None => Holder::Nobody,
        }
    }

    fn open_file(&self, name: &str) -> io::Result<OwnedFd> {
        // A name that is no file (a pipe, say) must not keep the reader waiting.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match fs::openat(&self.dir, name, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => Ok(fs::openat(&self.dir, name, flags, Mode::empty())?),
            opened => Ok(opened?),
        }
    }

    fn fd(&self, file: FileId) -> &OwnedFd {
        let slot = self.files.get(file.0 as usize).and_then(Option::as_ref);
        slot.expect("a handle is used only between open and close")
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

/// A file of the kernel's that has no size before it is read.
fn read_text(path: &str) -> Option<String> {
    let file = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match retry_on_intr(|| rustix::io::read(&file, &mut chunk[..])).ok()? {
            0 => return Some(String::from_utf8_lossy(&text).into_owned()),
            size => text.extend_from_slice(&chunk[..size]),
        }
    }
}

/// The process that holds the lock on this file. Some file systems (overlayfs, btrfs) show another device in the table
/// than `fstat` does; there the pid in the file must be that of the line.
fn find_holder(table: &str, (major, minor): (u32, u32), inode: u64, written: Option<u32>) -> Option<u32> {
    let device = format!("{major:02x}:{minor:02x}");
    table.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 12345 08:01:1048602 0 EOF
        let mut fields = line.split_whitespace().skip(1).filter(|field| *field != "->");
        let (kind, pid, place) = (fields.next()?, fields.nth(2)?, fields.next()?);
        let (found_device, found_inode) = place.rsplit_once(':')?;
        let pid: u32 = pid.parse().ok()?;
        let is_it = found_inode.parse() == Ok(inode) && (found_device == device || written == Some(pid));
        (kind == "FLOCK" && is_it).then_some(pid)
    })
}

impl Disk for ViewedDisk {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        list_files(&self.dir)
    }

    fn create(&mut self, _name: &str, _size: u64) -> io::Result<FileId> {
        read_only()
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let fd = self.open_file(name)?;
        let free = self.files.iter().position(Option::is_none).unwrap_or_else(|| {
            self.files.push(None);
            self.files.len() - 1
        });
        self.files[free] = Some(fd);
        Ok(FileId(u32::try_from(free).expect("descriptors are far fewer than 2^32")))
    }

    fn close(&mut self, file: FileId) {
        self.files[file.0 as usize] = None;
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        let size = fs::fstat(self.fd(file))?.st_size;
        Ok(u64::try_from(size).expect("the size of a file is not negative"))
    }

    fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let fd = self.fd(file);
        Ok(retry_on_intr(|| pread(fd, &mut *buffer, offset))?)
    }

    fn write_at(&mut self, _file: FileId, _offset: u64, _bytes: &[u8]) -> io::Result<usize> {
        read_only()
    }

    fn sync_data(&mut self, _file: FileId) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        read_only()
    }

    fn rename(&mut self, _from: &str, _to: &str) -> io::Result<()> {
        read_only()
    }

    fn remove(&mut self, _name: &str) -> io::Result<()> {
        read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "1: POSIX  ADVISORY  WRITE 700 08:01:42 0 EOF\n\
                         2: FLOCK  ADVISORY  WRITE 811 08:01:42 0 EOF\n\
                         2: -> FLOCK  ADVISORY  WRITE 812 08:01:42 0 EOF\n\
                         3: FLOCK  ADVISORY  WRITE 900 00:2f:77 0 EOF\n";

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        assert_eq!(find_holder(TABLE, (8, 1), 42, None), Some(811));
        assert_eq!(find_holder(TABLE, (8, 2), 42, None), None, "another device");
        assert_eq!(find_holder(TABLE, (8, 1), 43, None), None, "another file");
    }

    #[test]
    fn where_the_device_is_another_the_pid_in_the_file_decides() {
        assert_eq!(find_holder(TABLE, (0, 1), 77, Some(900)), Some(900));
        assert_eq!(find_holder(TABLE, (0, 1), 77, Some(901)), None);
    }
}
