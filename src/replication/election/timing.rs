//! When to campaign, for how long to refuse a vote, and how long a lease is: all from one number, the election timeout.
//!
//! ```text
//! member   hears the leader           refuses votes            then, at random, campaigns
//!          |---------------- timeout ----------------|------ 0 .. timeout/2 ------|
//! leader   sent what was heard, or earlier
//!       |-------- lease: 9/10 of it --------|
//! ```
//!
//! The lease must end before any member that heard the frame votes. The frame was heard after it was sent, so what is
//! left to differ are the rates of two clocks. With rates wrong by at most 5 % either way the lease lasts 0.9 / 0.95 =
//! 0.947 of a timeout at most and the refusal 1 / 1.05 = 0.952 of one at least. (Crystals are wrong by 0.01 %; NTP
//! slews by 0.05 %. The bound is for clocks of virtual machines.)

use crate::limits::{ELECTION_TIMEOUT_MS_MAX, ELECTION_TIMEOUT_MS_MIN};
use crate::rng::Rng;
use crate::sabotage::{Variant, is};
use crate::time::Time;

/// The lease in parts of the timeout.
const LEASE_PARTS: (u64, u64) = (9, 10);
/// By how many percent the rate of a node's clock may be wrong.
pub const CLOCK_RATE_ERROR_PERCENT: u64 = 5;
/// Heartbeats in a timeout, at least: four of them may be lost or late before anybody campaigns.
const HEARTBEATS_PER_TIMEOUT: u64 = 5;

const _: () = {
    // lease / (1 - error) < timeout / (1 + error)
    let (part, of) = LEASE_PARTS;
    assert!(part * (100 + CLOCK_RATE_ERROR_PERCENT) < of * (100 - CLOCK_RATE_ERROR_PERCENT));
    assert!(ELECTION_TIMEOUT_MS_MIN >= 2 * HEARTBEATS_PER_TIMEOUT, "heartbeats have a length");
};

/// The election timeout and what follows from it. All members must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionTiming {
    timeout_ns: u64,
}

impl ElectionTiming {
    /// From `--election-timeout-ms`, which the flags have checked.
    pub fn from_ms(timeout_ms: u64) -> ElectionTiming {
        let bounds = ELECTION_TIMEOUT_MS_MIN..=ELECTION_TIMEOUT_MS_MAX;
        assert!(
            bounds.contains(&timeout_ms),
            "an election timeout of {timeout_ms} ms is not within {bounds:?}"
        );
        ElectionTiming { timeout_ns: timeout_ms * 1_000_000 }
    }

    /// The election timeout: of refusals, of check-quorum, and of one campaign.
    pub fn timeout_ns(self) -> u64 {
        self.timeout_ns
    }

    /// How long a lease lasts from the sending of what began it.
    pub fn lease_ns(self) -> u64 {
        let (part, of) = if is(Variant::LeaseWithoutDriftBound) { (1, 1) } else { LEASE_PARTS };
        self.timeout_ns / of * part
    }

    /// Milliseconds between heartbeats, if the flag says so many.
    pub fn heartbeat_ms(self, flag_ms: u64) -> u64 {
        flag_ms.min(self.timeout_ns / HEARTBEATS_PER_TIMEOUT / 1_000_000)
    }

    /// What is waited for beyond the timeout before campaigning, so that members do not campaign together.
    fn jitter_ns(self, rng: &mut Rng) -> u64 {
        rng.below(self.timeout_ns / 2)
    }

    /// The wait after a campaign that was lost or split. Shorter than the first: nobody hears a leader now.
    fn retry_ns(self, rng: &mut Rng) -> u64 {
        let least_ns = self.timeout_ns / 10;
        least_ns + rng.below(self.timeout_ns / 2 - least_ns)
    }
}

/// A member's two deadlines. Neither ever goes back, except that a campaign that is over may be followed by one soon.
///
/// Invariant: a node campaigns only after it would vote for somebody else.
#[derive(Clone, Copy, Debug)]
pub struct ElectionTimer {
    timing: ElectionTiming,
    refuse_until: Time,
    campaign_at: Time,
    jitter_ns: u64,
}

impl ElectionTimer {
    /// A node starts. Whom it heard before is forgotten, so it refuses as if that had been now.
    pub fn new(timing: ElectionTiming, now: Time, rng: &mut Rng) -> ElectionTimer {
        let jitter_ns = timing.jitter_ns(rng);
        let mut timer = ElectionTimer { timing, refuse_until: now, campaign_at: now, jitter_ns };
        timer.heard_leader(now);
        if is(Variant::VotesRightAfterRestart) {
            timer.refuse_until = now;
        }
        timer
    }

    /// The leader was heard: a frame came in the live session, or one opened. `read_at` is a reading of the clock made
    /// *after* the frame was read from its socket; one from the beginning of the turn may be older than the frame,
    /// whose sender's lease would then outlast the refusal.
    pub fn heard_leader(&mut self, read_at: Time) {
        let refuse_until = Time(read_at.0 + self.timing.timeout_ns);
        self.refuse_until = self.refuse_until.max(refuse_until);
        self.campaign_at = self.campaign_at.max(Time(refuse_until.0 + self.jitter_ns));
    }

    /// It voted for somebody, who gets the time to win; or it stopped leading, and lets others begin.
    pub fn stand_back(&mut self, now: Time, rng: &mut Rng) {
        self.jitter_ns = self.timing.jitter_ns(rng);
        self.campaign_at = self.campaign_at.max(Time(now.0 + self.timing.timeout_ns + self.jitter_ns));
    }

    /// Its campaign was lost, split, or not answered in time.
    pub fn campaign_over(&mut self, now: Time, rng: &mut Rng) {
        self.jitter_ns = self.timing.jitter_ns(rng);
        self.campaign_at = self.refuse_until.max(Time(now.0 + self.timing.retry_ns(rng)));
    }

    /// Until when votes are refused.
    pub fn refuse_until(&self) -> Time {
        self.refuse_until
    }

    /// When to campaign, if no leader is heard until then.
    pub fn campaign_at(&self) -> Time {
        self.campaign_at
    }

    /// The timing in force.
    pub fn timing(&self) -> ElectionTiming {
        self.timing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn timer(rng: &mut Rng) -> ElectionTimer {
        ElectionTimer::new(ElectionTiming::from_ms(500), Time(7 * MS), rng)
    }

    #[test]
    fn a_start_refuses_votes_for_a_timeout_and_then_campaigns_at_random() {
        let mut rng = Rng::new(1);
        let mut campaigns: Vec<u64> = (0..100).map(|_| timer(&mut rng).campaign_at().0).collect();
        assert!(campaigns.iter().all(|at| (507 * MS..757 * MS).contains(at)));
        campaigns.sort_unstable();
        assert!(campaigns[99] - campaigns[0] > 200 * MS, "they spread over half a timeout");
        assert_eq!(timer(&mut rng).refuse_until(), Time(507 * MS));
    }

    #[test]
    fn neither_deadline_goes_back_when_a_leader_is_heard() {
        let mut timer = timer(&mut Rng::new(1));
        timer.heard_leader(Time(100 * MS));
        let before = (timer.refuse_until(), timer.campaign_at());
        assert_eq!(before.0, Time(600 * MS));
        timer.heard_leader(Time(90 * MS));
        assert_eq!((timer.refuse_until(), timer.campaign_at()), before);
    }

    #[test]
    fn a_lost_campaign_is_followed_by_one_sooner_but_never_while_a_leader_was_heard() {
        let mut rng = Rng::new(1);
        for _ in 0..100 {
            let mut timer = timer(&mut rng);
            timer.campaign_over(Time(2_000 * MS), &mut rng);
            assert!((2_050 * MS..2_250 * MS).contains(&timer.campaign_at().0), "{timer:?}");
            timer.heard_leader(Time(2_010 * MS));
            timer.campaign_over(Time(2_020 * MS), &mut rng);
            assert_eq!(timer.campaign_at(), timer.refuse_until());
        }
    }

    #[test]
    fn the_lease_ends_before_a_vote_at_the_bounds_of_both_clocks() {
        for timeout_ms in [ELECTION_TIMEOUT_MS_MIN, 500, ELECTION_TIMEOUT_MS_MAX] {
            let timing = ElectionTiming::from_ms(timeout_ms);
            let lease_ns = timing.lease_ns() as f64 / (1.0 - CLOCK_RATE_ERROR_PERCENT as f64 / 100.0);
            let refusal_ns = timing.timeout_ns() as f64 / (1.0 + CLOCK_RATE_ERROR_PERCENT as f64 / 100.0);
            assert!(lease_ns < refusal_ns, "{lease_ns} {refusal_ns}");
        }
    }

    #[test]
    fn heartbeats_come_five_times_in_a_timeout_at_least() {
        assert_eq!(ElectionTiming::from_ms(500).heartbeat_ms(100), 100);
        assert_eq!(ElectionTiming::from_ms(100).heartbeat_ms(100), 20);
        assert_eq!(ElectionTiming::from_ms(5_000).heartbeat_ms(10), 10);
    }
}
