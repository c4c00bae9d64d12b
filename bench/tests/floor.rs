//! The binary as it is used: the floor measures, says what it must, and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn kv_bench(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kv_bench")).args(flags).output().expect("the binary was built")
}

fn floor(dir: &Path, flags: &[&str]) -> Value {
    let dir = dir.to_str().unwrap();
    let always = ["--floor", "--data-dir", dir, "--json", "-", "--warmup", "0.1", "--duration", "0.3"];
    let output = kv_bench(&[&always[..], flags].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_replicated_floor_has_the_published_form_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    for ack in ["quorum", "insync", "leader"] {
        let json = floor(dir.path(), &["--connections", "4", "--pipeline", "8", "--floor-ack", ack]);
        for at in ["", "/floor"] {
            assert!(json.pointer(&format!("{at}/ops_per_s")).unwrap().as_f64().unwrap() > 0.0);
            for time in ["service_us", "response_us"] {
                for name in ["p50", "p90", "p99", "p999", "p9999", "max"] {
                    assert!(json.pointer(&format!("{at}/{time}/{name}")).unwrap().is_f64(), "{json:#}");
                }
            }
            assert_eq!(json.pointer(&format!("{at}/errors")).unwrap(), &serde_json::json!({}));
        }
        assert_eq!(json["config"]["floor_ack"], ack);
        assert!(json["floor"]["void"].is_boolean());
        for part in ["fdatasync_alone_us", "fdatasync_of_three_us", "ping_pong_us", "two_wakeups_us"] {
            assert!(json["floor"]["parts"][part]["p50"].as_f64().unwrap() > 0.0, "{json:#}");
        }
        assert!(json["kernel"].as_str().unwrap().starts_with("Linux"));
        assert!(json["file_system"].is_string() && json["cpu_dma_latency"].is_string());
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn values_larger_than_a_socket_buffer_pass_through_the_floor() {
    let dir = tempfile::tempdir().unwrap();
    let json = floor(
        dir.path(),
        &[
            "--connections",
            "3",
            "--pipeline",
            "2",
            "--value-size",
            "3000000",
            "--runs",
            "2",
            "--floor-nodes",
            "3",
        ],
    );
    assert!(json["ops_per_s"].as_f64().unwrap() > 0.0, "{json:#}");
    assert_eq!(json["errors"], serde_json::json!({}));
    assert_eq!(json["runs"].as_array().unwrap().len(), 2);
}

#[test]
fn a_single_node_needs_no_followers_and_draws_its_curves() {
    let dir = tempfile::tempdir().unwrap();
    let (svg, hgrm) = (dir.path().join("a.svg"), dir.path().join("a.hgrm"));
    let files = ["--svg", svg.to_str().unwrap(), "--hgrm", hgrm.to_str().unwrap()];
    floor(dir.path(), &[&["--floor-nodes", "1", "--runs", "2"], &files[..]].concat());
    let svg = std::fs::read_to_string(svg).unwrap();
    assert_eq!(svg.matches("<polyline").count(), 2, "one curve per run");
    assert!(std::fs::read_to_string(hgrm).unwrap().contains("1/(1-Percentile)"));
}

#[test]
fn flags_that_make_no_sense_are_refused_in_words() {
    for (flags, word) in [
        (&["--op", "put"][..], "--endpoint"),
        (&["--floor", "--op", "get"][..], "--op put"),
        (&["--floor", "--connections", "0"][..], "--connections"),
        (&["--endpoint", "127.0.0.1:1", "--wait", "1"][..], "--protocol resp"),
        (&["--endpoint", "127.0.0.1:1"][..], "127.0.0.1:1: Connection refused"),
        (&["--floor", "--data-dir", "/proc"][..], "/proc/"),
    ] {
        let output = kv_bench(flags);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(word), "{flags:?}: {stderr}");
    }
}
