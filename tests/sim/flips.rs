//! A bit flips in the memory of a node, in the value of an entry. Nothing that is on a disk or on a link changes, and
//! no hash does: what notices it is the next scan of all entries, or, once the entry is overwritten, the comparison of
//! states between nodes.
//!
//! Until then what the node reads of that key may be wrong, and is excused; nothing else is. A node that noticed is
//! restarted by its operator. In the end nobody has a flipped bit in memory that was not noticed; and nobody ever takes
//! a state for wrong where no bit has flipped.

use kvstore::replication::divergence::Fault;

use crate::client::Ask;
use crate::core::{Event, MS};
use crate::world::World;

/// A bit that has flipped.
#[derive(Debug)]
pub struct Flip {
    pub key: Vec<u8>,
    /// How often the state of this process had been made anew.
    states: u64,
}

/// Steps of the second phase between two commands to make a snapshot, and with it a scan.
const SCAN_STEPS: u64 = 8;
/// Which of them: a leader may have to be chosen first, for what is written to be committed.
const SCAN_STEP: u64 = 4;

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
        assert!(process.node.flip_bit(&key, bit));
        core.trace(|| format!("host {site}: bit {bit} of {} flips in memory", String::from_utf8_lossy(&key)));
        core.stats.count("memory: a bit flips");
        host.flip = Some(Flip { key, states: process.node.counters.states_made });
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
