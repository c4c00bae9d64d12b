//! Blocks of entries, and of client sessions; the layout stands at the top of the module.

use crate::limits::{KEY_SIZE_MAX, KEY_SIZE_MIN, SNAPSHOT_BLOCK_SIZE, VALUE_SIZE_MAX};
use crate::wire::{ClientSession, Reader, Writer};

use super::error::Fault;

/// Bytes in front of the entries of a block.
pub const BLOCK_HEADER_SIZE: usize = 4 + 4 + 4;

/// Bytes of an entry without key and value.
const ENTRY_OVERHEAD: usize = 2 + 4;
/// Bytes of the largest entry, alone in its block.
const ENTRY_SIZE_MAX: usize = ENTRY_OVERHEAD + KEY_SIZE_MAX + VALUE_SIZE_MAX;
/// Bytes of the entries of a block, at most.
pub(super) const PAYLOAD_SIZE_MAX: usize =
    if ENTRY_SIZE_MAX > SNAPSHOT_BLOCK_SIZE { ENTRY_SIZE_MAX } else { SNAPSHOT_BLOCK_SIZE };

/// Set in the count of a block that holds client sessions.
const HOLDS_SESSIONS: u32 = 1 << 31;

const _: () = assert!(KEY_SIZE_MAX <= u16::MAX as usize, "the length of every key fits into an entry");

/// Bytes that an entry takes.
pub(super) fn entry_size(key: &[u8], value: &[u8]) -> usize {
    ENTRY_OVERHEAD + key.len() + value.len()
}

/// Appends an entry.
pub(super) fn put_entry(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.put_bytes16(key);
    out.put_bytes32(value);
}

/// What stands in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Entries,
    Sessions,
}

/// Fills in the header of a block whose content stands behind it.
pub(super) fn seal(block: &mut [u8], kind: Kind, count: u32, identity_crc: u32, offset: u64) {
    let size = (block.len() - BLOCK_HEADER_SIZE) as u32;
    let flag = if kind == Kind::Sessions { HOLDS_SESSIONS } else { 0 };
    block[4..8].copy_from_slice(&size.to_be_bytes());
    block[8..12].copy_from_slice(&(count | flag).to_be_bytes());
    let crc = crc_of(block, identity_crc, offset);
    block[..4].copy_from_slice(&crc.to_be_bytes());
}

fn crc_of(block: &[u8], identity_crc: u32, offset: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(identity_crc);
    hasher.update(&offset.to_be_bytes());
    hasher.update(&block[4..]);
    hasher.finalize()
}

/// Bytes of the block that begins with this header, if it may end before `room` bytes: checked before anything is
/// read or allocated for it.
pub(super) fn size_of_block(header: [u8; BLOCK_HEADER_SIZE], offset: u64, room: u64) -> Result<usize, Fault> {
    let payload = word(&header, 4) as usize;
    let size = BLOCK_HEADER_SIZE + payload;
    if payload == 0 || payload > PAYLOAD_SIZE_MAX || size as u64 > room {
        return Err(Fault::Damaged { offset, what: "the block has a length that it cannot have" });
    }
    Ok(size)
}

/// A block whose checksum and content hold.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    content: &'a [u8],
    held: Held,
}

/// How much a block holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub entries: u32,
    /// Bytes of their keys and values.
    pub data_bytes: u64,
    pub sessions: u32,
}

impl<'a> Block<'a> {
    /// Checks a whole block that stands at `offset` of its file. Returns how much it holds.
    pub(super) fn check(bytes: &[u8], identity_crc: u32, offset: u64) -> Result<Held, Fault> {
        if crc_of(bytes, identity_crc, offset) != word(bytes, 0) {
            return Err(Fault::Damaged { offset, what: "the checksum of the block does not hold" });
        }
        let held = match word(bytes, 8) & HOLDS_SESSIONS {
            0 => check_entries(bytes, offset)?,
            _ => check_sessions(bytes, offset)?,
        };
        if held.entries | held.sessions != word(bytes, 8) & !HOLDS_SESSIONS {
            let what = "the block has another number of entries than its header says";
            return Err(Fault::Damaged { offset, what });
        }
        Ok(held)
    }

    /// A whole block that was checked.
    pub(super) fn new(bytes: &'a [u8], held: Held) -> Block<'a> {
        Block { content: &bytes[BLOCK_HEADER_SIZE..], held }
    }

    /// Entries in it.
    pub fn entry_count(&self) -> usize {
        self.held.entries as usize
    }

    /// Bytes of their keys and values.
    pub fn data_bytes(&self) -> u64 {
        self.held.data_bytes
    }

    /// Client sessions in it; a block holds entries or these, at least one.
    pub fn session_count(&self) -> usize {
        self.held.sessions as usize
    }

    /// Keys and values, in the order of the file.
    pub fn entries(&self) -> Entries<'a> {
        Entries { left: if self.held.entries > 0 { self.content } else { &[] } }
    }

    /// Client sessions, in the order they were opened in.
    pub fn sessions(&self) -> impl Iterator<Item = ClientSession> + use<'a> {
        let mut reader = Reader::new(self.content);
        (0..self.held.sessions)
            .map(move |_| ClientSession::decode(&mut reader).expect("the block was checked"))
    }
}

fn check_entries(bytes: &[u8], offset: u64) -> Result<Held, Fault> {
    let (mut at, mut held) = (BLOCK_HEADER_SIZE, Held::default());
    while at < bytes.len() {
        let Some((key, value)) = split_entry(&bytes[at..]) else {
            let what = "the block's checksum holds, and this is no entry";
            return Err(Fault::Damaged { offset: offset + at as u64, what });
        };
        at += entry_size(key, value);
        held.data_bytes += (key.len() + value.len()) as u64;
        held.entries += 1;
    }
    Ok(held)
}

fn check_sessions(bytes: &[u8], offset: u64) -> Result<Held, Fault> {
    let (mut reader, mut held) = (Reader::new(&bytes[BLOCK_HEADER_SIZE..]), Held::default());
    while reader.left() > 0 {
        let at = offset + (BLOCK_HEADER_SIZE + reader.position()) as u64;
        if ClientSession::decode(&mut reader).is_err() {
            let what = "the block's checksum holds, and this is no client session";
            return Err(Fault::Damaged { offset: at, what });
        }
        held.sessions += 1;
    }
    Ok(held)
}

/// Keys and values of a checked block.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    left: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let (key, value) = split_entry(self.left).expect("the block was checked");
        self.left = &self.left[entry_size(key, value)..];
        Some((key, value))
    }
}

/// Key and value of the entry that these bytes begin with, if they do.
fn split_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key_len, rest) = bytes.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*key_len)))?;
    let (value_len, rest) = rest.split_first_chunk()?;
    let (value, _) = rest.split_at_checked(u32::from_be_bytes(*value_len) as usize)?;
    (key.len() >= KEY_SIZE_MIN && value.len() <= VALUE_SIZE_MAX).then_some((key, value))
}

/// The big-endian u32 at `at`, which is within a block's header.
fn word(block: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}
