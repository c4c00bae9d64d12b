//! The dialects against the real stores, where they are installed; where not, the test says so.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// A server of this test, ended by its own id.
struct Server {
    process: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a server and waits for the line with which it says that it is ready. `None`: not installed.
fn start(command: &mut Command, port: u16, ready: &str) -> Option<Server> {
    let name = command.get_program().to_string_lossy().into_owned();
    // etcd speaks on standard error, redis on standard output.
    let speaks_on_stderr = name == "etcd";
    let (stdout, stderr) = match speaks_on_stderr {
        true => (Stdio::null(), Stdio::piped()),
        false => (Stdio::piped(), Stdio::null()),
    };
    let Ok(process) = command.stdout(stdout).stderr(stderr).stdin(Stdio::null()).spawn() else {
        eprintln!("not tested: {name} is not installed");
        return None;
    };
    let mut server = Server { process, port };
    let mut lines: Box<dyn BufRead + Send> = match speaks_on_stderr {
        true => Box::new(BufReader::new(server.process.stderr.take().expect("asked for as a pipe"))),
        false => Box::new(BufReader::new(server.process.stdout.take().expect("asked for as a pipe"))),
    };
    let mut line = String::new();
    while !line.contains(ready) {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "{name} ended before it was ready");
    }
    // Nobody reads on; a server must not end or stall for that.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    Some(server)
}

fn redis(dir: &Path, primary: Option<u16>) -> Option<Server> {
    let port = free_port();
    std::fs::create_dir_all(dir).unwrap();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--save", "", "--dir", dir.to_str().unwrap()]);
    let mut ready = "Ready to accept connections";
    if let Some(primary) = primary {
        command.args(["--replicaof", "127.0.0.1", &primary.to_string()]);
        ready = "MASTER <-> REPLICA sync: Finished with success";
    }
    start(&mut command, port, ready)
}

fn measure(server: &Server, flags: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_kv_bench"))
        .args(["--endpoint", &format!("127.0.0.1:{}", server.port), "--json", "-", "--keys", "100"])
        .args(["--warmup", "0", "--duration", "0.3"])
        .args(flags.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_clean(server: &Server, flags: &str) {
    let json = measure(server, flags);
    assert_eq!(json["errors"], serde_json::json!({}), "{flags}");
    assert!(json["ops_per_s"].as_f64().unwrap() > 10.0, "{flags}: {}", json["ops_per_s"]);
}

#[test]
fn redis_is_measured_with_and_without_wait() {
    let dir = tempfile::tempdir().unwrap();
    let Some(primary) = redis(&dir.path().join("1"), None) else { return };
    assert_clean(&primary, "--protocol resp --connections 5 --pipeline 16");
    assert_clean(&primary, "--protocol resp --connections 5 --pipeline 16 --op mix:50");
    assert_clean(&primary, "--protocol resp --op get --rate 1000");
    let missing = measure(&primary, "--protocol resp --op get --keys 1000000 --no-fill");
    assert!(missing["errors"]["NotFound"].as_u64().unwrap() > 0, "{missing:#}");

    let replica = redis(&dir.path().join("2"), Some(primary.port)).expect("the first one started");
    assert_clean(&primary, "--protocol resp --wait 1 --connections 5 --pipeline 4");
    assert_clean(&primary, "--protocol resp --wait 1 --wait-batch --connections 5 --pipeline 16");
    drop(replica);
    // Nobody confirms: what waits is said to be without a reply, not dropped.
    let alone = measure(&primary, "--protocol resp --wait 2 --connections 3 --pipeline 2");
    assert_eq!(alone["errors"]["no reply until the end"], 6, "{alone:#}");
}

#[test]
fn etcd_is_measured_through_its_grpc() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut command = Command::new("etcd");
    command.args(["--data-dir", dir.path().to_str().unwrap(), "--listen-peer-urls", &peer]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    let Some(server) = start(&mut command, port, "serving") else { return };
    assert_clean(&server, "--protocol etcd --connections 5");
    assert_clean(&server, "--protocol etcd --connections 2 --pipeline 16 --value-size 1024");
    assert_clean(&server, "--protocol etcd --connections 5 --op mix:50");
}
