//! What an operator gives up with `--force` or `--discard` is said before it is gone, and what is discarded is kept
//! aside.

use crate::core::Core;
use crate::host::Host;
use crate::oracle::Acked;

const FORCED: &str = "forced promotion; what may be lost: ";
const DISCARDED: &str = "--discard gives up records ";

/// Whether a warning says what is given up.
pub fn gives_up(line: &str) -> bool {
    line.contains(FORCED) || line.contains(DISCARDED)
}

/// What this host has said of its promotion, if that was by force.
pub fn said_of_force(host: &Host) -> Option<String> {
    host.printed.iter().rev().find_map(|line| line.split_once(FORCED)).map(|(_, said)| said.to_owned())
}

/// Whether an operator who read this knew that this write may go: who has it was named as silent, or as having
/// more, or the node was not in sync.
pub fn covers(core: &mut Core, said: &str, hosts: &[Host], site: usize, write: &Acked) -> bool {
    let ranges = said.match_indices("records ").filter_map(|(at, word)| {
        let mut numbers = said[at + word.len()..].split([' ', ',']);
        let (first, last) = (numbers.next()?.parse::<u64>().ok()?, numbers.nth(1)?.parse::<u64>().ok()?);
        Some(first..=last)
    });
    let mut holders = hosts.iter().filter(|host| host.site != site);
    let mut ranges = ranges.collect::<Vec<_>>().into_iter();
    let covered = said.contains("was not in sync")
        || said.contains("its records of term")
        || ranges.any(|range| range.contains(&write.lsn))
        || holders.any(|host| {
            host.mirror.borrow().holds(write.lsn, write.chain)
                && said.contains(&format!("{} is silent", Host::address(host.site)))
        });
    if covered {
        core.stats.count("check: forced promotion said what it gave up");
    }
    covered
}

/// A cut below what was known to be committed: it was said before, and the records are in a file.
pub fn check_discard(core: &mut Core, host: &Host, keep: u64, last: u64) {
    let from = keep + 1;
    let said = host.printed.iter().any(|line| line.contains(&format!("{DISCARDED}{from} to ")));
    assert!(said, "host {}: records from {from} were given up, and it said {:?}", host.site, host.printed);
    let names = host.mem.names();
    let numbers = |name: &str| -> Option<(u64, u64)> {
        let mut numbers = name.split('-');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    // Records before the log's first are in the snapshot that was kept with them.
    let kept_state = names.iter().filter_map(|name| {
        numbers(name.strip_prefix("cut-g")?.strip_suffix(".kvsnap")?.split_once("-snap-")?.1)
    });
    let state_to = kept_state.map(|(s, _)| s).max().unwrap_or(0);
    let holds = |name: &String| {
        let (first, to) = numbers(name.strip_prefix("cut-g")?.strip_suffix(".kvcut")?.split_once('-')?.1)?;
        (first <= from.max(state_to + 1) && to >= last).then_some(())
    };
    assert!(
        names.iter().any(|name| holds(name).is_some()),
        "host {}: records {from} to {last} were given up, and no file keeps them: {names:?}",
        host.site
    );
    core.stats.count("check: discard said what it gave up, and kept it aside");
}
