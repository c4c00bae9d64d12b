//! Where the node's time comes from.

use std::time::Instant;

use crate::time::{Clock, Time};

/// The monotonic clock of this process.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// A clock that reads a little above zero now.
    #[allow(clippy::disallowed_methods, reason = "this is where the node's time comes from")]
    pub fn new() -> MonotonicClock {
        MonotonicClock(Instant::now())
    }
}

impl Default for MonotonicClock {
    fn default() -> MonotonicClock {
        MonotonicClock::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Time {
        Time(self.0.elapsed().as_nanos() as u64 + 1)
    }
}
