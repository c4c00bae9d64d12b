//! Signposts for those who watch a node from outside.
//!
//! Probes: user-space static tracepoints (USDT) of the provider `kvstore`, one for each stage of a write. A probe is a
//! single `nop` until bpftrace or gdb arms it, so they are always there. The functions here are inlined wherever they
//! are used: a copy that stands by itself is dropped by the linker while the note of its probe stays, and a tool
//! that meets a probe at address 0 arms none.
//!
//! Notes (`--strace-marks`): the same stages as short texts between a node's real calls in the output of strace.
//! A note is a write to a descriptor of the data directory that was opened with `O_PATH`, which the kernel refuses
//! with EBADF before it looks at a byte: nothing is written anywhere, ever, and strace shows it with its text:
//!
//! ```text
//! write(5</data/node1>, "lsn=42 put hello 5B", 19) = -1 EBADF
//! ```
//!
//! A note costs a system call, about a fifth of a microsecond without strace: that is why notes have a flag.

use std::fmt::{self, Write};
use std::io;
use std::path::Path;

use crate::disk::Refusing;
use crate::ids::Lsn;
use crate::wire::Effect;
use probe::probe;

/// Bytes of a note at most; the rest is left out. strace shows 32 unless told otherwise (`-s`).
const NOTE_SIZE_MAX: usize = 96;
/// Bytes of a key that a note shows.
const KEY_SHOWN_MAX: usize = 24;

/// The signposts of a node.
#[derive(Debug, Default)]
pub struct Marks {
    notes: Option<Refusing>,
    replied: Lsn,
}

impl Marks {
    /// With notes for strace.
    ///
    /// # Errors
    /// If the data directory cannot be opened for nothing (`O_PATH`).
    pub fn with_notes(data_dir: &Path) -> io::Result<Marks> {
        Ok(Marks { notes: Some(Refusing::open(data_dir)?), replied: Lsn::ZERO })
    }

    /// A write was decoded and gets this LSN.
    #[inline(always)]
    pub fn put_received(&self, lsn: Lsn, effect: &Effect<'_>) {
        probe!(kvstore, put_received, lsn.0);
        match effect {
            Effect::Put { key, value } | Effect::PutNumbered { key, value, .. } => {
                self.note(format_args!("lsn={lsn} put {} {}B", shown(key), value.len()));
            }
            Effect::Delete { key } | Effect::DeleteNumbered { key, .. } => {
                self.note(format_args!("lsn={lsn} delete {}", shown(key)))
            }
            _ => {}
        }
    }

    /// The batch that ends with this LSN is with the followers' sockets; its write and flush begin.
    #[inline(always)]
    pub fn sync_begins(&self, last: Lsn) {
        probe!(kvstore, sync_begins, last.0);
        self.note(format_args!("to lsn={last} write and flush"));
    }

    /// The batch that ends with this LSN is durable here.
    #[inline(always)]
    pub fn synced(&self, last: Lsn, ns: u64) {
        probe!(kvstore, synced, last.0, ns);
        self.note(format_args!("to lsn={last} durable here"));
    }

    /// The n-th follower has everything up to this LSN; what it said its own flush took.
    #[inline(always)]
    pub fn ack_received(&self, peer: usize, address: &str, last: Lsn, its_sync_ns: u32) {
        probe!(kvstore, ack_received, peer, last.0, its_sync_ns);
        self.note(format_args!("to lsn={last} durable at {address}"));
    }

    /// Everything up to this LSN is committed.
    #[inline(always)]
    pub fn committed(&self, lsn: Lsn) {
        probe!(kvstore, committed, lsn.0);
        self.note(format_args!("to lsn={lsn} committed"));
    }

    /// The LSN of the last reply that was told.
    #[inline(always)]
    pub fn last_replied(&self) -> Lsn {
        self.replied
    }

    /// The turn's replies are with their sockets; the last one is of this LSN. Told once.
    #[inline(always)]
    pub fn replied(&mut self, lsn: Lsn) {
        if lsn > self.replied {
            self.replied = lsn;
            probe!(kvstore, replied, lsn.0);
            self.note(format_args!("to lsn={lsn} answered"));
        }
    }

    fn note(&self, text: fmt::Arguments<'_>) {
        let Some(refusing) = &self.notes else { return };
        let mut note = Note { bytes: [0; NOTE_SIZE_MAX], size: 0 };
        // What does not fit is left out.
        let _ = note.write_fmt(text);
        refusing.show(&note.bytes[..note.size]);
    }
}

fn shown(key: &[u8]) -> impl fmt::Display {
    key[..key.len().min(KEY_SHOWN_MAX)].escape_ascii()
}

/// A text on the stack: watching must not make a node allocate.
struct Note {
    bytes: [u8; NOTE_SIZE_MAX],
    size: usize,
}

impl Write for Note {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.size..];
        let size = text.len().min(room.len());
        room[..size].copy_from_slice(&text.as_bytes()[..size]);
        self.size += size;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut marks = Marks::with_notes(dir.path()).unwrap();
        marks.put_received(Lsn(7), &Effect::Put { key: &[b'k'; 1000], value: b"hello" });
        marks.replied(Lsn(7));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut note = Note { bytes: [0; NOTE_SIZE_MAX], size: 0 };
        write!(note, "{:200}", 1).unwrap();
        assert_eq!(note.size, NOTE_SIZE_MAX);
    }
}
