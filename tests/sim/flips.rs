//! A bit flips in the memory of a node, in the value of an entry or in what a numbered write was answered. Nothing that
//! is on a disk or on a link changes, and no hash does: what notices it is the next scan of the state, or, once the
//! entry is overwritten or the session used, the comparison of states between nodes.
//!
//! Until then what the node reads of that key, or answers again to a number of that session, may be wrong, and is
//! excused; nothing else is. A node that noticed is restarted by its operator. In the end nobody has a flipped bit in
//! memory that was not noticed; and nobody ever takes a state for wrong where no bit has flipped.

use kvstore::ids::SessionId;
use kvstore::replication::divergence::Fault;
use kvstore::wire::client::Status;

use crate::client::{Ask, Sent};
use crate::core::{Event, MS};
use crate::world::World;

/// A bit that has flipped.
#[derive(Debug)]
pub struct Flip {
    pub place: Place,
    /// How often the state of this process had been made anew.
    states: u64,
}

/// Where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    ValueOf(Vec<u8>),
    AnswerIn(SessionId),
}

/// Steps of the second phase between two commands to make a snapshot, and with it a scan.
const SCAN_STEPS: u64 = 8;
/// Which of them: a leader may have to be chosen first, for what is written to be committed.
const SCAN_STEP: u64 = 4;

impl Flip {
    /// Whether this answer is wrong for it: a read of the key, or an old answer that is not what the log says.
    pub fn excuses(&self, sent: &Sent, status: Status, existed: impl FnOnce() -> bool) -> bool {
        match (&self.place, &sent.ask) {
            (Place::ValueOf(flipped), Ask::Get { key, .. }) => key == flipped,
            (Place::AnswerIn(session), Ask::Put { .. } | Ask::Delete { .. }) => {
                let is_old = sent.by.is_some_and(|by| by.session == *session && by.tries > 1);
                let is_put = matches!(sent.ask, Ask::Put { .. });
                is_old
                    && matches!(status, Status::Ok | Status::NotFound)
                    && (status == Status::Ok) != (is_put || existed())
            }
            _ => false,
        }
    }
}

impl World {
    /// A bit flips in a value of this host. One at a time: with two of three nodes wrong nobody could be right.
    pub fn flip_memory(&mut self, site: usize) {
        if self.hosts.iter().any(|host| host.flip.is_some()) {
            return;
        }
        let host = &mut self.hosts[site];
        let Some(process) = host.process.as_mut().filter(|_| host.load_checked && !host.ending) else {
            return;
        };
        let keyspace = process.node.keyspace();
        let slots = u64::from(keyspace.slot_count());
        let mut core = self.core.borrow_mut();
        let first = if slots > 0 { core.rng.below(slots) } else { return };
        let found = (0..slots).find_map(|step| keyspace.entry(((first + step) % slots) as u32));
        let Some((key, value)) = found else { return };
        let (key, bits) = (key.to_vec(), value.len() * 8);
        let bit = key.len() * 8 + core.rng.below(bits as u64) as usize;
        // Not from the generator of the run, so that what else happens in it is what happened before.
        let answered = keyspace.sessions().iter().filter(|session| session.answers() > 0);
        let session = answered.last().map(|session| (session.id(), session.answers()));
        let place = match session.filter(|_| core.now.is_multiple_of(2)) {
            Some((session, answers)) => {
                assert!(process.node.flip_answer(session, bit % answers));
                core.stats.count("memory: a bit of an answer flips");
                Place::AnswerIn(session)
            }
            None => {
                assert!(process.node.flip_bit(&key, bit));
                core.stats.count("memory: a bit flips");
                Place::ValueOf(key)
            }
        };
        core.trace(|| format!("host {site}: a bit flips in memory, in {place:?}"));
        host.flip = Some(Flip { place, states: process.node.counters.states_made });
        self.oracle.memory_failed = true;
    }

    /// After a turn: a new state has no flipped bit, and who knows that its state is wrong is restarted before long.
    pub fn watch_state(&mut self, site: usize) {
        let host = &mut self.hosts[site];
        let Some(process) = &host.process else { return };
        let made = process.node.counters.states_made;
        if host.flip.as_ref().is_some_and(|flip| flip.states != made) {
            host.flip = None;
            self.core.borrow_mut().stats.count("memory: the state with a flipped bit was made anew");
        }
        let fault = process.node.observe().state_fault;
        if fault == host.state_fault {
            return;
        }
        host.state_fault = fault;
        let Some(fault) = fault else { return };
        let mut core = self.core.borrow_mut();
        core.trace(|| format!("host {site} finds its state {}", fault.name()));
        core.stats.count(match fault {
            Fault::Disputed => "state: disputed",
            Fault::Outvoted => "state: outvoted",
            Fault::Memory => "state: a scan finds a flipped bit",
        });
        assert!(
            self.oracle.memory_failed,
            "host {site} finds its state {}, and no bit flipped",
            fault.name()
        );
        if fault.stops_serving() {
            assert!(host.flip.is_some(), "host {site} finds its state {}, and it is right", fault.name());
            let (incarnation, later) = (host.incarnation, core.between(100 * MS, 3_000 * MS));
            core.after(later, Event::CrashNow { host: site, incarnation, power: false });
        }
    }

    /// In the second phase: whose memory holds a flipped bit is asked for a snapshot until it has noticed, and
    /// restarted then. True: that was this step.
    pub fn settle_flips(&mut self) -> bool {
        let flipped = self.serving().find(|site| self.hosts[*site].flip.is_some());
        let Some(site) = flipped else { return false };
        let host = &self.hosts[site];
        if host.state_fault.is_some_and(Fault::stops_serving) {
            self.end_process(site, false);
            return true;
        }
        let asks = self.heal.steps % SCAN_STEPS == SCAN_STEP;
        if asks {
            self.command(site, Ask::Snapshot);
        }
        asks
    }
}
