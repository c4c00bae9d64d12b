//! The state at a start: the newest good snapshot, else an older one, and the log behind it.
//!
//! A snapshot is chosen by both of its ends before the log is opened with it as its base; its blocks are checked as
//! they are loaded. If one turns out to be damaged, or the log contradicts it, the next older one is tried with more
//! of the log, and at last none with all of it. With nothing left the node refuses to start, and says what it tried:
//! it never begins with an empty state where there was one.
//!
//! A large state is loaded in slices, one per turn of the loop, before the node takes its role. Meanwhile it answers
//! `ping`, `status` and `inspect`, tells peers in words to come again, and everything else gets LOADING. Its applied
//! LSN stays 0 until the state is whole: what is in the keyspace before is the state of no LSN.
//!
//! Where the leader is elected the state goes up to the commit LSN that is known, see `apply`; else to the end of the
//! log. A state from a snapshot is exact from E on. One that this node made is always complete after a load, since its
//! log reached E; one that was installed may not be, and then the node follows, but is not read and not promoted.

use super::load_progress::Loading;
use super::repair::open_log;
use super::role::StartRole;
use super::{FatalReason, Node, NodeConfig};
use crate::disk::Disk;
use crate::ids::Lsn;
use crate::keyspace::Keyspace;
use crate::limits::LOAD_SLICE_US;
use crate::meta::MetaStore;
use crate::sabotage::{Variant, is};
use crate::snapshot::{self, Listed, SnapshotId, SnapshotInfo, SnapshotReader};
use crate::time::{Clock, Time};
use crate::wal::{self, Base, Cursor, Identity, OpenError, Opened, Wal};
use crate::{log_info, log_warn};

/// Why a state could not be loaded.
pub(super) enum LoadError {
    /// The snapshot is not good: another source may be.
    Snapshot(snapshot::ReadError),
    /// The log cannot be read.
    Log(wal::ReadError),
}

enum Phase {
    Snapshot(Box<SnapshotReader>),
    Log { next: Lsn, cursor: Cursor },
}

/// What a slice may take.
pub(super) struct Slice<'a> {
    pub clock: &'a dyn Clock,
    pub until: Time,
    pub bytes: u64,
}

/// Loads one snapshot, or none, and the log behind it up to an LSN.
pub(super) struct Loader {
    phase: Phase,
    /// The first record that the snapshot does not cover, and the last one wanted.
    log: (Lsn, Lsn),
    snapshot_bytes: u64,
    log_bytes: u64,
    done_bytes: u64,
}

impl Loader {
    /// Begins. The keyspace is empty.
    pub fn begin(
        disk: &mut dyn Disk,
        wal: &Wal,
        keyspace: &mut Keyspace,
        source: Option<&SnapshotInfo>,
        to: Lsn,
    ) -> Result<Loader, LoadError> {
        let (mut first, mut snapshot_bytes) = (wal.first_lsn(), 0);
        let mut phase = Phase::Log { next: first, cursor: Cursor::default() };
        if let Some(info) = source {
            let reader = SnapshotReader::open(disk, &info.name, Some(info.cluster_id));
            phase = Phase::Snapshot(Box::new(reader.map_err(LoadError::Snapshot)?));
            keyspace.reserve(info.entries, info.bytes);
            snapshot_bytes = info.bytes;
            first = if is(Variant::SnapshotTakenTooLate) { info.id.e.next() } else { info.id.s.next() };
        }
        let log_bytes = if first <= to { wal.log_bytes_from(first) } else { 0 };
        Ok(Loader { phase, log: (first, to), snapshot_bytes, log_bytes, done_bytes: 0 })
    }

    /// Bytes to be read, about.
    pub fn total_bytes(&self) -> u64 {
        self.snapshot_bytes + self.log_bytes
    }

    /// Bytes read.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes
    }

    /// Goes on for a slice. True: the state is that of the last LSN wanted.
    pub fn step(
        &mut self,
        disk: &mut dyn Disk,
        wal: &mut Wal,
        keyspace: &mut Keyspace,
        slice: &Slice<'_>,
    ) -> Result<bool, LoadError> {
        let bytes_max = self.done_bytes.saturating_add(slice.bytes);
        loop {
            let is_done = match &mut self.phase {
                Phase::Snapshot(_) => self.load_block(disk, keyspace)?,
                Phase::Log { .. } => self.apply_some(disk, wal, keyspace, bytes_max)?,
            };
            if is_done || self.done_bytes >= bytes_max || slice.clock.now() >= slice.until {
                return Ok(is_done);
            }
        }
    }

    fn load_block(&mut self, disk: &mut dyn Disk, keyspace: &mut Keyspace) -> Result<bool, LoadError> {
        let Phase::Snapshot(reader) = &mut self.phase else { unreachable!("only called for it") };
        let e = reader.info().id.e;
        if let Some(block) = reader.next_block(disk).map_err(LoadError::Snapshot)? {
            keyspace.load(block.entries());
            keyspace.load_sessions(e, block.sessions());
            self.done_bytes = reader.bytes_checked();
            return Ok(false);
        }
        let next = Phase::Log { next: self.log.0, cursor: Cursor::default() };
        if let Phase::Snapshot(reader) = std::mem::replace(&mut self.phase, next) {
            reader.close(disk);
        }
        self.done_bytes = self.snapshot_bytes;
        Ok(self.log.0 > self.log.1)
    }

    fn apply_some(
        &mut self,
        disk: &mut dyn Disk,
        wal: &mut Wal,
        keyspace: &mut Keyspace,
        bytes_max: u64,
    ) -> Result<bool, LoadError> {
        /// Bytes applied between two looks at the clock: about 1 ms.
        const STEP_BYTES: u64 = 1 << 20;
        let Phase::Log { next, cursor } = &mut self.phase else { unreachable!("only called for it") };
        let to = self.log.1;
        if *next > to {
            return Ok(true);
        }
        let (mut taken, step) = (0, STEP_BYTES.min(bytes_max - self.done_bytes));
        wal.replay_some(disk, cursor, (*next, to), &mut |record| {
            // At least one record, or nothing would ever be done.
            if taken >= step && taken > 0 {
                return false;
            }
            let _existed = keyspace.apply(record);
            *next = record.lsn.next();
            taken += crate::wire::record_size(&record.effect) as u64;
            true
        })
        .map_err(LoadError::Log)?;
        self.done_bytes += taken;
        Ok(*next > to)
    }

    /// Lets go of the file.
    pub fn close(self, disk: &mut dyn Disk) {
        if let Phase::Snapshot(reader) = self.phase {
            reader.close(disk);
        }
    }
}

/// Where a state may come from, best first, and what was tried.
pub(super) struct Sources {
    /// Good at both ends, newest first.
    pub found: Vec<SnapshotInfo>,
    /// Files under the names of snapshots that are none.
    pub unusable: Vec<SnapshotId>,
    /// The one in `found` to try next; behind the last one comes the log alone.
    next: usize,
    /// Why those before it are not used.
    tried: Vec<String>,
    /// One of them may be good: the disk did not read it, or it is of another version or cluster.
    one_is_unread: bool,
}

impl Sources {
    /// Looks into the directory. Snapshots that a cut of the whole log has made void are removed.
    pub fn find(disk: &mut dyn Disk, identity: &Identity) -> Result<Sources, FatalReason> {
        if let Err(error) = snapshot::remove_leftovers(disk) {
            log_warn!("snapshot", "{error}");
        }
        let cluster_id = (!identity.cluster_id.is_none()).then_some(identity.cluster_id);
        let listed = snapshot::list(disk, cluster_id)
            .map_err(|source| FatalReason::NoSnapshots { directory: disk.describe(), source })?;
        let mut sources = Sources {
            found: Vec::new(),
            unusable: Vec::new(),
            next: 0,
            tried: Vec::new(),
            one_is_unread: false,
        };
        // The log was given up in one durable step, before the snapshots went: see `session_open`.
        let all_void =
            identity.was_emptied() && !Wal::has_generation(disk, identity).map_err(FatalReason::Open)?;
        for file in listed {
            let id = file.id();
            match file {
                // A second one is kept too if a crash came between: better than none.
                _ if all_void => {
                    let file = snapshot::set_aside(disk, id, identity.generation)?;
                    log_warn!(
                        "snapshot",
                        "the log was cut behind LSN 0: the snapshot of LSN {id} is given up, and kept as {file}"
                    );
                }
                Listed::Snapshot(info) => sources.found.push(info),
                Listed::Unreadable { id, error } => {
                    sources.one_is_unread |= !error.is_damage();
                    sources.give_up(id, error.to_string());
                }
            }
        }
        Ok(sources)
    }

    fn give_up(&mut self, id: SnapshotId, why: String) {
        log_warn!("snapshot", "the snapshot of LSN {id} is not used: {why}");
        self.unusable.push(id);
        self.tried.push(why);
    }

    /// The chosen one; `None`: the log alone.
    pub fn chosen(&self) -> Option<&SnapshotInfo> {
        self.found.get(self.next)
    }

    /// Why the files that are not used are not.
    pub fn tried(&self) -> &[String] {
        &self.tried
    }

    /// The chosen one does not read to its end.
    pub fn on_unreadable(&mut self, error: &snapshot::ReadError) {
        self.one_is_unread |= !error.is_damage();
        self.disbelieve(error.to_string());
    }

    /// The chosen one turned out to be no good.
    fn disbelieve(&mut self, why: String) {
        let info = self.found.remove(self.next);
        self.give_up(info.id, why);
    }

    /// Opens the log behind the chosen one, or the next that it agrees with; a follower's damaged log as far as it is
    /// whole (see `repair`).
    pub fn open_log(
        &mut self,
        disk: &mut dyn Disk,
        meta: &mut MetaStore,
        follows: bool,
        config: &NodeConfig,
        salt: u64,
    ) -> Result<Opened, FatalReason> {
        loop {
            let node_id = meta.get().node_id;
            let base = self.chosen().map_or_else(Base::default, |info| Base {
                lsn: info.id.s,
                chain: info.chain,
                history: info.history.clone(),
                // What another node's log reached says nothing about this one's.
                durable_lsn: if info.maker == node_id { info.id.e } else { info.id.s },
            });
            // A leader's snapshot that has its name, when the process ended before it was the base: the log is still
            // the old one, and does not reach it. Nothing is damaged by that, and nothing to be repaired.
            let uninstalled =
                self.chosen().is_some_and(|info| info.maker != node_id) && base.lsn > meta.get().base_lsn;
            // A repair gives records up. Where a snapshot could lead to them once the disk reads it again, it must not.
            let may_repair = follows && !uninstalled && !self.one_is_unread;
            match open_log(disk, meta, may_repair, &base, config, salt) {
                Err(FatalReason::Open(error @ OpenError::BaseDisagrees { .. })) if base.lsn > Lsn::ZERO => {
                    self.disbelieve(error.to_string());
                }
                Err(FatalReason::Open(error @ OpenError::Damaged(_))) if uninstalled => {
                    self.disbelieve(format!("it was not installed, and {error}"));
                }
                Err(FatalReason::Open(error)) if !self.tried.is_empty() => {
                    return Err(FatalReason::NoState { tried: self.tried.clone(), error });
                }
                opened => return opened,
            }
        }
    }
}

impl Node {
    /// Whether the state is being loaded: the node has no role yet.
    pub fn is_loading(&self) -> bool {
        self.load.is_some()
    }

    /// Whether the state is that of the applied LSN.
    pub(super) fn is_complete(&self) -> bool {
        self.load.is_none() && !self.state_is_given_up && self.applied >= self.complete_at
    }

    /// Why it is not, in words for clients.
    pub(super) fn incomplete_text(&self) -> String {
        match &self.load {
            Some(_) => format!("loading, {} %", self.load_progress().map_or(0, |progress| progress.percent)),
            None if self.state_is_given_up => self.install_text(),
            None => format!(
                "restoring: the state is complete at LSN {}, applied is {}",
                self.complete_at, self.applied
            ),
        }
    }

    /// Begins with the best source. Returns how many bytes are to be read.
    pub(super) fn begin_load(&mut self, mut sources: Sources, start: StartRole) -> Result<u64, FatalReason> {
        let to = self.state_target();
        let disk = self.disk.as_mut();
        match Loader::begin(disk, &self.wal, &mut self.keyspace, sources.chosen(), to) {
            Ok(loader) => {
                let bytes = loader.total_bytes();
                self.load = Some(Box::new(Loading::new(loader, sources, start, self.now)));
                Ok(bytes)
            }
            Err(LoadError::Log(error)) => Err(error.into()),
            Err(LoadError::Snapshot(error)) => {
                sources.on_unreadable(&error);
                self.reopen_log(&mut sources, start.fetches_again())?;
                self.begin_load(sources, start)
            }
        }
    }

    /// The log behind the source that is to be tried now. Nothing was appended to the one that is open.
    fn reopen_log(&mut self, sources: &mut Sources, follows: bool) -> Result<(), FatalReason> {
        let (disk, salt) = (self.disk.as_mut(), self.rng.next_u64());
        let opened = sources.open_log(disk, &mut self.meta, follows, &self.config, salt)?;
        super::start::log_recovery(&opened.report);
        std::mem::replace(&mut self.wal, opened.wal).close(disk);
        Ok(())
    }

    /// Loads for a slice; with all of it loaded the node takes its role.
    pub(super) fn load_step(&mut self) -> Result<(), FatalReason> {
        let begin = self.clock.now();
        let until = Time(begin.0 + LOAD_SLICE_US * 1_000);
        self.load_until(until, self.config.snapshot.slice_bytes)?;
        if !self.is_loading() {
            log_info!("node", "{}", self.ready_text());
        }
        Ok(())
    }

    /// Loads all of it now.
    pub(super) fn load_to_end(&mut self) -> Result<(), FatalReason> {
        while self.load.is_some() {
            self.load_until(Time(u64::MAX), u64::MAX)?;
        }
        Ok(())
    }

    fn load_until(&mut self, until: Time, bytes: u64) -> Result<(), FatalReason> {
        let Some(loading) = &mut self.load else { return Ok(()) };
        let slice = Slice { clock: self.clock.as_ref(), until, bytes };
        match loading.loader.step(self.disk.as_mut(), &mut self.wal, &mut self.keyspace, &slice) {
            Ok(true) => self.loaded(),
            Ok(false) => {
                self.log_load_progress();
                Ok(())
            }
            Err(LoadError::Log(error)) => Err(error.into()),
            Err(LoadError::Snapshot(error)) => self.load_from_next(&error),
        }
    }

    /// The snapshot is damaged: the next source, and the log that goes on behind that one.
    fn load_from_next(&mut self, why: &snapshot::ReadError) -> Result<(), FatalReason> {
        let Loading { loader, mut sources, start, .. } = *self.load.take().expect("it is under way");
        loader.close(self.disk.as_mut());
        self.keyspace.clear();
        sources.on_unreadable(why);
        self.reopen_log(&mut sources, start.fetches_again())?;
        self.begin_load(sources, start).map(|_| ())
    }

    fn loaded(&mut self) -> Result<(), FatalReason> {
        let loading = self.load.take().expect("it is under way");
        self.applied = loading.loader.log.1;
        let source = loading.sources.chosen();
        self.complete_at = source.map_or(Lsn::ZERO, |info| info.id.e);
        let from = source.map_or_else(String::new, |info| format!(" from {} and the log", info.name));
        let took_ms = self.clock.now().since(loading.began) / 1_000_000;
        log_info!(
            "node",
            "loaded {} key(s) up to LSN {}{from} in {took_ms} ms",
            self.keyspace.len(),
            self.applied
        );
        self.counters.loaded_from_snapshot = source.is_some().into();
        let Loading { loader, sources, start, .. } = *loading;
        loader.close(self.disk.as_mut());
        self.snapshots = super::snapshot::Snapshots::new(sources.found, sources.unusable);
        self.removal.due = true;
        self.state_is_new();
        self.take_role(start)
    }
}
