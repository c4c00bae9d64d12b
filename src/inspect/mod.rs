//! `kvstore inspect`: what is in a data directory, an archive, or one file, and what a start would do with it.
//!
//! What it promises:
//!
//! 1. *Nothing changes.* The directory is opened for reading ([`ViewedDisk`]), without its lock; a start is tried on an
//!    [`Overlay`], whose changes stay in memory.
//! 2. *The verdict is that of a start*, because a start's own steps make it ([`dry_run`]). What is said about each file
//!    comes from the readers and the tables of `wal`, `snapshot` and `meta`: there is no second parser.
//! 3. *All of it is read*: every record of every segment, every block of every snapshot, also what a start would not
//!    look at. That costs what reading the files costs, at some hundred MiB a second.
//!
//! Beside a running node it shows the files as they are read, one after the other, while the log goes on: its end may
//! look torn, and a file that was listed may be gone. It says that the lock is held, and looks again if what it saw
//! cannot be ([`TRIES_WHILE_HELD`]).
//!
//! Left out: values and keys. A record is counted and checked, not shown.

mod document;
mod files;
mod text;

use std::io;
use std::path::Path;

use crate::disk::{Disk, Holder, Overlay, ViewedDisk};
use crate::ids::Lsn;
use crate::meta::{COPY_NAMES, Meta};
use crate::node::{DryRun, Outcome, dry_run};
use crate::replication::history::TermStart;
use crate::wal::{SegmentLook, SegmentState};

pub use document::document;
pub use files::{Content, FileLook};
pub use text::text;

/// How often a directory is looked at while a node holds it, if what was seen contradicts itself.
pub const TRIES_WHILE_HELD: usize = 3;

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// The directory.
    pub directory: String,
    /// Who holds it.
    pub holder: Holder,
    /// Its files by name, or the one that was asked for.
    pub files: Vec<FileLook>,
    /// Of a directory: what was learned from all files together.
    pub whole: Option<Whole>,
}

/// What the files of a directory are together.
#[derive(Debug)]
pub struct Whole {
    /// The node's own record, as a start would choose it: version and content. `None`: there is none, as in an archive.
    pub meta: Option<(u64, Meta)>,
    /// The records that follow each other without a gap, from the first LSN to the last.
    pub ranges: Vec<(Lsn, Lsn)>,
    /// The terms, as snapshots and segments tell, oldest first.
    pub terms: Vec<TermStart>,
    /// What a start would do.
    pub start: DryRun,
}

impl Report {
    /// What is not as it should be. What was put aside, and a tail that a crash tore, are as they should be.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.files.iter().filter_map(FileLook::problem).collect();
        if let Some(whole) = &self.whole {
            let gaps = whole.ranges.windows(2).filter(|pair| pair[0].1.next() != pair[1].0);
            problems.extend(
                gaps.map(|pair| format!("LSN {} to {} are missing", pair[0].1.next(), pair[1].0.prev())),
            );
            if let (Outcome::Refuses(why), true) = (&whole.start.outcome, !whole.is_archive()) {
                problems.push(format!("a start would refuse: {why}"));
            }
        }
        problems
    }
}

impl Whole {
    /// Whether it is no data directory, but one of segments alone.
    pub fn is_archive(&self) -> bool {
        self.meta.is_none() && !self.ranges.is_empty()
    }
}

/// Looks at a directory or a file.
///
/// # Errors
/// If it cannot be listed or opened.
pub fn inspect(path: &Path) -> io::Result<Report> {
    let (mut disk, name) = ViewedDisk::open_any(path)?;
    let Some(name) = name else {
        let mut tries = TRIES_WHILE_HELD;
        loop {
            let holder = disk.holder();
            tries -= 1;
            match inspect_directory(&mut disk, holder) {
                Ok(report) if holder == Holder::Nobody || tries == 0 || report.problems().is_empty() => {
                    return Ok(report);
                }
                Err(error) if holder == Holder::Nobody || tries == 0 => return Err(error),
                _ => {}
            }
        }
    };
    let holder = disk.holder();
    let files = vec![files::look_at_one(&mut disk, &name)?];
    Ok(Report { directory: disk.describe(), holder, files, whole: None })
}

/// Looks at all files of a directory, and tries a start.
///
/// # Errors
/// If it cannot be listed, or a segment not be opened.
pub fn inspect_directory(disk: &mut dyn Disk, holder: Holder) -> io::Result<Report> {
    let names = disk.list()?;
    let start = dry_run(&mut Overlay::new(disk));
    let files = files::look_at_all(disk, &names)?;
    let whole = Whole { meta: chosen_meta(&files), ranges: ranges(&files), terms: terms(&files), start };
    Ok(Report { directory: disk.describe(), holder, files, whole: Some(whole) })
}

/// The newer of the copies that hold.
fn chosen_meta(files: &[FileLook]) -> Option<(u64, Meta)> {
    let copies = files.iter().filter(|file| COPY_NAMES.contains(&file.name.as_str()));
    let whole = copies.filter_map(|file| match &file.content {
        Content::Meta(Ok(record)) => Some(&**record),
        _ => None,
    });
    whole.max_by_key(|(version, _)| *version).cloned()
}

fn is_of_the_log(look: &SegmentLook) -> bool {
    !matches!(look.state, SegmentState::TakenBack | SegmentState::Replaced)
}

fn ranges(files: &[FileLook]) -> Vec<(Lsn, Lsn)> {
    let mut ranges: Vec<(Lsn, Lsn)> = Vec::new();
    let mut end = None;
    for look in files.iter().filter_map(FileLook::segment_of_the_log) {
        let Some(content) = look.content.as_ref().filter(|content| content.records() > 0) else { continue };
        let continues = end == Some((content.first_lsn.prev(), content.chain_before));
        match ranges.last_mut().filter(|_| continues) {
            Some(range) => range.1 = content.last_lsn,
            None => ranges.push((content.first_lsn, content.last_lsn)),
        }
        end = Some((content.last_lsn, content.chain));
    }
    ranges
}

fn terms(files: &[FileLook]) -> Vec<TermStart> {
    let mut terms: Vec<TermStart> = Vec::new();
    for file in files {
        match &file.content {
            Content::Snapshot(Ok(info)) if file.is_live() => terms.extend_from_slice(info.history.starts()),
            Content::Segment(look) if file.is_live() && is_of_the_log(look) => {
                let content = look.content.iter();
                terms.extend(
                    content.flat_map(|content| content.term_before.iter().chain(&content.terms)).cloned(),
                );
            }
            _ => {}
        }
    }
    terms.sort_by_key(|start| (start.first_lsn, start.term));
    terms.dedup();
    terms
}
