//! Writing and syncing a batch in one call proves something about that batch alone.

use kvstore::ids::{ClusterId, Lsn};
use kvstore::wal::{Base, Durability, Identity, Opened, Wal, WalConfig};
use kvstore::wire::{Effect, Record};

use crate::mem_disk::{Keep, MemDisk, OpKind};

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn open(disk: &mut MemDisk) -> Wal {
    let config = WalConfig { segment_bytes: 64 << 10, durability: Durability::Fsync };
    let identity = Identity { cluster_id: CLUSTER, generation: 1, ..Identity::default() };
    let Opened { wal, .. } = Wal::open(disk, identity, &Base::default(), 42, config).unwrap();
    wal
}

fn append(wal: &mut Wal, disk: &mut MemDisk, value_size: usize) -> Lsn {
    let value = vec![7; value_size];
    let record = Record { lsn: wal.last_lsn().next(), effect: Effect::Put { key: b"key", value: &value } };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    wal.reserve(disk, bytes.len()).unwrap();
    wal.append(&bytes, &record);
    record.lsn
}

#[test]
fn a_batch_written_in_one_call_is_durable() {
    let mut disk = MemDisk::new();
    let mut wal = open(&mut disk);
    append(&mut wal, &mut disk, 2_000);
    let syncs = |disk: &MemDisk| disk.op_log().iter().filter(|op| op.kind == OpKind::Sync).count();
    let before = syncs(&disk);
    let token = wal.write_durably(&mut disk, Lsn::ZERO).unwrap();
    assert_eq!((token.lsn(), syncs(&disk) - before), (Lsn(1), 1));
    disk.crash(Keep::None);
    assert_eq!(open(&mut disk).last_lsn(), Lsn(1));
}

#[test]
fn what_was_written_before_without_a_sync_is_covered_too() {
    let mut disk = MemDisk::new();
    let mut wal = open(&mut disk);
    append(&mut wal, &mut disk, 2_000);
    wal.write(&mut disk, Lsn::ZERO).unwrap();
    append(&mut wal, &mut disk, 2_000);
    let token = wal.write_durably(&mut disk, Lsn::ZERO).unwrap();
    assert_eq!(token.lsn(), Lsn(2));
    disk.crash(Keep::None);
    assert_eq!(open(&mut disk).last_lsn(), Lsn(2), "a token covers everything below its LSN");
}
