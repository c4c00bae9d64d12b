//! Time as a number that is passed in: nanoseconds of a monotonic clock since some start.

/// A moment of the monotonic clock, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl Time {
    /// This moment plus milliseconds.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Time {
        Time(self.0 + ms * 1_000_000)
    }

    /// Nanoseconds since an earlier moment; 0 if it is later.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where the node asks what time it is. Only durations are ever told to others.
pub trait Clock {
    /// Now.
    fn now(&self) -> Time;
}

/// Time in which the loop ran. A stall of the node itself (a slow disk, SIGSTOP) must not be held against
/// its followers, so one turn counts for `credit_max_ns` at most.
#[derive(Debug)]
pub struct LoopClock {
    run_ns: u64,
    last: Time,
    credit_max_ns: u64,
}

/// A reading of the [`LoopClock`], in nanoseconds of running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoopTime(pub u64);

impl LoopClock {
    /// A clock that begins now.
    pub fn new(now: Time, credit_max_ns: u64) -> LoopClock {
        LoopClock { run_ns: 0, last: now, credit_max_ns }
    }

    /// Counts the turn that just began.
    pub fn advance(&mut self, now: Time) {
        let credit_max_ns = match crate::sabotage::is(crate::sabotage::Variant::OwnStallEmptiesInSync) {
            true => u64::MAX,
            false => self.credit_max_ns,
        };
        self.run_ns += now.since(self.last).min(credit_max_ns);
        self.last = now;
    }

    /// What one turn counts for at most, in nanoseconds.
    pub fn credit_max_ns(&self) -> u64 {
        self.credit_max_ns
    }

    /// The reading of this turn.
    pub fn now(&self) -> LoopTime {
        LoopTime(self.run_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_of_the_loop_counts_as_one_turn() {
        let mut clock = LoopClock::new(Time(0), 50);
        clock.advance(Time(30));
        assert_eq!(clock.now(), LoopTime(30));
        clock.advance(Time(10_000_000));
        assert_eq!(clock.now(), LoopTime(80));
    }
}
