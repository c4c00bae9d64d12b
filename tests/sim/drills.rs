//! What archives are for: an operator restores the state at an LSN from a snapshot that was put aside and from the
//! archive, as the power loss of that moment leaves it. Where the copies are without gaps that must work, and
//! the state is what the log says at that LSN, key by key, and in its hash what nodes had there.

use std::collections::BTreeMap;

use kvstore::backup::{Sources, restore_onto};
use kvstore::ids::{Chain, Lsn};
use kvstore::node::{Node, RoleFlag};
use kvstore::snapshot::parse_snapshot_name;

use crate::host::Host;
use crate::library;
use crate::mem_disk::{Keep, MemDisk};
use crate::mirror::{Entry, Kind, value_id};
use crate::oracle::Oracle;

/// The chain checksum at S, in a snapshot's header.
const CHAIN_AT: usize = 64;

impl Oracle {
    /// One restore from the archive of this host, if there is anything to restore from.
    pub fn drill(&self, host: &Host) {
        let Some(archive) = &host.archive else { return };
        let count = |what: &'static str| host.core.borrow_mut().stats.count(what);
        let (now, segment_bytes) = (host.core.borrow().now, host.core.borrow().knobs.segment_bytes);
        let copies = archive.after_power_loss();
        let (Some((name, bytes)), Some((last, chain, floor))) = (archive.aside(), archive.reach(&copies))
        else {
            return;
        };
        let id = parse_snapshot_name(&name).expect("it has its name");
        let at_s = Chain(u32::from_be_bytes(bytes[CHAIN_AT..CHAIN_AT + 4].try_into().expect("4 bytes")));
        let front = library::front(last, chain).expect("somebody wrote what was copied");
        let fits = id.s.0 == 0 || front.get(id.s.0 as usize - 1).is_some_and(|entry| entry.chain == at_s);
        if !fits || id.s.0 < floor || id.e.0 > last {
            return count("archive: goes on from no snapshot that was put aside");
        }
        // Not from the generator of the run: a drill changes nothing.
        let until = id.e.0 + (now ^ u64::from(chain.0)) % (last - id.e.0 + 1);
        let aside = MemDisk::new();
        aside.put_raw(&name, &bytes);
        let what = format!("host {}: a restore to LSN {until} from {name} and its archive", host.site);
        let (disk, copies) = (Box::new(aside), vec![Box::new(copies) as Box<dyn kvstore::disk::Disk>]);
        let mut target = MemDisk::new();
        let restored = Sources::open(disk, &name, copies).and_then(|mut sources| {
            restore_onto(&mut sources, Some(Lsn(until)), &mut target, 7, segment_bytes)
        });
        restored.unwrap_or_else(|why| panic!("{what} fails: {why}"));
        target.crash(Keep::None);
        let node = opened(host, target).unwrap_or_else(|why| panic!("{what} does not start: {why}"));
        let observed = node.observe();
        assert!(observed.applied.0 == until, "{what} has the state of LSN {}", observed.applied);
        compare(&what, &node, &front[..until as usize]);
        let known = front.get(until as usize - 1).and_then(|entry| self.hash_at(until, entry.chain));
        if let Some(known) = known {
            assert!(node.keyspace().state_hash() == known, "{what} has another state than nodes had there");
            count("check: state restored from an archive is the one that nodes had");
        }
        count("check: state restored from an archive is that of the log");
    }
}

/// A node on what was restored, before its first turn.
fn opened(host: &Host, target: MemDisk) -> Result<Node, String> {
    let mut config = host.config.clone();
    (config.role, config.peers, config.leader) = (RoleFlag::Leader, Vec::new(), String::new());
    config.snapshot.load_at_once_bytes = u64::MAX;
    let node = Node::open(Box::new(target), Box::new(host.clock.clone()), 7, config);
    node.map_err(|reason| reason.to_string())
}

/// Key by key.
fn compare(what: &str, node: &Node, log: &[std::rc::Rc<Entry>]) {
    let mut model = BTreeMap::new();
    for entry in log {
        match &entry.kind {
            Kind::Put { key, id } => drop(model.insert(key.as_slice(), *id)),
            Kind::Delete { key } => drop(model.remove(key.as_slice())),
            Kind::Term | Kind::Session { .. } | Kind::Members { .. } => {}
        }
    }
    let keyspace = node.keyspace();
    for (key, value) in (0..keyspace.slot_count()).filter_map(|slot| keyspace.entry(slot)) {
        let same = model.remove(key) == Some(value_id(value).unwrap_or(0));
        assert!(same, "{what} has another value of {} than the log", String::from_utf8_lossy(key));
    }
    assert!(model.is_empty(), "{what} lacks {} key(s) that the log has there", model.len());
}
