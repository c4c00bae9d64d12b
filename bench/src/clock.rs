//! Nanoseconds of the monotonic clock since one moment of this process.

use std::time::{Duration, Instant};

/// Where 0 is.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// 0 is now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Nanoseconds since then.
    #[inline]
    pub fn now_ns(self) -> u64 {
        // 2^64 ns are 584 years.
        self.0.elapsed().as_nanos() as u64
    }
}

/// Seconds as nanoseconds.
pub fn seconds_ns(seconds: f64) -> u64 {
    Duration::from_secs_f64(seconds).as_nanos() as u64
}
