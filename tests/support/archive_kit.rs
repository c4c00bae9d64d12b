//! One node with an archive, both on disks in memory, and what the two disks hold together.

#![allow(dead_code)]

use std::cell::Cell;
use std::rc::Rc;

use kvstore::conn::ConnId;
use kvstore::disk::Disk;
use kvstore::node::{ArchiveConfig, FatalReason, NodeConfig, RoleFlag, SnapshotConfig};
use kvstore::wal::parse_segment_name;
use kvstore::wire::client::{Reply, Request, Status};

use super::lone_node::{self, LoneNode, VirtualClock};
use super::mem_disk::MemDisk;
use super::reach::reach;

/// A value so large that a few dozen fill a segment.
const VALUE_SIZE: usize = 2_000;

/// As large as it gets before the bound of a test.
pub const UNBOUNDED: u64 = 1 << 40;

/// See the head of this file.
pub struct Rig {
    pub lone: LoneNode,
    pub conn: ConnId,
    pub disk: MemDisk,
    pub archive: MemDisk,
    /// Whether the directory can be opened.
    pub there: Rc<Cell<bool>>,
    /// The last record that was acknowledged.
    pub acked: u64,
}

pub fn config() -> NodeConfig {
    let mut config = lone_node::config(RoleFlag::Leader, &[]);
    config.snapshot = SnapshotConfig {
        log_bytes: Some(u64::MAX),
        slice_bytes: 20_000,
        settle_ms: 1,
        ..SnapshotConfig::default()
    };
    config
}

impl Rig {
    pub fn start(disk: &MemDisk, archive: &MemDisk, log_bytes: u64) -> Result<Rig, FatalReason> {
        Rig::with(disk, archive, log_bytes, true)
    }

    /// The directory is not there yet.
    pub fn unmounted(disk: &MemDisk, archive: &MemDisk, log_bytes: u64) -> Rig {
        Rig::with(disk, archive, log_bytes, false).expect("the disk is well")
    }

    fn with(disk: &MemDisk, archive: &MemDisk, log_bytes: u64, there: bool) -> Result<Rig, FatalReason> {
        let there = Rc::new(Cell::new(there));
        let (is_there, directory) = (Rc::clone(&there), archive.clone());
        let open = move || -> Result<Box<dyn Disk>, String> {
            if is_there.get() { Ok(Box::new(directory.clone())) } else { Err("it is not mounted".to_owned()) }
        };
        let archive_config = ArchiveConfig { log_bytes, copy_bytes: 20_000, settle_ms: 1 };
        let clock = VirtualClock::at_ms(1);
        let mut lone = LoneNode::prepared(Box::new(disk.clone()), clock, config(), |node| {
            node.keep_archive("archive".to_owned(), Box::new(open), archive_config);
        })?;
        let conn = lone.connect();
        Ok(Rig { lone, conn, disk: disk.clone(), archive: archive.clone(), there, acked: 0 })
    }

    pub fn ask(&mut self, request: &Request<'_>) -> Result<(Status, String, u64), FatalReason> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        let answer = self.lone.try_send(self.conn, &bytes)?;
        let (_, body) = answer.frames.last().expect("every request is answered in its turn");
        let reply = Reply::decode(body).expect("a node sends whole replies");
        Ok((reply.status, String::from_utf8_lossy(reply.payload).into_owned(), reply.lsn.0))
    }

    /// Writes, one record a turn, a millisecond apart.
    pub fn puts(&mut self, numbers: std::ops::Range<u64>) -> Result<(), FatalReason> {
        for number in numbers {
            let key = format!("key-{}", number % 60).into_bytes();
            let mut value = vec![number as u8; VALUE_SIZE];
            value[..8].copy_from_slice(&number.to_be_bytes());
            let (status, text, lsn) = self.ask(&Request::Put { key: &key, value: &value })?;
            assert_eq!(status, Status::Ok, "{text}");
            self.acked = lsn;
            self.lone.try_pass_ms(1)?;
        }
        Ok(())
    }

    /// The archive's part of the status document.
    pub fn status(&mut self) -> serde_json::Value {
        let (_, text, _) = self.ask(&Request::Status).expect("the disk is well");
        let document: serde_json::Value = serde_json::from_str(&text).expect("a status is JSON");
        document["archive"].clone()
    }

    pub fn pass(&mut self, ms: u64) -> Result<(), FatalReason> {
        (0..ms / 10).try_for_each(|_| self.lone.try_pass_ms(10))
    }

    /// Makes a snapshot, and lets what it makes needless go.
    pub fn snapshot(&mut self) -> Result<(), FatalReason> {
        let made = self.lone.node.counters.snapshots;
        let (status, text, _) = self.ask(&Request::Snapshot { wait: false })?;
        // A snapshot may fail without the node: that the disk is gone shows with the next write.
        assert!(status == Status::Ok || self.disk.has_crashed(), "{text}");
        for number in 0..200 {
            if self.lone.node.counters.snapshots > made {
                return self.pass(1_000);
            }
            self.puts(100_000 + number..100_001 + number)?;
        }
        panic!("the snapshot never ends");
    }

    /// Some hundred writes, and two snapshots that cover most of them.
    pub fn story(&mut self) -> Result<(), FatalReason> {
        self.puts(1..120)?;
        self.snapshot()?;
        self.puts(200..260)?;
        self.snapshot()?;
        self.puts(300..310)
    }

    pub fn first_lsn(&self) -> u64 {
        let firsts = self.disk.names();
        let first = firsts.iter().find_map(|name| parse_segment_name(name));
        first.expect("there is a segment").0
    }
}

/// How far the records in these directories reach together, from the first one on.
pub fn reach_all(disks: &[&MemDisk]) -> u64 {
    let mut disks: Vec<MemDisk> = disks.iter().map(|disk| (*disk).clone()).collect();
    reach(&mut disks.iter_mut().map(|disk| disk as &mut dyn Disk).collect::<Vec<_>>())
}

/// The segments under their names.
pub fn segments(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| parse_segment_name(name).is_some()).collect()
}
