//! Records that were kept aside in segments: directories of copies, or the data directory of a node, stopped or not.
//! They are looked at and never changed.

use crate::disk::Disk;
use crate::ids::{Chain, ClusterId, Lsn};
use crate::wal::{ArchivedEnd, archived_segments, read_archived, segment_name};
use crate::wire::Record;

use super::error::RestoreError;

/// What takes the records, in order. It fails if it cannot.
pub(super) type Sink<'s> = dyn FnMut(&Record<'_>, &[u8], Chain) -> Result<(), RestoreError> + 's;

/// Directories with segments of one log.
#[derive(Default)]
pub(super) struct Archives {
    directories: Vec<Directory>,
}

struct Directory {
    disk: Box<dyn Disk>,
    /// Of its segments, rising.
    first_lsns: Vec<Lsn>,
}

/// What was in the way of the next record, for the message.
#[derive(Default)]
struct Obstacles {
    other_log: Option<(String, Chain)>,
    damaged: Vec<String>,
}

impl Archives {
    pub fn of(disks: Vec<Box<dyn Disk>>) -> Result<Archives, RestoreError> {
        let look = |mut disk: Box<dyn Disk>| match archived_segments(disk.as_mut()) {
            Ok(first_lsns) => Ok(Directory { disk, first_lsns }),
            Err(source) => Err(RestoreError::Archive { path: disk.describe(), source }),
        };
        Ok(Archives { directories: disks.into_iter().map(look).collect::<Result<_, _>>()? })
    }

    /// Hands over the records behind `at`, whose chain checksum is `chain`, up to `until`.
    ///
    /// # Errors
    /// If one of them is nowhere.
    pub fn read(
        &mut self,
        cluster_id: ClusterId,
        (mut at, mut chain): (Lsn, Chain),
        until: Lsn,
        sink: &mut Sink<'_>,
    ) -> Result<(), RestoreError> {
        while at < until {
            let (before, mut obstacles) = (at, Obstacles::default());
            for directory in &mut self.directories {
                directory.read(cluster_id, &mut at, &mut chain, until, sink, &mut obstacles)?;
            }
            if at == before {
                return Err(self.missing(at, chain, until, obstacles));
            }
        }
        Ok(())
    }

    fn missing(&self, at: Lsn, expected: Chain, until: Lsn, obstacles: Obstacles) -> RestoreError {
        if let Some((path, found)) = obstacles.other_log {
            return RestoreError::OtherLog { path, lsn: at, expected, found };
        }
        let first = at.next();
        let later = self.directories.iter().flat_map(|directory| &directory.first_lsns);
        let behind = later.filter(|lsn| **lsn > first).min();
        let last = behind.map_or(until, |lsn| lsn.prev().min(until));
        let mut looked = match self.directories.len() {
            0 => "The backup has none of them, and no archive was named".to_owned(),
            _ => {
                let names: Vec<String> = self.directories.iter().map(|one| one.disk.describe()).collect();
                format!("Looked into {}", names.join(", "))
            }
        };
        for why in &obstacles.damaged {
            looked += &format!("; {why}");
        }
        RestoreError::Missing { first, last, until, looked }
    }
}

impl Directory {
    /// Goes on as far as the segments here do.
    fn read(
        &mut self,
        cluster_id: ClusterId,
        at: &mut Lsn,
        chain: &mut Chain,
        until: Lsn,
        sink: &mut Sink<'_>,
        obstacles: &mut Obstacles,
    ) -> Result<(), RestoreError> {
        // The last one that begins at or below the next record has it, or nobody here does. What it holds from where
        // the next one begins was cut off by the node that wrote both.
        while *at < until
            && let behind = self.first_lsns.partition_point(|lsn| *lsn <= at.next())
            && let Some(first_lsn) = behind.checked_sub(1).map(|index| self.first_lsns[index])
        {
            let until = self.first_lsns.get(behind).map_or(until, |next| next.prev().min(until));
            let name = segment_name(first_lsn);
            let path = format!("{}/{name}", self.disk.describe());
            let (before, mut failed) = (*at, None);
            let known = (*at, *chain);
            let end = read_archived(
                self.disk.as_mut(),
                &name,
                cluster_id,
                known,
                until,
                &mut |record, bytes, here| {
                    match sink(record, bytes, here) {
                        Ok(()) => (*at, *chain) = (record.lsn, here),
                        Err(error) => failed = Some(error),
                    }
                    failed.is_none()
                },
            );
            if let Some(error) = failed {
                return Err(error);
            }
            match end {
                Ok(ArchivedEnd::Whole) => {}
                Ok(ArchivedEnd::OtherLog(found)) => obstacles.other_log = Some((path, found)),
                Ok(ArchivedEnd::Damaged(why)) => obstacles.damaged.push(format!("{path}: {why}")),
                Err(error) => obstacles.damaged.push(format!("{path} cannot be read: {error}")),
            }
            if *at == before {
                break;
            }
        }
        Ok(())
    }
}
