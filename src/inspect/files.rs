//! One file at a time: what it is by its name, or, if it is the only one asked for, by its first bytes.

use std::io;

use super::is_of_the_log;
use crate::backup::{NOTE_NAME, Note, read_note};
use crate::disk::Disk;
use crate::meta::{COPY_NAMES, Meta, look_at_copy};
use crate::snapshot::{PartLook, SnapshotInfo, SnapshotReader, look_at_part, parse_snapshot_name};
use crate::wal::{
    Identity, KeptLook, SegmentLook, SegmentState, look_at_kept, look_at_segments, parse_segment_name,
};

/// A file and what is in it.
#[derive(Debug)]
pub struct FileLook {
    /// Its name.
    pub name: String,
    /// Bytes of it.
    pub bytes: u64,
    /// What is in it.
    pub content: Content,
}

/// What a file is.
#[derive(Debug)]
pub enum Content {
    /// A copy of the node's own record: its version and the record, or what is wrong.
    Meta(Result<Box<(u64, Meta)>, String>),
    /// A segment of the log.
    Segment(Box<SegmentLook>),
    /// A snapshot all of whose blocks hold, or what is wrong.
    Snapshot(Result<Box<SnapshotInfo>, String>),
    /// A snapshot that is not finished, or was not when the node ended.
    Part(Result<PartLook, String>),
    /// Records that a cut took back.
    Kept(Result<KeptLook, String>),
    /// The note of an archive: whose it is, and how far it goes.
    Note(Result<Note, String>),
    /// A name under which something is made; a start removes it.
    Leftover,
    /// Nothing that a node writes.
    Unknown,
}

impl FileLook {
    /// Whether a start reads it: its name is one of those that mean something, and not one of what was put aside.
    pub fn is_live(&self) -> bool {
        let name = self.name.as_str();
        COPY_NAMES.contains(&name)
            || name == NOTE_NAME
            || parse_segment_name(name).is_some()
            || parse_snapshot_name(name).is_some()
    }

    /// The segment, if it is one that belongs to the log.
    pub fn segment_of_the_log(&self) -> Option<&SegmentLook> {
        match &self.content {
            Content::Segment(look) if self.is_live() && is_of_the_log(look) => Some(look),
            _ => None,
        }
    }

    /// What is wrong with it, if a start reads it.
    pub fn problem(&self) -> Option<String> {
        if !self.is_live() {
            return None;
        }
        let why = match &self.content {
            Content::Meta(Err(why)) | Content::Snapshot(Err(why)) | Content::Note(Err(why)) => why.clone(),
            Content::Segment(look) => match &look.state {
                SegmentState::Damaged { byte, lsn, reason } => {
                    format!("damaged at byte {byte}, where LSN {lsn} should be: {reason}")
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(format!("{}: {why}", self.name))
    }
}

/// What the first bytes of a file say that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Meta,
    Segment,
    Snapshot,
    Part,
    Kept,
    Note,
    Leftover,
    Unknown,
}

fn kind_by_name(name: &str) -> Kind {
    let is_temporary = name.ends_with(".tmp") || name.ends_with(".new");
    match name {
        _ if COPY_NAMES.contains(&name) => Kind::Meta,
        NOTE_NAME => Kind::Note,
        _ if name.ends_with(".kvsnap.tmp") => Kind::Part,
        _ if is_temporary => Kind::Leftover,
        _ if name.ends_with(".seg") => Kind::Segment,
        _ if name.ends_with(".kvsnap") => Kind::Snapshot,
        _ if name.ends_with(".kvcut") => Kind::Kept,
        _ => Kind::Unknown,
    }
}

fn kind_by_content(disk: &mut dyn Disk, name: &str) -> io::Result<Kind> {
    let file = disk.open(name)?;
    let mut magic = [0; 8];
    let read = disk.read_at(file, 0, &mut magic);
    disk.close(file);
    Ok(match &magic[..read?] {
        b"KVSTMETA" => Kind::Meta,
        b"KVSTOWAL" => Kind::Segment,
        b"KVSTSNAP" => Kind::Snapshot,
        b"KVSTOCUT" => Kind::Kept,
        _ => Kind::Unknown,
    })
}

/// Looks at one file. Its name counts where it says something; else its first bytes.
///
/// # Errors
/// If it cannot be opened, or its first bytes not be read.
pub fn look_at_one(disk: &mut dyn Disk, name: &str) -> io::Result<FileLook> {
    let kind = match kind_by_name(name) {
        Kind::Unknown | Kind::Leftover => kind_by_content(disk, name)?,
        known => known,
    };
    look_at(disk, name, kind)
}

/// Looks at all files of a directory. Segments are judged together, as each says something about the one before.
///
/// # Errors
/// If a file cannot be opened.
pub fn look_at_all(disk: &mut dyn Disk, names: &[String]) -> io::Result<Vec<FileLook>> {
    let mut files = Vec::new();
    for name in names.iter().filter(|name| parse_segment_name(name).is_none()) {
        files.push(look_at(disk, name, kind_by_name(name))?);
    }
    let identity = super::chosen_meta(&files).map(|(_, meta)| Identity {
        cluster_id: meta.cluster_id,
        generation: meta.log_generation,
        cut_lsn: meta.cut_lsn,
        base_lsn: meta.base_lsn,
        base_chain: meta.base_chain,
    });
    // The numbers in their names have one width, so that this is the order of their LSNs.
    let segments: Vec<String> =
        names.iter().filter(|name| parse_segment_name(name).is_some()).cloned().collect();
    for look in look_at_segments(disk, &segments, identity.as_ref())? {
        files.push(FileLook {
            name: look.name.clone(),
            bytes: look.file_bytes,
            content: Content::Segment(Box::new(look)),
        });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

fn look_at(disk: &mut dyn Disk, name: &str, kind: Kind) -> io::Result<FileLook> {
    let file = disk.open(name)?;
    let bytes = disk.len(file);
    disk.close(file);
    let content = match kind {
        Kind::Meta => Content::Meta(look_at_copy(disk, name).map(Box::new)),
        Kind::Segment => {
            let look = look_at_segments(disk, &[name.to_owned()], None)?.remove(0);
            Content::Segment(Box::new(look))
        }
        Kind::Snapshot => Content::Snapshot(read_snapshot(disk, name).map(Box::new)),
        Kind::Part => Content::Part(look_at_part(disk, name).map_err(|error| error.to_string())),
        Kind::Kept => Content::Kept(look_at_kept(disk, name)),
        Kind::Note => Content::Note(read_note(disk).map_err(|error| error.to_string())),
        Kind::Leftover => Content::Leftover,
        Kind::Unknown => Content::Unknown,
    };
    Ok(FileLook { name: name.to_owned(), bytes: bytes?, content })
}

fn read_snapshot(disk: &mut dyn Disk, name: &str) -> Result<SnapshotInfo, String> {
    let mut reader = SnapshotReader::open(disk, name, None).map_err(|error| error.to_string())?;
    let result = reader.verify(disk).map_err(|error| error.to_string());
    let info = reader.info().clone();
    reader.close(disk);
    result.map(|()| info)
}
