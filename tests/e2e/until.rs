//! `kvstore restore --until LSN --archive DIR`: a backup, and segments that were kept aside or are a node's own.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cluster::{Node, Port, Single, kvstore};
use crate::numbered::{Writes, check, write};

/// Segments of 64 KiB: some 130 of these writes each.
const FLAGS: &[&str] = &["--segment-bytes=65536"];

/// A node that was backed up and written to before and after, and copies of its segments.
struct Kept {
    single: Single,
    dir: TempDir,
    writes: Writes,
    /// The LSN of the backup.
    backed_up: u64,
    last: u64,
}

/// Exit code and stderr.
fn restore(file: &Path, data_dir: &Path, more: &[&str]) -> (i32, String) {
    let [file, data_dir] = [file, data_dir].map(|path| path.to_str().unwrap());
    let (code, _, why) = kvstore(&[&["restore", file, "--data-dir", data_dir], more].concat());
    (code, why)
}

impl Kept {
    fn make() -> Kept {
        let single = Single::start(FLAGS);
        let dir = tempfile::tempdir().unwrap();
        let mut writes = Writes::new();
        let mut client = single.node.client();
        write(&mut client, 1..400, &mut writes);
        let file = dir.path().join("backup");
        let (code, out, err) = single.node.cli(&["-o", "json", "backup", file.to_str().unwrap()]);
        assert_eq!(code, 0, "{err}");
        let account: serde_json::Value = serde_json::from_str(&out).unwrap();
        for first in (400..1_400).step_by(200) {
            write(&mut client, first..first + 200, &mut writes);
        }
        let kept = Kept {
            backed_up: account["last"].as_u64().unwrap(),
            last: *writes.keys().last().unwrap(),
            single,
            dir,
            writes,
        };
        fs::create_dir(kept.archive()).unwrap();
        for segment in kept.single.node.files(".seg") {
            fs::copy(&segment, kept.archive().join(segment.file_name().unwrap())).unwrap();
        }
        kept
    }

    fn archive(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    /// The archive's segments, and the first LSN of each.
    fn segments(&self) -> Vec<(PathBuf, u64)> {
        let mut segments: Vec<(PathBuf, u64)> = fs::read_dir(self.archive())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let first = name.trim_start_matches("wal-").trim_end_matches(".seg").parse().unwrap();
                (path, first)
            })
            .collect();
        segments.sort();
        segments
    }

    fn restore(&self, file: &Path, until: u64, archives: &[&Path]) -> (i32, String) {
        let until = until.to_string();
        let archives = archives.iter().flat_map(|archive| ["--archive", archive.to_str().unwrap()]);
        let more: Vec<&str> = ["--until", &until].into_iter().chain(archives).collect();
        restore(file, &self.data_dir(), &more)
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn backup(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    /// What was restored is the state at this LSN.
    #[track_caller]
    fn check_restored(&self, until: u64) {
        let mut node = Node::new(Port::reserve(), self.data_dir(), FLAGS);
        node.start();
        assert_eq!(node.status()["last_lsn"].as_u64(), Some(until + 1), "a term begins behind it");
        check(&mut node.client(), &self.writes, until);
        node.kill9();
        fs::remove_dir_all(self.data_dir()).unwrap();
    }

    #[track_caller]
    fn refused(&self, until: u64, archives: &[&Path]) -> String {
        let (code, why) = self.restore(&self.backup(), until, archives);
        assert_eq!(code, 2, "{why}");
        assert!(!self.data_dir().exists() && !self.dir.path().join("data.restoring").exists(), "{why}");
        why
    }
}

#[test]
fn any_lsn_behind_a_backup_is_restored_from_copies_of_segments() {
    let kept = Kept::make();
    let segments = kept.segments();
    assert!(segments.len() > 4, "the log has several segments: {segments:?}");
    let boundary = segments[segments.len() - 2].1;
    for until in
        [kept.backed_up, kept.backed_up + 1, boundary - 1, boundary, boundary + 1, kept.last - 1, kept.last]
    {
        let (code, why) = kept.restore(&kept.backup(), until, &[&kept.archive()]);
        assert_eq!(code, 0, "LSN {until}: {why}");
        kept.check_restored(until);
    }
}

#[test]
fn the_directory_of_a_node_that_runs_or_was_killed_is_an_archive_too_and_stays_as_it_is() {
    let mut kept = Kept::make();
    let node_dir = kept.single.node.dir.clone();
    let (code, why) = kept.restore(&kept.backup(), kept.last, &[&node_dir]);
    assert_eq!(code, 0, "{why}");
    kept.check_restored(kept.last);
    kept.single.node.kill9();
    let contents = |dir: &Path| {
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect::<Vec<_>>()
    };
    let before = contents(&node_dir);
    let until = kept.last - 3;
    let (code, why) = kept.restore(&kept.backup(), until, &[&node_dir]);
    assert_eq!(code, 0, "{why}");
    assert!(contents(&node_dir) == before, "it was only read");
    kept.check_restored(until);
}

#[test]
fn a_bare_snapshot_and_its_segments_are_as_good_as_a_backup() {
    let kept = Kept::make();
    let snapshot = kept.single.node.files(".kvsnap").remove(0);
    let (code, why) = kept.restore(&snapshot, kept.last - 7, &[&kept.archive()]);
    assert_eq!(code, 0, "{why}");
    kept.check_restored(kept.last - 7);
}

#[test]
fn segments_may_lie_in_several_directories() {
    let kept = Kept::make();
    let other = kept.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    for (path, _) in kept.segments().into_iter().skip(1).step_by(2) {
        fs::rename(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    let (code, why) = kept.restore(&kept.backup(), kept.last, &[&other, &kept.archive()]);
    assert_eq!(code, 0, "{why}");
    kept.check_restored(kept.last);
}

#[test]
fn a_gap_a_beyond_and_a_below_are_refused_by_their_lsns() {
    let kept = Kept::make();
    let below = kept.refused(kept.backed_up - 1, &[&kept.archive()]);
    assert!(below.contains(&format!("LSN {} lies below", kept.backed_up - 1)), "{below}");
    let beyond = kept.refused(kept.last + 5, &[&kept.archive()]);
    let names = format!("records {} to {} are missing", kept.last + 1, kept.last + 5);
    assert!(beyond.contains(&names) && beyond.contains("archive"), "{beyond}");
    let segments = kept.segments();
    let [(gone, from), (_, next)] = &segments[segments.len() - 3..segments.len() - 1] else { unreachable!() };
    fs::remove_file(gone).unwrap();
    let gap = kept.refused(kept.last, &[&kept.archive()]);
    assert!(gap.contains(&format!("records {from} to {} are missing", next - 1)), "{gap}");
    let (code, why) = kept.restore(&kept.backup(), from - 1, &[&kept.archive()]);
    assert_eq!(code, 0, "what lies before the gap is there: {why}");
    kept.check_restored(from - 1);
}

#[test]
fn a_damaged_segment_and_one_of_another_log_are_refused_by_name() {
    let kept = Kept::make();
    let segments = kept.segments();
    let (path, first) = &segments[segments.len() - 2];
    let good = fs::read(path).unwrap();
    let mut damaged = good.clone();
    damaged[20_000] ^= 1;
    fs::write(path, &damaged).unwrap();
    let why = kept.refused(kept.last, &[&kept.archive()]);
    let name = path.file_name().unwrap().to_string_lossy();
    assert!(
        why.contains(&*name) && why.contains("does not read at byte") && why.contains("missing"),
        "{why}"
    );
    fs::write(path, &good).unwrap();
    // A node of another cluster has segments of the same names.
    let other = Single::start(FLAGS);
    write(&mut other.node.client(), 5_000..6_500, &mut Writes::new());
    let stranger = kept.refused(kept.last, &[&other.node.dir]);
    assert!(stranger.contains("is of cluster") && stranger.contains("missing"), "{stranger} from {first}");
    // And beside the right ones it does no harm.
    let (code, why) = kept.restore(&kept.backup(), kept.last, &[&other.node.dir, &kept.archive()]);
    assert_eq!(code, 0, "{why}");
    kept.check_restored(kept.last);
}

#[test]
fn a_log_that_went_another_way_in_the_same_cluster_is_refused_where_it_parts() {
    let mut single = Single::start(FLAGS);
    let dir = tempfile::tempdir().unwrap();
    write(&mut single.node.client(), 1..300, &mut Writes::new());
    single.node.kill9();
    // Somebody copied the directory and started the copy: two nodes of one identity.
    let twin_dir = dir.path().join("twin");
    fs::create_dir(&twin_dir).unwrap();
    for entry in fs::read_dir(&single.node.dir).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), twin_dir.join(entry.file_name())).unwrap();
    }
    single.node.start();
    write(&mut single.node.client(), 300..320, &mut Writes::new());
    let file = dir.path().join("backup");
    let (code, out, err) = single.node.cli(&["-o", "json", "backup", file.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    let account: serde_json::Value = serde_json::from_str(&out).unwrap();
    let last = account["last"].as_u64().unwrap();
    let mut twin = Node::new(Port::reserve(), twin_dir.clone(), FLAGS);
    twin.start();
    write(&mut twin.client(), 700..900, &mut Writes::new());
    let data_dir = dir.path().join("data");
    let (until, archive) = ((last + 50).to_string(), twin_dir.to_str().unwrap());
    let (code, why) = restore(&file, &data_dir, &["--until", &until, "--archive", archive]);
    assert!(code == 2 && why.contains("does not continue the backup"), "{code}: {why}");
    assert!(why.contains(&format!("at LSN {last} its chain checksum is")), "{why}");
    assert!(!data_dir.exists());
}

#[test]
fn the_log_of_a_sibling_that_was_restored_from_an_older_backup_does_not_fit() {
    let kept = Kept::make();
    // The same backup, restored and written to: from there on it is another log, of another cluster.
    let (code, why) = kept.restore(&kept.backup(), kept.backed_up, &[]);
    assert_eq!(code, 0, "{why}");
    let sibling_dir = kept.dir.path().join("sibling");
    fs::rename(kept.data_dir(), &sibling_dir).unwrap();
    let mut sibling = Node::new(Port::reserve(), sibling_dir.clone(), FLAGS);
    sibling.start();
    write(&mut sibling.client(), 9_000..9_500, &mut Writes::new());
    let why = kept.refused(kept.last, &[&sibling_dir]);
    assert!(why.contains("is of cluster"), "{why}");
}
