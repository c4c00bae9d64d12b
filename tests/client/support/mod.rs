//! A node that says what the test told it to, and `kv_client` run against it.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use kvstore::ids::{Lsn, SessionId, Term};
use kvstore::wire::client::{
    BackupStep, Inspect, ReadMode, Reply, Request, Status, WriteOp, encode_session_id,
};
use kvstore::wire::{FrameBuffer, MessageType};

/// The term in every reply: 0.3.
pub const TERM: Term = Term { promotion: 0, start: 3 };

/// What a scripted node does with a request.
pub enum Answer {
    /// A reply at this LSN.
    Reply(Status, u64, Vec<u8>),
    /// Nothing, while the connection stays open.
    Silence,
    /// Nothing, and the connection is closed.
    Close,
    /// These bytes, whatever they are.
    Bytes(Vec<u8>),
}

pub fn reply(status: Status, payload: impl Into<Vec<u8>>) -> Answer {
    Answer::Reply(status, 7, payload.into())
}

/// The session that scripted nodes open: the `n`-th.
pub fn session(n: u64) -> SessionId {
    SessionId { lsn: Lsn(7), nonce: n }
}

/// The answer to an OPEN_SESSION.
pub fn opened(n: u64) -> Answer {
    reply(Status::Ok, encode_session_id(session(n)))
}

/// A request as the node saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Put(Vec<u8>, Vec<u8>),
    PutExplained(Vec<u8>, Vec<u8>),
    Inspect(Inspect),
    Get(Vec<u8>),
    GetWith(Vec<u8>, ReadMode),
    Delete(Vec<u8>),
    Ping,
    Status,
    Promote(bool),
    Snapshot(bool),
    Backup(BackupStep),
    Follow(String, bool),
    OpenSession,
    NumberedPut(SessionId, u64, Vec<u8>, Vec<u8>),
    NumberedDelete(SessionId, u64, Vec<u8>),
    Transfer(String),
    ChangeMembers(bool, String),
}

pub struct FakeNode {
    pub address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl FakeNode {
    pub fn start(script: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> FakeNode {
        FakeNode::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// A listener made by the test, so that nodes can name each other.
    pub fn start_on(
        listener: TcpListener,
        script: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> FakeNode {
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (shared, script) = (Arc::clone(&seen), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, script) = (Arc::clone(&shared), Arc::clone(&script));
                thread::spawn(move || serve(stream.unwrap(), &seen, &*script));
            }
        });
        FakeNode { address, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn port(&self) -> &str {
        self.address.rsplit_once(':').unwrap().1
    }

    /// Runs `kv_client` against this node.
    pub fn client(&self, arguments: &[&str]) -> Ran {
        kv_client(self.port(), arguments, b"")
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Seen>>, script: &dyn Fn(&Seen) -> Answer) {
    let mut input = FrameBuffer::new();
    loop {
        while let Some(frame) = input.next_frame().expect("the client sends frames") {
            let message_type = MessageType::from_u8(frame.type_byte).expect("a known type");
            let request = Request::decode(message_type, frame.body).expect("well-formed").expect("a request");
            let request = owned(&request);
            // Noted before it is answered: a client that has its answer finds it in the list.
            seen.lock().unwrap().push(request.clone());
            let mut bytes = Vec::new();
            match script(&request) {
                Answer::Reply(status, lsn, payload) => {
                    Reply { status, lsn: Lsn(lsn), term: TERM, payload: &payload }.encode(&mut bytes);
                }
                Answer::Silence => {}
                Answer::Close => return,
                Answer::Bytes(given) => bytes = given,
            }
            if stream.write_all(&bytes).is_err() {
                return;
            }
        }
        match stream.read(input.space()) {
            Ok(0) | Err(_) => return,
            Ok(size) => input.filled(size),
        }
    }
}

fn owned(request: &Request<'_>) -> Seen {
    match *request {
        Request::Put { key, value } => Seen::Put(key.to_vec(), value.to_vec()),
        Request::PutExplained { key, value } => Seen::PutExplained(key.to_vec(), value.to_vec()),
        Request::Inspect(inspect) => Seen::Inspect(inspect),
        Request::Get { key } => Seen::Get(key.to_vec()),
        Request::GetWith { key, reads } => Seen::GetWith(key.to_vec(), reads),
        Request::Delete { key } => Seen::Delete(key.to_vec()),
        Request::Ping => Seen::Ping,
        Request::Status => Seen::Status,
        Request::Promote { force } => Seen::Promote(force),
        Request::Snapshot { wait } => Seen::Snapshot(wait),
        Request::Backup(step) => Seen::Backup(step),
        Request::OpenSession => Seen::OpenSession,
        Request::Numbered { session, number, write: WriteOp::Put { key, value } } => {
            Seen::NumberedPut(session, number, key.to_vec(), value.to_vec())
        }
        Request::Numbered { session, number, write: WriteOp::Delete { key } } => {
            Seen::NumberedDelete(session, number, key.to_vec())
        }
        Request::Transfer { address } => Seen::Transfer(address.to_owned()),
        Request::ChangeMembers { add, address } => Seen::ChangeMembers(add, address.to_owned()),
        Request::Follow { address, discard } => Seen::Follow(address.to_owned(), discard),
    }
}

/// What came of a run of `kv_client`.
#[derive(Debug)]
pub struct Ran {
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn stdout_text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is text")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).expect("stdout is one JSON document")
    }

    /// Exit code and both outputs at once.
    #[track_caller]
    pub fn expect(&self, exit_code: i32, stdout: &str, stderr: &str) {
        assert_eq!(
            (self.exit_code, String::from_utf8_lossy(&self.stdout).as_ref(), self.stderr.as_str()),
            (exit_code, stdout, stderr)
        );
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            exit_code: output.status.code().expect("kv_client ends by itself"),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).expect("stderr is text"),
        }
    }
}

/// `kv_client` for one port.
pub fn command(port: &str) -> Command {
    let mut command = bare_command();
    command.args(["--port", port]);
    command
}

/// Runs `kv_client` against several nodes.
pub fn kv_client_of(addresses: &[&str], arguments: &[&str]) -> Ran {
    let mut command = bare_command();
    command.args(["--endpoints", &addresses.join(",")]).args(arguments).stdin(Stdio::null());
    command.output().expect("kv_client runs").into()
}

/// `kv_client` with no variable of the caller's in its way.
pub fn bare_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv_client"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KV_CLIENT_") {
            command.env_remove(name);
        }
    }
    command
}

pub fn kv_client(port: &str, arguments: &[&str], stdin: &[u8]) -> Ran {
    let mut child = command(port)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kv_client starts");
    // A command that does not read stdin may have ended already.
    let _ = child.stdin.take().expect("stdin is piped").write_all(stdin);
    child.wait_with_output().expect("kv_client ends").into()
}

/// An address where connections are refused for as long as the socket lives: bound, not listening.
pub fn refusing_address() -> (rustix::fd::OwnedFd, String) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address: std::net::SocketAddr = getsockname(&socket).unwrap().try_into().unwrap();
    (socket, address.to_string())
}
