//! Since when a majority has heard this leader: what its lease runs from, and by what it notices that it is cut off.
//!
//! Of each follower one frame at a time is watched: the first one sent after the last watched one was echoed. When an
//! ACK echoes it, or a later one, the follower has heard this leader at or after the moment it was *sent*. That moment
//! is what counts: when it was heard is not known, and the ACK may have been on its way for long. A reading from
//! before the frame left errs to the safe side. Watching one frame costs a comparison per frame and ACK, and no list;
//! the moment is then at most one round trip older than the newest echo.
//!
//! The leader itself hears itself now. A majority of the members has heard it since the moment that the
//! (majority - 1)-th newest of the followers' echoes names.
//!
//! A follower may have no vote: a read replica, or a node that learns. Its echoes are kept and count for nothing, until
//! it gets one: a change of members changes at once whose echoes are a majority.
//!
//! Invariants: marks rise within a session; a moment never goes back; a lease that was given up stays so in its term.

use super::timing::ElectionTiming;
use crate::limits::PEERS_MAX;
use crate::sabotage::{Variant, is};
use crate::time::Time;

/// What is known of one follower.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// Whether it is a member.
    votes: bool,
    /// The newest mark of this session that was sent.
    last_mark: Option<u64>,
    /// The frame that is watched, and when it was sent.
    watched: Option<(u64, Time)>,
    /// When the newest frame was sent that it has echoed, in any session of this term.
    echoed: Option<Time>,
}

/// The lease and the check-quorum of one leader in one term.
#[derive(Clone, Debug)]
pub struct QuorumClock {
    timing: ElectionTiming,
    elected_at: Time,
    followers: Vec<Watch>,
    given_up: bool,
}

impl QuorumClock {
    /// A leader that was elected now, with so many other members.
    pub fn new(timing: ElectionTiming, elected_at: Time, voters: usize) -> QuorumClock {
        let mut clock = QuorumClock { timing, elected_at, followers: Vec::new(), given_up: false };
        (0..voters).for_each(|follower| clock.set_vote(follower, true));
        clock
    }

    /// Whether this follower's echoes count. One that was not known is.
    pub fn set_vote(&mut self, follower: usize, votes: bool) {
        self.watch_mut(follower).votes = votes;
        assert!(self.voters().count() <= PEERS_MAX, "more than {PEERS_MAX} followers vote");
    }

    /// The place is for another follower, of which nothing is known yet and which has no vote.
    pub fn forget(&mut self, follower: usize) {
        *self.watch_mut(follower) = Watch::default();
    }

    fn watch_mut(&mut self, follower: usize) -> &mut Watch {
        if follower >= self.followers.len() {
            self.followers.resize(follower + 1, Watch::default());
        }
        &mut self.followers[follower]
    }

    fn voters(&self) -> impl Iterator<Item = &Watch> {
        self.followers.iter().filter(|watch| watch.votes)
    }

    /// A session with a follower opened, or went from records to a snapshot or back: what was sent before will not be
    /// echoed, and marks begin anew.
    pub fn session(&mut self, follower: usize) {
        let Some(watch) = self.followers.get_mut(follower) else { return };
        (watch.last_mark, watch.watched) = (None, None);
    }

    /// A frame is about to leave, read off the clock before it does. `mark` is what its echo will name: the round of
    /// APPEND_ENTRIES, or the end of a chunk of a snapshot. One that does not rise is not watched: an earlier frame's
    /// echo looks like its own.
    pub fn sent(&mut self, follower: usize, mark: u64, at: Time) {
        let Some(watch) = self.followers.get_mut(follower) else { return };
        if watch.last_mark.is_none_or(|last| mark > last) {
            watch.last_mark = Some(mark);
            watch.watched.get_or_insert((mark, at));
        }
    }

    /// An ACK of the live session echoes a mark.
    pub fn echoed(&mut self, follower: usize, mark: u64) {
        let Some(watch) = self.followers.get_mut(follower) else { return };
        if let Some((_, sent_at)) = watch.watched.take_if(|(watched, _)| *watched <= mark) {
            watch.echoed = watch.echoed.max(Some(sent_at));
        }
    }

    /// Whether only a new frame can tell that this follower still heard the leader at `from`: none is watched whose
    /// echo is to come, and what it has echoed was sent before.
    pub fn wants_frame(&self, follower: usize, from: Time) -> bool {
        self.followers.get(follower).is_some_and(|watch| {
            watch.votes && watch.watched.is_none() && watch.echoed.is_none_or(|sent_at| sent_at < from)
        })
    }

    /// When the newest frame was sent that this follower has echoed.
    pub fn echoed_sent_at(&self, follower: usize) -> Option<Time> {
        self.followers[follower].echoed
    }

    /// Since when a majority is known to have heard this leader. `None`: it has not in this term.
    pub fn majority_since(&self, now: Time) -> Option<Time> {
        let voters = self.voters().count();
        let Some(index) = voters.div_ceil(2).checked_sub(1) else { return Some(now) };
        let mut echoes = [None; PEERS_MAX];
        let echoes = &mut echoes[..voters];
        echoes.iter_mut().zip(self.voters()).for_each(|(echo, watch)| *echo = watch.echoed);
        echoes.sort_unstable_by(|a, b| b.cmp(a));
        echoes[index]
    }

    /// Until when the lease lasts. `now` for a node that is alone.
    pub fn lease_until(&self, now: Time) -> Option<Time> {
        let since = self.majority_since(now).filter(|_| !self.given_up)?;
        Some(Time(since.0 + self.timing.lease_ns()))
    }

    /// Whether the lease holds. `now` must be a reading made after the request arrived that is to be answered: an older
    /// one may be from before a pause.
    pub fn lease_holds(&self, now: Time) -> bool {
        self.lease_until(now).is_some_and(|until| now < until)
    }

    /// When this leader steps down, unless a majority echoes a newer frame before.
    pub fn steps_down_at(&self, now: Time) -> Time {
        let since = self.majority_since(now).unwrap_or(self.elected_at).max(self.elected_at);
        Time(since.0 + self.timing.timeout_ns())
    }

    /// Whether a majority has heard this leader within the election timeout. If not it steps down, before it does
    /// anything else.
    pub fn has_quorum(&self, now: Time) -> bool {
        now < self.steps_down_at(now) || is(Variant::NoCheckQuorum)
    }

    /// Gives the lease up, for good in this term: before HAND_OVER is sent.
    pub fn give_up_lease(&mut self) {
        self.given_up = !is(Variant::LeaseKeptDuringTransfer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn clock(followers: usize) -> QuorumClock {
        QuorumClock::new(ElectionTiming::from_ms(500), Time(1_000 * MS), followers)
    }

    fn ms(at: u64) -> Time {
        Time(at * MS)
    }

    /// Sends a frame and gets its echo.
    fn echo(clock: &mut QuorumClock, follower: usize, mark: u64, sent_ms: u64) {
        clock.sent(follower, mark, ms(sent_ms));
        clock.echoed(follower, mark);
    }

    #[test]
    fn a_majority_has_heard_since_the_oldest_of_the_newest_echoes_it_needs() {
        let now = ms(2_000);
        let mut five = clock(4);
        assert_eq!(five.majority_since(now), None);
        echo(&mut five, 0, 1, 1_100);
        assert_eq!(five.majority_since(now), None, "two of five");
        echo(&mut five, 1, 2, 1_200);
        assert_eq!(five.majority_since(now), Some(ms(1_100)));
        echo(&mut five, 2, 3, 1_300);
        assert_eq!(five.majority_since(now), Some(ms(1_200)));
        let mut two = clock(1);
        assert_eq!(two.majority_since(now), None);
        echo(&mut two, 0, 1, 1_100);
        assert_eq!(two.majority_since(now), Some(ms(1_100)));
        let mut four = clock(3);
        echo(&mut four, 0, 1, 1_200);
        assert_eq!(four.majority_since(now), None, "two of four");
        echo(&mut four, 2, 2, 1_100);
        assert_eq!(four.majority_since(now), Some(ms(1_100)));
        assert_eq!(clock(0).majority_since(now), Some(now));
    }

    #[test]
    fn the_moment_of_sending_counts_and_that_of_the_frame_that_was_watched() {
        let mut clock = clock(2);
        clock.sent(0, 7, ms(1_100));
        clock.sent(0, 8, ms(1_200));
        clock.echoed(0, 6);
        assert_eq!(clock.echoed_sent_at(0), None, "an older frame's echo");
        clock.echoed(0, 8);
        assert_eq!(clock.echoed_sent_at(0), Some(ms(1_100)), "the watched frame is the older one");
        clock.echoed(0, 9);
        assert_eq!(clock.echoed_sent_at(0), Some(ms(1_100)), "nothing is watched");
        echo(&mut clock, 0, 10, 1_300);
        assert_eq!(clock.echoed_sent_at(0), Some(ms(1_300)));
    }

    #[test]
    fn an_earlier_frames_echo_is_not_taken_for_a_later_ones() {
        let mut clock = clock(2);
        echo(&mut clock, 0, 7, 1_100);
        clock.sent(0, 7, ms(1_200));
        clock.echoed(0, 7);
        assert_eq!(clock.echoed_sent_at(0), Some(ms(1_100)), "a mark that does not rise proves nothing");
        clock.sent(0, 8, ms(1_300));
        clock.session(0);
        clock.echoed(0, 8);
        assert_eq!(clock.echoed_sent_at(0), Some(ms(1_100)), "sent in a session that is dead");
        echo(&mut clock, 0, 3, 1_400);
        assert_eq!(clock.echoed_sent_at(0), Some(ms(1_400)), "marks begin anew with a session");
    }

    #[test]
    fn a_lease_runs_from_the_sending_and_ends_before_check_quorum_does() {
        let mut clock = clock(2);
        assert!(!clock.lease_holds(ms(1_001)), "votes are no echo");
        assert!(clock.has_quorum(ms(1_499)) && !clock.has_quorum(ms(1_500)));
        echo(&mut clock, 1, 1, 1_300);
        assert!(clock.lease_holds(ms(1_749)) && !clock.lease_holds(ms(1_750)));
        assert!(clock.has_quorum(ms(1_799)) && !clock.has_quorum(ms(1_800)));
        assert_eq!(
            (clock.lease_until(ms(1_400)), clock.steps_down_at(ms(1_400))),
            (Some(ms(1_750)), ms(1_800))
        );
    }

    #[test]
    fn a_read_replica_has_no_say() {
        let mut clock = clock(2);
        echo(&mut clock, 2, 1, 1_100);
        clock.session(2);
        assert_eq!(clock.majority_since(ms(1_200)), None);
        assert!(!clock.wants_frame(2, ms(1_200)) && clock.wants_frame(1, ms(1_200)));
    }

    #[test]
    fn a_vote_that_is_given_or_taken_changes_who_is_a_majority_at_once() {
        let mut clock = clock(0);
        clock.set_vote(0, false);
        echo(&mut clock, 0, 1, 1_100);
        assert_eq!(clock.majority_since(ms(1_200)), Some(ms(1_200)), "alone");
        clock.set_vote(0, true);
        assert_eq!(
            clock.majority_since(ms(1_200)),
            Some(ms(1_100)),
            "what it echoed as a learner counts now"
        );
        clock.set_vote(1, true);
        clock.set_vote(2, true);
        assert_eq!(clock.majority_since(ms(1_200)), None, "two of four");
        clock.set_vote(0, false);
        echo(&mut clock, 2, 1, 1_150);
        assert_eq!(clock.majority_since(ms(1_200)), Some(ms(1_150)), "of three");
        clock.forget(2);
        assert_eq!(clock.majority_since(ms(1_200)), None, "of two, and the other one was never heard");
    }

    #[test]
    fn a_lease_that_was_given_up_does_not_come_back() {
        let mut clock = clock(2);
        echo(&mut clock, 0, 1, 1_100);
        clock.give_up_lease();
        echo(&mut clock, 0, 2, 1_200);
        assert!(!clock.lease_holds(ms(1_201)) && clock.has_quorum(ms(1_201)));
    }

    #[test]
    fn a_node_that_is_alone_always_hears_itself() {
        let clock = clock(0);
        assert!(clock.lease_holds(ms(9_000_000)) && clock.has_quorum(ms(9_000_000)));
    }
}
