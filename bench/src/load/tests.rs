//! The generator against servers whose behaviour is known: what they did must be what it says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use kvstore::ids::{Lsn, Term};
use kvstore::wire::client::{Reply, Status};
use kvstore::wire::{FrameBuffer, MessageType};

use super::*;
use crate::args::{Cli, LoadArgs};
use crate::measure::quantile_us;
use clap::Parser;

/// A server on a thread per connection that answers request `n` of a connection as `status` says, after
/// `before` was called. `None`: it closes the connection.
fn serve(before: fn(u64), status: fn(u64) -> Option<Status>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve_one(stream.unwrap(), before, status));
        }
    });
    address
}

fn serve_one(mut stream: TcpStream, before: fn(u64), status: fn(u64) -> Option<Status>) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = FrameBuffer::new();
    let mut out = Vec::new();
    for count in 0.. {
        while !buffer.has_frame() {
            match stream.read(buffer.space()) {
                Ok(0) | Err(_) => return,
                Ok(size) => buffer.filled(size),
            }
        }
        let frame = buffer.next_frame().unwrap().unwrap();
        let message_type = MessageType::from_u8(frame.type_byte).unwrap();
        let payload: &[u8] = if message_type == MessageType::Get { b"value" } else { b"" };
        let Some(status) = status(count) else { return };
        before(count);
        out.clear();
        Reply { status, lsn: Lsn(1), term: Term::ZERO, payload }.encode(&mut out);
        if stream.write_all(&out).is_err() {
            return;
        }
    }
}

fn run_with(endpoint: &str, flags: &str) -> Run {
    let words = format!("kv_bench --endpoint {endpoint} {flags}");
    let args: LoadArgs = Cli::try_parse_from(words.split(' ')).unwrap().load;
    args.check().unwrap();
    let load = Load {
        endpoint,
        dialect: Box::new(|| Dialect::new(&args)),
        connections: args.connections,
        pipeline: args.pipeline,
        source: Source::Drawn { keys: args.keys, get_percent: args.op.get_percent, random: Random::new(1) },
        rate: args.rate,
        warmup: args.warmup,
        duration: args.duration,
    };
    run(load, &mut |_, _| {}).unwrap()
}

fn at_once(_: u64) {}

fn always_ok(_: u64) -> Option<Status> {
    Some(Status::Ok)
}

#[test]
fn a_closed_loop_counts_every_reply() {
    let endpoint = serve(at_once, always_ok);
    let run = run_with(&endpoint, "--op mix:50 --connections 4 --pipeline 8 --duration 0.3 --warmup 0");
    assert!(run.errors.is_empty(), "{:?}", run.errors);
    // What was under way at the end has a latency and no part in the throughput.
    let beyond = run.response_ns().len() - run.completed;
    assert!(run.completed > 100 && beyond <= 4 * 8, "{} and {beyond}", run.completed);
}

#[test]
fn errors_are_counted_by_status_and_are_in_no_histogram() {
    let endpoint = serve(at_once, |count| Some(if count % 4 == 0 { Status::DiskFull } else { Status::Ok }));
    let run = run_with(&endpoint, "--connections 1 --duration 0.2 --warmup 0");
    let errors = run.errors["DiskFull"];
    let successes = run.response_ns().len();
    assert!(errors > 10 && errors.abs_diff(successes / 3) <= 1, "{errors} of {successes}");
}

#[test]
fn a_lost_connection_ends_the_run_and_is_said() {
    let endpoint = serve(at_once, |count| (count < 10).then_some(Status::Ok));
    let run = run_with(&endpoint, "--connections 3 --pipeline 4 --duration 60 --warmup 0");
    let lost: u64 =
        run.errors.iter().filter(|(name, _)| name.starts_with("connection lost")).map(|(_, n)| n).sum();
    assert_eq!(lost, 3, "{:?}", run.errors);
    assert!(run.errors["under way on a lost connection"] >= 3);
    assert_eq!(run.response_ns().len(), 30);
}

/// The reason for the open loop: a server that stalls once for 200 ms in 1 s delays a fifth of the requests
/// that were due, and a closed loop sees one slow request.
#[test]
fn a_stall_is_charged_to_every_request_that_was_due_in_it() {
    fn stall(count: u64) {
        if count == 300 {
            thread::sleep(Duration::from_millis(200));
        }
    }
    let endpoint = serve(stall, always_ok);
    let run = run_with(&endpoint, "--connections 1 --duration 1 --warmup 0 --rate 1000");
    assert!(run.errors.is_empty(), "{:?}", run.errors);
    assert_eq!(run.response_ns().len(), 1_000);
    assert!(quantile_us(run.response_ns(), 0.9) > 50_000.0, "{}", quantile_us(run.response_ns(), 0.9));
    // One request waited in the server; p90 of the service time does not see it.
    assert!(quantile_us(&run.service_ns, 0.9) < 50_000.0);
    assert!(quantile_us(&run.service_ns, 1.0) > 190_000.0);
}

#[test]
fn what_a_server_does_not_take_in_time_is_not_dropped() {
    let endpoint = serve(|_| thread::sleep(Duration::from_millis(10)), always_ok);
    let run = run_with(&endpoint, "--connections 1 --duration 0.5 --warmup 0 --rate 1000");
    // It takes 5 s for what is due in half a second, and has 2.5 s.
    let answered = run.response_ns().len();
    let unsent = run.errors["due but never sent"];
    let unanswered = run.errors.get("no reply until the end").copied().unwrap_or(0);
    assert_eq!(answered + unsent + unanswered, 500, "every request that was due is somewhere");
    assert!(unsent > 200 && answered > 50, "{unsent} and {answered}");
}

#[test]
fn a_fill_writes_every_key_once() {
    let endpoint = serve(at_once, always_ok);
    let load = Load {
        endpoint: &endpoint,
        dialect: Box::new(|| {
            Dialect::new(&Cli::try_parse_from(["kv_bench", "--endpoint", "x"]).unwrap().load)
        }),
        connections: 7,
        pipeline: 3,
        source: Source::Fill { next: 0, keys: 1_000 },
        rate: None,
        warmup: 0.0,
        duration: 60.0,
    };
    let run = run(load, &mut |_, _| {}).unwrap();
    assert_eq!((run.completed, run.errors.len()), (1_000, 0));
    assert!(run.seconds < 50.0, "it ends when the keys do");
}
