//! Small file systems of a test's own: a tmpfs, or ext4 on a loop device, in a mount namespace that a process of
//! the test holds. Nobody else sees them, and they are gone with that process, however the test ends.
//!
//! A node enters the namespace by what stands before it on its command line. The test itself sees the files through
//! `/proc/PID/root` of the holder.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With a user namespace where the test is not root.
    Tmpfs,
    /// For root only.
    Ext4,
}

/// A mounted file system. It is unmounted with the value.
#[derive(Debug)]
pub struct Mount {
    holder: Child,
    path: PathBuf,
    as_root: bool,
    _dir: TempDir,
}

impl Mount {
    /// `None` where it cannot be mounted, which is said: such a test proves nothing.
    pub fn new(kind: Kind, mib: u64) -> Option<Mount> {
        let as_root = rustix::process::geteuid().is_root();
        let mounted = if kind == Kind::Ext4 && !as_root { None } else { mount(kind, mib, as_root) };
        if mounted.is_none() {
            eprintln!("SKIPPED: {kind:?} cannot be mounted here; nothing was shown on it");
        }
        mounted
    }

    /// Where the file system is, for a process inside of the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same file for the test, which is outside.
    pub fn seen(&self, name: &str) -> PathBuf {
        let inside = self.path.strip_prefix("/").expect("temporary directories have absolute paths");
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(inside).join(name)
    }

    /// What stands on a command line before a program that runs inside.
    pub fn enter(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        let user: &[&str] = if self.as_root { &[] } else { &["--user", "--preserve-credentials"] };
        let fixed = ["nsenter", "--target", &pid, "--mount"];
        fixed.iter().chain(user).chain(&["--"]).map(|&argument| argument.to_owned()).collect()
    }

    /// Mounts it again with these options.
    pub fn remount(&self, options: &str) {
        let enter = self.enter();
        // With `bind`, so that this needs no right but that to this mount point.
        let options = format!("remount,bind,{options}");
        let done = Command::new(&enter[0])
            .args(&enter[1..])
            .args(["mount", "-o", &options])
            .arg(&self.path)
            .status();
        assert!(done.expect("nsenter ran before").success(), "mount -o {options}");
    }

    /// Takes all the room there is but `left` bytes. Returns the file that holds it.
    pub fn fill(&self, left: u64) -> PathBuf {
        let path = self.seen("filler");
        let mut file = std::fs::File::create(&path).expect("there is room for a name");
        // What metadata takes on the way differs between file systems: all of it first, then a part is given back.
        let mut piece = vec![1_u8; 1 << 20];
        let mut size = 0_u64;
        while piece.len() >= 512 {
            match file.write(&piece).and_then(|written| file.sync_data().map(|()| written)) {
                Ok(written) => size += written as u64,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                    piece.truncate(piece.len() / 2);
                }
            }
        }
        file.set_len(size.saturating_sub(left)).expect("a file can be made shorter");
        file.sync_all().expect("it has its room");
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn mount(kind: Kind, mib: u64, as_root: bool) -> Option<Mount> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("mounted");
    std::fs::create_dir(&path).expect("it is new");
    let script = match kind {
        Kind::Tmpfs => format!("mount -t tmpfs -o size={mib}m tmpfs \"$1\""),
        // Without the blocks kept for root, which the node may be.
        Kind::Ext4 => format!(
            "truncate -s {mib}m \"$1.image\" && mkfs.ext4 -q -m 0 \"$1.image\" && mount -o loop \"$1.image\" \"$1\""
        ),
    };
    let user: &[&str] = if as_root { &[] } else { &["--user", "--map-root-user"] };
    let mut holder = Command::new("unshare")
        .arg("--mount")
        .args(user)
        .args(["sh", "-c", &format!("{script} && echo mounted && exec cat"), "sh"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut word = String::new();
    let told = BufReader::new(holder.stdout.take().expect("it is piped")).read_line(&mut word);
    if told.is_ok() && word == "mounted\n" {
        return Some(Mount { holder, path, as_root, _dir: dir });
    }
    let _ = holder.kill();
    let _ = holder.wait();
    None
}
