//! A log begins where a snapshot's state ends: what is scanned, what is believed, and what is damage.

use kvstore::ids::{Chain, Lsn};
use kvstore::wal::{Base, Damage, HEADER_SIZE, OpenError, Opened, ReadError};

use crate::log_start::*;
use crate::mem_disk::{Keep, MemDisk};
use crate::wal_kit::*;

fn open_from(disk: &MemDisk, base: &Base) -> Result<Opened, OpenError> {
    disk.kill_process();
    open_behind(disk, identity(0, 0), base, SEGMENT_BYTES)
}

fn damage(result: Result<Opened, OpenError>, context: &str) -> Damage {
    match result {
        Err(OpenError::Damaged(damage)) => damage,
        Err(other) => panic!("{context}: another refusal: {other}"),
        Ok(opened) => panic!("{context}: opened with {:?}", opened.report),
    }
}

#[test]
fn a_base_anywhere_in_the_log_gives_the_whole_log_and_its_terms() {
    let (disk, _, records) = twenty_records();
    let files = segments(&disk);
    for lsn in 0..=LAST {
        let disk = disk.fork();
        let base = base_at(&records, lsn);
        let opened = open_from(&disk, &base).unwrap_or_else(|error| panic!("base {lsn}: {error}"));
        assert_eq!((opened.report.dropped, opened.report.cut_tail), (Vec::new(), None));
        assert_eq!((opened.report.first_lsn, opened.report.last_lsn), (Lsn(1), Lsn(LAST)));
        let mut wal = opened.wal;
        check_log(&mut wal, &disk, &records, 1, &format!("base {lsn}"));
        extend(&mut wal, &disk, LAST + 6);
        let more = contents(&mut wal, &disk);
        assert!(segments(&disk).starts_with(&files));
        disk.crash(Keep::None);
        let mut wal = open_from(&disk, &base).unwrap().wal;
        check_log(&mut wal, &disk, &more, 1, &format!("base {lsn}, extended"));
    }
}

#[test]
fn segments_below_the_base_are_not_scanned_and_damage_in_them_costs_only_themselves() {
    let (disk, _, records) = twenty_records();
    let firsts = firsts(&disk);
    // The base is in the middle of the fourth segment, then where the third ends.
    for base_lsn in [firsts[3], firsts[3] - 1] {
        let base = base_at(&records, base_lsn);
        for (index, &first) in firsts[..3].iter().enumerate() {
            let disk = disk.fork();
            disk.corrupt(&segment_of(first), HEADER_SIZE + 300, 0);
            let opened = open_from(&disk, &base).unwrap();
            assert_eq!(opened.report.first_lsn, Lsn(1), "nothing was read there");
            let (mut wal, mut read) = (opened.wal, Vec::new());
            let (from, to) = (Lsn(firsts[index + 1]), Lsn(LAST));
            wal.replay(&mut disk.clone(), from, to, &mut |record| read.push(record.lsn)).unwrap();
            assert_eq!(read.len() as u64, LAST + 1 - from.0);
            let damaged = wal.replay(&mut disk.clone(), Lsn(first), to, &mut |_| {}).unwrap_err();
            assert!(matches!(damaged, ReadError::Damaged { lsn: Lsn(lsn), .. } if lsn < from.0), "{damaged}");
            damage(open_from(&disk, &Base::default()), "without the base");
        }
    }
}

type Harm = fn(&MemDisk, &str);

#[test]
fn the_log_begins_behind_a_segment_below_the_base_that_is_missing_or_has_no_header() {
    let harm: [(&str, Harm); 3] = [
        ("missing", |disk, name| disk.remove_raw(name)),
        ("a flipped bit", |disk, name| disk.corrupt(name, 40, 3)),
        ("cut short", |disk, name| disk.put_raw(name, &[0; 100])),
    ];
    let (disk, _, records) = twenty_records();
    let firsts = firsts(&disk);
    for (index, &first) in firsts.iter().enumerate() {
        for (what, harm) in harm {
            for lsn in 1..=LAST {
                let disk = disk.fork();
                disk.kill_process();
                harm(&disk, &segment_of(first));
                let (base, context) = (base_at(&records, lsn), format!("{what} {first}, base {lsn}"));
                let before = disk.names();
                let next = firsts.get(index + 1).copied();
                let Some(next) = next.filter(|&next| next <= lsn + 1) else {
                    // The segment is needed. Without a successor nothing says that a file was there, but the base.
                    if next.is_some() || what != "missing" || lsn >= first {
                        let damage = damage(open_from(&disk, &base), &context);
                        assert!(damage.lsn.0 <= lsn.max(first) + 1, "{context}: {damage:?}");
                        assert_eq!(disk.names(), before, "{context}: a refusal changes nothing");
                    }
                    continue;
                };
                let opened = open_from(&disk, &base).unwrap_or_else(|error| panic!("{context}: {error}"));
                let dropped: Vec<&str> = opened.report.dropped.iter().map(|dropped| &*dropped.file).collect();
                let mut wal = opened.wal;
                check_log(&mut wal, &disk, &records, next, &context);
                let gone = firsts[..=index].iter().map(|&first| segment_of(first));
                let gone: Vec<String> = gone.filter(|name| before.contains(name)).collect();
                assert!(gone.iter().all(|name| dropped.contains(&&**name)), "{context}: {dropped:?}");
                assert_eq!(
                    (dropped.len(), &segments(&disk)[0]),
                    (gone.len(), &segment_of(next)),
                    "{context}"
                );
                disk.crash(Keep::None);
                assert!(
                    open_from(&disk, &base).unwrap().report.dropped.is_empty(),
                    "{context}: removed durably"
                );
            }
        }
    }
}

#[test]
fn a_log_that_begins_above_1_is_refused_in_words_when_no_base_covers_its_start() {
    let (disk, _, records) = twenty_records();
    disk.kill_process();
    let firsts = firsts(&disk);
    disk.remove_raw(&segment_of(1));
    disk.remove_raw(&segment_of(firsts[1]));
    let begins = firsts[2];
    for lsn in 0..begins - 1 {
        let error = open_from(&disk, &base_at(&records, lsn)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no snapshot covers") && text.contains(&segment_of(begins)), "{text}");
        assert_eq!(damage(Err(error), "uncovered").lsn, Lsn(lsn + 1));
    }
    for lsn in begins - 1..=LAST {
        let opened = open_from(&disk.fork(), &base_at(&records, lsn)).unwrap();
        assert_eq!(opened.report.first_lsn, Lsn(begins));
    }
}

#[test]
fn a_snapshot_that_the_log_contradicts_is_not_believed_and_an_older_one_may_be() {
    let (disk, _, records) = twenty_records();
    disk.kill_process();
    for lsn in 1..=LAST {
        let good = base_at(&records, lsn);
        let other_chain = Base { chain: Chain(good.chain.0 ^ 1), ..good.clone() };
        let other_terms = Base { history: base_at(&records, 0).history, ..good.clone() };
        for base in [&other_chain, &other_terms] {
            let before: Vec<_> = disk.names().iter().map(|name| disk.raw(name)).collect();
            let error = open_from(&disk, base).unwrap_err();
            let OpenError::BaseDisagrees { lsn: at, chain, expected, .. } = error else {
                panic!("base {lsn}: {error}")
            };
            assert_eq!((at, chain, expected), (Lsn(lsn), good.chain, base.chain));
            assert!(error.to_string().contains("Move that snapshot away"), "{error}");
            assert_eq!(disk.names().iter().map(|name| disk.raw(name)).collect::<Vec<_>>(), before);
        }
        let disk = disk.fork();
        let mut wal = open_from(&disk, &base_at(&records, lsn - 1)).unwrap().wal;
        check_log(&mut wal, &disk, &records, 1, "the older one");
    }
}

#[test]
fn a_log_that_ends_below_its_base_or_below_what_the_snapshot_knew_to_be_durable_is_damage() {
    let (disk, _, records) = twenty_records();
    let more: Vec<Vec<u8>> = (21..30).map(|lsn| put_bytes(lsn, 0, 10)).collect();
    let longer = [&records[..], &more].concat();
    for lsn in LAST + 1..30 - 1 {
        let found = open_from(&disk, &base_at(&longer, lsn));
        assert_eq!(damage(found, "a base above the end").lsn, Lsn(LAST + 1));
        assert_eq!(damage(open_from(&MemDisk::new(), &base_at(&longer, lsn)), "no log").lsn, Lsn(lsn + 1));
    }
    for end in LAST + 1..30 {
        for lsn in 0..=LAST {
            let base = Base { durable_lsn: Lsn(end), ..base_at(&records, lsn) };
            assert_eq!(damage(open_from(&disk, &base), "E is not reached").lsn, Lsn(LAST + 1));
        }
    }
    // The last batch, which nothing else calls durable, is no tail for a snapshot that ends in it.
    disk.kill_process();
    disk.corrupt(segments(&disk).last().unwrap(), HEADER_SIZE + 100, 1);
    let torn = open_from(&disk.fork(), &base_at(&records, 10));
    let last = torn.unwrap().report.last_lsn;
    assert!(last < Lsn(LAST));
    let base = Base { durable_lsn: last.next(), ..base_at(&records, 10) };
    assert_eq!(damage(open_from(&disk, &base), "E is torn").lsn, last.next());
}

#[test]
fn an_installed_base_begins_an_empty_log_and_nothing_below_it_is_the_log() {
    let (_, _, records) = twenty_records();
    let disk = MemDisk::new();
    let base = base_at(&records, 12);
    let identity = installed(&base, 3);
    let open = |base: &Base| {
        disk.kill_process();
        open_behind(&disk, identity, base, SEGMENT_BYTES)
    };
    let mut wal = open(&base).unwrap().wal;
    check_log(&mut wal, &disk, &records[..12], 13, "empty");
    drop(wal);
    for lsn in 0..12 {
        assert_eq!(damage(open(&base_at(&records, lsn)), "an older snapshot").lsn, Lsn(lsn + 1));
    }
    let other = Base { chain: Chain(7), ..base.clone() };
    assert!(matches!(open(&other), Err(OpenError::BaseDisagrees { lsn: Lsn(12), .. })));
    let mut wal = open(&base).unwrap().wal;
    extend(&mut wal, &disk, LAST);
    drop(wal);
    disk.crash(Keep::None);
    for lsn in 12..=LAST {
        let mut wal = open(&base_at(&records, lsn)).unwrap().wal;
        check_log(&mut wal, &disk, &records, 13, "extended");
    }
    for lsn in 0..12 {
        assert_eq!(damage(open(&base_at(&records, lsn)), "an older snapshot").lsn, Lsn(lsn + 1));
    }
}
