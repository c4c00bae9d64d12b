//! The recorder, moment by moment.

use super::*;

/// One write per batch: the n-th begins at n * 1000 and takes the same steps.
fn record(trace: &mut Trace, lsn: u64, sync_ns: u64) {
    let at = |offset: u64| Time(lsn * 1_000_000 + offset);
    trace.appended(Lsn(lsn), Lsn(lsn), at(0), at(10));
    trace.turn(Lsn(lsn), 1, at(30));
    trace.sync_began(at(60));
    trace.synced(at(60 + sync_ns));
    let spent = AckDurations { decode_ns: 5, write_ns: 0, sync_ns: 50 };
    trace.acked(0, Lsn(lsn), at(100 + sync_ns), spent);
    trace.committed(Lsn(lsn), at(110 + sync_ns));
    trace.replied(at(130 + sync_ns));
}

#[test]
fn the_stages_add_up_to_the_total() {
    let mut trace = Trace::new(1, Lsn(1));
    record(&mut trace, 1, 40);
    let receipt = trace.receipt(Lsn(1), Time(0)).unwrap();
    assert_eq!(receipt.stages, [10, 20, 30, 40, 50, 20]);
    assert_eq!(receipt.stages.iter().sum::<u64>(), receipt.total_ns);
    assert_eq!(receipt.followers[0].ack_ns, Some(110));
    assert!(receipt.followers[0].in_time);
}

#[test]
fn the_ring_keeps_the_last_writes_and_no_others() {
    let mut trace = Trace::new(1, Lsn(1));
    (1..=RING_SIZE as u64 + 5).for_each(|lsn| record(&mut trace, lsn, 40));
    assert!(trace.receipt(Lsn(5), Time(0)).is_none());
    assert!(trace.receipt(Lsn(6), Time(0)).is_some());
    assert_eq!(trace.receipts().count(), RING_SIZE);
}

#[test]
fn the_slowest_are_kept_apart() {
    let mut trace = Trace::new(1, Lsn(1));
    (1..=10_000).for_each(|lsn| record(&mut trace, lsn, if lsn == 7 { 9_000 } else { 40 }));
    let slowest = trace.measured().slowest();
    assert_eq!((slowest.len(), slowest[0].lsn), (SLOWEST_SIZE, Lsn(7)));
    trace.reset();
    assert!(trace.measured().slowest().is_empty());
}

#[test]
fn what_gathers_behind_a_flush_is_a_batch_of_its_own_and_waits_in_its_queue() {
    let mut trace = Trace::new(0, Lsn(1));
    trace.appended(Lsn(1), Lsn(1), Time(10), Time(20));
    trace.turn(Lsn(1), 1, Time(30));
    trace.sync_began(Time(40));
    trace.appended(Lsn(2), Lsn(2), Time(50), Time(60));
    trace.synced(Time(140));
    trace.turn(Lsn(2), 1, Time(150));
    trace.sync_began(Time(160));
    trace.committed(Lsn(1), Time(170));
    trace.replied(Time(180));
    assert_eq!(trace.receipt(Lsn(1), Time(0)).unwrap().stages, [10, 10, 10, 100, 30, 10]);
    trace.synced(Time(260));
    trace.committed(Lsn(2), Time(260));
    trace.replied(Time(270));
    let receipt = trace.receipt(Lsn(2), Time(0)).unwrap();
    assert_eq!((receipt.stages, receipt.total_ns), ([10, 90, 10, 100, 0, 10], 220));
}

#[test]
fn a_write_that_a_new_segment_made_durable_may_be_answered_before_the_flush_of_its_batch_ends() {
    let mut trace = Trace::new(0, Lsn(1));
    trace.appended(Lsn(1), Lsn(2), Time(1_000), Time(1_010));
    trace.turn(Lsn(2), 2, Time(1_030));
    trace.sync_began(Time(1_060));
    trace.committed(Lsn(1), Time(1_070));
    trace.replied(Time(1_080));
    let stages = [10, 20, 30, 10, 0, 10];
    assert_eq!(trace.measured().slowest()[0].stages, stages, "as kept when it was answered");
    trace.synced(Time(1_200));
    trace.committed(Lsn(2), Time(1_210));
    trace.replied(Time(1_220));
    assert_eq!(trace.receipt(Lsn(1), Time(0)).unwrap().stages, stages, "as asked for later");
    assert_eq!(trace.receipt(Lsn(2), Time(0)).unwrap().stages, [10, 20, 30, 140, 10, 10]);
    let commit = trace.measured().histograms().find(|(name, _)| name == "put commit").unwrap().1;
    assert!(commit.quantile(1.0) <= 16, "{} ns", commit.quantile(1.0));
}

#[test]
fn a_batch_shares_its_moments() {
    let mut trace = Trace::new(1, Lsn(1));
    (1..=3).for_each(|lsn| trace.appended(Lsn(lsn), Lsn(lsn), Time(lsn * 10), Time(lsn * 10 + 5)));
    trace.turn(Lsn(3), 3, Time(50));
    trace.sync_began(Time(60));
    trace.synced(Time(100));
    trace.acked(0, Lsn(3), Time(90), AckDurations::default());
    trace.committed(Lsn(3), Time(110));
    trace.replied(Time(120));
    let receipt = trace.receipt(Lsn(2), Time(0)).unwrap();
    assert_eq!((receipt.batch_count, receipt.total_ns), (3, 100));
    assert_eq!(trace.measured().histograms().find(|(name, _)| name == "put sync").unwrap().1.count(), 3);
}

#[test]
fn writes_are_folded_once_whenever_somebody_asks() {
    let mut trace = Trace::new(0, Lsn(1));
    let count = |trace: &mut Trace, name: &str| {
        trace.measured().histograms().find(|(known, _)| known == name).unwrap().1.count()
    };
    // One read of a hundred writes; a segment begins behind the first three, which are answered before the rest.
    trace.appended(Lsn(1), Lsn(100), Time(10), Time(20));
    trace.turn(Lsn(100), 100, Time(30));
    trace.sync_began(Time(40));
    trace.committed(Lsn(3), Time(50));
    assert_eq!(count(&mut trace, "put total"), 0, "nothing was answered");
    trace.replied(Time(60));
    assert_eq!(count(&mut trace, "put total"), 3);
    trace.synced(Time(70));
    trace.committed(Lsn(100), Time(80));
    trace.replied(Time(1_000));
    for name in ["put total", "put decode", "put queue", "put send", "put sync", "put commit", "put reply"] {
        assert_eq!(count(&mut trace, name), 100, "{name}");
    }
    assert_eq!(trace.measured().slowest()[0].total_ns, 990);
    let commit = trace.measured().histograms().find(|(name, _)| name == "put commit").unwrap().1;
    assert_eq!(commit.quantile(0.03), 0, "committed before the flush had ended");
    assert_eq!(commit.quantile(1.0), 10);
}
