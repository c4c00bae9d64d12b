//! What a power loss leaves of one file and of the names, by a given choice. See `mem_disk`.

use std::collections::BTreeMap;

use super::OpKind;
use kvstore::disk::BLOCK_SIZE;
use kvstore::rng::Rng;
use std::fmt;
use std::io;

/// The unit that a power loss keeps or loses.
pub const SECTOR_SIZE: usize = 512;

/// Which of the unsynced sectors, or of the unsynced directory operations, a crash keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    None,
    All,
    /// The first so many.
    Prefix(usize),
    /// The i-th if bit i is set: for tests that go through all subsets of at most 64.
    Mask(u64),
    /// A subset by seed; of a sector that was written more than once, any version.
    Random(u64),
}

/// Decides element by element what is kept.
pub struct Chooser {
    keep: Keep,
    index: usize,
    random: Rng,
}

impl Chooser {
    pub fn new(keep: Keep) -> Chooser {
        let seed = if let Keep::Random(seed) = keep { seed } else { 0 };
        Chooser { keep, index: 0, random: Rng::new(seed) }
    }

    /// How many of the `versions` of the next element reached the disk: 0 is none, `versions` the last.
    pub fn next(&mut self, versions: usize) -> usize {
        let index = self.index;
        self.index += 1;
        let kept = match self.keep {
            Keep::None => false,
            Keep::All => true,
            Keep::Prefix(count) => index < count,
            Keep::Mask(mask) => {
                assert!(index < 64, "a mask names at most 64 unsynced elements");
                mask >> index & 1 == 1
            }
            Keep::Random(_) => return self.random.below(versions as u64 + 1) as usize,
        };
        if kept { versions } else { 0 }
    }
}

#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: OpKind,
    /// So many of the kind succeed first.
    pub after: u64,
    pub forever: bool,
    pub how: Failing,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    pub errno: i32,
    /// The sectors that a failing sync makes durable all the same.
    pub keep: Keep,
}

pub type Inode = usize;
pub type Sector = u64;

#[derive(Clone, Debug, Default)]
pub struct File {
    /// The name it had last, for the log.
    pub name: String,
    pub live: Vec<u8>,
    pub durable: Vec<u8>,
    /// Unsynced sectors with every content they had since the last sync, oldest first.
    pub dirty: BTreeMap<Sector, Vec<Vec<u8>>>,
}

impl File {
    fn sector(&self, sector: Sector) -> Vec<u8> {
        let start = sector as usize * SECTOR_SIZE;
        self.live[start..self.live.len().min(start + SECTOR_SIZE)].to_vec()
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        let first_changed = offset.min(self.live.len());
        if end > self.live.len() {
            self.live.resize(end, 0);
        }
        self.live[offset..end].copy_from_slice(bytes);
        for sector in (first_changed / SECTOR_SIZE)..end.div_ceil(SECTOR_SIZE) {
            let content = self.sector(sector as Sector);
            self.dirty.entry(sector as Sector).or_default().push(content);
        }
    }

    /// The whole blocks that an append writes, and where they begin. Only zeros may stand behind it.
    pub fn blocks_of(&self, offset: u64, bytes: &[u8]) -> (u64, Vec<u8>) {
        let (File { live, name, .. }, from) = (self, offset as usize);
        let (begin, end) = (from - from % BLOCK_SIZE, from + bytes.len());
        let behind = &live[end.min(live.len())..end.next_multiple_of(BLOCK_SIZE).min(live.len())];
        assert!(
            behind.iter().all(|&byte| byte == 0),
            "{name}: an append at {offset} is in front of something"
        );
        let blocks = [&live[begin..from], bytes, behind].concat();
        (begin as u64, blocks)
    }

    pub fn persist(&mut self, sector: Sector, content: &[u8]) {
        let start = sector as usize * SECTOR_SIZE;
        let end = start + content.len();
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(content);
    }

    /// Persists the chosen ones of these sectors; none of them is dirty any more.
    pub fn settle_range(&mut self, range: std::ops::Range<Sector>, chooser: &mut Chooser) {
        let mut dirty = self.dirty.split_off(&range.start);
        let mut behind = dirty.split_off(&range.end);
        self.dirty.append(&mut behind);
        for (sector, versions) in dirty {
            if let Some(kept) = chooser.next(versions.len()).checked_sub(1) {
                self.persist(sector, &versions[kept]);
            }
        }
    }

    /// Persists the chosen sectors; none is dirty any more.
    pub fn settle(&mut self, chooser: &mut Chooser) {
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            if let Some(kept) = chooser.next(versions.len()).checked_sub(1) {
                self.persist(sector, &versions[kept]);
            }
        }
    }

    pub fn crash(&mut self, chooser: &mut Chooser) {
        self.settle(chooser);
        self.live.clone_from(&self.durable);
    }
}

#[derive(Clone, Debug)]
pub enum DirOp {
    Link(String, Inode),
    Rename(String, String, Inode),
    Unlink(String, Inode),
}

impl DirOp {
    pub fn apply(&self, names: &mut BTreeMap<String, Inode>) {
        match self {
            DirOp::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            DirOp::Rename(from, to, inode) => {
                // An earlier operation may be lost, so the old name need not be there.
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
            DirOp::Unlink(name, inode) => {
                if names.get(name) == Some(inode) {
                    names.remove(name);
                }
            }
        }
    }
}

impl super::MemDisk {
    /// Other bytes stand there, in what is shown and in what a crash leaves: for a disk that nobody writes to.
    pub fn overwrite(&self, name: &str, offset: usize, bytes: &[u8]) {
        let mut state = self.state();
        let inode = state.names[name];
        let file = state.file(inode);
        assert!(file.dirty.is_empty(), "nothing waits to be synced in {name}");
        file.live[offset..offset + bytes.len()].copy_from_slice(bytes);
        file.durable[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// The error of every operation from the crash point on.
#[derive(Debug)]
pub struct SimulatedCrash;

impl fmt::Display for SimulatedCrash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated crash")
    }
}

impl std::error::Error for SimulatedCrash {}

/// Whether an error came from [`MemDisk::crash_before`].
pub fn is_simulated_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<SimulatedCrash>())
}
