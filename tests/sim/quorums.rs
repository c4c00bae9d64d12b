//! What must hold of majorities, at every moment and not only where it comes to light.
//!
//! *Nothing that is committed can be lost by an election.* When a leader takes a record for committed, whoever of the
//! members does not have it could not be elected: too few logs end where its own ends, or before. By the logs on
//! the disks and by nothing that a node says. Two disjoint majorities, or a record of an older term that is committed
//! by count, show here, and no second crash has to bring it to light.
//!
//! *Who leads is heard.* A leader that has read nothing from a majority for an election timeout, on its own clock,
//! leads no more at the end of a turn that began later.

use kvstore::ids::Term;
use kvstore::node::Observed;

use crate::core::{Core, MS};
use crate::host::Host;
use crate::lists::Seat;

/// Where a log ends, as elections compare it.
fn log_end(host: &Host, last: u64) -> (Term, u64) {
    host.mirror.borrow().get(last).map_or((Term::ZERO, 0), |entry| (entry.term, entry.lsn))
}

/// Whether this member votes and campaigns, as far as its log is concerned.
fn has_a_say(host: &Host) -> bool {
    let seen = host.seen.as_ref();
    !host.rotten && seen.is_none_or(|seen| seen.complete && seen.repair_until.0 == 0)
}

/// The commit LSN of this leader has risen to that of `seen`.
pub fn check_commit(core: &mut Core, hosts: &[Host], site: usize, seen: &Observed) {
    let Some(entry) = hosts[site].mirror.borrow().get(seen.commit.0).cloned() else { return };
    let has_say = |site: usize| has_a_say(&hosts[site]);
    for candidate in hosts.iter().filter(|host| !host.mirror.borrow().holds(entry.lsn, entry.chain)) {
        // It goes by its own list, and whoever is in it votes.
        let list = crate::lists::of_log(core, candidate);
        if !list.has(candidate.site) || !has_say(candidate.site) {
            continue;
        }
        // A crash may leave of its log what was written, and of theirs what was synced.
        let own = log_end(candidate, candidate.mirror.borrow().last());
        let would_vote = |site: usize| {
            let synced = hosts[site].mirror.borrow().synced;
            site == candidate.site || log_end(&hosts[site], synced) <= own
        };
        let votes = list.whole().filter(|site| has_say(*site) && would_vote(*site)).count();
        assert!(
            votes < list.majority(),
            "host {site} takes LSN {} of term {} for committed, and host {}, whose log ends at LSN {} of term {} \
             without it, would get the votes of {votes} of {}",
            entry.lsn,
            entry.term,
            candidate.site,
            own.1,
            own.0,
            list.len()
        );
    }
    core.stats.count("check: nobody without a committed record could be elected");
}

/// A turn of this host has ended, and it leads, since this moment at the latest.
pub fn check_heard(core: &mut Core, host: &Host, elected_at: u64) {
    let Some(elected) = core.knobs.elected else { return };
    let list = crate::lists::of_log(core, host);
    let others = list.seats().iter().filter(|seat| seat.site != host.site);
    // What runs at the address of a lost seat is nobody's voice.
    let until = |seat: &Seat| seat.lost_at.unwrap_or(u64::MAX);
    let heard = others.map(|seat| core.net.heard_at(host.site, seat.site).min(until(seat)));
    let mut heard: Vec<u64> = heard.collect();
    heard.sort_unstable_by(|a, b| b.cmp(a));
    let Some(index) = (list.len() / 2).checked_sub(1) else { return };
    let since = heard[index].max(elected_at);
    let passed_ns =
        u128::from(host.turn_began.saturating_sub(since)) * u128::from(host.clock.rate_ppm) / 1_000_000;
    assert!(
        passed_ns <= u128::from((elected.timeout_ms + 1) * MS),
        "host {} leads, and has heard nothing from a majority for {} ms",
        host.site,
        passed_ns / u128::from(MS)
    );
    core.stats.count("check: a leader has heard a majority within the timeout");
}
