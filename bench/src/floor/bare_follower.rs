//! recv, write, fdatasync, ack: the ack is how many bytes of the stream are on this disk.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::file::LogFile;
use super::outbox::Outbox;
use crate::args::FileArgs;

pub const TOKEN_STDIN: Token = Token(usize::MAX);
pub const TOKEN_LISTENER: Token = Token(usize::MAX - 1);
const TOKEN_LEADER: Token = Token(0);
pub const INPUT_SIZE: usize = 1 << 20;

/// A poll that wakes when standard input ends, and a listener on a free port, which is said.
pub fn listen() -> io::Result<(Poll, TcpListener)> {
    let poll = Poll::new()?;
    let stdin = io::stdin().as_raw_fd();
    poll.registry().register(&mut SourceFd(&stdin), TOKEN_STDIN, Interest::READABLE)?;
    let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    poll.registry().register(&mut listener, TOKEN_LISTENER, Interest::READABLE)?;
    Ok((poll, listener))
}

/// Says the address, as the one line on standard output.
pub fn announce(listener: &TcpListener) -> io::Result<()> {
    println!("{}", listener.local_addr()?);
    Ok(())
}

/// Reads once. `Ok(None)`: nothing there.
pub fn read_some(stream: &mut TcpStream, space: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match stream.read(space) {
            Ok(size) => return Ok(Some(size)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The process.
pub fn main(args: &FileArgs) -> Result<(), String> {
    let mut file = LogFile::create(&args.file)?;
    serve(&mut file).map_err(|error| format!("bare follower: {error}"))
}

fn serve(file: &mut LogFile) -> io::Result<()> {
    let (mut poll, listener) = listen()?;
    announce(&listener)?;
    let mut events = Events::with_capacity(8);
    let mut leader: Option<TcpStream> = None;
    let mut input = vec![0; INPUT_SIZE];
    let mut outbox = Outbox::default();
    let mut durable: u64 = 0;
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            match event.token() {
                TOKEN_STDIN => return Ok(()),
                TOKEN_LISTENER => {
                    let (mut stream, _) = listener.accept()?;
                    stream.set_nodelay(true)?;
                    poll.registry().register(
                        &mut stream,
                        TOKEN_LEADER,
                        Interest::READABLE.add(Interest::WRITABLE),
                    )?;
                    leader = Some(stream);
                }
                _ => {}
            }
        }
        let Some(stream) = &mut leader else { continue };
        loop {
            let size = match read_some(stream, &mut input) {
                Ok(None) => break,
                Ok(Some(size)) if size > 0 => size,
                // The leader has ended, with something unread or not: the run is over.
                _ => return Ok(()),
            };
            file.append_durably(&input[..size])?;
            durable += size as u64;
            outbox.append(&durable.to_be_bytes());
            if outbox.send(stream).is_err() {
                return Ok(());
            }
            if size < input.len() {
                break;
            }
        }
    }
}
