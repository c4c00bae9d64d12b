//! Damage to the record of identity, term and vote, newer formats, and changes that are bugs.

use kvstore::ids::{ClusterId, Lsn, NodeId, Term};
use kvstore::limits::{ADDRESS_SIZE_MAX, MEMBERS_MAX};
use kvstore::meta::{Meta, MetaError, MetaStore, StoredRole};
use kvstore::replication::members::{Member, Members, Membership};

use crate::mem_disk::{EIO, ENOSPC, Keep, MemDisk, OpKind};

const COPY_SIZE: u64 = 8192;

fn with_record() -> (MemDisk, MetaStore) {
    let mut disk = MemDisk::new();
    let meta = Meta {
        node_id: NodeId([1; 16]),
        term: Term { promotion: 3, start: 1 },
        vote: NodeId([9; 16]),
        log_generation: 5,
        ..Meta::default()
    };
    let store = MetaStore::create(&mut disk, meta).unwrap();
    (disk, store)
}

fn load(disk: &MemDisk) -> Result<Option<MetaStore>, MetaError> {
    disk.kill_process();
    MetaStore::load(&mut disk.clone())
}

fn refusal(disk: &MemDisk) -> String {
    let before = (disk.raw("META.a"), disk.raw("META.b"));
    let error = load(disk).unwrap_err().to_string();
    assert_eq!((disk.raw("META.a"), disk.raw("META.b")), before, "a refusal changes nothing");
    error
}

#[test]
fn a_fresh_directory_has_no_record() {
    assert!(load(&MemDisk::new()).unwrap().is_none());
}

#[test]
fn no_flipped_bit_in_one_copy_changes_the_record() {
    let (disk, store) = with_record();
    let healthy = disk.raw("META.a").unwrap();
    for name in ["META.a", "META.b"] {
        for byte in 0..COPY_SIZE {
            // All bits where there is a record, one in each byte of the zeros behind it.
            let in_zeros = (200..COPY_SIZE - 4).contains(&byte);
            let bits = if in_zeros { (byte % 8) as u8..(byte % 8) as u8 + 1 } else { 0..8 };
            for bit in bits {
                disk.corrupt(name, byte, bit);
                let loaded = load(&disk).unwrap().unwrap();
                assert_eq!((loaded.get(), loaded.version()), (store.get(), store.version()));
                let [notice] = loaded.notices() else { panic!("one notice: {:?}", loaded.notices()) };
                assert!(notice.to_string().starts_with(&format!("{name} was damaged (")), "{notice}");
                assert_eq!(disk.raw_durable(name).unwrap(), healthy, "the copy is repaired durably");
            }
        }
    }
}

#[test]
fn a_missing_a_short_and_an_unreadable_copy_are_damaged_ones() {
    for name in ["META.a", "META.b"] {
        let notice_after = |damage: fn(&MemDisk, &str)| {
            let (disk, store) = with_record();
            disk.kill_process();
            damage(&disk, name);
            let loaded = MetaStore::load(&mut disk.clone()).unwrap().unwrap();
            assert_eq!(loaded.get(), store.get());
            disk.crash(Keep::None);
            assert!(load(&disk).unwrap().unwrap().notices().is_empty(), "repaired durably");
            loaded.notices()[0].to_string()
        };
        assert!(notice_after(|disk, name| disk.remove_raw(name)).contains("missing"));
        assert!(
            notice_after(|disk, name| disk.put_raw(name, &[0; 100])).contains("ends at byte 100 of 8192")
        );
        let unreadable = notice_after(|disk, name| {
            disk.fail(OpKind::Read, u64::from(name == "META.b"), EIO);
        });
        assert!(unreadable.contains("cannot be read"), "{unreadable}");
        assert!(unreadable.contains(name), "{unreadable}");
    }
}

#[test]
fn two_damaged_copies_are_a_refusal_and_never_a_fresh_start() {
    let damages: [fn(&MemDisk, &str); 3] = [
        |disk, name| disk.corrupt(name, 55, 7),
        |disk, name| disk.remove_raw(name),
        |disk, name| disk.put_raw(name, &[0; COPY_SIZE as usize]),
    ];
    for (i, damage_a) in damages.iter().enumerate() {
        for (j, damage_b) in damages.iter().enumerate() {
            if (i, j) == (1, 1) {
                continue; // No file at all: see the next test.
            }
            let (disk, _) = with_record();
            damage_a(&disk, "META.a");
            damage_b(&disk, "META.b");
            let error = refusal(&disk);
            assert!(error.contains("memory/META.a: ") && error.contains("memory/META.b: "), "{error}");
            assert!(error.contains(["byte 8188: checksum", "missing", "byte 0: the magic"][i]), "{error}");
        }
    }
}

#[test]
fn a_record_of_format_1_is_read_and_has_nothing_to_repair() {
    let (disk, store) = with_record();
    disk.kill_process();
    for name in ["META.a", "META.b"] {
        // What format 2 added was zero before: only the number differs.
        let mut raw = disk.raw(name).unwrap();
        raw[8..12].copy_from_slice(&1_u32.to_be_bytes());
        let crc = crc32fast::hash(&raw[..COPY_SIZE as usize - 4]);
        raw[COPY_SIZE as usize - 4..].copy_from_slice(&crc.to_be_bytes());
        disk.put_raw(name, &raw);
    }
    let loaded = load(&disk).unwrap().unwrap();
    assert_eq!(loaded.get(), store.get());
    assert!(loaded.notices().is_empty() && !loaded.get().repair.is_due());
    assert_eq!(
        disk.raw("META.a").unwrap()[8..12],
        4_u32.to_be_bytes(),
        "it is written as format 4 from now on"
    );
}

#[test]
fn a_log_without_a_record_is_a_refusal() {
    let (disk, _) = with_record();
    disk.put_raw("wal-0000000000000001", &[0; 512]);
    disk.remove_raw("META.a");
    disk.remove_raw("META.b");
    let error = refusal(&disk);
    assert!(error.contains("missing") && error.contains("does not start"), "{error}");
}

#[test]
fn a_newer_format_is_refused_naming_both_versions_and_left_alone() {
    for name in ["META.a", "META.b"] {
        let (disk, _) = with_record();
        let mut bytes = disk.raw(name).unwrap();
        bytes[8..12].copy_from_slice(&7u32.to_be_bytes());
        let checksum = crc32fast::hash(&bytes[..8188]);
        bytes[8188..].copy_from_slice(&checksum.to_be_bytes());
        disk.put_raw(name, &bytes);
        let error = refusal(&disk);
        let expected = format!("memory/{name} has format version 7, this program knows versions up to 4");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn a_record_of_a_format_before_is_read_and_has_neither_base_nor_members() {
    for format in [1, 2, 3_u32] {
        let (disk, store) = with_record();
        for name in ["META.a", "META.b"] {
            let mut bytes = disk.raw(name).unwrap();
            bytes[8..12].copy_from_slice(&format.to_be_bytes());
            let checksum = crc32fast::hash(&bytes[..8188]);
            bytes[8188..].copy_from_slice(&checksum.to_be_bytes());
            disk.put_raw(name, &bytes);
        }
        let loaded = load(&disk).unwrap().unwrap();
        assert_eq!((loaded.get(), loaded.get().base_lsn), (store.get(), Lsn::ZERO));
        assert!(loaded.get().members.is_empty());
        assert_eq!(disk.raw("META.a").unwrap()[8..12], 4u32.to_be_bytes());
    }
}

#[test]
fn snapshots_without_a_record_are_a_refusal() {
    let disk = MemDisk::new();
    disk.put_raw("snap-00000000000000000007-00000000000000000009.kvsnap", &[0; 512]);
    let error = refusal(&disk);
    assert!(error.contains("missing") && error.contains("does not start"), "{error}");
}

#[test]
#[should_panic(expected = "a cut or a new base begins a log generation")]
fn a_base_within_a_log_generation_is_a_bug() {
    update(|meta| meta.base_lsn = Lsn(7));
}

#[test]
fn two_different_records_of_one_version_are_refused() {
    let (disk, mut store) = with_record();
    let other = disk.fork();
    store.update(&mut disk.clone(), |meta| meta.in_sync = true).unwrap();
    let mut other_store = load(&other).unwrap().unwrap();
    other_store.update(&mut other.clone(), |meta| meta.discard_allowed = true).unwrap();
    disk.put_raw("META.b", &other.raw("META.b").unwrap());
    let error = refusal(&disk);
    assert!(error.contains("both whole and of version 2"), "{error}");
}

#[test]
fn the_newer_of_two_whole_copies_is_used() {
    for older in ["META.a", "META.b"] {
        let (disk, mut store) = with_record();
        let old = disk.raw(older).unwrap();
        store.update(&mut disk.clone(), |meta| meta.term = Term { promotion: 8, start: 0 }).unwrap();
        disk.put_raw(older, &old);
        let loaded = load(&disk).unwrap().unwrap();
        assert_eq!((loaded.get(), loaded.version()), (store.get(), 2));
        assert!(loaded.notices()[0].to_string().starts_with(&format!("{older} was of version 1")));
        assert_eq!(disk.raw_durable("META.a"), disk.raw_durable("META.b"));
    }
}

#[test]
fn a_full_disk_refuses_a_new_record_in_words() {
    let mut disk = MemDisk::new();
    disk.set_capacity(Some(COPY_SIZE));
    let error =
        MetaStore::create(&mut disk, Meta { node_id: NodeId([1; 16]), ..Meta::default() }).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, MetaError::Io { source, .. } if source.raw_os_error() == Some(ENOSPC)));
    assert!(text.starts_with("creating memory/META.b.new: ") && text.contains("free some space"), "{text}");
    disk.set_capacity(None);
    assert!(load(&disk).unwrap().is_none());
}

#[test]
fn an_update_that_changes_nothing_writes_nothing() {
    let (disk, mut store) = with_record();
    let before = disk.op_count();
    let durable = store.update(&mut disk.clone(), |meta| meta.in_sync = false).unwrap();
    assert_eq!((durable.version(), disk.op_count()), (1, before));
}

fn update(change: impl FnOnce(&mut Meta)) {
    let (mut disk, mut store) = with_record();
    store.update(&mut disk, change).unwrap();
}

#[test]
fn a_higher_term_takes_a_new_vote_and_a_cluster_is_adopted_once() {
    update(|meta| {
        meta.term = meta.term.restarted().unwrap();
        meta.vote = NodeId([8; 16]);
        meta.cluster_id = ClusterId([2; 16]);
    });
}

#[test]
#[should_panic(expected = "term 3.1 does not go back to 3.0")]
fn a_term_that_goes_back_is_a_bug() {
    update(|meta| meta.term = Term { promotion: 3, start: 0 });
}

#[test]
#[should_panic(expected = "the vote of term 3.1 was given to 0909")]
fn a_second_vote_in_a_term_is_a_bug() {
    update(|meta| meta.vote = NodeId([8; 16]));
}

#[test]
#[should_panic(expected = "log generations rise")]
fn a_log_generation_that_goes_back_is_a_bug() {
    update(|meta| meta.log_generation = 4);
}

#[test]
#[should_panic(expected = "after a failed update the process ends")]
fn an_update_after_a_failed_one_is_a_bug() {
    let (mut disk, mut store) = with_record();
    disk.fail(OpKind::Write, 0, EIO);
    store.update(&mut disk, |meta| meta.in_sync = true).unwrap_err();
    let _ = store.update(&mut disk, |meta| meta.in_sync = true);
}

fn member(id: usize, address: &str) -> Member {
    Member { node_id: NodeId([id as u8; 16]), address: address.to_owned() }
}

fn become_member(meta: &mut Meta) {
    meta.cluster_id = ClusterId([2; 16]);
    meta.role = StoredRole::Elected;
    let members = Members::new(vec![member(1, "a:1"), member(2, "b:1"), member(3, "c:1")]).unwrap();
    meta.members = Membership::settled(members, Lsn::ZERO);
}

#[test]
fn the_most_members_with_the_longest_addresses_have_room_and_come_back_in_order() {
    let (disk, mut store) = with_record();
    let long = |id: usize| member(id, &format!("{}:{id:03}", "h".repeat(ADDRESS_SIZE_MAX - 4)));
    let members = Members::new((1..=MEMBERS_MAX).rev().map(long).collect()).unwrap();
    let fewer = Members::new((1..MEMBERS_MAX).map(long).collect()).unwrap();
    let members = Membership::settled(fewer, Lsn(u64::MAX - 1)).changed(Lsn(u64::MAX), members);
    assert!(members.step().is_some(), "the largest record remembers the step");
    let address = "o".repeat(ADDRESS_SIZE_MAX);
    store
        .update(&mut disk.clone(), |meta| {
            become_member(meta);
            meta.members = members.clone();
            meta.own_address.clone_from(&address);
            meta.leader_address = address;
        })
        .unwrap();
    disk.crash(Keep::None);
    let loaded = load(&disk).unwrap().unwrap();
    assert_eq!(loaded.get(), store.get());
    assert_eq!(loaded.get().members, members);
}

#[test]
#[should_panic(expected = "the list of members of LSN 0 does not become that of LSN 0")]
fn other_members_without_a_record_are_a_bug() {
    let (disk, mut store) = with_record();
    store.update(&mut disk.clone(), become_member).unwrap();
    let other = Members::new(vec![member(1, "a:1"), member(2, "b:2")]).unwrap();
    let _ = store.update(&mut disk.clone(), |meta| meta.members = Membership::settled(other, Lsn::ZERO));
}

#[test]
fn a_list_of_members_comes_with_a_record_and_goes_with_it() {
    let (disk, mut store) = with_record();
    store.update(&mut disk.clone(), become_member).unwrap();
    let formed = store.get().members.clone();
    let fewer = Members::new(vec![member(1, "a:1"), member(2, "b:1")]).unwrap();
    let changed = formed.changed(Lsn(7), fewer);
    for members in [changed, formed.clone()] {
        store.update(&mut disk.clone(), |meta| meta.members = members.clone()).unwrap();
        disk.crash(Keep::None);
        store = load(&disk).unwrap().unwrap();
        assert_eq!(store.get().members, members);
        assert_eq!(members.at(Lsn(6)), formed);
    }
}

#[test]
#[should_panic(expected = "members elect, and nobody else does")]
fn a_member_that_leaves_its_role_is_a_bug() {
    let (disk, mut store) = with_record();
    store.update(&mut disk.clone(), become_member).unwrap();
    let _ = store.update(&mut disk.clone(), |meta| meta.role = StoredRole::Deposed);
}

#[test]
#[should_panic(expected = "does not begin to vote")]
fn a_node_of_fixed_roles_that_becomes_a_member_is_a_bug() {
    let (disk, mut store) = with_record();
    store.update(&mut disk.clone(), |meta| meta.role = StoredRole::FollowerByFlags).unwrap();
    let _ = store.update(&mut disk.clone(), become_member);
}

#[test]
#[should_panic(expected = "term 3.1 is led by 0202")]
fn a_second_leader_in_an_elected_term_is_a_bug() {
    let (disk, mut store) = with_record();
    store.update(&mut disk.clone(), become_member).unwrap();
    store.update(&mut disk.clone(), |meta| meta.leader_id = NodeId([2; 16])).unwrap();
    let _ = store.update(&mut disk.clone(), |meta| meta.leader_id = NodeId([3; 16]));
}

#[test]
fn a_higher_term_has_no_vote_and_no_leader_and_a_lower_one_changes_nothing() {
    let (disk, mut store) = with_record();
    store
        .update(&mut disk.clone(), |meta| {
            become_member(meta);
            meta.leader_id = NodeId([2; 16]);
            meta.leader_address = "b:1".to_owned();
        })
        .unwrap();
    let before = store.get().clone();
    for term in [Term::ZERO, before.term] {
        store.update(&mut disk.clone(), |meta| meta.enter_term(term)).unwrap();
        assert_eq!(*store.get(), before);
    }
    let higher = before.term.promoted().unwrap();
    store.update(&mut disk.clone(), |meta| meta.enter_term(higher)).unwrap();
    let after = store.get();
    assert_eq!((after.term, after.vote, after.leader_id), (higher, NodeId::NONE, NodeId::NONE));
    assert_eq!(after.leader_address, "");
}
