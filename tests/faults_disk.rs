//! A running node on a disk that takes a write in many small pieces.

use kvstore::ids::Lsn;
use kvstore::node::RoleFlag;
use kvstore::wire::MessageType;
use kvstore::wire::client::{Reply, Request, Status};

#[path = "support/lone_node.rs"]
mod lone_node;
#[path = "support/mem_disk.rs"]
mod mem_disk;
use lone_node::LoneNode;
use mem_disk::{Keep, MemDisk, OpKind};

#[test]
fn a_node_whose_disk_takes_a_few_bytes_at_a_time_acknowledges_only_whole_records() {
    for size_max in [1, 7, 100, 511] {
        let disk = MemDisk::new();
        let mut lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
        let client = lone.connect();
        disk.set_write_size_max(Some(size_max));
        let writes = || disk.op_log().iter().filter(|op| op.kind == OpKind::Write).count();
        let mut values = Vec::new();
        for number in 0..5_u8 {
            let (before, value) = (writes(), vec![number; 1_000]);
            let mut bytes = Vec::new();
            Request::Put { key: &[number], value: &value }.encode(&mut bytes);
            let answer = lone.send(client, &bytes);
            assert_eq!(answer.frames[0].0, MessageType::Reply);
            assert_eq!(Reply::decode(&answer.frames[0].1).expect("a reply").status, Status::Ok);
            assert!(writes() - before >= 1_000 / size_max, "it went on where each write stopped");
            values.push(value);
        }
        let last = lone.node.positions().0;
        // Every acknowledged record is durable whole: the power fails and takes all that was not synced.
        disk.crash(Keep::None);
        disk.set_write_size_max(None);
        let lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
        assert_eq!(lone.node.positions().0, Lsn(last.0 + 1), "the old records and the new term's");
        for (number, value) in values.iter().enumerate() {
            assert_eq!(lone.node.keyspace().get(&[number as u8]), Some(value.as_slice()), "{size_max}");
        }
    }
}
