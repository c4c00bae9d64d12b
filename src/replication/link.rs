//! When to dial a peer again: exponential backoff with jitter, so that a peer that restarts is found within
//! a second and one that is gone costs one connect a second.

use crate::limits::{REDIAL_MS_MAX, REDIAL_MS_MIN};
use crate::rng::Rng;
use crate::time::Time;

/// Backoff of one peer.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The moment of the next try after a failure: the step doubles from [`REDIAL_MS_MIN`] to
    /// [`REDIAL_MS_MAX`], and a quarter of it is random.
    pub fn on_failure(&mut self, now: Time, rng: &mut Rng) -> Time {
        let step_ms = REDIAL_MS_MIN.saturating_mul(1 << self.failures.min(16)).min(REDIAL_MS_MAX);
        self.failures += 1;
        now.after_ms(step_ms - rng.below(step_ms / 4 + 1))
    }

    /// It goes on: the next failure begins with the first step.
    pub fn on_success(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_to_the_maximum_and_never_beyond() {
        let (mut backoff, mut rng) = (Backoff::default(), Rng::new(1));
        let first = backoff.on_failure(Time(0), &mut rng);
        assert!(first <= Time(0).after_ms(REDIAL_MS_MIN));
        for _ in 0..100 {
            assert!(backoff.on_failure(Time(0), &mut rng) <= Time(0).after_ms(REDIAL_MS_MAX));
        }
        assert!(backoff.on_failure(Time(0), &mut rng) >= Time(0).after_ms(REDIAL_MS_MAX * 3 / 4));
        backoff.on_success();
        assert!(backoff.on_failure(Time(0), &mut rng) <= Time(0).after_ms(REDIAL_MS_MIN));
    }

    #[test]
    fn peers_that_were_lost_together_are_not_dialled_together() {
        let mut rng = Rng::new(1);
        let mut fourth_try = || {
            let mut backoff = Backoff::default();
            (0..4).map(|_| backoff.on_failure(Time(0), &mut rng)).last()
        };
        let first = fourth_try();
        assert!((0..10).any(|_| fourth_try() != first), "a part of each step is random");
    }
}
