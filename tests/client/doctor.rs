//! `kv_client doctor`: it runs the kv_bench beside it, prints what that measured, and says what to do without it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::support::Ran;

const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/support/kv_bench");

/// A directory with kv_client, under its own name there: a hard link, because the program looks beside itself
/// and a symbolic link would lead it back to where it was built.
fn installed() -> TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::hard_link(env!("CARGO_BIN_EXE_kv_client"), dir.path().join("kv_client")).unwrap();
    dir
}

fn doctor(dir: &Path, arguments: &[&str]) -> Ran {
    Command::new(dir.join("kv_client"))
        .env_remove("KV_CLIENT_OUTPUT")
        .arg("doctor")
        .args(arguments)
        .output()
        .unwrap()
        .into()
}

#[test]
fn kv_bench_beside_it_measures() {
    let dir = installed();
    symlink(STAND_IN, dir.path().join("kv_bench")).unwrap();
    let asked = "--floor --duration 3 --data-dir ./d";
    doctor(dir.path(), &["--data-dir", "./d"]).expect(0, &format!("asked: {asked}\n"), "");
    let ran = doctor(dir.path(), &["--data-dir", "./d", "-o", "json"]);
    assert_eq!(ran.json(), json!({"ok": true, "asked": format!("{asked} --json -")}), "{ran:?}");
    assert_eq!(ran.stdout_text().lines().count(), 1, "one object on one line, as every command");
}

#[test]
fn without_kv_bench_it_says_how_to_build_it() {
    let dir = installed();
    let ran = doctor(dir.path(), &["--data-dir", "."]);
    assert!(ran.exit_code == 2 && ran.stdout.is_empty(), "{ran:?}");
    assert!(ran.stderr.contains("cargo build --release --workspace"), "{ran:?}");
    assert!(ran.stderr.contains(dir.path().join("kv_bench").to_str().unwrap()), "{ran:?}");
    let ran = doctor(dir.path(), &["--data-dir", ".", "-o", "json"]);
    assert_eq!((ran.exit_code, &ran.json()["error"]), (2, &json!("usage")), "{ran:?}");
}

#[test]
fn what_kv_bench_says_when_it_cannot_measure_is_passed_on() {
    let dir = installed();
    symlink(STAND_IN, dir.path().join("kv_bench")).unwrap();
    let ran = doctor(dir.path(), &["--data-dir", "nowhere"]);
    assert!(ran.exit_code == 7 && ran.stdout.is_empty(), "{ran:?}");
    assert!(ran.stderr.starts_with("kv_bench: nowhere: No such file or directory\n"), "{ran:?}");
    let ran = doctor(dir.path(), &["--data-dir", "nowhere", "-o", "json"]);
    assert_eq!((ran.exit_code, &ran.json()["error"]), (7, &json!("not_measured")), "{ran:?}");
    assert!(ran.json()["message"].as_str().unwrap().contains("kv_bench: nowhere"), "{ran:?}");
}
