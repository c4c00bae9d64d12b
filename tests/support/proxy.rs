//! A link that a test can spoil: a TCP proxy on the loopback that delays, cuts in the middle of a frame, refuses,
//! or turns into a black hole, in which connections stay open and nothing arrives any more.
//!
//! A connection that has lost bytes stays lost in that direction, whatever happens to the link later, and its end
//! is hidden with the rest: TCP would not have gone on behind a gap, and to the other side such a peer is gone
//! without a FIN.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// How long the proxy tries to connect to where it leads.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Link {
    /// For each piece of up to 16 KiB that passes, in either direction.
    delay: Duration,
    /// Bytes to the target, and bytes from it, vanish.
    loses: [bool; 2],
    /// Whoever connects is hung up on at once.
    refuses: bool,
    /// After so many more bytes all connections are cut.
    cut_after: Option<usize>,
    /// Connections taken so far.
    accepted: usize,
    /// Both ends of each connection; kept open, so that a lost connection shows no end.
    open: Vec<[TcpStream; 2]>,
    ended: bool,
}

/// The proxy. It ends with the value.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    link: Arc<Mutex<Link>>,
}

impl Proxy {
    /// A link to this port.
    pub fn to(target: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let link = Arc::new(Mutex::new(Link::default()));
        let shared = Arc::clone(&link);
        thread::spawn(move || accept(&listener, target, &shared));
        Proxy { port, link }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().expect("nobody panics with it")
    }

    pub fn delay(&self, delay: Duration) {
        self.link().delay = delay;
    }

    /// A black hole: for bytes to the target, and for bytes from it.
    pub fn lose(&self, to_target: bool, from_target: bool) {
        self.link().loses = [to_target, from_target];
    }

    pub fn refuse(&self, refuses: bool) {
        self.link().refuses = refuses;
    }

    /// Cuts all connections, once so many more bytes have passed.
    pub fn cut_after(&self, bytes: usize) {
        self.link().cut_after = Some(bytes);
    }

    /// Cuts all connections now.
    pub fn cut(&self) {
        self.link().cut();
    }

    /// How many connections were taken so far.
    pub fn accepted(&self) -> usize {
        self.link().accepted
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut link = self.link();
        link.ended = true;
        link.cut();
        drop(link);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Link {
    fn cut(&mut self) {
        self.cut_after = None;
        for end in self.open.drain(..).flatten() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// How many of these bytes may still pass.
    fn pass(&mut self, size: usize) -> usize {
        match &mut self.cut_after {
            Some(left) if *left <= size => std::mem::take(left),
            Some(left) => {
                *left -= size;
                size
            }
            None => size,
        }
    }
}

fn accept(listener: &TcpListener, target: u16, link: &Arc<Mutex<Link>>) {
    let target = SocketAddr::from(([127, 0, 0, 1], target));
    for source in listener.incoming() {
        let Ok(source) = source else { return };
        let refuses = {
            let mut link = link.lock().unwrap();
            link.accepted += 1;
            if link.ended {
                return;
            }
            link.refuses
        };
        let connected = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT).ok().filter(|_| !refuses);
        let Some(target) = connected else { continue };
        let both = || [source.try_clone(), target.try_clone()].map(|end| end.expect("a descriptor is free"));
        link.lock().unwrap().open.push(both());
        for direction in 0..2 {
            let mut ends = both();
            if direction == 1 {
                ends.reverse();
            }
            let link = Arc::clone(link);
            thread::spawn(move || pump(ends, direction, &link));
        }
    }
}

/// Carries bytes in one direction until an end of it is gone.
fn pump([mut from, mut to]: [TcpStream; 2], direction: usize, link: &Mutex<Link>) {
    let (mut buffer, mut is_lost) = (vec![0; 16 << 10], false);
    let _ = to.set_nodelay(true);
    loop {
        let size = from.read(&mut buffer).unwrap_or(0);
        let delay = link.lock().unwrap().delay;
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        let (passes, cuts) = {
            let mut link = link.lock().unwrap();
            is_lost |= link.loses[direction];
            (if is_lost { 0 } else { link.pass(size) }, link.cut_after == Some(0))
        };
        if passes > 0 && to.write_all(&buffer[..passes]).is_err() || size == 0 && is_lost {
            return;
        }
        if cuts {
            return link.lock().unwrap().cut();
        }
        if size == 0 {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
    }
}
