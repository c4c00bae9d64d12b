//! Binding, and all other descriptors that every node has: opened here, before the log with its varying number
//! of files, they have the same low numbers in every process.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Interest, Poll, Registry};

use super::FLUSH;
use super::conns::resolve;
use super::listener::reserve_descriptor;
use super::signals::SignalPipe;
use crate::limits::LISTEN_QUEUE_SIZE;
use crate::node::FatalReason;

/// A bound socket that serves nobody yet, and what serving takes.
#[derive(Debug)]
pub struct Bound {
    pub(super) listener: TcpListener,
    pub(super) poll: Poll,
    pub(super) registry: Registry,
    pub(super) reserve: Option<OwnedFd>,
    pub(super) signals: SignalPipe,
}

impl Bound {
    /// The loop wakes up when this becomes readable: a flush has ended. It must live as long as the loop.
    pub fn watch_flushes(&self, ring: &impl AsRawFd) -> Result<(), FatalReason> {
        let watched = self.registry.register(&mut SourceFd(&ring.as_raw_fd()), FLUSH, Interest::READABLE);
        watched.map_err(|source| FatalReason::Net { doing: "watch for ended flushes".to_owned(), source })
    }
}

/// Binds the node's address, before anything is touched on disk that a second start would disturb.
pub fn bind(address: &str) -> Result<Bound, FatalReason> {
    let failed = |doing: String| move |source: io::Error| FatalReason::Net { doing, source };
    let net = || failed(format!("listen on {address}"));
    let socket_address = resolve(address).map_err(|why| net()(io::Error::other(why)))?;
    let listener = TcpListener::bind(socket_address).map_err(net())?;
    // Listening again only sets the length of the queue, which mio fixes at 128.
    rustix::net::listen(&listener, LISTEN_QUEUE_SIZE).map_err(|errno| net()(errno.into()))?;
    let poll = Poll::new().map_err(failed("create an epoll instance".to_owned()))?;
    let registry = poll.registry().try_clone().map_err(failed("clone the epoll descriptor".to_owned()))?;
    let reserve = reserve_descriptor(&listener);
    let signals = SignalPipe::new().map_err(failed("make a pipe for signals".to_owned()))?;
    Ok(Bound { listener, poll, registry, reserve, signals })
}
