//! The flags of the archive: where closed segments are copied to, and how many may wait for it.

use std::path::{Path, PathBuf};

use clap::Args;

use super::in_range;
use crate::limits::{ARCHIVE_LOG_BYTES_DEFAULT, ARCHIVE_LOG_BYTES_MIN};
use crate::node::ArchiveConfig;

/// The part of the command line that is about the archive.
#[derive(Args, Clone, Debug)]
pub struct ArchiveFlags {
    /// Copy log segments that are complete into this directory, for `kvstore restore --until`. It must be there and be
    /// this node's alone. While it is full or gone the node goes on, and tries again
    #[arg(long, value_name = "DIR", env = "KVSTORE_ARCHIVE_DIR", help_heading = "Storage")]
    pub archive_dir: Option<PathBuf>,
    /// Bytes of complete segments that are kept for an archive that does not take them; then the oldest go without
    #[arg(long, default_value_t = ARCHIVE_LOG_BYTES_DEFAULT, value_name = "BYTES", env = "KVSTORE_ARCHIVE_LOG_BYTES",
        help_heading = "Storage")]
    pub archive_log_bytes: u64,
}

impl ArchiveFlags {
    /// The directory and the rest; `None`: there is no archive.
    pub(super) fn validate(&self, data_dir: &Path) -> Result<Option<(PathBuf, ArchiveConfig)>, String> {
        in_range("--archive-log-bytes", self.archive_log_bytes, ARCHIVE_LOG_BYTES_MIN, u64::MAX)?;
        let Some(directory) = &self.archive_dir else { return Ok(None) };
        if directory == data_dir {
            return Err(format!(
                "--archive-dir and --data-dir are both {}: copies beside the log are lost with it; name another one",
                directory.display()
            ));
        }
        let config = ArchiveConfig { log_bytes: self.archive_log_bytes, ..ArchiveConfig::default() };
        Ok(Some((directory.clone(), config)))
    }
}
