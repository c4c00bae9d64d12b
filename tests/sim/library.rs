//! Every record that any node of this run has written, by LSN and chain checksum. The checksum stands for the whole
//! history before it, so the log that a snapshot replaced can be told from where it ended.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use kvstore::ids::{Chain, Lsn};

use crate::mirror::Entry;

/// Records, each with the chain checksum before it.
type Records = BTreeMap<(u64, u32), (Rc<Entry>, u32)>;

thread_local! {
    static RECORDS: RefCell<Records> = const { RefCell::new(Records::new()) };
}

/// A run begins.
pub fn clear() {
    RECORDS.with_borrow_mut(BTreeMap::clear);
}

/// Some node wrote it.
pub fn note(entry: &Rc<Entry>, chain_before: u32) {
    RECORDS.with_borrow_mut(|records| {
        records.entry((entry.lsn, entry.chain.0)).or_insert_with(|| (entry.clone(), chain_before));
    });
}

/// Numbers that two records carry: one of them was given up, with a disk or by a cut, and its write executed again.
/// Each with the LSN of its session.
pub fn numbers_given_again() -> BTreeSet<(Lsn, u64)> {
    RECORDS.with_borrow(|records| {
        let mut seen = BTreeSet::new();
        let numbers = records.values().filter_map(|(entry, _)| entry.by.map(|by| (by.session, by.number)));
        numbers.filter(|number| !seen.insert(*number)).collect()
    })
}

/// All records up to the one with this LSN and checksum; `None` if nobody ever wrote that history.
pub fn front(lsn: u64, chain: Chain) -> Option<Vec<Rc<Entry>>> {
    RECORDS.with_borrow(|records| {
        let (mut front, mut chain) = (Vec::new(), chain.0);
        for lsn in (1..=lsn).rev() {
            let (entry, before) = records.get(&(lsn, chain))?;
            front.push(entry.clone());
            chain = *before;
        }
        front.reverse();
        Some(front)
    })
}
