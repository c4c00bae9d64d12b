//! Log lines about single replication events: every one at debug; at info at most ten a second, and one
//! line a second for the rest. Nothing is formatted for a line that is not written.

use log::Level;

use crate::limits::REPLICATION_LINES_PER_S;
use crate::time::Time;

/// The limiter of one kind of line.
#[derive(Debug, Default)]
pub struct LineLimit {
    window_start: Time,
    lines: u32,
    suppressed: u64,
    suppressed_records: u64,
}

impl LineLimit {
    /// The level of a line about `records` records.
    pub fn level(&mut self, now: Time, records: u64) -> Level {
        if self.suppressed == 0 {
            self.roll(now);
            if self.lines < REPLICATION_LINES_PER_S {
                self.lines += 1;
                return Level::Info;
            }
        }
        self.suppressed += 1;
        self.suppressed_records += records;
        Level::Debug
    }

    /// Once a second is over: how many lines, about how many records, were not written.
    pub fn summary(&mut self, now: Time) -> Option<(u64, u64)> {
        if self.suppressed == 0 || now.since(self.window_start) < 1_000_000_000 {
            return None;
        }
        let summary = (self.suppressed, self.suppressed_records);
        (self.suppressed, self.suppressed_records) = (0, 0);
        self.window_start = now;
        self.lines = 1;
        Some(summary)
    }

    /// When [`LineLimit::summary`] will have something.
    pub fn due(&self) -> Option<Time> {
        (self.suppressed > 0).then(|| self.window_start.after_ms(1_000))
    }

    fn roll(&mut self, now: Time) {
        if now.since(self.window_start) >= 1_000_000_000 {
            self.window_start = now;
            self.lines = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_and_the_rest_in_one() {
        let mut limit = LineLimit::default();
        let start = Time(5_000_000_000);
        let written = (0..100).filter(|_| limit.level(start, 3) == Level::Info).count();
        assert_eq!(written, REPLICATION_LINES_PER_S as usize);
        assert_eq!(limit.summary(start.after_ms(999)), None);
        assert_eq!(limit.summary(start.after_ms(1_000)), Some((90, 270)));
        assert_eq!(limit.level(start.after_ms(1_001), 1), Level::Info);
        assert_eq!(limit.summary(start.after_ms(9_000)), None);
    }

    #[test]
    fn a_quiet_node_writes_every_line() {
        let mut limit = LineLimit::default();
        for second in 1..100 {
            assert_eq!(limit.level(Time(second * 1_000_000_000), 1), Level::Info);
        }
    }
}
