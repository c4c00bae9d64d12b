//! A snapshot in the place of the log: one durable record decides, and whatever a crash leaves is completed. Cuts in
//! a log that does not begin at LSN 1.

use kvstore::ids::{Chain, Lsn, NodeId};
use kvstore::meta::{Meta, MetaStore};
use kvstore::wal::{Base, Cursor, Identity, Opened, ReadError, Wal};

use crate::log_start::*;
use crate::mem_disk::{Keep, MemDisk};
use crate::wal_kit::*;

/// The log of the cluster: what the snapshot is of, and what comes behind it. Other records than the old log has.
fn cluster_records() -> Vec<Vec<u8>> {
    (1..=40).map(|lsn| if lsn == 1 { term_bytes(1, 77) } else { put_bytes(lsn, 9, 300) }).collect()
}

/// Twenty records and META beside them.
fn with_meta() -> (MemDisk, Wal, MetaStore, Vec<Vec<u8>>) {
    let (disk, wal, records) = twenty_records();
    let meta = Meta { node_id: NodeId([1; 16]), cluster_id: CLUSTER, ..Meta::default() };
    let meta = MetaStore::create(&mut disk.clone(), meta).unwrap();
    (disk, wal, meta, records)
}

fn identity_of(meta: &Meta) -> Identity {
    Identity {
        cluster_id: meta.cluster_id,
        generation: meta.log_generation,
        cut_lsn: meta.cut_lsn,
        base_lsn: meta.base_lsn,
        base_chain: meta.base_chain,
    }
}

fn install(disk: &MemDisk, wal: &mut Wal, meta: &mut MetaStore, base: &Base) -> Result<(), String> {
    let updated = meta.update(&mut disk.clone(), |meta| {
        meta.log_generation += 1;
        (meta.cut_lsn, meta.base_lsn, meta.base_chain) = (Lsn::ZERO, base.lsn, base.chain);
    });
    updated.map_err(|error| error.to_string())?;
    let generation = meta.get().log_generation;
    let kept = wal.reset(&mut disk.clone(), base, generation).map_err(|error| error.to_string())?;
    assert_eq!(kept.is_some(), base.lsn == Lsn::ZERO, "what an install replaces is not kept aside");
    Ok(())
}

/// Opens with the base that META asks for; or, before the install, with that of the old log.
fn reopen(disk: &MemDisk, base: &Base, context: &str) -> (Opened, bool) {
    let meta = MetaStore::load(&mut disk.clone()).unwrap().unwrap();
    let identity = identity_of(meta.get());
    let installed = identity.generation > 0;
    let chosen = if installed { base.clone() } else { Base::default() };
    let opened = open_behind(disk, identity, &chosen, SEGMENT_BYTES);
    (opened.unwrap_or_else(|error| panic!("{context}: {error}")), installed)
}

#[test]
fn an_install_that_a_crash_interrupts_anywhere_leaves_the_old_log_or_the_snapshots() {
    let cluster = cluster_records();
    // A snapshot above the old log, at its end, inside it, at a segment's border and below all its terms.
    for base_lsn in [33, 20, 13, 4, 1] {
        let base = base_at(&cluster, base_lsn);
        let (mut step, mut ended, mut seen) = (0, false, [0, 0]);
        while !ended {
            let (disk, mut wal, mut meta, records) = with_meta();
            disk.crash_before(disk.op_count() + step);
            ended = install(&disk, &mut wal, &mut meta, &base).is_ok();
            let masks = 1 << disk.unsynced_names();
            for names in (0..masks).map(Keep::Mask) {
                for sectors in [Keep::None, Keep::All, Keep::Random(step)] {
                    let disk = disk.fork();
                    disk.crash_with(sectors, names);
                    let context = format!("base {base_lsn}, step {step}, {sectors:?}, {names:?}");
                    let (opened, installed) = reopen(&disk, &base, &context);
                    seen[usize::from(installed)] += 1;
                    assert!(installed || !ended, "{context}: a finished install is forgotten");
                    let mut wal = opened.wal;
                    if installed {
                        check_log(&mut wal, &disk, &cluster[..base_lsn as usize], base_lsn + 1, &context);
                        no_old_segment_comes_back(&disk, &mut wal, &base, &cluster, &context);
                    } else {
                        assert!(opened.report.dropped.is_empty());
                        check_log(&mut wal, &disk, &records, 1, &context);
                    }
                }
            }
            step += 1;
        }
        assert!(seen[0] > 0 && seen[1] > 0 && step > 6, "{seen:?} in {step} steps");
    }
}

/// After the install was completed by an open, whose work is durable when it returns.
fn no_old_segment_comes_back(disk: &MemDisk, wal: &mut Wal, base: &Base, cluster: &[Vec<u8>], context: &str) {
    let none = disk.fork();
    none.crash(Keep::None);
    assert!(segments(&none).is_empty() && segments(disk).is_empty(), "{context}");
    assert!(!disk.names().iter().any(|name| name.ends_with(".kvcut")), "{context}: nothing is kept aside");
    for bytes in &cluster[base.lsn.0 as usize..] {
        append(wal, disk, bytes).unwrap();
    }
    write(wal, disk).unwrap();
    flush(wal, disk).unwrap();
    disk.crash(Keep::None);
    let (opened, _) = reopen(disk, base, context);
    let (mut wal, report) = (opened.wal, opened.report);
    assert!(report.dropped.is_empty(), "{context}");
    check_log(&mut wal, disk, cluster, base.lsn.0 + 1, context);
}

#[test]
fn a_reset_log_goes_on_in_the_same_process() {
    let cluster = cluster_records();
    let (disk, mut wal, mut meta, _) = with_meta();
    append_many(&mut wal, &disk, 1, 10);
    let (mut cursor, mut out) = (Cursor::default(), Vec::new());
    wal.read(&mut disk.clone(), &mut cursor, Lsn(1), 3000, &mut out).unwrap();
    let base = base_at(&cluster, 5);
    install(&disk, &mut wal, &mut meta, &base).unwrap();
    check_log(&mut wal, &disk, &cluster[..5], 6, "right after");
    assert_eq!((wal.generation(), wal.durable().generation(), wal.durable().lsn()), (1, 1, Lsn(5)));
    let stale = wal.read(&mut disk.clone(), &mut cursor, Lsn(3), 100, &mut out);
    assert!(matches!(stale, Err(ReadError::NotHeld { lsn: Lsn(3), .. })));
    for bytes in &cluster[5..] {
        append(&mut wal, &disk, bytes).unwrap();
    }
    write(&mut wal, &disk).unwrap();
    flush(&mut wal, &disk).unwrap();
    check_log(&mut wal, &disk, &cluster, 6, "extended");
    assert_eq!(segments(&disk)[0], segment_of(6));
    disk.crash(Keep::None);
    check_log(&mut reopen(&disk, &base, "restarted").0.wal, &disk, &cluster, 6, "restarted");
}

#[test]
fn a_header_that_does_not_read_keeps_no_replaced_segment() {
    let (disk, wal, mut meta, _) = with_meta();
    drop(wal);
    disk.kill_process();
    let base = base_at(&cluster_records(), 20);
    meta = MetaStore::load(&mut disk.clone()).unwrap().unwrap_or(meta);
    let change = |meta: &mut Meta| {
        meta.log_generation += 1;
        (meta.base_lsn, meta.base_chain) = (base.lsn, base.chain);
    };
    meta.update(&mut disk.clone(), change).unwrap();
    let old = segments(&disk);
    old.iter().for_each(|name| disk.corrupt(name, 50, 1));
    disk.kill_process();
    let (opened, _) = reopen(&disk, &base, "damaged leftovers");
    assert_eq!(opened.report.dropped.len(), old.len());
    assert_eq!((segments(&disk).len(), opened.wal.first_lsn()), (0, Lsn(21)));
}

#[test]
fn a_reset_to_nothing_keeps_the_whole_log_aside_at_any_crash() {
    let (mut step, mut ended) = (0, false);
    while !ended {
        let (disk, mut wal, mut meta, records) = with_meta();
        wal.remove_before(&mut disk.clone(), Lsn(9), usize::MAX).unwrap();
        let first = wal.first_lsn().0;
        let old = base_at(&records, first - 1);
        disk.crash_before(disk.op_count() + step);
        ended = install(&disk, &mut wal, &mut meta, &Base::default()).is_ok();
        for names in 0..1 << disk.unsynced_names() {
            let disk = disk.fork();
            disk.crash_with(Keep::Random(step), Keep::Mask(names));
            let meta = MetaStore::load(&mut disk.clone()).unwrap().unwrap();
            let identity = identity_of(meta.get());
            let context = format!("step {step}, names {names:b}");
            if identity.generation == 0 {
                let mut wal = open_behind(&disk, identity, &old, SEGMENT_BYTES).unwrap().wal;
                check_log(&mut wal, &disk, &records, first, &context);
                continue;
            }
            let opened = open_behind(&disk, identity, &Base::default(), SEGMENT_BYTES)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!((opened.wal.first_lsn(), opened.wal.last_lsn()), (Lsn(1), Lsn::ZERO), "{context}");
            let kept = disk.raw(&format!("cut-g1-{first}-20.kvcut"));
            let kept = kept.unwrap_or_else(|| panic!("{context}: nothing is kept in {:?}", disk.names()));
            assert!(kept.len() > records[first as usize - 1..].concat().len(), "{context}");
            assert!(segments(&disk).is_empty(), "{context}");
        }
        step += 1;
    }
}

/// The log of twenty records without the segments at or below LSN 9.
fn shortened() -> (MemDisk, Wal, Vec<Vec<u8>>) {
    let (disk, mut wal, records) = twenty_records();
    wal.remove_before(&mut disk.clone(), Lsn(9), usize::MAX).unwrap();
    assert!((4..=9).contains(&wal.first_lsn().0));
    (disk, wal, records)
}

/// The record a node makes of a cut: without a segment left it names the base too.
fn cut_identity(wal: &Wal, records: &[Vec<u8>], keep: u64) -> Identity {
    let base = base_at(records, keep);
    match keep + 1 == wal.first_lsn().0 {
        true => Identity { base_lsn: base.lsn, base_chain: base.chain, ..identity(1, keep) },
        false => identity(1, keep),
    }
}

#[test]
fn a_cut_anywhere_in_a_log_that_begins_above_1_is_completed_at_any_crash() {
    let floor = shortened().1.first_lsn().0 - 1;
    for keep in floor..LAST {
        let (mut step, mut ended) = (0, false);
        while !ended {
            let (disk, mut wal, records) = shortened();
            let identity = cut_identity(&wal, &records, keep);
            disk.crash_before(disk.op_count() + step);
            ended = wal.cut(&mut disk.clone(), Lsn(keep), 1).is_ok();
            if ended {
                check_log(&mut wal, &disk, &records[..keep as usize], floor + 1, "cut");
            }
            for names in [Keep::None, Keep::All, Keep::Random(step)] {
                let disk = disk.fork();
                disk.crash_with(Keep::Random(step + 7), names);
                let context = format!("keep {keep}, step {step}, {names:?}");
                // Any snapshot that the cut leaves: at or below `keep`.
                for base_lsn in [floor, keep] {
                    let base = base_at(&records, base_lsn);
                    let disk = disk.fork();
                    let opened = open_behind(&disk, identity, &base, SEGMENT_BYTES)
                        .unwrap_or_else(|error| panic!("{context}, base {base_lsn}: {error}"));
                    let mut wal = opened.wal;
                    check_log(&mut wal, &disk, &records[..keep as usize], floor + 1, &context);
                    let kept = format!("cut-g1-{}-20.kvcut", keep + 1);
                    assert!(disk.names().contains(&kept), "{context}: {:?}", disk.names());
                    goes_on_with_other_records(&disk, wal, identity, &base, &records[..keep as usize]);
                }
            }
            step += 1;
        }
    }
}

fn goes_on_with_other_records(
    disk: &MemDisk,
    mut wal: Wal,
    identity: Identity,
    base: &Base,
    kept: &[Vec<u8>],
) {
    let mut records = kept.to_vec();
    let first = wal.first_lsn().0;
    for _ in 0..6 {
        records.push(put_bytes(wal.last_lsn().0 + 1, 55, 700));
        append(&mut wal, disk, records.last().unwrap()).unwrap();
    }
    write(&mut wal, disk).unwrap();
    flush(&mut wal, disk).unwrap();
    disk.crash(Keep::None);
    let mut wal = open_behind(disk, identity, base, SEGMENT_BYTES).unwrap().wal;
    check_log(&mut wal, disk, &records, first, "after the cut");
}

#[test]
fn a_cut_in_a_segment_that_was_not_scanned_ends_the_log_there() {
    let (disk, wal, records) = twenty_records();
    drop(wal);
    let firsts = firsts(&disk);
    for keep in 0..firsts[3] {
        let disk = disk.fork();
        disk.kill_process();
        // All but the last segment lie below the base, whose snapshot the node removes before it cuts below it.
        let mut wal =
            open_behind(&disk, identity(0, 0), &base_at(&records, LAST), SEGMENT_BYTES).unwrap().wal;
        wal.cut(&mut disk.clone(), Lsn(keep), 1).unwrap().expect("something was cut");
        check_log(&mut wal, &disk, &records[..keep as usize], 1, &format!("cut behind {keep}"));
        goes_on_with_other_records(
            &disk,
            wal,
            identity(1, keep),
            &Base::default(),
            &records[..keep as usize],
        );
    }
}

#[test]
fn an_install_raises_the_generation_and_never_counts_as_a_cut() {
    let (disk, mut wal, mut meta, _) = with_meta();
    let base = base_at(&cluster_records(), 33);
    install(&disk, &mut wal, &mut meta, &base).unwrap();
    // A second one, above the first, and a third below it (an operator brought an older cluster's leader back).
    for (generation, lsn) in [(2, 37), (3, 12)] {
        let base = base_at(&cluster_records(), lsn);
        extend(&mut wal, &disk, 39);
        install(&disk, &mut wal, &mut meta, &base).unwrap();
        disk.crash(Keep::None);
        meta = MetaStore::load(&mut disk.clone()).unwrap().unwrap();
        let opened = open_behind(&disk, installed(&base, generation), &base, SEGMENT_BYTES).unwrap();
        wal = opened.wal;
        assert_eq!(
            (wal.first_lsn(), wal.last_chain(), wal.generation()),
            (Lsn(lsn + 1), base.chain, generation)
        );
        assert_ne!(wal.last_chain(), Chain::ZERO);
    }
}
