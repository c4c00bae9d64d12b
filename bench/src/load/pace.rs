//! When the next request of an open loop is due, and the timer that wakes the loop for it.

use std::io;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::clock::Clock;

/// A schedule that no reply can delay.
pub struct Pace {
    interval_ns: f64,
    taken: u64,
    timer: std::os::fd::OwnedFd,
    armed_for: Option<u64>,
}

impl Pace {
    /// So many requests per second, from 0 of the clock on.
    pub fn new(rate: f64, registry: &Registry, token: Token) -> io::Result<Pace> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Pace { interval_ns: 1e9 / rate, taken: 0, timer, armed_for: None })
    }

    /// When the next request is due.
    pub fn due_ns(&self) -> u64 {
        (self.taken as f64 * self.interval_ns) as u64
    }

    /// Takes the next request; returns when it was due.
    pub fn take(&mut self) -> u64 {
        let due_ns = self.due_ns();
        self.taken += 1;
        due_ns
    }

    /// Requests due before `end_ns` and not taken.
    pub fn due_count(&self, end_ns: u64) -> u64 {
        ((end_ns as f64 / self.interval_ns).ceil() as u64).saturating_sub(self.taken)
    }

    /// Sets the timer, once for each request that is waited for. It is edge-triggered and set again before
    /// it is waited for again, so it is never read.
    pub fn arm(&mut self, clock: Clock) -> io::Result<()> {
        let due_ns = self.due_ns();
        if self.armed_for == Some(self.taken) {
            return Ok(());
        }
        self.armed_for = Some(self.taken);
        let wait_ns = due_ns.saturating_sub(clock.now_ns()).max(1);
        let it_value =
            Timespec { tv_sec: (wait_ns / 1_000_000_000) as i64, tv_nsec: (wait_ns % 1_000_000_000) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}
