//! The real directory: its lock, its refusals, and that it keeps the promises of the trait.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kvstore::disk::{BLOCK_SIZE, Disk, FileSystem, Flush, FlushRing, OpenError, RealDisk};
use kvstore::ids::NodeId;
use kvstore::meta::{Meta, MetaStore};
use kvstore::rng::Rng;

const CHILD_DIR: &str = "KVSTORE_TEST_CHILD_DIR";

fn refusal(path: &Path) -> String {
    let text = RealDisk::open(path).unwrap_err().to_string();
    assert!(text.contains(&path.display().to_string()), "the path is named: {text}");
    text
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_second_process_is_refused_and_told_the_pid() {
    if let Some(path) = std::env::var_os(CHILD_DIR) {
        println!("{}", refusal(Path::new(&path)));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "disk_real::a_second_process_is_refused_and_told_the_pid", "--nocapture"])
        .env(CHILD_DIR, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8(child.stdout).unwrap();
    let expected = format!("is in use by the process with pid {},", std::process::id());
    assert!(child.status.success() && said.contains(&expected), "{said}");

    assert!(matches!(RealDisk::open(dir.path()), Err(OpenError::InUse { pid: Some(_), .. })));
    drop(disk);
    RealDisk::open(dir.path()).expect("the lock ends with its holder, the file stays");
}

#[test]
fn a_missing_directory_is_created_but_not_its_parents() {
    let dir = tempfile::tempdir().unwrap();
    RealDisk::open(&dir.path().join("node1")).unwrap();
    let text = refusal(&dir.path().join("missing/node1"));
    assert!(text.contains("creating it: No such file") && text.contains("mount the file system"), "{text}");
    assert!(!dir.path().join("missing").exists());
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "").unwrap();
    assert!(refusal(&path).contains("Not a directory"));
}

#[test]
fn a_directory_of_another_user_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = if is_root() {
        chown(dir.path(), Some(12_345), None).unwrap();
        dir.path()
    } else {
        Path::new("/")
    };
    assert!(refusal(path).contains("belongs to uid"));
    assert!(!path.join("LOCK").exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    if is_root() {
        println!("skipped: root may write to every directory");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    let text = refusal(dir.path());
    assert!(text.contains("LOCK") && text.contains("Permission denied"), "{text}");
}

#[test]
fn a_directory_in_memory_is_told_from_a_disk() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: there is no /dev/shm");
        return;
    };
    assert_eq!(RealDisk::open(dir.path()).unwrap().file_system().unwrap(), FileSystem::Memory);
    let on_proc = rustix::fs::statfs("/proc").unwrap().f_type as u64;
    assert_ne!(on_proc, 0x0102_1994, "the magic number tells file systems apart");
}

#[test]
fn files_are_created_whole_listed_renamed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    let mut disk = RealDisk::open(dir.path()).unwrap();
    let file = disk.create("b", 3_000_000).unwrap();
    assert_eq!(disk.len(file).unwrap(), 3_000_000);
    assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), vec![0; 3_000_000]);
    assert_eq!(disk.create("b", 0).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(disk.open("a").unwrap_err().kind(), std::io::ErrorKind::NotFound);

    disk.write_all_at(file, 2_999_998, b"end!").unwrap();
    disk.sync_data(file).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(disk.read_at(file, 2_999_997, &mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"\0end!");
    assert!(disk.read_exact_at(file, 2_999_997, &mut buffer).is_err());

    let empty = disk.create("a", 0).unwrap();
    assert_eq!(disk.list().unwrap(), ["a", "b"]);
    disk.rename("b", "a").unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(disk.list().unwrap(), ["a"]);
    assert_eq!((disk.len(empty).unwrap(), disk.len(file).unwrap()), (0, 3_000_002));
    disk.close(empty);
    assert_eq!(disk.open("a").unwrap(), empty, "a closed slot is used again");
    disk.remove("a").unwrap();
    assert!(disk.list().unwrap().is_empty());
    assert_eq!(disk.len(file).unwrap(), 3_000_002, "an open handle outlives the name");
}

#[test]
fn a_file_for_which_there_is_no_room_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = RealDisk::open(dir.path()).unwrap();
    disk.create("huge", 1 << 62).unwrap_err();
    assert!(disk.list().unwrap().is_empty());
}

#[test]
fn the_identity_record_comes_back_from_a_real_directory() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = RealDisk::open(dir.path()).unwrap();
    assert!(MetaStore::load(&mut disk).unwrap().is_none());
    let mut store =
        MetaStore::create(&mut disk, Meta { node_id: NodeId([1; 16]), ..Meta::default() }).unwrap();
    store.update(&mut disk, |meta| meta.term.start = 1).unwrap();
    drop(disk);
    let mut disk = RealDisk::open(dir.path()).unwrap();
    let loaded = MetaStore::load(&mut disk).unwrap().unwrap();
    assert_eq!((loaded.get(), loaded.version()), (store.get(), 2));
    assert!(loaded.notices().is_empty());
    assert_eq!(disk.list().unwrap(), ["META.a", "META.b"]);
}

/// Descriptors of this process whose file is one below `directory` that was removed.
fn removed_and_open(directory: &Path) -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").expect("Linux has /proc");
    let targets = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.filter(|at| at.starts_with(directory) && at.to_string_lossy().ends_with(" (deleted)")).count()
}

#[test]
fn what_a_removed_file_held_is_given_back_beside_a_flush_and_by_nobody_who_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = RealDisk::open(dir.path()).unwrap();
    match FlushRing::new() {
        Ok(ring) => disk.flush_through(ring),
        Err(error) => return println!("skipped: io_uring does not work here: {error}"),
    }
    let log = disk.create("log", 4096).unwrap();
    // More than the ring has room for at once.
    for number in 0..40 {
        let name = format!("f{number}");
        let file = disk.create(&name, 1 << 20).unwrap();
        disk.write_all_at(file, 0, &[7; 1 << 20]).unwrap();
        disk.close(file);
        let other_name = dir.path().join("other name");
        std::fs::hard_link(dir.path().join(&name), &other_name).unwrap();
        disk.write_all_at(log, 0, b"batch").unwrap();
        let is_beside = number % 2 == 0;
        if is_beside {
            assert_eq!(disk.flush_begin(log).unwrap(), Flush::Pending);
        }
        disk.remove(&name).unwrap();
        assert_eq!(disk.list().unwrap(), ["log", "other name"], "the name goes at once");
        if is_beside {
            disk.flush_wait().unwrap();
        }
        assert!(disk.flush_poll().is_none(), "a close is nobody's flush");
        assert_eq!(std::fs::read(&other_name).unwrap(), [7; 1 << 20], "who else has it keeps it whole");
        std::fs::remove_file(other_name).unwrap();
    }
    assert!(disk.remove("f0").is_err(), "it is gone");
    let begun = Instant::now();
    while removed_and_open(dir.path()) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "files are not closed");
        std::thread::yield_now();
    }
}

#[test]
fn a_flush_through_the_ring_ends_later_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = RealDisk::open(dir.path()).unwrap();
    let file = disk.create("f", 4096).unwrap();
    disk.write_all_at(file, 0, b"bytes").unwrap();
    assert_eq!(disk.flush_begin(file).unwrap(), Flush::Done, "without a ring it is answered at once");
    assert!(disk.flush_poll().is_none());
    match FlushRing::new() {
        Ok(ring) => disk.flush_through(ring),
        Err(error) => return println!("skipped: io_uring does not work here: {error}"),
    }
    for wait in [true, false, true] {
        disk.write_all_at(file, 0, b"other").unwrap();
        assert_eq!(disk.flush_begin(file).unwrap(), Flush::Pending);
        if wait {
            disk.flush_wait().unwrap();
        } else {
            let mut result = disk.flush_poll();
            while result.is_none() {
                std::thread::yield_now();
                result = disk.flush_poll();
            }
            result.unwrap().unwrap();
        }
        assert!(disk.flush_poll().is_none(), "its result is given once");
    }
}

/// Appends of all sizes, durable or for a later sync, with zeros written ahead or not, on a file that is closed and
/// opened meanwhile: what is read is what was appended, and zeros.
#[test]
fn appends_by_whole_blocks_and_by_bytes_read_as_one_file() {
    const SIZE: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let mut disk = RealDisk::open(dir.path()).unwrap();
    let mut file = disk.create("log", SIZE as u64).unwrap();
    let (mut expected, mut random) = (vec![0; SIZE], Rng::new(1));
    let mut end = 0;
    for round in 0..400_u32 {
        let bytes = vec![round as u8 | 1; random.below(4_000) as usize + 1];
        let offset = end as u64;
        match random.below(8) {
            0 => disk.write_all_at(file, offset, &bytes).unwrap(),
            1 | 2 => disk.append_at(file, offset, &bytes).unwrap(),
            _ => disk.append_sync_at(file, offset, &bytes).unwrap(),
        }
        expected[end..end + bytes.len()].copy_from_slice(&bytes);
        end += bytes.len();
        if random.below(20) == 0 {
            let behind = (end as u64).next_multiple_of(BLOCK_SIZE as u64);
            disk.zero_ahead(file, behind, (64 << 10).min(SIZE as u64 - behind));
        }
        if random.below(20) == 0 {
            disk.close(file);
            file = disk.open("log").unwrap();
        }
        let mut tail = vec![0; 8_192];
        let from = end.saturating_sub(4_000);
        let size = disk.read_at(file, from as u64, &mut tail).unwrap();
        assert!(tail[..size] == expected[from..from + size], "behind append {round}, which ends at {end}");
    }
    assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), expected);
}

#[test]
fn the_last_block_of_a_file_that_is_no_whole_one_is_appended_to_and_the_file_keeps_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = RealDisk::open(dir.path()).unwrap();
    let file = disk.create("log", 10_000).unwrap();
    for offset in (0..10_000).step_by(1_000) {
        disk.append_sync_at(file, offset, &[7; 1_000]).unwrap();
    }
    assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), [7; 10_000]);
}
