//! Progress on a terminal, redrawn in place: of a state that is loaded, of a snapshot and a backup that are waited for.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Instant;

use kvstore::wire::client::{Request, Status};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::cluster::{DEADLINE, Node, Single};

/// A terminal that a program may take for its stderr, and what it has written there.
struct Terminal {
    slave: String,
    shown: Arc<(Mutex<String>, Condvar)>,
}

impl Terminal {
    fn open() -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal can be had");
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let shown = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (seen, mut reader) = (Arc::clone(&shown), File::from(master));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It fails when nobody has the other side any more.
            while let Ok(size) = reader.read(&mut bytes) {
                seen.0.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..size]));
                seen.1.notify_all();
            }
        });
        Terminal { slave, shown }
    }

    fn side(&self) -> Stdio {
        OpenOptions::new().read(true).write(true).open(&self.slave).expect("it is there").into()
    }

    /// All that was shown, once it contains this.
    #[track_caller]
    fn wait_for(&self, wanted: &str) -> String {
        let until = Instant::now() + DEADLINE;
        let mut text = self.shown.0.lock().unwrap();
        while !text.contains(wanted) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{wanted:?} was not shown, but {text:?}");
            text = self.shown.1.wait_timeout(text, left).unwrap().0;
        }
        text.clone()
    }
}

/// Some MiB of state.
fn fill(node: &Node, keys: u64) {
    let mut client = node.client();
    for first in (0..keys).step_by(50) {
        for number in first..first + 50 {
            let key = format!("key-{number}");
            client.send(&Request::Put { key: key.as_bytes(), value: &[number as u8; 8_000] }).unwrap();
        }
        client.flush().unwrap();
        (first..first + 50).for_each(|_| assert_eq!(client.receive().unwrap().status, Status::Ok));
    }
}

#[test]
fn a_node_that_loads_shows_how_far_it_is_in_one_line_that_gives_way_to_the_log() {
    let mut single = Single::start(&[]);
    fill(&single.node, 3_000);
    single.node.kill9();
    let terminal = Terminal::open();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvstore"));
    command.args(["--port", &single.node.port.to_string()]).arg("--data-dir").arg(&single.node.dir);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(terminal.side()).spawn().unwrap();
    let shown = terminal.wait_for("ready: leader");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(shown.contains("\rloading [") && shown.contains(" of 24."), "{shown:?}");
    let last_bar = shown.rfind("\rloading [").unwrap();
    let gone = shown[last_bar..].find("\r\x1b[K").expect("the line is taken away");
    let log = shown[last_bar..].find("[INFO]").expect("the log goes on");
    assert!(gone < log, "no line of the log stands behind a bar: {:?}", &shown[last_bar..]);
}

#[test]
fn a_client_that_waits_for_a_snapshot_or_a_backup_shows_how_far_it_is() {
    let single = Single::start(&[]);
    fill(&single.node, 500);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup").display().to_string();
    // The state of the first is another than that of the second, so that each makes a snapshot.
    for (arguments, wanted) in [(vec!["snapshot"], "\rsnapshot ["), (vec!["backup", &file], "\rbackup [")] {
        let terminal = Terminal::open();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kv_client"));
        command.args(["--port", &single.node.port.to_string()]).args(&arguments).stdin(Stdio::null());
        let output = command.stderr(terminal.side()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        let shown = terminal.wait_for("\r\x1b[K");
        assert!(shown.contains(wanted) && shown.ends_with("\r\x1b[K"), "{arguments:?}: {shown:?}");
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(out.starts_with("OK: ") && !out.contains('\r'), "{out:?}");
        fill(&single.node, 50);
    }
}
