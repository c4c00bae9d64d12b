//! Numbered writes: each is remembered with the LSN that acknowledged it, so that the state at any LSN is known.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use kvstore::client::Client;
use kvstore::wire::client::{Request, Status};

/// Keys that are written again and again.
pub const KEYS: u64 = 300;
/// Every so many-th write is a deletion.
const DELETE_EVERY: u64 = 7;

/// LSN of each write, and what it wrote: a key, and its value unless it was deleted.
pub type Writes = BTreeMap<u64, (Vec<u8>, Option<Vec<u8>>)>;

fn write_of(number: u64) -> (Vec<u8>, Option<Vec<u8>>) {
    let key = format!("key-{}", number * 7 % KEYS).into_bytes();
    let mut value = number.to_string().into_bytes();
    value.resize(400, b'.');
    (key, (!number.is_multiple_of(DELETE_EVERY)).then_some(value))
}

/// Writes `numbers`, many at a time.
pub fn write(client: &mut Client, numbers: std::ops::Range<u64>, writes: &mut Writes) {
    let batch: Vec<_> = numbers.map(write_of).collect();
    for (key, value) in &batch {
        let request = match value {
            Some(value) => Request::Put { key, value },
            None => Request::Delete { key },
        };
        client.send(&request).unwrap();
    }
    client.flush().unwrap();
    for one in batch {
        let reply = client.receive().unwrap();
        assert!(matches!(reply.status, Status::Ok | Status::NotFound), "{reply:?}");
        writes.insert(reply.lsn.0, one);
    }
}

/// Writes until it is told to stop.
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Writes>,
}

impl Writer {
    pub fn start(mut client: Client, first: u64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut writes, mut number) = (Writes::new(), first);
            while !stopped.load(Ordering::Relaxed) {
                write(&mut client, number..number + 20, &mut writes);
                number += 20;
            }
            writes
        });
        Writer { stop, thread }
    }

    /// What it wrote.
    pub fn stop(self) -> Writes {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer writes")
    }
}

/// The state at an LSN: of every key the newest value at or below it.
pub fn state_at(writes: &Writes, lsn: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut state = BTreeMap::new();
    for (key, value) in writes.range(..=lsn).map(|(_, write)| write) {
        match value {
            Some(value) => drop(state.insert(key.clone(), value.clone())),
            None => drop(state.remove(key)),
        }
    }
    state
}

/// Every key has the value that it had at this LSN.
#[track_caller]
pub fn check(client: &mut Client, writes: &Writes, lsn: u64) {
    let state = state_at(writes, lsn);
    for key in (0..KEYS).map(|number| format!("key-{number}").into_bytes()) {
        let found = client.get(&key).unwrap().value;
        let name = String::from_utf8_lossy(&key).into_owned();
        assert_eq!(found.as_ref(), state.get(&key), "{name} at LSN {lsn}");
    }
}
