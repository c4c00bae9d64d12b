//! From a backup to a data directory, on a real file system: what is restored, and what is refused and leaves nothing.

use std::fs;
use std::path::{Path, PathBuf};

use kvstore::backup::{Plan, RestoreError, restore};
use kvstore::disk::{Overlay, ViewedDisk};
use kvstore::ids::Lsn;
use kvstore::meta::{COPY_NAMES, Meta, StoredRole, look_at_copy};
use kvstore::node::{Outcome, dry_run};
use kvstore::snapshot::SnapshotId;
use tempfile::TempDir;

use crate::backup_kit::*;
use crate::listing::names;
use crate::snapshot_kit::{CLUSTER, history};

struct Place {
    dir: TempDir,
}

impl Place {
    fn with(bytes: &[u8]) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("backup"), bytes).unwrap();
        Place { dir }
    }

    fn plan(&self) -> Plan {
        Plan {
            file: self.dir.path().join("backup"),
            data_dir: self.data_dir(),
            until: None,
            archives: Vec::new(),
            seed: 7,
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("restored")
    }

    /// Must fail and leave nothing.
    fn refused(&self, plan: &Plan) -> String {
        let before = names(self.dir.path());
        let why = restore(plan).expect_err("refused").to_string();
        assert_eq!(names(self.dir.path()), before, "nothing is left: {why}");
        why
    }
}

/// What a start would make of it: the LSNs of the log.
fn opens(dir: &Path) -> (u64, u64) {
    let mut below = ViewedDisk::open(dir).unwrap();
    let run = dry_run(&mut Overlay::new(&mut below));
    assert_eq!(run.notes, Vec::<String>::new(), "nothing is to be repaired");
    match run.outcome {
        Outcome::Opens { first_lsn, last_lsn, snapshot: Some(_), repairs_until: None } => {
            (first_lsn.0, last_lsn.0)
        }
        other => panic!("{other:?}"),
    }
}

fn meta(dir: &Path) -> Meta {
    let mut disk = ViewedDisk::open(dir).unwrap();
    let [one, other] = COPY_NAMES.map(|name| look_at_copy(&mut disk, name).unwrap());
    assert_eq!(one, other);
    one.1
}

#[test]
fn a_backup_becomes_a_directory_of_another_cluster_with_the_same_log() {
    let place = Place::with(&backup().0);
    let restored = restore(&place.plan()).unwrap();
    assert_eq!((restored.last, restored.from), (Lsn(LAST), CLUSTER));
    assert_eq!(restored.id, SnapshotId { s: Lsn(S), e: Lsn(E) });
    assert_eq!(names(place.dir.path()), ["backup", "restored"]);
    assert_eq!(opens(&place.data_dir()), (S + 1, LAST));
    let meta = meta(&place.data_dir());
    assert_eq!((meta.cluster_id, meta.node_id), (restored.cluster_id, restored.node_id));
    assert_ne!(meta.cluster_id, CLUSTER);
    assert_eq!((meta.role, meta.base_lsn), (StoredRole::Unset, Lsn(S)));
    assert_eq!(Some(meta.term), history().last().map(|start| start.term), "the next one lies above it");
}

#[test]
fn every_restore_makes_another_cluster() {
    let place = Place::with(&backup().0);
    let first = restore(&place.plan()).unwrap();
    let data_dir = place.dir.path().join("again");
    let second = restore(&Plan { data_dir, seed: 8, ..place.plan() }).unwrap();
    assert_ne!(first.cluster_id, second.cluster_id);
    assert_ne!(first.node_id, second.node_id);
}

#[test]
fn an_lsn_within_the_backup_is_restored_exactly_and_one_outside_is_refused() {
    for until in E..=LAST {
        let place = Place::with(&backup().0);
        restore(&Plan { until: Some(Lsn(until)), ..place.plan() }).unwrap();
        assert_eq!(opens(&place.data_dir()), (S + 1, until));
    }
    let place = Place::with(&backup().0);
    let below = place.refused(&Plan { until: Some(Lsn(E - 1)), ..place.plan() });
    assert!(below.contains("LSN 24 lies below 25"), "{below}");
    let beyond = place.refused(&Plan { until: Some(Lsn(LAST + 3)), ..place.plan() });
    assert!(
        beyond.contains("records 31 to 33 are missing") && beyond.contains("no archive was named"),
        "{beyond}"
    );
}

#[test]
fn a_bare_snapshot_needs_its_records_from_elsewhere() {
    let place = Place::with(&snapshot().0);
    let why = place.refused(&place.plan());
    assert!(why.contains("records 21 to 25 are missing"), "{why}");
}

#[test]
fn a_damaged_backup_leaves_nothing() {
    let (bytes, tail_at) = backup();
    for at in [3, 100, 4096 + 20, tail_at - 2, tail_at + 3, tail_at + 100, bytes.len() - 3] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let place = Place::with(&damaged);
        let error = restore(&place.plan()).expect_err("damaged");
        assert!(error.is_damage(), "byte {at}: {error}");
        assert_eq!(names(place.dir.path()), ["backup"], "byte {at}: {error}");
    }
    for size in [10, 4000, tail_at - 1, tail_at + 10, tail_at + TAIL_SOME, bytes.len() - 1] {
        let place = Place::with(&bytes[..size]);
        let why = place.refused(&place.plan());
        assert!(why.contains("backup"), "{size} bytes: {why}");
    }
}

/// Into the records.
const TAIL_SOME: usize = 100;

#[test]
fn a_place_that_is_taken_is_left_alone() {
    let place = Place::with(&backup().0);
    fs::create_dir(place.data_dir()).unwrap();
    restore(&place.plan()).expect("an empty directory is as good as none");
    let why = restore(&place.plan()).expect_err("it is not empty now").to_string();
    assert!(why.contains("is not empty"), "{why}");
    assert_eq!(opens(&place.data_dir()), (S + 1, LAST), "it is what it was");
    let file = place.dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let why = restore(&Plan { data_dir: file.clone(), ..place.plan() }).expect_err("a file").to_string();
    assert!(why.contains("no directory"), "{why}");
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[test]
fn what_a_killed_restore_left_is_taken_away_and_a_foreign_file_is_not() {
    let place = Place::with(&backup().0);
    let half = place.dir.path().join("restored.restoring");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("LOCK"), "").unwrap();
    fs::write(half.join("wal-00000000000000000021.seg"), "half").unwrap();
    fs::write(half.join("diary.txt"), "mine").unwrap();
    let error = restore(&place.plan()).expect_err("a foreign file");
    assert!(matches!(error, RestoreError::Stage(_)) && error.to_string().contains("diary.txt"), "{error}");
    assert_eq!(fs::read(half.join("diary.txt")).unwrap(), b"mine");
    fs::remove_file(half.join("diary.txt")).unwrap();
    restore(&place.plan()).unwrap();
    assert_eq!(names(place.dir.path()), ["backup", "restored"]);
    assert_eq!(opens(&place.data_dir()), (S + 1, LAST));
}
