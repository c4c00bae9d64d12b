//! A directory that is made beside its place and gets its name when it is whole.
//!
//! It is made as `<name>.restoring`, locked like a data directory, and renamed over a name that nobody has, or that
//! is an empty directory's (`rename` replaces that in one step, and refuses one that is not empty). So whoever looks
//! at the final name sees nothing or all of it, also after `kill -9`. What a killed process left under the other name
//! is removed by the next one, file by file and only under names that its maker gives: never a foreign file.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::real::LOCK_NAME;
use super::{Disk, OpenError, RealDisk, advice};

/// Why a directory was not made.
#[derive(Debug)]
pub enum StageError {
    /// There is something under its name, and it is not an empty directory.
    Taken {
        /// The name.
        path: PathBuf,
        /// One of the files in it; none if it is no directory.
        holds: Option<String>,
    },
    /// What stands under the temporary name was not left there by a process like this one.
    Foreign {
        /// The temporary name.
        path: PathBuf,
        /// The file that nobody here would make.
        file: String,
    },
    /// It cannot be used.
    Open(OpenError),
    /// The operating system refused.
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StageError::Taken { path, holds: Some(file) } => write!(
                f,
                "{} is not empty: {file} is in it. Nothing was changed; name a directory that is not there",
                path.display()
            ),
            StageError::Taken { path, holds: None } => write!(
                f,
                "{} is there and no directory. Nothing was changed; name a directory that is not there",
                path.display()
            ),
            StageError::Foreign { path, file } => write!(
                f,
                "{}, where the new directory is made, holds {file}, which was not left by a restore; move it away",
                path.display()
            ),
            StageError::Open(error) => error.fmt(f),
            StageError::Io { action, path, source } => {
                write!(f, "{action} {}: {source}; {}", path.display(), advice(source))
            }
        }
    }
}

impl std::error::Error for StageError {}

/// A directory on its way to its name.
#[derive(Debug)]
pub struct Staged {
    place: PathBuf,
    temporary: PathBuf,
    disk: RealDisk,
}

impl Staged {
    /// Begins. `is_left_over`: whether a killed process may have left a file of this name.
    ///
    /// # Errors
    /// If the place is taken, or the directory cannot be made beside it. Nothing was changed then, but for what was
    /// left over.
    pub fn begin(place: &Path, is_left_over: impl Fn(&str) -> bool) -> Result<Staged, StageError> {
        refuse_taken(place)?;
        // A trailing `/` or `.` is no part of the name.
        let place: PathBuf = place.components().collect();
        let mut temporary = OsString::from(&place);
        temporary.push(".restoring");
        let temporary = PathBuf::from(temporary);
        let mut disk = RealDisk::open(&temporary).map_err(StageError::Open)?;
        let files = disk.list().map_err(|source| failed("listing", &temporary, source))?;
        if let Some(file) = files.iter().find(|file| !is_left_over(file)) {
            return Err(StageError::Foreign { path: temporary, file: file.clone() });
        }
        for file in files {
            disk.remove(&file).map_err(|source| failed("emptying", &temporary, source))?;
        }
        Ok(Staged { place, temporary, disk })
    }

    /// Where its files are made.
    pub fn disk(&mut self) -> &mut RealDisk {
        &mut self.disk
    }

    /// Gives it its name, durably. All files in it are durable already.
    ///
    /// # Errors
    /// If the place was taken meanwhile, or the disk fails.
    pub fn finish(mut self) -> Result<(), StageError> {
        self.disk.sync_dir().map_err(|source| failed("syncing", &self.temporary, source))?;
        match fs::rename(&self.temporary, &self.place) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {
                refuse_taken(&self.place)?;
                return Err(failed("renaming to", &self.place, Errno::EXIST.into()));
            }
            Err(errno) => return Err(failed("renaming to", &self.place, errno.into())),
        }
        sync_parent_of(&self.place).map_err(|errno| failed("making durable", &self.place, errno.into()))
    }

    /// Removes it with all its files. What cannot be removed is a leftover, as after a crash.
    pub fn abandon(mut self) {
        for file in self.disk.list().unwrap_or_default() {
            let _ = self.disk.remove(&file);
        }
        let _ = fs::unlink(self.temporary.join(LOCK_NAME));
        let _ = fs::rmdir(&self.temporary);
    }
}

fn refuse_taken(place: &Path) -> Result<(), StageError> {
    match first_file(place) {
        Ok(None) | Err(Errno::NOENT) => Ok(()),
        Ok(holds) => Err(StageError::Taken { path: place.to_owned(), holds }),
        Err(Errno::NOTDIR) => Err(StageError::Taken { path: place.to_owned(), holds: None }),
        Err(errno) => Err(failed("looking into", place, errno.into())),
    }
}

fn first_file(directory: &Path) -> rustix::io::Result<Option<String>> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    for entry in Dir::new(fs::open(directory, flags, Mode::empty())?)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn sync_parent_of(directory: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    super::real::sync_parent(&fs::open(directory, flags, Mode::empty())?)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> StageError {
    StageError::Io { action, path: path.to_owned(), source }
}

/// Whether something has this name.
///
/// # Errors
/// Those of looking, but that there is nothing.
pub fn exists(path: &Path) -> io::Result<bool> {
    match fs::statat(fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
