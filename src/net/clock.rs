//! Where the node's time comes from.

use rustix::time::{ClockId, clock_gettime};

use crate::time::{Clock, Time};

/// The clock of this process: CLOCK_BOOTTIME, from its start on.
///
/// It is not CLOCK_MONOTONIC, which stands still while the machine sleeps: a leader that wakes up must see that its
/// lease is over. Both are read in user space (by vDSO), in some 30 ns. The timeout of a poll still runs by the other
/// clock; a sleep of the machine only makes it late.
#[derive(Clone, Copy, Debug)]
pub struct MonotonicClock {
    start_ns: u64,
}

impl MonotonicClock {
    /// A clock that reads a little above zero now.
    pub fn new() -> MonotonicClock {
        MonotonicClock { start_ns: boot_ns() }
    }
}

impl Default for MonotonicClock {
    fn default() -> MonotonicClock {
        MonotonicClock::new()
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Time {
        Time(boot_ns() - self.start_ns + 1)
    }
}

/// Nanoseconds since the machine was booted; 584 years of them fit.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_begins_above_zero_and_never_goes_back() {
        let clock = MonotonicClock::new();
        let mut last = clock.now();
        assert!(last > Time(0));
        for _ in 0..1_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
