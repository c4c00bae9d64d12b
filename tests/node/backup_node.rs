//! A node that is asked for backups, on a disk in memory: what it sends, what it keeps meanwhile, and when it lets go.

use kvstore::backup::{BackupStream, Summary};
use kvstore::conn::ConnId;
use kvstore::limits::{BACKUP_PART_SIZE, BACKUP_SILENCE_MS};
use kvstore::node::{NodeConfig, RoleFlag, SnapshotConfig};
use kvstore::wire::client::{BackupStep, Reply, Request, Status};
use serde_json::Value;

use crate::lone_node::{self, LoneNode};
use crate::mem_disk::MemDisk;

fn config() -> NodeConfig {
    let mut config = lone_node::config(RoleFlag::Leader, &[]);
    config.wal.segment_bytes = 64 << 10;
    config.snapshot = SnapshotConfig { log_bytes: Some(u64::MAX), settle_ms: 1, ..SnapshotConfig::default() };
    config
}

struct Rig {
    lone: LoneNode,
    conn: ConnId,
    disk: MemDisk,
}

impl Rig {
    fn start(config: NodeConfig) -> Rig {
        let disk = MemDisk::new();
        let mut lone = LoneNode::with(&disk, config).unwrap();
        let conn = lone.connect();
        Rig { lone, conn, disk }
    }

    /// What the node answers at once on this connection; `None`: nothing yet.
    fn ask_on(&mut self, conn: ConnId, request: &Request<'_>) -> Option<(Status, Vec<u8>)> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        let frames = self.lone.send(conn, &bytes).frames;
        frames.last().map(|(_, body)| owned(body))
    }

    fn ask(&mut self, request: &Request<'_>) -> (Status, Vec<u8>) {
        self.ask_on(self.conn, request).expect("it is answered in its turn")
    }

    fn refusal(&mut self, conn: ConnId, step: BackupStep) -> String {
        let (status, why) = self.ask_on(conn, &Request::Backup(step)).expect("it is answered in its turn");
        assert_eq!(status, Status::Refused);
        String::from_utf8(why).unwrap()
    }

    fn puts(&mut self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            let key = format!("key-{}", number % 300);
            let (status, _) = self.ask(&Request::Put { key: key.as_bytes(), value: &[number as u8; 2_000] });
            assert_eq!(status, Status::Ok);
        }
    }

    fn snapshot(&mut self) {
        let made = self.lone.node.counters.snapshots;
        assert_eq!(self.ask(&Request::Snapshot { wait: false }).0, Status::Ok);
        self.pass_until(|rig| rig.lone.node.counters.snapshots > made);
        // What is needless now goes one by one.
        (0..60).for_each(|_| self.lone.pass_ms(25));
    }

    fn pass_until(&mut self, holds: impl Fn(&mut Rig) -> bool) {
        for _ in 0..1_000 {
            if holds(self) {
                return;
            }
            self.lone.pass_ms(5);
        }
        panic!("it never comes");
    }

    fn begin_newest(&mut self) -> Value {
        let (status, plan) = self.ask(&Request::Backup(BackupStep::BeginNewest));
        assert_eq!(status, Status::Ok);
        serde_json::from_slice(&plan).unwrap()
    }

    /// The rest of the backup, put behind what came of it before.
    fn fetch(&mut self, stream: &mut BackupStream) -> Summary {
        loop {
            let (status, part) = self.ask(&Request::Backup(BackupStep::Next));
            assert_eq!(status, Status::Ok, "{}", String::from_utf8_lossy(&part));
            assert!(part.len() <= BACKUP_PART_SIZE * 5 / 4, "{} bytes", part.len());
            if part.is_empty() {
                return stream.summary().cloned().expect("it is whole");
            }
            stream.push(&part).unwrap();
        }
    }

    fn files(&self, ending: &str) -> Vec<String> {
        self.disk.names().into_iter().filter(|name| name.ends_with(ending)).collect()
    }
}

fn owned(body: &[u8]) -> (Status, Vec<u8>) {
    let reply = Reply::decode(body).expect("a node sends whole replies");
    (reply.status, reply.payload.to_vec())
}

fn stream() -> BackupStream {
    BackupStream::new("backup".to_owned())
}

#[test]
fn a_backup_waits_for_a_snapshot_of_its_own_and_reaches_what_was_committed_by_then() {
    let mut rig = Rig::start(config());
    rig.puts(1..400);
    let client = rig.lone.connect();
    assert_eq!(rig.ask_on(client, &Request::Backup(BackupStep::Begin)), None, "it is not made yet");
    let writer = rig.conn;
    rig.puts(400..420);
    rig.pass_until(|rig| rig.lone.node.counters.snapshots == 1);
    let said = rig.lone.said(client);
    let (status, plan) = owned(&said[0].1);
    assert_eq!((said.len(), status), (1, Status::Ok));
    let plan: Value = serde_json::from_slice(&plan).unwrap();
    // What is written from now on is not in it.
    rig.puts(420..500);
    rig.conn = client;
    let summary = rig.fetch(&mut stream());
    assert_eq!(Some(summary.last.0), plan["last"].as_u64());
    assert_eq!(summary.last.0, 420, "the first record of the term, and 419 writes");
    rig.conn = writer;
    assert_eq!(rig.ask(&Request::Backup(BackupStep::Next)).0, Status::Refused);
}

#[test]
fn what_a_backup_reads_stays_while_snapshots_come_and_go_and_goes_when_it_ends() {
    let mut rig = Rig::start(config());
    rig.puts(1..600);
    rig.snapshot();
    rig.puts(600..900);
    let s = rig.begin_newest()["s"].as_u64().unwrap();
    let mut half = stream();
    half.push(&rig.ask(&Request::Backup(BackupStep::Next)).1).unwrap();
    let read = rig.files(".kvsnap");
    for first in [900, 1_200, 1_500] {
        rig.puts(first..first + 300);
        rig.snapshot();
    }
    assert!(rig.files(".kvsnap").contains(&read[0]), "its file is there: {:?}", rig.files(".kvsnap"));
    let segments = rig.files(".seg").len();
    let summary = rig.fetch(&mut half);
    assert_eq!((summary.id.s.0, summary.last.0), (s, 900));
    (0..80).for_each(|_| rig.lone.pass_ms(25));
    assert!(rig.files(".seg").len() < segments, "the log behind S is let go");
    rig.puts(1_800..1_900);
    rig.snapshot();
    assert!(!rig.files(".kvsnap").contains(&read[0]), "and so is its file");
}

#[test]
fn there_is_one_at_a_time_and_each_part_belongs_to_the_connection_that_began() {
    let mut rig = Rig::start(config());
    assert!(rig.refusal(rig.conn, BackupStep::Next).contains("no backup under way"));
    rig.puts(1..300);
    rig.snapshot();
    rig.begin_newest();
    let other = rig.lone.connect();
    for step in [BackupStep::Begin, BackupStep::BeginNewest] {
        assert!(rig.refusal(other, step).contains("on its way to another client"));
    }
    assert!(rig.refusal(other, BackupStep::Next).contains("no backup under way"));
    // Who began it may begin again.
    rig.begin_newest();
    rig.fetch(&mut stream());
    assert!(rig.refusal(rig.conn, BackupStep::Next).contains("no backup under way"), "it was at its end");
    rig.conn = other;
    rig.begin_newest();
}

#[test]
fn a_client_that_falls_silent_loses_its_backup_and_is_told() {
    let mut rig = Rig::start(config());
    rig.puts(1..300);
    rig.snapshot();
    rig.begin_newest();
    rig.lone.pass_ms(BACKUP_SILENCE_MS - 1);
    assert_eq!(rig.ask(&Request::Backup(BackupStep::Next)).0, Status::Ok);
    rig.lone.pass_ms(BACKUP_SILENCE_MS + 1);
    let other = rig.lone.connect();
    let own = std::mem::replace(&mut rig.conn, other);
    assert!(rig.refusal(own, BackupStep::Next).contains("silent for 60000 ms"));
    rig.begin_newest();
    rig.fetch(&mut stream());
}

#[test]
fn the_log_kept_for_a_backup_is_bounded_and_the_refusal_names_the_flag() {
    let mut config = config();
    config.pin.log_bytes = 256 << 10;
    let mut rig = Rig::start(config);
    rig.puts(1..300);
    rig.snapshot();
    rig.begin_newest();
    rig.puts(300..350);
    assert_eq!(rig.ask(&Request::Backup(BackupStep::Next)).0, Status::Ok);
    let writer = rig.lone.connect();
    let own = std::mem::replace(&mut rig.conn, writer);
    rig.puts(350..600);
    assert!(rig.refusal(own, BackupStep::Next).contains("--pin-log-bytes=262144"));
}

#[test]
fn a_snapshot_that_cannot_be_read_ends_the_backup_with_its_name() {
    let mut rig = Rig::start(config());
    rig.puts(1..300);
    rig.snapshot();
    rig.begin_newest();
    assert_eq!(rig.ask(&Request::Backup(BackupStep::Next)).0, Status::Ok);
    let name = rig.files(".kvsnap").remove(0);
    kvstore::disk::Disk::remove(&mut rig.disk.clone(), &name).unwrap();
    let why = rig.refusal(rig.conn, BackupStep::Next);
    assert!(why.contains(&name) && why.contains("cannot be read"), "{why}");
    assert!(rig.refusal(rig.conn, BackupStep::Next).contains("no backup under way"));
    rig.puts(300..310);
}
