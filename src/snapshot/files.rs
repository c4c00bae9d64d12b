//! The snapshots of a directory.

use std::io;

use crate::disk::Disk;
use crate::ids::{ClusterId, Lsn};

use super::error::{ReadError, SnapshotError, sync_dir};
use super::{SnapshotId, SnapshotInfo, SnapshotReader};

/// A snapshot while it is made.
pub const NEW_NAME: &str = "snap-new.kvsnap.tmp";
/// A snapshot while it comes from a peer.
pub const RECEIVED_NAME: &str = "snap-in.kvsnap.tmp";

/// A file under the name of a snapshot.
#[derive(Debug)]
pub enum Listed {
    /// Both of its ends hold; its blocks were not looked at.
    Snapshot(SnapshotInfo),
    /// It is no snapshot that this node can use.
    Unreadable {
        /// What its name says.
        id: SnapshotId,
        /// What is wrong.
        error: ReadError,
    },
}

impl Listed {
    /// What its name says.
    pub fn id(&self) -> SnapshotId {
        match self {
            Listed::Snapshot(info) => info.id,
            Listed::Unreadable { id, .. } => *id,
        }
    }
}

/// The snapshot that has this name; `None` if it is not the final name of one.
pub fn parse_snapshot_name(name: &str) -> Option<SnapshotId> {
    let (s, e) = name.strip_prefix("snap-")?.strip_suffix(".kvsnap")?.split_once('-')?;
    let lsn = |digits: &str| {
        let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
        all_digits.then(|| digits.parse().ok().map(Lsn)).flatten()
    };
    Some(SnapshotId { s: lsn(s)?, e: lsn(e)? })
}

/// All files under names of snapshots, newest first. Reads both ends of each.
///
/// # Errors
/// If the directory cannot be listed. A file that cannot be read is [`Listed::Unreadable`].
pub fn list(disk: &mut dyn Disk, cluster_id: Option<ClusterId>) -> io::Result<Vec<Listed>> {
    let mut ids: Vec<SnapshotId> = disk.list()?.iter().filter_map(|name| parse_snapshot_name(name)).collect();
    ids.sort_unstable_by(|one, other| other.cmp(one));
    let look = |id: SnapshotId| match SnapshotReader::open(disk, &id.file_name(), cluster_id) {
        Ok(reader) => {
            let info = reader.info().clone();
            reader.close(disk);
            Listed::Snapshot(info)
        }
        Err(error) => Listed::Unreadable { id, error },
    };
    Ok(ids.into_iter().map(look).collect())
}

/// Removes what was being made or received when a process ended. Not made durable: what comes back after a power
/// loss is removed by the next start.
///
/// # Errors
/// If a file is there and cannot be removed.
pub fn remove_leftovers(disk: &mut dyn Disk) -> Result<(), SnapshotError> {
    for name in [NEW_NAME, RECEIVED_NAME] {
        remove_if_there(disk, name).map_err(|source| SnapshotError::new(disk, "remove", name, 0, source))?;
    }
    Ok(())
}

/// Removes a snapshot, durably.
///
/// # Errors
/// If it cannot be removed, or if the directory cannot be synced, which is fatal.
pub fn remove(disk: &mut dyn Disk, id: SnapshotId) -> Result<(), SnapshotError> {
    let name = id.file_name();
    disk.remove(&name).map_err(|source| SnapshotError::new(disk, "remove", &name, 0, source))?;
    sync_dir(disk)
}

/// Gives the snapshot a name that nothing reads, for a person to look at: what the beginning of generation
/// `generation` of the log gave up.
pub fn set_aside(disk: &mut dyn Disk, id: SnapshotId, generation: u64) -> Result<String, SnapshotError> {
    let name = id.file_name();
    let aside = format!("cut-g{generation}-{name}");
    disk.rename(&name, &aside).map_err(|source| SnapshotError::new(disk, "set aside", &name, 0, source))?;
    sync_dir(disk)?;
    Ok(aside)
}

/// Removes a file that need not exist.
pub(super) fn remove_if_there(disk: &mut dyn Disk, name: &str) -> io::Result<()> {
    match disk.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
