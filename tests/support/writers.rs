//! Threads that write rising numbers until they are told to stop, what they know to be acknowledged, and the
//! look-up that finds a write that is gone.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::cluster::{DEADLINE, Node};
use kvstore::client::Client;
use kvstore::wire::client::{Request, Status};

/// Keys a writer cycles through: later writes overwrite earlier ones.
const KEYS_PER_WRITER: u64 = 5_000;
/// Writes that a writer has on the way at once.
const PIPELINE: usize = 8;

/// What writers know: for each key the last number acknowledged, and the numbers tried behind it.
#[derive(Debug, Default)]
pub struct Known {
    pub acked: BTreeMap<Vec<u8>, u64>,
    /// The order in which keys were acknowledged last.
    pub recent: Vec<Vec<u8>>,
    pub acked_count: u64,
}

/// A thread that writes numbers until it is told to stop, over whatever connection it can get. Each of its
/// keys is written by it alone, with rising numbers: so a key that reads at or above its acknowledged number
/// has lost nothing.
pub struct Writer {
    stop: Arc<AtomicBool>,
    known: Arc<Mutex<Known>>,
    thread: JoinHandle<()>,
}

impl Writer {
    pub fn start(address: String, name: u64) -> Writer {
        let (stop, known) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Known::default())));
        let (told, notes) = (Arc::clone(&stop), Arc::clone(&known));
        let thread = thread::spawn(move || {
            let mut number = 0;
            while !told.load(Ordering::Relaxed) {
                write_until_lost(&address, name, &mut number, &told, &notes);
            }
        });
        Writer { stop, known, thread }
    }

    pub fn finish(self) -> Known {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("writers do not panic");
        Arc::try_unwrap(self.known).expect("the thread is gone").into_inner().unwrap()
    }

    pub fn acked_count(&self) -> u64 {
        self.known.lock().unwrap().acked_count
    }
}

fn write_until_lost(address: &str, name: u64, number: &mut u64, stop: &AtomicBool, known: &Mutex<Known>) {
    let Ok(mut client) = Client::connect(address, Duration::from_secs(5)) else {
        thread::sleep(Duration::from_millis(2));
        return;
    };
    while !stop.load(Ordering::Relaxed) {
        let mut sent = Vec::new();
        for _ in 0..PIPELINE {
            *number += 1;
            let key = format!("w{name}-{}", *number % KEYS_PER_WRITER).into_bytes();
            if client.send(&Request::Put { key: &key, value: &value(*number) }).is_err() {
                return;
            }
            sent.push((key, *number));
        }
        if client.flush().is_err() {
            return;
        }
        for (key, number) in sent {
            match client.receive() {
                Ok(reply) if reply.status == Status::Ok => {
                    let mut known = known.lock().unwrap();
                    known.acked_count += 1;
                    known.recent.push(key.clone());
                    known.acked.insert(key, number);
                }
                _ => return,
            }
        }
    }
}

/// The number, and padding of up to half a kilobyte, so that segments fill and rotate.
fn value(number: u64) -> Vec<u8> {
    let mut value = vec![number as u8; 8 + (number as usize * 37) % 512];
    value[..8].copy_from_slice(&number.to_be_bytes());
    value
}

/// Looks the keys up, many at a time, and checks that none reads below what was acknowledged.
pub fn look_up(node: &Node, wanted: &[(Vec<u8>, u64)]) {
    let mut client = node.client();
    for chunk in wanted.chunks(1_000) {
        for (key, _) in chunk {
            client.send(&Request::Get { key }).unwrap();
        }
        client.flush().unwrap();
        for (key, number) in chunk {
            let reply = client.receive().unwrap();
            let key = String::from_utf8_lossy(key);
            assert_eq!(reply.status, Status::Ok, "port {}: {key} = {number} is gone", node.port);
            let found = u64::from_be_bytes(reply.payload[..8].try_into().expect("eight bytes"));
            assert!(found >= *number, "port {}: {key} is {found}, {number} was acknowledged", node.port);
            assert!(reply.payload == value(found), "port {}: {key} holds bytes that nobody wrote", node.port);
        }
    }
}

/// The last `count` acknowledged keys of these writers with their numbers.
pub fn recent(writers: &[Writer], count: usize) -> Vec<(Vec<u8>, u64)> {
    let mut wanted = HashMap::new();
    for writer in writers {
        let known = writer.known.lock().unwrap();
        for key in known.recent.iter().rev().take(count) {
            wanted.insert(key.clone(), known.acked[key]);
        }
    }
    wanted.into_iter().collect()
}

/// Waits until each writer has `more` writes acknowledged than now.
pub fn wait_for_acks(writers: &[Writer], more: u64) {
    let until = Instant::now() + DEADLINE;
    let wanted: Vec<u64> = writers.iter().map(|writer| writer.acked_count() + more).collect();
    while writers.iter().zip(&wanted).any(|(writer, wanted)| writer.acked_count() < *wanted) {
        assert!(Instant::now() < until, "writes do not go on");
        thread::sleep(Duration::from_millis(1));
    }
}
