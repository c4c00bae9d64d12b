//! Disks that change what was safe on them: bits that flip, and writes that end up elsewhere. On a follower, whose
//! operator answers a refusal to start with an empty directory; on a leader, where another node has to be promoted.

use kvstore::wal::{HEADER_SIZE, MARK_SIZE, parse_segment_name};

use crate::client::Ask;
use crate::core::{Event, MS};
use crate::mem_disk::SECTOR_SIZE;
use crate::world::World;

/// A leader whose log is damaged waits for its operator, who looks after it so often.
const RESCUE_STEP_NS: u64 = 1_500 * MS;

/// How many bytes of a segment reach up to the last record that a mark behind it calls durable (a mark between them
/// and that one is not among them: without it the last batch looks like a tail); and where what was written ends.
fn claimed_bytes(segment: &[u8]) -> (usize, usize) {
    let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("4 bytes"));
    let long = |at: usize| u64::from_be_bytes(segment[at..at + 8].try_into().expect("8 bytes"));
    let (mut at, mut entries_end, mut claimed) = (HEADER_SIZE as usize, 0, 0);
    while at + MARK_SIZE <= segment.len() {
        let length = word(at + 4);
        if length == 0x8000_0000 | (MARK_SIZE as u32 - 8) {
            let (durable, next) = (long(at + 8), long(at + 32));
            claimed = if durable + 1 == next { entries_end } else { claimed };
            at += MARK_SIZE;
        } else if length == 0 || length >= 0x8000_0000 {
            break;
        } else {
            at += 8 + length as usize;
            entries_end = at;
        }
    }
    (claimed, at)
}

/// A segment that holds durable records: its name, the bytes of it that a mark behind them calls durable, and where
/// its records end.
struct Claimed {
    name: String,
    bytes: Vec<u8>,
    claimed: usize,
    end: usize,
}

impl World {
    /// Whether a follower's disk may be taken from it now; where leaders are elected, anybody's. A log that is damaged
    /// beyond repair leaves an empty directory.
    pub fn may_decay(&self, site: usize) -> bool {
        if self.core.borrow().knobs.is_elected() {
            return self.hosts[site].process.is_some() && self.may_be_out(site);
        }
        let leads = self.hosts[site].seen.as_ref().is_none_or(|seen| seen.leads);
        !leads
            && site != 0
            && self.hosts[site].process.is_some()
            && self.twin.is_none()
            && self.is_spare(site)
    }

    fn claimed_segments(&self, site: usize) -> Vec<Claimed> {
        let mem = &self.hosts[site].mem;
        let mut names = mem.names();
        names.retain(|name| parse_segment_name(name).is_some());
        if self.core.borrow().knobs.transfers {
            // What lies below the base of a log is read by nobody, and its damage noticed by nobody.
            names = names.split_off(names.len().saturating_sub(1));
        }
        let claims = names.into_iter().filter_map(|name| {
            let bytes = mem.raw(&name)?;
            let (claimed, end) = claimed_bytes(&bytes);
            (claimed > 0).then_some(Claimed { name, bytes, claimed, end })
        });
        claims.collect()
    }

    /// A bit of a follower's log flips, before a mark that calls all of that durable.
    pub fn rot(&mut self, site: usize) {
        if self.may_decay(site) {
            self.end_process(site, true);
            self.flip_a_bit(site, "disk: bit rot");
        }
    }

    /// The same on a leader, at most once in a run.
    pub fn rot_leader(&mut self, site: usize) {
        if self.core.borrow().knobs.is_elected() {
            // It comes back as a follower, like everybody, and repairs.
            if self.leads(site) && self.may_decay(site) {
                self.end_process(site, true);
                self.flip_a_bit(site, "disk: bit rot on a leader");
            }
            return;
        }
        let leads = self.leads(site) && self.broken_leader.is_none() && self.hosts.len() > 1;
        if leads && !self.leader_replaced && self.twin.is_none() && self.is_spare(site) {
            self.end_process(site, true);
            if self.flip_a_bit(site, "disk: bit rot on a leader") {
                self.leader_replaced = true;
                self.broken_leader = Some(site);
            }
        }
    }

    fn flip_a_bit(&mut self, site: usize, what: &'static str) -> bool {
        let Some(segment) = self.claimed_segments(site).pop() else { return false };
        let mut core = self.core.borrow_mut();
        let (at, bit) = (core.rng.below(segment.claimed as u64), core.rng.below(8) as u8);
        let host = &mut self.hosts[site];
        host.mem.corrupt(&segment.name, at, bit);
        host.rotten = true;
        core.stats.count(what);
        core.trace(|| format!("host {site}: bit {bit} of byte {at} of {} flips", segment.name));
        true
    }

    /// Sectors that were written and synced long ago turn out to stand where others belong. If those held durable
    /// records, the node must notice; behind the log, or over one of the two copies of META, it must not mind.
    pub fn misdirect(&mut self, site: usize) {
        if !self.may_decay(site) {
            return;
        }
        self.end_process(site, true);
        let segments = self.claimed_segments(site);
        if segments.is_empty() {
            return;
        }
        let mut core = self.core.borrow_mut();
        let mut pick = |count: usize| core.rng.below(count as u64) as usize;
        let source = &segments[pick(segments.len())];
        let sectors = 1 + pick(4);
        let from = pick(source.claimed.div_ceil(SECTOR_SIZE)) * SECTOR_SIZE;
        let mut run = &source.bytes[from..source.bytes.len().min(from + sectors * SECTOR_SIZE)];
        let kind = pick(3);
        let last = segments.last().expect("it is not empty");
        let host = &mut self.hosts[site];
        let (victim, at, what) = match kind {
            0 => {
                let victim = &segments[pick(segments.len())];
                let at = pick(victim.claimed.div_ceil(SECTOR_SIZE)) * SECTOR_SIZE;
                let end = victim.claimed.min(at + run.len());
                // Salts of segments differ, so only the very same place has the same bytes, and zeros have.
                if victim.bytes[at..end] == run[..end - at] {
                    return;
                }
                host.rotten = true;
                // What claims those records stays. Without it nothing would know that they were durable.
                run = &run[..end - at];
                (victim.name.clone(), at, "disk: misdirected write over the log")
            }
            1 => {
                let begin = last.end.div_ceil(SECTOR_SIZE) + 1;
                let free = (last.bytes.len() / SECTOR_SIZE).saturating_sub(begin + sectors);
                let newest = host.mem.names().into_iter().rfind(|name| parse_segment_name(name).is_some());
                if free == 0 || newest.as_ref() != Some(&last.name) {
                    return;
                }
                let at = (begin + pick(free)) * SECTOR_SIZE;
                (last.name.clone(), at, "disk: misdirected write behind the log")
            }
            _ => {
                let name = if pick(2) == 0 { "META.a" } else { "META.b" };
                (name.to_owned(), pick(16) * SECTOR_SIZE, "disk: misdirected write over a copy of META")
            }
        };
        let room = host.mem.raw(&victim).map_or(0, |bytes| bytes.len().saturating_sub(at));
        host.mem.overwrite(&victim, at, &run[..run.len().min(room)]);
        core.stats.count(what);
        core.trace(|| {
            format!("host {site}: {} bytes of {} at {from} stand at {at} of {victim}", run.len(), source.name)
        });
    }

    /// A damaged log was refused. A follower gets an empty directory; a leader first has to be replaced.
    pub fn on_damage_refused(&mut self, site: usize, why: &str) {
        let names_it = ["wal-", "byte", "LSN"].iter().all(|word| why.contains(word));
        assert!(names_it, "host {site} refuses a damaged log without saying where: {why}");
        if self.broken_leader != Some(site) {
            self.core.borrow_mut().after(200 * MS, Event::Start(site));
            return self.empty_directory(site);
        }
        if self.hosts[site].backup.is_some() && self.core.borrow_mut().chance(500_000) {
            self.restore(site);
            if self.hosts[site].backup.is_none() {
                self.broken_leader = None;
                self.core.borrow_mut().after(200 * MS, Event::Start(site));
                return;
            }
        }
        self.core.borrow_mut().after(RESCUE_STEP_NS, Event::Rescue);
    }

    /// The operator promotes another node in place of a leader that cannot start, and then gives that one an empty
    /// directory, as a follower.
    pub fn rescue_step(&mut self) {
        let Some(site) = self.broken_leader.filter(|_| self.healed_at.is_none()) else { return };
        let lost_term = self.hosts[site].told.term;
        let term = |other: usize| self.hosts[other].seen.as_ref().map_or(0, |seen| seen.term.as_u64());
        if (0..self.hosts.len()).any(|other| self.leads(other) && term(other) > lost_term) {
            return self.replace_broken_leader();
        }
        self.core.borrow_mut().after(RESCUE_STEP_NS, Event::Rescue);
        let running = (0..self.hosts.len()).filter(|other| self.hosts[*other].process.is_some());
        if let Some(best) = running.max_by_key(|other| self.hosts[*other].mirror.borrow().last()) {
            self.command(best, Ask::Promote { force: false });
        }
    }

    /// The leader whose log is damaged begins anew as a follower.
    pub fn replace_broken_leader(&mut self) {
        let Some(site) = self.broken_leader.take() else { return };
        if self.hosts[site].process.is_some() {
            return;
        }
        self.empty_directory(site);
        let mut core = self.core.borrow_mut();
        core.stats.count("operator: emptied the disk of a leader that another replaced");
        core.after(10 * MS, Event::Start(site));
    }
}
