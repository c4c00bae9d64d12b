//! What happens to a cluster: at random, and at the moments that decide.

use kvstore::replication::election::timing::CLOCK_RATE_ERROR_PERCENT;

use super::{Event, MS, TIMEOUT_MS, World};

impl World {
    pub(super) fn nemesis(&mut self) {
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let leader = self.leader();
        match self.rng.below(14) {
            0 | 1 => {
                let down_ns = self.down_ns();
                self.kill(node, down_ns);
            }
            2 => self.isolate_with_slow_clock(leader.unwrap_or(node)),
            3 => self.isolate(node),
            4 => {
                let other = self.rng.below(self.nodes.len() as u64) as usize;
                self.cut.insert((node, other));
            }
            5..=7 => self.cut.clear(),
            8 => self.pause(leader.unwrap_or(node)),
            9 => self.pause(node),
            10 => leader.into_iter().for_each(|leader| self.hand_over(leader)),
            11 => leader.into_iter().for_each(|leader| self.deafen_a_minority(leader)),
            12 => leader.into_iter().for_each(|leader| self.kill(leader, 5 * MS)),
            _ => self.nodes[node].entries_per_frame = 1 + self.rng.below(3),
        }
    }

    /// Back at once, or after some elections.
    fn down_ns(&mut self) -> u64 {
        let rng = &mut self.rng;
        if rng.below(2) == 0 { MS + rng.below(5 * MS) } else { rng.below(4 * TIMEOUT_MS * MS) }
    }

    /// The clocks run apart as far as they may: a lease is as long as it can be, and refusals as short.
    fn isolate_with_slow_clock(&mut self, leader: usize) {
        for node in 0..self.nodes.len() {
            let fast = node != leader;
            let error = CLOCK_RATE_ERROR_PERCENT;
            self.set_rate(node, if fast { 100 + error } else { 100 - error });
        }
        self.isolate(leader);
    }

    pub fn isolate(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.cut.insert((node, other));
            self.cut.insert((other, node));
        }
    }

    fn pause(&mut self, node: usize) {
        if self.nodes[node].is_up() && !self.is_paused(node) {
            self.paused_until_ns[node] = self.now_ns + self.rng.below(3 * TIMEOUT_MS * MS);
        }
    }

    fn hand_over(&mut self, leader: usize) {
        if self.is_paused(leader) {
            return;
        }
        let to = self.rng.below(self.nodes.len() as u64) as usize;
        let now = self.local(leader);
        if to != leader {
            self.nodes[leader].hand_over(to, now);
            self.after(leader);
        }
    }

    /// A leader has just been elected, and has told nobody: now its log is one of a kind.
    pub(super) fn haunt_new_leader(&mut self, leader: usize) {
        self.nodes[leader].entries_per_frame = 1 + self.rng.below(3);
        let others = self.nodes.len() as u64 - 1;
        let voter = (leader + 1 + self.rng.below(others.max(1)) as usize) % self.nodes.len();
        match self.rng.below(8) {
            0 => self.isolate(leader),
            1 => {
                self.isolate(leader);
                self.kill(voter, MS);
            }
            2 => self.kill(voter, MS),
            3 => self.kill(leader, 30 * MS),
            4 | 5 => {
                self.nodes[leader].entries_per_frame = 1;
                let (wait_ns, life) = (self.rng.below(8 * MS), self.lives[leader]);
                self.at(self.now_ns + wait_ns, Event::Kill { node: leader, life });
            }
            _ => {}
        }
    }

    /// Just enough followers hear the leader for it to keep its lease; the other ones wait to campaign.
    fn deafen_a_minority(&mut self, leader: usize) {
        let (hearing, deaf) = self.hearing_and_deaf(leader);
        self.cut.clear();
        for other in deaf {
            self.cut.insert((leader, other));
            self.cut.insert((other, leader));
        }
        assert!(hearing.len() + 1 > self.nodes.len() / 2);
        let wait_ns = (TIMEOUT_MS * 3 / 2 + self.rng.below(TIMEOUT_MS)) * MS;
        // With writes the deaf ones fall behind, and could not win.
        self.quiet_until_ns = self.now_ns + wait_ns + TIMEOUT_MS * MS;
        self.at(self.now_ns + wait_ns, Event::Bounce { leader });
    }

    /// Then those that hear it are cut off and come back at once: do they know that they must not vote yet?
    pub(super) fn bounce(&mut self, leader: usize) {
        if self.calm || self.nodes[leader].leader().is_none() {
            return;
        }
        let (hearing, _) = self.hearing_and_deaf(leader);
        self.cut.clear();
        self.isolate(leader);
        hearing.into_iter().for_each(|other| self.kill(other, MS / 2));
    }

    fn hearing_and_deaf(&self, leader: usize) -> (Vec<usize>, Vec<usize>) {
        let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != leader).collect();
        let hearing = self.nodes.len() / 2;
        (others[..hearing].to_vec(), others[hearing..].to_vec())
    }
}
