//! What a leader knows of one follower's log, and whether it is in sync.
//!
//! A follower leaves the in-sync set when it does not reach, within the timeout, the end that the log had
//! when the wait began. So one that is far behind and catching up does not hold writes for longer than one
//! that is dead. A lost connection alone removes nobody; nothing outstanding, nothing to time out.
//!
//! It comes back when it holds everything committed. Under load that moment would never come: a follower that
//! gets every batch at once is still one round trip behind what the leader commits without it. So one that is
//! as close as that first *joins*: commits wait for it from then on, it catches up with the commit LSN within
//! that round trip, and only then it is in the set and told so. One that stops while it joins is out again
//! after the timeout.
//!
//! A follower that once held more than it holds now (its disk was damaged, replaced, or restored from an older copy)
//! does not come back before it holds that again, whatever is committed meanwhile.
//!
//! Invariants: within a session the match LSN never goes back; a target is above the match LSN; a follower in
//! the set holds everything that was committed when it entered, and with `--ack=insync` nothing is committed
//! without it since.

use crate::ids::Lsn;
use crate::replication::commit::FollowerState;
use crate::time::LoopTime;

/// Progress of one follower.
#[derive(Debug)]
pub struct Progress {
    match_lsn: Lsn,
    /// The highest match LSN of all sessions.
    heard_lsn: Lsn,
    /// It repairs: below this it is not in the set.
    repair_until: Lsn,
    membership: Membership,
    target: Option<Target>,
    /// Where the leader's log ended when the last ACK of this session came.
    last_at_ack: Option<Lsn>,
}

/// Where a follower stands with respect to the in-sync set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    In,
    Joining,
    Out,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    lsn: Lsn,
    since: LoopTime,
}

/// An ACK that cannot be: above what was sent, or below what was acknowledged in this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImpossibleAck {
    /// What it says.
    pub acked: Lsn,
    /// What was acknowledged before.
    pub match_lsn: Lsn,
    /// What was sent.
    pub sent: Lsn,
}

impl Progress {
    /// At start and after a promotion every peer is in the set.
    pub fn new() -> Progress {
        Progress {
            match_lsn: Lsn::ZERO,
            heard_lsn: Lsn::ZERO,
            repair_until: Lsn::ZERO,
            membership: Membership::In,
            target: None,
            last_at_ack: None,
        }
    }

    /// What the commit rule needs.
    pub fn state(&self) -> FollowerState {
        FollowerState {
            in_sync: self.in_sync(),
            joining: self.membership == Membership::Joining,
            match_lsn: self.match_lsn,
        }
    }

    /// The last LSN known to be on its disk.
    pub fn match_lsn(&self) -> Lsn {
        self.match_lsn
    }

    /// The last LSN ever known to be on its disk.
    pub fn heard_lsn(&self) -> Lsn {
        self.heard_lsn
    }

    /// Until where it repairs, if it does.
    pub fn repairs_until(&self) -> Option<Lsn> {
        (self.match_lsn < self.repair_until).then_some(self.repair_until)
    }

    /// Whether it is in the in-sync set.
    pub fn in_sync(&self) -> bool {
        self.membership == Membership::In
    }

    /// Whether it is in the set or about to be: less than a round behind. For one that has no vote, and never comes
    /// back into the set.
    pub fn keeps_up(&self) -> bool {
        self.membership != Membership::Out
    }

    /// Whether the follower may hear that it is in sync. After a start everybody is in the set, and a follower
    /// that lacks something acknowledged in an earlier term must not take that for a reason to lead: it hears
    /// it once it holds this term's first record, and so everything before.
    pub fn may_be_told_in_sync(&self, term_lsn: Lsn) -> bool {
        self.in_sync() && self.match_lsn >= term_lsn
    }

    /// The log ends at `last` now.
    pub fn on_appended(&mut self, last: Lsn, now: LoopTime) {
        if self.target.is_none() && last > self.match_lsn {
            self.target = Some(Target { lsn: last, since: now });
        }
    }

    /// A session opened with this match LSN; it may be lower than before (a replaced disk).
    pub fn on_session(&mut self, match_lsn: Lsn, last: Lsn, now: LoopTime) {
        self.match_lsn = match_lsn;
        self.heard_lsn = self.heard_lsn.max(match_lsn);
        self.repair_until = Lsn::ZERO;
        self.last_at_ack = None;
        self.retarget(last, now);
    }

    /// It lacks what is committed: out of the set until it has it.
    pub fn leave(&mut self) {
        self.membership = Membership::Out;
    }

    /// It once held everything up to `until`: out of the set until it does again.
    pub fn repair(&mut self, until: Lsn) {
        self.repair_until = until;
        self.leave();
    }

    /// The session ended. One that was joining does not hold commits any longer: nobody counted on it.
    pub fn on_session_lost(&mut self) {
        if self.membership == Membership::Joining {
            self.membership = Membership::Out;
        }
    }

    /// An ACK arrived in the session. `Ok(true)`: the match LSN rose.
    pub fn on_ack(&mut self, acked: Lsn, sent: Lsn, last: Lsn, now: LoopTime) -> Result<bool, ImpossibleAck> {
        if acked < self.match_lsn || acked > sent {
            return Err(ImpossibleAck { acked, match_lsn: self.match_lsn, sent });
        }
        let rose = acked > self.match_lsn;
        self.match_lsn = acked;
        self.heard_lsn = self.heard_lsn.max(acked);
        let one_round_behind = self.last_at_ack.is_some_and(|last_before| acked >= last_before);
        if self.membership == Membership::Out && one_round_behind && self.repairs_until().is_none() {
            self.membership = Membership::Joining;
            self.target = None;
        }
        self.last_at_ack = Some(last);
        self.retarget(last, now);
        Ok(rose)
    }

    /// Takes the follower out of the set if its time is over. True if that happened now.
    pub fn expire(&mut self, now: LoopTime, timeout_ns: u64) -> bool {
        let over = self.target.is_some_and(|target| now.0 - target.since.0 >= timeout_ns);
        let left = over && self.membership != Membership::Out;
        if left {
            self.membership = Membership::Out;
        }
        left
    }

    /// Nanoseconds of running until [`Progress::expire`] would take it out.
    pub fn expires_in(&self, now: LoopTime, timeout_ns: u64) -> Option<u64> {
        let target = self.target.filter(|_| self.membership != Membership::Out)?;
        Some((target.since.0 + timeout_ns).saturating_sub(now.0))
    }

    /// Takes it back if it holds everything committed. True if that happened now. The wait for it begins anew:
    /// by the one that took it out it would leave again at once, with each ACK.
    pub fn rejoin(&mut self, commit: Lsn, last: Lsn, now: LoopTime) -> bool {
        let back = !self.in_sync() && self.match_lsn >= commit && self.repairs_until().is_none();
        if back {
            self.membership = Membership::In;
            self.target = None;
            self.retarget(last, now);
        }
        back
    }

    fn retarget(&mut self, last: Lsn, now: LoopTime) {
        if self.target.is_none_or(|target| self.match_lsn >= target.lsn) {
            self.target = (last > self.match_lsn).then_some(Target { lsn: last, since: now });
        }
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT_NS: u64 = 500;

    #[test]
    fn an_unreachable_follower_leaves_once_and_by_the_timeout() {
        let mut progress = Progress::new();
        progress.on_appended(Lsn(1), LoopTime(0));
        progress.on_appended(Lsn(2), LoopTime(400));
        assert!(!progress.expire(LoopTime(499), TIMEOUT_NS));
        assert!(progress.expire(LoopTime(500), TIMEOUT_NS));
        assert!(!progress.expire(LoopTime(600), TIMEOUT_NS));
        assert!(!progress.in_sync());
    }

    #[test]
    fn an_idle_follower_never_leaves() {
        let mut progress = Progress::new();
        assert!(!progress.expire(LoopTime(u64::MAX), TIMEOUT_NS));
    }

    #[test]
    fn one_that_catches_up_but_is_far_behind_does_not_hold_writes() {
        let mut progress = Progress::new();
        progress.on_session(Lsn(0), Lsn(1000), LoopTime(0));
        for step in 1..5 {
            progress.on_ack(Lsn(step), Lsn(1000), Lsn(1000 + step), LoopTime(step * 100)).unwrap();
        }
        assert!(progress.expire(LoopTime(500), TIMEOUT_NS));
    }

    #[test]
    fn reaching_the_target_starts_a_new_wait() {
        let mut progress = Progress::new();
        progress.on_appended(Lsn(1), LoopTime(0));
        assert_eq!(progress.on_ack(Lsn(1), Lsn(2), Lsn(2), LoopTime(450)), Ok(true));
        assert!(!progress.expire(LoopTime(600), TIMEOUT_NS));
        assert_eq!(progress.expires_in(LoopTime(600), TIMEOUT_NS), Some(350));
        assert!(progress.expire(LoopTime(950), TIMEOUT_NS));
    }

    #[test]
    fn it_comes_back_when_it_holds_what_is_committed() {
        let mut progress = Progress::new();
        progress.on_appended(Lsn(5), LoopTime(0));
        assert!(progress.expire(LoopTime(500), TIMEOUT_NS));
        progress.on_session(Lsn(4), Lsn(5), LoopTime(600));
        assert!(!progress.rejoin(Lsn(5), Lsn(5), LoopTime(0)));
        progress.on_ack(Lsn(5), Lsn(5), Lsn(5), LoopTime(700)).unwrap();
        assert!(progress.rejoin(Lsn(5), Lsn(5), LoopTime(0)));
        assert!(!progress.rejoin(Lsn(5), Lsn(5), LoopTime(0)));
    }

    #[test]
    fn under_load_it_joins_first_and_commits_wait_for_it_until_it_is_back() {
        let mut progress = Progress::new();
        progress.on_appended(Lsn(1), LoopTime(0));
        assert!(progress.expire(LoopTime(500), TIMEOUT_NS));
        progress.on_session(Lsn(0), Lsn(10), LoopTime(600));
        // Every ACK is one batch behind what the leader has committed by then.
        progress.on_ack(Lsn(10), Lsn(12), Lsn(12), LoopTime(610)).unwrap();
        assert!(!progress.rejoin(Lsn(12), Lsn(12), LoopTime(0)) && !progress.state().joining);
        progress.on_ack(Lsn(12), Lsn(14), Lsn(14), LoopTime(620)).unwrap();
        assert!(!progress.rejoin(Lsn(14), Lsn(14), LoopTime(0)));
        assert!(progress.state().joining && !progress.in_sync());
        // Commits stopped at 14 for its sake; the next ACK reaches that.
        progress.on_ack(Lsn(14), Lsn(16), Lsn(16), LoopTime(630)).unwrap();
        assert!(progress.rejoin(Lsn(14), Lsn(14), LoopTime(0)));
        assert!(progress.in_sync());
    }

    #[test]
    fn one_that_stops_while_it_joins_is_out_again() {
        let mut progress = Progress::new();
        progress.on_appended(Lsn(1), LoopTime(0));
        assert!(progress.expire(LoopTime(500), TIMEOUT_NS));
        progress.on_session(Lsn(0), Lsn(1), LoopTime(600));
        progress.on_ack(Lsn(0), Lsn(1), Lsn(1), LoopTime(600)).unwrap();
        progress.on_ack(Lsn(1), Lsn(3), Lsn(3), LoopTime(610)).unwrap();
        assert!(progress.state().joining);
        assert!(!progress.expire(LoopTime(1_100), TIMEOUT_NS));
        assert!(progress.expire(LoopTime(1_110), TIMEOUT_NS));
        assert!(!progress.state().joining);
    }

    #[test]
    fn one_that_repairs_comes_back_only_with_all_that_it_once_held() {
        let mut progress = Progress::new();
        progress.on_session(Lsn(9), Lsn(9), LoopTime(0));
        progress.on_session(Lsn(3), Lsn(9), LoopTime(0));
        assert_eq!(progress.heard_lsn(), Lsn(9));
        progress.repair(Lsn(9));
        for acked in 3..9 {
            progress.on_ack(Lsn(acked), Lsn(9), Lsn(3), LoopTime(0)).unwrap();
            assert!(!progress.rejoin(Lsn(3), Lsn(9), LoopTime(0)) && !progress.state().joining, "at {acked}");
            assert_eq!(progress.repairs_until(), Some(Lsn(9)));
        }
        progress.on_ack(Lsn(9), Lsn(9), Lsn(9), LoopTime(0)).unwrap();
        assert!(progress.rejoin(Lsn(9), Lsn(9), LoopTime(0)) && progress.repairs_until().is_none());
    }

    #[test]
    fn an_ack_beyond_what_was_sent_or_going_back_is_impossible() {
        let mut progress = Progress::new();
        progress.on_session(Lsn(4), Lsn(9), LoopTime(0));
        assert!(progress.on_ack(Lsn(6), Lsn(5), Lsn(9), LoopTime(0)).is_err());
        assert!(progress.on_ack(Lsn(3), Lsn(5), Lsn(9), LoopTime(0)).is_err());
        assert_eq!(progress.on_ack(Lsn(4), Lsn(5), Lsn(9), LoopTime(0)), Ok(false));
    }
}
