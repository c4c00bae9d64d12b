//! What a leader knows of the time that one follower took.

use super::batches::Batches;
use super::fold::FOLD_WRITES;
use super::rows::{ring, slot};
use super::{Durations, FollowerShare, RING_SIZE};
use crate::ids::Lsn;
use crate::time::Time;
use crate::wire::peer::AckDurations;

/// A follower's ACK of a batch.
#[derive(Clone, Copy, Debug, Default)]
struct AckMoments {
    /// Of which batch; another number says that the batch in whose place this is has no ACK yet.
    batch: u64,
    at: Time,
    spent: AckDurations,
}

/// One follower: its ACKs of the last [`RING_SIZE`] batches, and the histograms.
#[derive(Debug)]
pub(super) struct Follower {
    acks: Box<[AckMoments; RING_SIZE]>,
    /// The first batch it has not acknowledged.
    unacked: u64,
    /// The first whose ACK is not in the histograms.
    unfolded: u64,
    ack: Durations,
    sync: Durations,
    network: Durations,
}

impl Follower {
    /// One that is owed everything from this batch on.
    pub fn new(batch: u64) -> Follower {
        Follower {
            acks: ring(),
            unacked: batch,
            unfolded: batch,
            ack: Durations::new(),
            sync: Durations::new(),
            network: Durations::new(),
        }
    }

    /// It has everything up to `last_lsn`.
    #[inline(always)]
    pub fn acked(&mut self, batches: &Batches, last_lsn: Lsn, at: Time, spent: AckDurations) {
        let mut number = self.unacked.max(batches.oldest());
        while batches.get(number).is_some_and(|batch| batch.last <= last_lsn) {
            self.acks[slot(number)] = AckMoments { batch: number, at, spent };
            number += 1;
        }
        self.unacked = number;
        if number - self.unfolded >= FOLD_WRITES {
            self.fold(batches);
        }
    }

    /// Folds its ACKs into the histograms. Each batch counts once, however many writes it has.
    pub fn fold(&mut self, batches: &Batches) {
        for number in self.unfolded.max(batches.oldest())..self.unacked {
            let (Some(batch), ack) = (batches.get(number), &self.acks[slot(number)]) else { continue };
            let (after, spent) = (ack.at.since(batch.turn), ack.spent);
            let own = u64::from(spent.decode_ns) + u64::from(spent.write_ns) + u64::from(spent.sync_ns);
            self.ack.record(after);
            self.sync.record(u64::from(spent.sync_ns));
            self.network.record(after.saturating_sub(own));
        }
        self.unfolded = self.unacked;
    }

    /// Its part in a write of this batch that was committed then.
    pub fn share(&self, batch: u64, turn: Time, committed: Time) -> FollowerShare {
        let ack = Some(self.acks[slot(batch)]).filter(|ack| ack.batch == batch);
        FollowerShare {
            ack_ns: ack.map(|ack| ack.at.since(turn)),
            in_time: ack.is_some_and(|ack| ack.at <= committed),
            spent: ack.unwrap_or_default().spent,
        }
    }

    /// Until its ACK, its own sync, and what is left for the network.
    pub fn histograms(&self) -> [(&'static str, &Durations); 3] {
        [("ack", &self.ack), ("its sync", &self.sync), ("network", &self.network)]
    }

    /// Forgets the histograms.
    pub fn reset(&mut self) {
        [&mut self.ack, &mut self.sync, &mut self.network].into_iter().for_each(Durations::reset);
    }
}
