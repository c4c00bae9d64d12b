//! What happens to a cluster: at random, and at the moments that decide.

use super::{MS, TIMEOUT_MS, World};

impl World {
    pub(super) fn nemesis(&mut self) {
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let leader = self.leader();
        match self.rng.below(14) {
            0 | 1 => {
                let down_ns = self.down_ns();
                self.kill(node, down_ns);
            }
            2 => self.isolate(leader.unwrap_or(node)),
            3 => self.isolate(node),
            4 => {
                let other = self.rng.below(self.nodes.len() as u64) as usize;
                self.cut.insert((node, other));
            }
            5..=7 => self.cut.clear(),
            8 => self.pause(leader.unwrap_or(node)),
            9 => self.pause(node),
            10 => leader.into_iter().for_each(|leader| self.hand_over(leader)),
            11 => leader.into_iter().for_each(|leader| self.bounce_the_last_voice(leader)),
            12 => leader.into_iter().for_each(|leader| self.kill(leader, 5 * MS)),
            _ => self.nodes[node].entries_per_frame = 1 + self.rng.below(3),
        }
    }

    /// Back at once, or after some elections.
    fn down_ns(&mut self) -> u64 {
        let rng = &mut self.rng;
        if rng.below(2) == 0 { MS + rng.below(5 * MS) } else { rng.below(4 * TIMEOUT_MS * MS) }
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
            _ => {}
        }
    }

    /// One follower alone hears the leader, which so keeps its lease; the other ones wait to campaign. Then that one
    /// is cut off and comes back at once: does it know that it must not vote yet?
    fn bounce_the_last_voice(&mut self, leader: usize) {
        let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != leader).collect();
        let deaf = others.len() / 2;
        let first = self.rng.below(others.len() as u64) as usize;
        let is_deaf = |at: usize| (at + others.len() - first) % others.len() < deaf;
        if self.cut.is_empty() {
            for (_, other) in others.iter().enumerate().filter(|(at, _)| is_deaf(*at)) {
                self.cut.insert((leader, *other));
                self.cut.insert((*other, leader));
            }
            return;
        }
        self.isolate(leader);
        let hearing: Vec<usize> =
            others.iter().enumerate().filter(|(at, _)| !is_deaf(*at)).map(|(_, other)| *other).collect();
        hearing.into_iter().for_each(|other| self.kill(other, MS));
    }
}
