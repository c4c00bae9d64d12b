//! What one write is made of, each part measured by itself.

use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

use super::bare_follower::{TOKEN_LISTENER, TOKEN_STDIN, announce, listen, read_some};
use super::child::{self, Child};
use super::file::LogFile;
use crate::args::FileArgs;
use crate::measure::{PERCENTILES, histogram, quantile_us};

/// Bytes appended before each fdatasync, and sent in each ping.
const MESSAGE_SIZE: usize = 128;
/// Each part is measured for so long.
const PART_TIME: Duration = Duration::from_millis(400);
/// And before that for so long, not counted.
const WARMUP_TIME: Duration = Duration::from_millis(100);

/// Nanoseconds of each part.
pub struct Parts {
    /// fdatasync with nobody else at the disk.
    pub fdatasync_alone: Histogram<u64>,
    /// fdatasync while two other processes do the same to files of theirs.
    pub fdatasync_of_three: Histogram<u64>,
    /// There and back over loopback, epoll on both sides.
    pub ping_pong: Histogram<u64>,
    /// There and back over two pipes, blocking on both sides: two wake-ups.
    pub two_wakeups: Histogram<u64>,
}

impl Parts {
    /// About two seconds.
    pub fn measure(data_dir: &Path) -> Result<Parts, String> {
        Ok(Parts {
            fdatasync_alone: measure_sync(data_dir, 1)?,
            fdatasync_of_three: measure_sync(data_dir, 3)?,
            ping_pong: measure_ping_pong()?,
            two_wakeups: measure_wakeups()?,
        })
    }

    /// Puts another measurement of the same to it.
    pub fn add(&mut self, other: &Parts) {
        for (ours, theirs) in [
            (&mut self.fdatasync_alone, &other.fdatasync_alone),
            (&mut self.fdatasync_of_three, &other.fdatasync_of_three),
            (&mut self.ping_pong, &other.ping_pong),
            (&mut self.two_wakeups, &other.two_wakeups),
        ] {
            ours.add(theirs).expect("all histograms have the same bounds");
        }
    }

    /// Microseconds that one write takes at least: with three nodes two ping-pongs (client and leader,
    /// leader and follower) and one fdatasync of three; with one node a ping-pong and an fdatasync.
    pub fn write_us(&self, nodes: usize) -> f64 {
        let p50 = |histogram| quantile_us(histogram, 0.5);
        match nodes {
            1 => p50(&self.ping_pong) + p50(&self.fdatasync_alone),
            _ => 2.0 * p50(&self.ping_pong) + p50(&self.fdatasync_of_three),
        }
    }

    /// Name and microseconds.
    pub fn named(&self) -> [(&'static str, &Histogram<u64>); 4] {
        [
            ("fdatasync_alone", &self.fdatasync_alone),
            ("fdatasync_of_three", &self.fdatasync_of_three),
            ("ping_pong", &self.ping_pong),
            ("two_wakeups", &self.two_wakeups),
        ]
    }

    /// Percentiles in microseconds.
    pub fn to_json(&self) -> Value {
        let part = |(name, histogram): (&str, &Histogram<u64>)| {
            let percentile = |(name, q): (&str, f64)| (name.to_owned(), json!(quantile_us(histogram, q)));
            let mut json: Value = PERCENTILES.into_iter().map(percentile).collect();
            json["count"] = histogram.len().into();
            (format!("{name}_us"), json)
        };
        self.named().into_iter().map(part).collect()
    }
}

/// Every process writes its own file; their times are put together.
fn measure_sync(data_dir: &Path, processes: usize) -> Result<Histogram<u64>, String> {
    let mut children = Vec::new();
    for index in 0..processes {
        let file = super::file_name(data_dir, &format!("sync-{index}"));
        children.push(Child::start(&["floor-sync", "--file", child::text(&file)?])?);
    }
    for child in &mut children {
        child.read_line()?;
    }
    for child in &mut children {
        child.write_byte()?;
    }
    let mut together = histogram();
    for child in &mut children {
        let line = child.read_line()?;
        for number in line.split(' ') {
            let ns = number.parse().map_err(|_| format!("floor-sync said {number:?} instead of a time"))?;
            together.saturating_record(ns);
        }
    }
    Ok(together)
}

/// The process: says "ready", waits for a byte, writes and syncs, says its times in one line.
pub fn sync_main(args: &FileArgs) -> Result<(), String> {
    let mut file = LogFile::create(&args.file)?;
    let mut work = || -> io::Result<()> {
        println!("ready");
        if io::stdin().lock().fill_buf()?.is_empty() {
            return Ok(());
        }
        let bytes = [7; MESSAGE_SIZE];
        let times = repeat(|| file.append_durably(&bytes))?;
        let words: Vec<String> = times.iter().map(u64::to_string).collect();
        println!("{}", words.join(" "));
        Ok(())
    };
    work().map_err(|error| format!("{}: {error}", args.file.display()))
}

/// Repeats for the time of a part; nanoseconds of each.
fn repeat<E>(mut step: impl FnMut() -> Result<(), E>) -> Result<Vec<u64>, E> {
    let start = Instant::now();
    let mut times = Vec::with_capacity(1 << 17);
    loop {
        let before = Instant::now();
        step()?;
        let gone = start.elapsed();
        if gone >= WARMUP_TIME {
            times.push(before.elapsed().as_nanos() as u64);
        }
        if gone >= WARMUP_TIME + PART_TIME {
            return Ok(times);
        }
    }
}

fn collect(times: Vec<u64>) -> Histogram<u64> {
    let mut collected = histogram();
    times.into_iter().for_each(|ns| collected.saturating_record(ns.max(1)));
    collected
}

fn measure_ping_pong() -> Result<Histogram<u64>, String> {
    let mut child = Child::start(&["floor-pong"])?;
    let address = child.read_address()?;
    let measure = || -> io::Result<Vec<u64>> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(1);
        poll.registry().register(&mut stream, Token(0), Interest::READABLE)?;
        repeat(|| {
            stream.write_all(&[7; MESSAGE_SIZE])?;
            let mut received = 0;
            while received < MESSAGE_SIZE {
                poll.poll(&mut events, None)?;
                received += read_some(&mut stream, &mut [0; MESSAGE_SIZE])?.unwrap_or(0);
            }
            Ok(())
        })
    };
    measure().map(collect).map_err(|error| format!("ping-pong: {error}"))
}

/// The process: sends back what it gets.
pub fn pong_main() -> Result<(), String> {
    let serve = || -> io::Result<()> {
        let (mut poll, listener) = listen()?;
        announce(&listener)?;
        let mut events = Events::with_capacity(8);
        let mut peer: Option<TcpStream> = None;
        let mut bytes = [0; MESSAGE_SIZE];
        loop {
            poll.poll(&mut events, None)?;
            for event in &events {
                match event.token() {
                    TOKEN_STDIN => return Ok(()),
                    TOKEN_LISTENER => {
                        let (mut stream, _) = listener.accept()?;
                        stream.set_nodelay(true)?;
                        poll.registry().register(&mut stream, Token(0), Interest::READABLE)?;
                        peer = Some(stream);
                    }
                    _ => {}
                }
            }
            let Some(stream) = &mut peer else { continue };
            match read_some(stream, &mut bytes)? {
                Some(0) => return Ok(()),
                Some(size) => stream.write_all(&bytes[..size])?,
                None => {}
            }
        }
    };
    serve().map_err(|error| format!("pong: {error}"))
}

fn measure_wakeups() -> Result<Histogram<u64>, String> {
    let mut child = Child::start(&["floor-wake"])?;
    repeat(|| {
        child.write_byte()?;
        child.read_byte()
    })
    .map(collect)
}

/// The process: sends back each byte.
pub fn wake_main() -> Result<(), String> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut byte = [0];
    let mut echo = || -> io::Result<()> {
        while input.read(&mut byte)? == 1 {
            output.write_all(&byte)?;
            output.flush()?;
        }
        Ok(())
    };
    echo().map_err(|error| format!("wake: {error}"))
}
