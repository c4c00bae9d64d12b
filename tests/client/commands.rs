//! `kv_client` end to end against a scripted node: what is sent, what is printed, which exit code.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use kvstore::wire::client::Status;
use serde_json::json;

use crate::support::{Answer, FakeNode, Ran, Seen, command, kv_client, reply};

fn answering(status: Status, payload: &'static [u8]) -> FakeNode {
    FakeNode::start(move |_| reply(status, payload))
}

#[test]
fn put_prints_ok() {
    let node = answering(Status::Ok, b"");
    node.client(&["put", "hello", "world"]).expect(0, "OK\n", "");
    node.client(&["put", "hello", "", "-o", "json"]).expect(0, "{\"ok\":true,\"lsn\":7,\"term\":3}\n", "");
    let put = |value: &[u8]| Seen::Put(b"hello".to_vec(), value.to_vec());
    assert_eq!(node.seen(), [put(b"world"), put(b"")]);
}

#[test]
fn put_reads_a_value_from_stdin_unchanged() {
    let node = answering(Status::Ok, b"");
    let value: Vec<u8> = (0..200_000u32).map(|i| (i * 7) as u8).chain(*b"\n\n").collect();
    kv_client(node.port(), &["put", "k", "-"], &value).expect(0, "OK\n", "");
    assert_eq!(node.seen(), [Seen::Put(b"k".to_vec(), value)]);
}

#[test]
fn get_prints_the_value_and_a_newline() {
    let node = answering(Status::Ok, b"world");
    node.client(&["get", "hello"]).expect(0, "world\n", "");
    let json = "{\"ok\":true,\"value\":\"world\",\"lsn\":7,\"term\":3}\n";
    node.client(&["get", "hello", "-o", "json"]).expect(0, json, "");
}

#[test]
fn a_value_that_is_not_utf8_is_printed_raw_and_in_json_as_base64() {
    let node = answering(Status::Ok, b"\xff\x00\n");
    assert_eq!(node.client(&["get", "k"]).stdout, b"\xff\x00\n\n");
    assert_eq!(node.client(&["-o", "json", "get", "k"]).json()["value"], json!({"b64": "/wAK"}));
}

#[test]
fn keys_and_values_are_any_bytes() {
    let node = answering(Status::Ok, b"");
    let ran: Ran = command(node.port())
        .args(["put".as_bytes(), b"\xff\xfe", b"\x80\n"].map(OsStr::from_bytes))
        .output()
        .unwrap()
        .into();
    ran.expect(0, "OK\n", "");
    node.client(&["put", "-5", "-7"]).expect(0, "OK\n", "");
    node.client(&["put", "--", "-k", "--v"]).expect(0, "OK\n", "");
    let put = |key: &[u8], value: &[u8]| Seen::Put(key.to_vec(), value.to_vec());
    assert_eq!(node.seen(), [put(b"\xff\xfe", b"\x80\n"), put(b"-5", b"-7"), put(b"-k", b"--v")]);
}

#[test]
fn an_absent_key_is_exit_1_for_get_and_delete() {
    let node = answering(Status::NotFound, b"");
    let json = "{\"ok\":false,\"error\":\"not_found\",\"lsn\":7}\n";
    for verb in ["get", "delete"] {
        node.client(&[verb, "a \"key\""]).expect(1, "", "not found: \"a \\\"key\\\"\"\n");
        node.client(&[verb, "k", "-o", "json"]).expect(1, json, "");
    }
}

#[test]
fn delete_of_a_present_key_prints_ok() {
    let node = answering(Status::Ok, b"");
    node.client(&["delete", "k"]).expect(0, "OK\n", "");
    node.client(&["delete", "k", "-o", "json"]).expect(0, "{\"ok\":true,\"lsn\":7,\"term\":3}\n", "");
    assert_eq!(node.seen()[0], Seen::Delete(b"k".to_vec()));
}

#[test]
fn ping_prints_the_round_trip() {
    let node = answering(Status::Ok, b"");
    let ran = node.client(&["ping"]);
    let number = ran.stdout_text().strip_prefix("PONG ").and_then(|rest| rest.strip_suffix(" us\n"));
    assert!(number.is_some_and(|number| number.parse::<u64>().is_ok()), "{ran:?}");
    let document = node.client(&["ping", "-o", "json"]).json();
    assert!(document["round_trip_us"].is_u64() && document["lsn"] == 7, "{document}");
}

#[test]
fn promote_prints_the_nodes_message() {
    let node = FakeNode::start(|request| match request {
        Seen::Promote(false) => reply(Status::Refused, "127.0.0.1:9003 has more: LSN 9; promote that one"),
        Seen::Promote(true) => {
            reply(Status::Ok, r#"{"term":4294967296,"lsn":9,"message":"leads; LSN 10 to 12 may be lost"}"#)
        }
        other => panic!("{other:?}"),
    });
    let refused =
        format!("kv_client: {} refuses: 127.0.0.1:9003 has more: LSN 9; promote that one\n", node.address);
    node.client(&["promote"]).expect(5, "", &refused);
    node.client(&["promote", "--force"]).expect(
        0,
        "OK: leads; LSN 10 to 12 may be lost\n(term 0.3, LSN 7)\n",
        "",
    );
    let document = node.client(&["promote", "--force", "-o", "json"]).json();
    let message = "leads; LSN 10 to 12 may be lost";
    assert_eq!(document, json!({"ok": true, "term": 4_294_967_296u64, "lsn": 9, "message": message}));
}

#[test]
fn follow_sends_the_address_in_its_normal_form() {
    let node = answering(Status::Ok, b"");
    node.client(&["follow", "9001"]).expect(0, "OK: done\n(term 0.3, LSN 7)\n", "");
    assert_eq!(node.client(&["follow", "[::1]:9002", "--discard"]).exit_code, 0);
    let follow = |address: &str, discard| Seen::Follow(address.to_owned(), discard);
    assert_eq!(node.seen(), [follow("127.0.0.1:9001", false), follow("[::1]:9002", true)]);
    let ran = node.client(&["follow", "nowhere"]);
    assert!(ran.exit_code == 2 && ran.stderr.contains("the port is missing"), "{ran:?}");
}

#[test]
fn the_environment_stands_in_for_flags() {
    let node = answering(Status::Ok, b"v");
    let ran: Ran = std::process::Command::new(env!("CARGO_BIN_EXE_kv_client"))
        .env("KV_CLIENT_PORT", node.port())
        .env("KV_CLIENT_HOST", "localhost")
        .env("KV_CLIENT_OUTPUT", "json")
        .env("KV_CLIENT_TIMEOUT_MS", "9000")
        .env("KV_CLIENT_NO_FOLLOW", "0")
        .args(["get", "k"])
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.json()["value"], "v");
}

#[test]
fn usage_is_exit_2_and_sends_nothing() {
    let node = FakeNode::start(|request| panic!("{request:?} was sent"));
    let long_key = "k".repeat(65_536);
    let cases: [&[&str]; 9] = [
        &[],
        &["get"],
        &["get", ""],
        &["get", &long_key],
        &["fetch", "k"],
        &["get", "k", "--timeout-ms", "0"],
        &["get", "k", "-o", "xml"],
        &["get", "k", "--host", "a b"],
        &["get", "-k"],
    ];
    for arguments in cases {
        let ran = node.client(arguments);
        assert!(ran.exit_code == 2 && !ran.stderr.is_empty() && ran.stdout.is_empty(), "{ran:?}");
    }
    let too_large = vec![0; (8 << 20) + 1];
    let ran = kv_client(node.port(), &["put", "k", "-"], &too_large);
    assert!(ran.exit_code == 2 && ran.stderr.contains("more than 8388608 bytes"), "{ran:?}");
    assert_eq!(node.seen(), []);
}

#[test]
fn the_largest_key_and_value_pass() {
    let node = FakeNode::start(|request| match request {
        Seen::Get(_) => reply(Status::Ok, vec![b'v'; 8 << 20]),
        _ => reply(Status::Ok, ""),
    });
    let key = "k".repeat(65_535);
    let value = vec![b'v'; 8 << 20];
    kv_client(node.port(), &["put", &key, "-"], &value).expect(0, "OK\n", "");
    assert_eq!(node.seen(), [Seen::Put(key.into_bytes(), value)]);
    assert_eq!(node.client(&["get", "k"]).stdout.len(), (8 << 20) + 1);
}

#[test]
fn help_names_exit_codes_variables_defaults_and_examples() {
    let help: Ran = command("1").arg("--help").output().unwrap().into();
    let text = help.stdout_text();
    for part in ["Exit codes:", "Examples:", "KV_CLIENT_PORT", "[default: 5000]", "Where:", "How:", "promote"]
    {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let node = FakeNode::start(|_| reply(Status::Ok, vec![b'v'; 8 << 20]));
    let mut child = command(node.port())
        .args(["get", "k"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // 8 MiB do not fit into a pipe, so the write is under way or to come when its reader is gone.
    drop(child.stdout.take());
    Ran::from(child.wait_with_output().unwrap()).expect(0, "", "");
}

#[test]
fn a_result_that_cannot_be_printed_is_an_error() {
    let node = answering(Status::Ok, b"");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child =
        command(node.port()).args(["put", "k", "v"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert!(ran.exit_code == 7 && ran.stderr.contains("the command was done, but"), "{ran:?}");
}

#[test]
fn every_status_has_its_exit_code() {
    let cases = [
        (Status::BadRequest, 2, "bad_request"),
        (Status::TooLarge, 2, "too_large"),
        (Status::ConditionFailed, 4, "condition_failed"),
        (Status::NotLeader, 5, "not_leader"),
        (Status::NotEnoughReplicas, 5, "not_enough_replicas"),
        (Status::Busy, 7, "busy"),
        (Status::DiskFull, 7, "disk_full"),
        (Status::OutcomeUnknown, 6, "outcome_unknown"),
        (Status::Refused, 5, "refused"),
        (Status::ShuttingDown, 7, "shutting_down"),
        (Status::Loading, 8, "loading"),
        (Status::Repairing, 8, "repairing"),
        (Status::Diverged, 7, "diverged"),
    ];
    for (status, exit_code, name) in cases {
        let node = FakeNode::start(move |_| Answer::Reply(status, 42, Vec::new()));
        let ran = node.client(&["put", "k", "v", "-o", "json"]);
        assert_eq!((ran.exit_code, ran.json()["error"].as_str()), (exit_code, Some(name)));
        assert!(ran.json()["ok"] == false && ran.json()["lsn"] == 42, "{ran:?}");
        assert!(ran.stderr.starts_with(&format!("kv_client: {} ", node.address)), "{ran:?}");
    }
}
