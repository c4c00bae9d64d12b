//! Real nodes as processes: started, watched through their log and status, stopped, and killed by their own
//! pid when the test ends, however it ends.
//!
//! Nothing here sleeps for luck: a log line is awaited on a condition variable, an exit on the process, and a
//! status is asked again until it is as wanted or the deadline passes, which fails the test with the log.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use kvstore::client::{Client, ClientError};
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::{FrameBuffer, MessageType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything that must happen may take. Generous: the machine may be busy, and only a failure waits.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two questions for a status.
const POLL_PAUSE: Duration = Duration::from_millis(5);
/// Log lines shown when a test fails.
const LINES_SHOWN: usize = 60;

/// A port that is this test's for as long as the value lives: a socket is bound to it and does not listen,
/// so the system gives it to nobody, while a node (SO_REUSEADDR on both) may listen there.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _held: OwnedFd,
}

impl Port {
    pub fn reserve() -> Port {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
        let held = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseaddr(&held, true).unwrap();
        bind(&held, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address: SocketAddr = getsockname(&held).unwrap().try_into().unwrap();
        Port { number: address.port(), _held: held }
    }
}

/// Runs `kv_client` to its end: exit code, stdout, stderr.
pub fn kv_client(arguments: &[&str]) -> (i32, String, String) {
    run(env!("CARGO_BIN_EXE_kv_client"), arguments)
}

/// Runs `kvstore`, with a command that ends by itself.
pub fn kvstore(arguments: &[&str]) -> (i32, String, String) {
    run(env!("CARGO_BIN_EXE_kvstore"), arguments)
}

fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).output().expect("the program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it ends by itself"), text(&output.stdout), text(&output.stderr))
}

/// The lines a process wrote to stderr so far.
#[derive(Debug, Default)]
pub struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    /// Streams still read; a restarted node writes into the same log.
    open: usize,
}

impl Log {
    fn read_from(self: &Arc<Log>, stderr: ChildStderr) {
        self.state.lock().unwrap().open += 1;
        let log = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                let Ok(line) = line else { break };
                log.state.lock().unwrap().lines.push(String::from_utf8_lossy(&line).into_owned());
                log.changed.notify_all();
            }
            log.state.lock().unwrap().open -= 1;
            log.changed.notify_all();
        });
    }

    /// Where the log ends now: lines from here on are later ones.
    pub fn mark(&self) -> usize {
        self.state.lock().unwrap().lines.len()
    }

    pub fn lines_from(&self, mark: usize) -> Vec<String> {
        self.state.lock().unwrap().lines[mark..].to_vec()
    }

    pub fn count_from(&self, mark: usize, pattern: &str) -> usize {
        self.lines_from(mark).iter().filter(|line| line.contains(pattern)).count()
    }

    /// Waits for a line with `pattern` behind `mark`.
    #[track_caller]
    pub fn wait_for_line(&self, mark: usize, pattern: &str, deadline: Duration) -> String {
        self.line_or_end(mark, pattern, deadline).unwrap_or_else(|| {
            let lines = self.lines_from(mark).join("\n");
            panic!("no line with {pattern:?} in {deadline:?}; the log since then:\n{lines}")
        })
    }

    /// Waits for a line with `pattern` behind `mark`; `None` once the process has ended without one, or after
    /// the deadline.
    pub fn line_or_end(&self, mark: usize, pattern: &str, deadline: Duration) -> Option<String> {
        let until = Instant::now() + deadline;
        let mut state = self.state.lock().unwrap();
        loop {
            let found = state.lines[mark..].iter().find(|line| line.contains(pattern)).cloned();
            let left = until.saturating_duration_since(Instant::now());
            if found.is_some() || left.is_zero() || state.open == 0 {
                return found;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// A line that must be there already, because the process has ended.
    #[track_caller]
    pub fn line(&self, pattern: &str) -> String {
        let lines = self.lines_from(0);
        let found = lines.iter().find(|line| line.contains(pattern)).cloned();
        found.unwrap_or_else(|| panic!("no line with {pattern:?} in:\n{}", lines.join("\n")))
    }

    /// Waits until all streams are at their end.
    fn wait_for_end(&self) {
        let mut state = self.state.lock().unwrap();
        while state.open > 0 {
            state = self.changed.wait(state).unwrap();
        }
    }
}

/// A node: how it is started, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    pub port: u16,
    pub dir: PathBuf,
    pub args: Vec<String>,
    /// What stands before the program on the command line, such as strace.
    pub wrapper: Vec<String>,
    /// Nobody reads the log.
    pub log_unread: bool,
    pub log: Arc<Log>,
    child: Option<Child>,
    unread: Option<ChildStderr>,
    _port: Port,
}

impl Node {
    pub fn new(port: Port, dir: PathBuf, args: &[&str]) -> Node {
        Node {
            port: port.number,
            dir,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            wrapper: Vec::new(),
            log_unread: false,
            log: Arc::default(),
            child: None,
            unread: None,
            _port: port,
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_kvstore");
        let mut command = match self.wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KVSTORE_"))
        {
            command.env_remove(name);
        }
        command.args(["--port", &self.port.to_string()]).arg("--data-dir").arg(&self.dir).args(&self.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Starts the process and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the node runs already");
        let mut child = self.command().spawn().expect("kvstore starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        if self.log_unread {
            self.unread = Some(stderr);
        } else {
            self.log.read_from(stderr);
        }
        self.child = Some(child);
    }

    /// Starts the process and waits until it serves.
    #[track_caller]
    pub fn start(&mut self) -> &mut Node {
        let mark = self.log.mark();
        self.spawn();
        if !self.log_unread {
            self.log.wait_for_line(mark, "ready:", DEADLINE);
        }
        self
    }

    /// Starts a process that must refuse; its exit code and what it said.
    pub fn start_refused(&mut self) -> (i32, String) {
        let mark = self.log.mark();
        self.spawn();
        let status = self.wait_exit(DEADLINE);
        (status.code().expect("it ends by itself"), self.log.lines_from(mark).join("\n"))
    }

    /// The node itself, where a tracer stands before it: the tracer's only child.
    fn traced_pid(&self, tracer: u32) -> Option<Pid> {
        self.wrapper.first().filter(|program| *program == "strace")?;
        let children = std::fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children")).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a pid is above 0");
        kill_process(pid, signal).expect("the process is ours and was not waited for");
    }

    /// kill -9, and waits for the end. Of a traced node: of the node, and its tracer ends with it.
    pub fn kill9(&mut self) {
        match self.traced_pid(self.pid()) {
            // Between the look and the signal it may have died of what was injected.
            Some(node) => drop(kill_process(node, Signal::KILL)),
            None => self.signal(Signal::KILL),
        }
        self.wait_exit(DEADLINE);
    }

    /// Waits for the end of the process and of its log.
    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let until = Instant::now() + deadline;
        let child = self.child.as_mut().expect("the node runs");
        let status = loop {
            if let Some(status) = child.try_wait().expect("the child is ours") {
                break status;
            }
            assert!(Instant::now() < until, "the node did not end within {deadline:?}");
            thread::sleep(Duration::from_millis(2));
        };
        self.child = None;
        self.unread = None;
        self.log.wait_for_end();
        status
    }

    /// The log that nobody read so far.
    pub fn take_unread(&mut self) -> ChildStderr {
        self.unread.take().expect("the log was left unread")
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// A client that goes nowhere else.
    pub fn client(&self) -> Client {
        Client::new(&self.address(), DEADLINE).unwrap().no_follow()
    }

    pub fn try_status(&self) -> Result<Value, ClientError> {
        let mut client = Client::new(&self.address(), Duration::from_secs(2))?;
        Ok(client.status()?.value)
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        self.client().status().expect("status").value
    }

    /// Asks until the status is as wanted.
    #[track_caller]
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            let status = self.try_status();
            if let Some(status) = status.as_ref().ok().filter(|status| wanted(status)) {
                return status.clone();
            }
            assert!(Instant::now() < until, "port {}: not {what} in {DEADLINE:?}: {status:?}", self.port);
            thread::sleep(POLL_PAUSE);
        }
    }

    /// Runs `kv_client` against this node: exit code, stdout, stderr.
    pub fn cli(&self, arguments: &[&str]) -> (i32, String, String) {
        let port = self.port.to_string();
        kv_client(&[&["--host", "127.0.0.1", "--port", &port], arguments].concat())
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a process has memory");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time used so far, in ticks of 10 ms.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
        let behind_name = stat.rsplit_once(')').unwrap().1;
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Files in the data directory with this ending.
    pub fn files(&self, ending: &str) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().ends_with(ending))
            .collect();
        files.sort();
        files
    }

    pub fn raw(&self) -> Raw {
        Raw::connect(self.port)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A tracer that is killed leaves what it traced running: the node goes first.
            if let Some(pid) = self.traced_pid(child.id()) {
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() && !self.log_unread {
            self.log.wait_for_end();
            let lines = self.log.lines_from(0);
            let from = lines.len().saturating_sub(LINES_SHOWN);
            eprintln!("--- log of the node on port {}:\n{}", self.port, lines[from..].join("\n"));
        }
    }
}

/// A leader (index 0) and its followers.
#[derive(Debug)]
pub struct Cluster {
    pub nodes: Vec<Node>,
    dir: TempDir,
}

/// Small segments, so that the log rotates within a test.
pub const SMALL_SEGMENTS: &str = "--segment-bytes=262144";

impl Cluster {
    /// Nodes that are configured and not started. `extra` goes to all of them.
    pub fn prepare(count: usize, extra: &[&str]) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<Port> = (0..count).map(|_| Port::reserve()).collect();
        let numbers: Vec<String> = ports.iter().map(|port| port.number.to_string()).collect();
        let peers = format!("--peers={}", numbers[1..].join(","));
        let leader = format!("--leader={}", numbers[0]);
        let node = |(index, port): (usize, Port)| {
            let roles =
                if index == 0 { ["--role=leader", &peers] } else { ["--role=follower", leader.as_str()] };
            let segments = [SMALL_SEGMENTS].into_iter().filter(|_| !has_segment_flag(extra));
            let args: Vec<&str> = roles
                .into_iter()
                .filter(|arg| *arg != "--peers=")
                .chain(segments)
                .chain(extra.iter().copied())
                .collect();
            Node::new(port, dir.path().join(format!("node{index}")), &args)
        };
        let nodes = ports.into_iter().enumerate().map(node).collect();
        Cluster { nodes, dir }
    }

    /// All nodes up, every follower streaming and in sync.
    #[track_caller]
    pub fn start(count: usize, extra: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(count, extra);
        cluster.nodes.iter_mut().for_each(Node::spawn);
        cluster.wait_streaming();
        (1..cluster.nodes.len()).for_each(|follower| cluster.wait_told_in_sync(follower));
        cluster
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until the node at index 0 has every follower streaming and in sync.
    #[track_caller]
    pub fn wait_streaming(&self) -> Value {
        self.nodes[0].wait_status("streaming to all followers", |status| {
            let peers = status["peers"].as_array().expect("peers are a list");
            peers.iter().all(|peer| peer["state"] == "streaming" && peer["in_sync"] == true)
                && status["commit_lsn"] == status["last_lsn"]
        })
    }

    /// Waits until a follower has heard that it is in sync: without that it refuses to be promoted.
    #[track_caller]
    pub fn wait_told_in_sync(&self, follower: usize) {
        self.nodes[follower].wait_status("told that it is in sync", |status| status["in_sync"] == true);
    }

    /// Waits until all these nodes have applied the same LSN, and checks that their states are equal.
    #[track_caller]
    pub fn expect_equal(&self, indices: &[usize]) -> u64 {
        let first = &self.nodes[indices[0]];
        let wanted = first.wait_status("applied to its end", |s| s["applied_lsn"] == s["last_lsn"]);
        for index in &indices[1..] {
            let status = self.nodes[*index].wait_status("at the same LSN", |status| {
                status["applied_lsn"] == wanted["applied_lsn"] && status["last_lsn"] == wanted["last_lsn"]
            });
            assert_eq!(status["state_hash"], wanted["state_hash"], "states differ at equal LSN");
            assert_eq!(status["keys"], wanted["keys"]);
        }
        wanted["applied_lsn"].as_u64().unwrap()
    }
}

fn has_segment_flag(extra: &[&str]) -> bool {
    extra.iter().any(|arg| arg.starts_with("--segment-bytes"))
}

/// One node alone.
#[derive(Debug)]
pub struct Single {
    pub node: Node,
    _dir: TempDir,
}

impl Single {
    pub fn prepare(extra: &[&str]) -> Single {
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec!["--role=leader"];
        args.extend([SMALL_SEGMENTS].iter().filter(|_| !has_segment_flag(extra)));
        args.extend(extra);
        Single { node: Node::new(Port::reserve(), dir.path().join("node"), &args), _dir: dir }
    }

    #[track_caller]
    pub fn start(extra: &[&str]) -> Single {
        let mut single = Single::prepare(extra);
        single.node.start();
        single
    }
}

/// A connection on which a test says what it likes.
#[derive(Debug)]
pub struct Raw {
    pub stream: TcpStream,
    input: FrameBuffer,
}

impl Raw {
    pub fn connect(port: u16) -> Raw {
        Raw::over(TcpStream::connect(("127.0.0.1", port)).expect("the node listens"))
    }

    pub fn over(stream: TcpStream) -> Raw {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Raw { stream, input: FrameBuffer::new() }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the node takes bytes");
    }

    pub fn request(&mut self, request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        self.write(&bytes);
    }

    /// The next frame; `None` at the end of the stream.
    pub fn frame(&mut self) -> Option<(MessageType, Vec<u8>)> {
        loop {
            if let Some(frame) = self.input.next_frame().expect("nodes send frames") {
                let message_type = MessageType::from_u8(frame.type_byte).expect("a known type");
                return Some((message_type, frame.body.to_vec()));
            }
            match self.stream.read(self.input.space()) {
                Ok(0) => return None,
                Ok(size) => self.input.filled(size),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no frame came: {error}"),
            }
        }
    }

    /// The next reply: status, LSN and payload.
    #[track_caller]
    pub fn reply(&mut self) -> (Status, u64, Vec<u8>) {
        let (message_type, body) = self.frame().expect("the connection stays open");
        assert_eq!(message_type, MessageType::Reply);
        let reply = Reply::decode(&body).expect("nodes send replies that can be read");
        (reply.status, reply.lsn.0, reply.payload.to_vec())
    }

    /// Whether the node has closed the connection (waits for it).
    pub fn is_closed(&mut self) -> bool {
        self.frame().is_none()
    }
}

/// Numbers that look random and are the same in every run with this seed.
#[derive(Debug)]
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// A number below `bound` (splitmix64).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
