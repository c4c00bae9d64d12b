//! Clients of a run: threads that put, remove and read the same few keys, and note what they were told.
//!
//! Most of them number their writes: one whose answer is lost is asked for again until it has one, and is one call that
//! took long. The last ones do not: what is lost of theirs stays unknown, and the check must bear that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvstore::client::{Client, ClientError, Served, Session};
use kvstore::rng::Rng;
use kvstore::wire::client::{Status, WriteOp};

use super::history::{Call, EPOCH_NS, End, Key, SLOTS, What, value_bytes, value_of};

/// A cluster refuses its first session until its leader has heard every node: so long that is waited for.
const SESSION_WAIT: Duration = Duration::from_secs(10);
/// How often a write is asked for again that was given up, each time for the timeout of a call.
const RESOLVE_MAX: usize = 3;

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub addresses: Vec<String>,
    pub clients: usize,
    /// Of these, how many do not number their writes.
    pub plain: usize,
    /// Between an answer and the next request of a client.
    pub pause: Duration,
    /// For one call.
    pub timeout: Duration,
    pub seed: u64,
}

/// The clients while they run.
pub struct Running {
    started: Instant,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Notes>>,
}

/// What a client noted.
#[derive(Debug, Default)]
pub struct Notes {
    pub calls: Vec<Call>,
    /// Writes that failed, and in which words; the words of reads are not kept.
    pub failed_writes: Vec<String>,
    /// Writes that were answered although an answer to them was lost.
    pub resolved: usize,
}

/// Starts them. Times in their notes count from `started`.
pub fn start(plan: &Plan, started: Instant) -> Result<Running, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writers: Result<Vec<Writer>, String> =
        (0..plan.clients).map(|number| Writer::of(plan, number)).collect();
    let threads = (writers?.into_iter().enumerate())
        .map(|(number, writer)| {
            let worker = Worker {
                number,
                writer,
                pause: plan.pause,
                started,
                rng: Rng::new(plan.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                writes: 0,
                acknowledged: Arc::clone(&acknowledged),
                notes: Notes::default(),
            };
            let stop = Arc::clone(&stop);
            thread::spawn(move || worker.run(&stop))
        })
        .collect();
    Ok(Running { started, stop, acknowledged, threads })
}

fn client(plan: &Plan) -> Client {
    Client::of_cluster(&plan.addresses, plan.timeout).expect("the addresses are addresses")
}

impl Running {
    /// Since the start of the run.
    pub fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more are acknowledged.
    pub fn wait_for_writes(&self, more: u64, deadline: Duration) -> Result<(), String> {
        let (wanted, until) = (self.acknowledged() + more, Instant::now() + deadline);
        while self.acknowledged() < wanted {
            if Instant::now() >= until {
                return Err(format!(
                    "writes do not go on: not {more} more were acknowledged in {deadline:?}"
                ));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Ends them, and returns what they noted.
    pub fn finish(self) -> Notes {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Notes::default();
        for thread in self.threads {
            let notes = thread.join().expect("clients do not panic");
            all.calls.extend(notes.calls);
            all.failed_writes.extend(notes.failed_writes);
            all.resolved += notes.resolved;
        }
        all
    }
}

/// How a client writes.
enum Writer {
    Plain(Client),
    Numbered(Session),
}

impl Writer {
    fn of(plan: &Plan, number: usize) -> Result<Writer, String> {
        if number + plan.plain >= plan.clients {
            return Ok(Writer::Plain(client(plan)));
        }
        let (mut session, until) = (Session::new(client(plan)), Instant::now() + SESSION_WAIT);
        loop {
            match session.open() {
                Ok(_) => return Ok(Writer::Numbered(session)),
                Err(why) if why.status() != Some(Status::Refused) || Instant::now() > until => {
                    return Err(format!("no session for client {number}: {why}"));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn client(&mut self) -> &mut Client {
        match self {
            Writer::Plain(client) => client,
            Writer::Numbered(session) => session.client(),
        }
    }

    /// Executes a write; of a removal it says whether the key was there.
    fn write(&mut self, op: &WriteOp<'_>) -> Result<Served<bool>, ClientError> {
        match (self, *op) {
            (Writer::Plain(client), WriteOp::Put { key, value }) => {
                client.put(key, value).map(|Served { lsn, term, .. }| Served { value: true, lsn, term })
            }
            (Writer::Plain(client), WriteOp::Delete { key }) => client.delete(key),
            (Writer::Numbered(session), op) => {
                let mut result = session.write(&op);
                for _ in 0..RESOLVE_MAX {
                    let Some(resolved) = session.resolve() else { break };
                    result = resolved;
                }
                result
            }
        }
    }

    /// Whether the last write had lost an answer.
    fn was_in_doubt(&self) -> bool {
        match self {
            Writer::Plain(_) => false,
            Writer::Numbered(session) => session.last_write().is_some_and(|last| last.in_doubt),
        }
    }
}

struct Worker {
    number: usize,
    writer: Writer,
    pause: Duration,
    started: Instant,
    rng: Rng,
    writes: u64,
    acknowledged: Arc<AtomicU64>,
    notes: Notes,
}

impl Worker {
    fn run(mut self, stop: &AtomicBool) -> Notes {
        while !stop.load(Ordering::Relaxed) {
            self.one();
            thread::sleep(self.pause);
        }
        self.notes
    }

    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn one(&mut self) {
        let from = self.now_ns();
        let key = Key::of(from / EPOCH_NS, self.rng.below(SLOTS));
        let bytes = key.bytes();
        let (what, end) = match self.rng.below(20) {
            0..10 => {
                self.writes += 1;
                let value = ((self.number as u64) << 48) | self.writes;
                let result = self.writer.write(&WriteOp::Put { key: &bytes, value: &value_bytes(value) });
                self.ended(result, |_| What::Put(value), What::Put(value))
            }
            10..12 => {
                let result = self.writer.write(&WriteOp::Delete { key: &bytes });
                self.ended(result, |existed| What::Delete(Some(existed)), What::Delete(None))
            }
            _ => {
                let result = self.writer.client().get(&bytes);
                self.ended(result, |told| What::Get(seen(told)), What::Get(None))
            }
        };
        let call = Call { client: self.number, key, what, from, end };
        let is_answered = call.answered().is_some();
        if !is_answered && !call.is_write() {
            // It says nothing.
            return;
        }
        if is_answered && call.is_write() {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
            self.notes.resolved += usize::from(self.writer.was_in_doubt());
        }
        self.notes.calls.push(call);
    }

    fn ended<T>(
        &mut self,
        result: Result<Served<T>, ClientError>,
        told: impl Fn(T) -> What,
        asked: What,
    ) -> (What, End) {
        match result {
            Ok(Served { value, lsn, term }) => {
                let end = End::Answered { at: self.now_ns(), lsn: lsn.0, term: term.as_u64() };
                (told(value), end)
            }
            Err(error) => {
                if !matches!(asked, What::Get(_)) {
                    self.notes.failed_writes.push(error.to_string());
                }
                (asked, if error.is_outcome_unknown() { End::Unknown } else { End::Refused })
            }
        }
    }
}

/// Bytes that no client wrote are a value that nobody wrote: the check says so.
fn seen(told: Option<Vec<u8>>) -> Option<u64> {
    told.map(|bytes| value_of(&bytes).unwrap_or(u64::MAX))
}

/// Reads every key once, at the end, as a client of its own. The reads are part of the history.
pub fn read_all(plan: &Plan, started: Instant, keys: impl Iterator<Item = Key>) -> Result<Vec<Call>, String> {
    let mut client = client(plan);
    client.set_timeout(Duration::from_secs(10));
    let now_ns = || started.elapsed().as_nanos() as u64;
    keys.map(|key| {
        let from = now_ns();
        let Served { value, lsn, term } =
            client.get(&key.bytes()).map_err(|why| format!("the last read of {key:?} failed: {why}"))?;
        let end = End::Answered { at: now_ns(), lsn: lsn.0, term: term.as_u64() };
        Ok(Call { client: plan.clients, key, what: What::Get(seen(value)), from, end })
    })
    .collect()
}
