//! Bytes of a session that arrive in the next one: TCP sends lost segments again for as long as it takes, and the
//! leader's process may be another one by then, or have given the connection up. What it had sent of a snapshot is
//! then the very part that the follower asks for next; nothing but the session tells it from what is to come.

use kvstore::conn::ConnId;
use kvstore::ids::Lsn;
use kvstore::snapshot;

use crate::core::{Event, MS};
use crate::host::Process;
use crate::net::EndState;
use crate::world::World;

/// What was sent is let go by then, whether another session has opened or not.
const LATE_NS_MAX: u64 = 6_000 * MS;

/// What a leader has sent to this host and what did not arrive.
#[derive(Debug)]
pub struct Late {
    /// The connections that it was sent on.
    conns: Vec<usize>,
    /// The session that it belongs to.
    session: Option<ConnId>,
    pub until: u64,
}

impl World {
    /// What this leader sends to the follower on the connections of now stays on its way until the follower has opened
    /// another session.
    pub fn hold_what_leader_sends(&mut self, site: usize, leader: usize) {
        let Some(process) = self.hosts[site].process.as_ref().filter(|_| self.hosts[site].late.is_none())
        else {
            return;
        };
        let mut core = self.core.borrow_mut();
        let conns = core.open_between(leader, site);
        conns.iter().for_each(|conn| core.hold(*conn, leader));
        let until = core.now + LATE_NS_MAX;
        self.hosts[site].late = Some(Late { conns, session: process.socks.session, until });
        // A little later, so that there is something on its way.
        let delay = core.between(MS / 10, 30 * MS);
        core.after(delay, Event::Trouble { site, trouble: crate::away::Trouble::LeaderLoses });
        core.after(LATE_NS_MAX, Event::LetLateGo(site));
    }

    /// The leader's side of those connections is over, and the follower does not hear of it.
    pub fn leader_loses_connections(&mut self, site: usize, leader: usize) {
        let Some(late) = &self.hosts[site].late else { return };
        let conns = late.conns.clone();
        let mut core = self.core.borrow_mut();
        if core.chance(500_000) {
            conns.iter().for_each(|conn| core.reset_towards(*conn, leader));
            core.stats.count("net: reset");
            return;
        }
        drop(core);
        if self.hosts[leader].process.is_some() {
            self.core.borrow_mut().stats.count("process: kill");
            self.end_process(leader, false);
        }
    }

    /// A turn of this host has ended, or there was time enough: if another session has opened, what was sent in the
    /// one before arrives now.
    pub fn let_late_go(&mut self, site: usize, at_once: bool) {
        let Some(late) = &self.hosts[site].late else { return };
        let session = self.hosts[site].process.as_ref().and_then(|process| process.socks.session);
        let other = session.is_some() && session != late.session;
        let mut core = self.core.borrow_mut();
        if !other && !at_once && core.now < late.until {
            return;
        }
        let late = self.hosts[site].late.take().expect("it was looked at");
        for conn in late.conns {
            let bytes = core.let_go(conn);
            if other && bytes > 0 {
                core.stats.count("net: bytes of a transfer arrive in the session after it");
            }
        }
    }
}

impl Process {
    /// A follower's log, and the snapshot that it gets, grow by what comes in its session. Frames of one that is dead
    /// change nothing.
    pub fn check_growth(&self, id: ConnId, (before, bytes_before): (Lsn, u64)) {
        let (last, bytes) = (self.node.positions().0, self.node.bytes_received());
        if bytes < bytes_before && self.socks.mem.names().iter().any(|name| name == snapshot::RECEIVED_NAME) {
            let mut core = self.socks.core.borrow_mut();
            core.stats.count("transfer: another takes the place of one that had begun");
        }
        assert!(
            bytes <= bytes_before || self.socks.session == Some(id),
            "host {}: bytes {bytes_before} to {bytes} of a snapshot came on a connection that is not its session's",
            self.socks.site
        );
        assert!(
            last <= before || self.socks.session == Some(id) || self.node.role_name() != "follower",
            "host {}: records {} to {last} came on a connection that is not its session's",
            self.socks.site,
            before.next()
        );
    }
}

impl crate::core::Core {
    /// The connections between two sites that are open on both sides.
    fn open_between(&self, one: usize, other: usize) -> Vec<usize> {
        let theirs = |conn: &usize| {
            let ends = &self.net.conns[*conn].ends;
            let sites = (ends[0].site, ends[1].site);
            let open = ends.iter().all(|end| end.state == EndState::Open);
            open && (sites == (one, other) || sites == (other, one))
        };
        (0..self.net.conns.len()).filter(theirs).collect()
    }

    /// What this site sends on a connection, and has sent, stays on its way.
    fn hold(&mut self, conn: usize, from: usize) {
        let side = self.side_of(conn, from);
        self.net.conns[conn].pipes[side].held = true;
    }

    /// What stayed on its way arrives, as far as its time has come. Returns the bytes on their way.
    fn let_go(&mut self, conn: usize) -> usize {
        let mut bytes = 0;
        for dir in 0..2 {
            if std::mem::take(&mut self.net.conns[conn].pipes[dir].held) {
                bytes += self.net.conns[conn].pipes[dir].on_the_way();
                self.after(0, Event::Arrive { conn, dir });
            }
        }
        bytes
    }

    /// This site is told that the connection is over; the other one is not.
    fn reset_towards(&mut self, conn: usize, to: usize) {
        let other = 1 - self.side_of(conn, to);
        self.reset_from(conn, other);
    }

    fn side_of(&self, conn: usize, site: usize) -> usize {
        usize::from(self.net.conns[conn].ends[1].site == site)
    }
}
