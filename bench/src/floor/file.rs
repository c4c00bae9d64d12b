//! The file of a bare node: preallocated by writing zeros, without a name, written round and round.
//!
//! fallocate alone would leave extents that are converted, in the file system's journal, at the first
//! fdatasync behind them; zeros that were written and synced make an append an overwrite. That is the best
//! a log can get out of a file system, so it is the floor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a file. Large enough that a batch is no matter, small enough to be written in a second.
pub const FILE_SIZE: u64 = 32 << 20;
const CHUNK_SIZE: usize = 1 << 20;

pub struct LogFile {
    file: File,
    offset: u64,
}

impl LogFile {
    pub fn create(path: &Path) -> Result<LogFile, String> {
        let create = || -> io::Result<LogFile> {
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
            std::fs::remove_file(path)?;
            let zeros = vec![0; CHUNK_SIZE];
            for offset in (0..FILE_SIZE).step_by(CHUNK_SIZE) {
                file.write_all_at(&zeros, offset)?;
            }
            file.sync_all()?;
            Ok(LogFile { file, offset: 0 })
        };
        create().map_err(|error| format!("{}: {error}", path.display()))
    }

    /// One write (two where the end of the file is reached) and one fdatasync.
    pub fn append_durably(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(FILE_SIZE as usize) {
            if self.offset + chunk.len() as u64 > FILE_SIZE {
                self.offset = 0;
            }
            self.file.write_all_at(chunk, self.offset)?;
            self.offset += chunk.len() as u64;
        }
        self.file.sync_data()
    }
}
