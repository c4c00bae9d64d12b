//! Reads a snapshot from bytes as they come: an object that bytes are put into, in order, in pieces of any size.
//!
//! It holds what it cannot judge yet: at most one header or block, and what was put in behind it. A length is
//! checked before memory is taken for it. Once the bytes are found to be no snapshot they stay none.

use std::ops::Range;

use crate::ids::ClusterId;

use super::block::{BLOCK_HEADER_SIZE, Block, Held, size_of_block};
use super::error::Fault;
use super::header::{FIXED_SIZE, FOOTER_SIZE, Footer, Header, header_size_of, identity_crc};

/// What is known once the header was read.
#[derive(Debug)]
struct Body {
    header: Header,
    header_crc: u32,
    identity_crc: u32,
    crc: crc32fast::Hasher,
    blocks: u64,
    entries: u64,
    data_bytes: u64,
}

#[derive(Debug)]
enum Stage {
    Header,
    Body(Body),
    Done(Body, Footer),
    Invalid(Fault),
}

/// What the bytes so far allow.
#[derive(Debug)]
pub(super) enum Step {
    /// So many bytes more are needed before anything can be said.
    Needs(usize),
    /// The next block, checked: see [`Parser::block`].
    Block(Checked),
    /// The footer was reached, and everything holds.
    Done,
}

/// A block that holds, until more bytes are put in.
#[derive(Debug)]
pub(super) struct Checked {
    bytes: Range<usize>,
    held: Held,
}

/// Invariants: `buffer[from..to]` are the bytes of the file from `offset` on, not judged yet.
#[derive(Debug)]
pub(super) struct Parser {
    expected: Option<ClusterId>,
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    offset: u64,
    stage: Stage,
}

impl Parser {
    /// A parser for a file of this cluster, or of any.
    pub fn new(expected: Option<ClusterId>) -> Parser {
        Parser { expected, buffer: Vec::new(), from: 0, to: 0, offset: 0, stage: Stage::Header }
    }

    /// The header, once it was read.
    pub fn header(&self) -> Option<&Header> {
        match &self.stage {
            Stage::Body(body) | Stage::Done(body, _) => Some(&body.header),
            Stage::Header | Stage::Invalid(_) => None,
        }
    }

    /// The checksum of the header, once it was read.
    pub fn header_crc(&self) -> Option<u32> {
        match &self.stage {
            Stage::Body(body) | Stage::Done(body, _) => Some(body.header_crc),
            Stage::Header | Stage::Invalid(_) => None,
        }
    }

    /// The footer, once everything was read.
    pub fn footer(&self) -> Option<&Footer> {
        if let Stage::Done(_, footer) = &self.stage { Some(footer) } else { None }
    }

    /// Bytes of the file that were judged.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the file that were put in.
    pub fn end(&self) -> u64 {
        self.offset + self.held() as u64
    }

    /// Bytes put in and not judged yet.
    pub fn held(&self) -> usize {
        self.to - self.from
    }

    /// Room for the next `size` bytes of the file, which the caller fills.
    pub fn room(&mut self, size: usize) -> &mut [u8] {
        // What is left is less than one block, against the many that were taken since.
        self.buffer.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.held());
        let start = self.to;
        self.to += size;
        if self.buffer.len() < self.to {
            self.buffer.resize(self.to, 0);
        }
        &mut self.buffer[start..self.to]
    }

    /// Takes the next step, as far as the bytes so far allow one.
    pub fn step(&mut self) -> Result<Step, Fault> {
        loop {
            let next = match &mut self.stage {
                Stage::Invalid(fault) => return Err(*fault),
                Stage::Done(..) => return Ok(Step::Done),
                Stage::Header => {
                    let bytes = &self.buffer[self.from..self.to];
                    read_header(bytes, self.expected)
                }
                Stage::Body(body) => {
                    let bytes = &self.buffer[self.from..self.to];
                    body.next(bytes, self.offset)
                }
            };
            match next {
                Ok(Next::Needs(size)) => return Ok(Step::Needs(size)),
                Ok(Next::Header(body, size)) => {
                    self.stage = Stage::Body(*body);
                    self.take(size);
                }
                Ok(Next::Footer(footer)) => {
                    self.take(FOOTER_SIZE);
                    if let Stage::Body(body) = std::mem::replace(&mut self.stage, Stage::Header) {
                        self.stage = Stage::Done(body, footer);
                    }
                }
                Ok(Next::Block(size)) => {
                    let at = self.offset;
                    let bytes = self.take(size);
                    return self.check(bytes, at).map(Step::Block);
                }
                Err(fault) => {
                    self.stage = Stage::Invalid(fault);
                    return Err(fault);
                }
            }
        }
    }

    /// The block that the last step found.
    pub fn block(&self, checked: &Checked) -> Block<'_> {
        Block::new(&self.buffer[checked.bytes.clone()], checked.held)
    }

    /// Checks the block in this part of the buffer, which stands at `offset` of the file.
    fn check(&mut self, bytes: Range<usize>, offset: u64) -> Result<Checked, Fault> {
        let Stage::Body(body) = &mut self.stage else { unreachable!("blocks follow the header") };
        let checked = match Block::check(&self.buffer[bytes.clone()], body.identity_crc, offset) {
            Ok(held) if held.sessions > 0 && !body.header.has_sessions => {
                Err(Fault::Damaged { offset, what: "client sessions in a file of a version that has none" })
            }
            checked => checked,
        };
        match checked {
            Ok(held) => {
                body.crc.update(&self.buffer[bytes.clone()]);
                body.blocks += 1;
                body.entries += u64::from(held.entries);
                body.data_bytes += held.data_bytes;
                Ok(Checked { bytes, held })
            }
            Err(fault) => {
                self.stage = Stage::Invalid(fault);
                Err(fault)
            }
        }
    }

    fn take(&mut self, size: usize) -> Range<usize> {
        let range = self.from..self.from + size;
        self.from += size;
        self.offset += size as u64;
        range
    }
}

enum Next {
    Needs(usize),
    Header(Box<Body>, usize),
    Block(usize),
    Footer(Footer),
}

fn read_header(bytes: &[u8], expected: Option<ClusterId>) -> Result<Next, Fault> {
    let Some(fixed) = bytes.first_chunk::<FIXED_SIZE>() else {
        return Ok(Next::Needs(FIXED_SIZE - bytes.len()));
    };
    let size = header_size_of(fixed)?;
    if bytes.len() < size {
        return Ok(Next::Needs(size - bytes.len()));
    }
    let (header, header_crc) = Header::decode(&bytes[..size], expected)?;
    let identity_crc = identity_crc(&header.start);
    let crc = crc32fast::Hasher::new();
    let body = Body { header, header_crc, identity_crc, crc, blocks: 0, entries: 0, data_bytes: 0 };
    Ok(Next::Header(Box::new(body), size))
}

impl Body {
    fn next(&self, bytes: &[u8], offset: u64) -> Result<Next, Fault> {
        let room = self.header.footer_at() - offset;
        if room == 0 {
            if bytes.len() < FOOTER_SIZE {
                return Ok(Next::Needs(FOOTER_SIZE - bytes.len()));
            }
            return self.check_footer(&bytes[..FOOTER_SIZE], offset).map(Next::Footer);
        }
        let Some(header) = bytes.first_chunk::<BLOCK_HEADER_SIZE>() else {
            return Ok(Next::Needs(BLOCK_HEADER_SIZE - bytes.len()));
        };
        let size = size_of_block(*header, offset, room)?;
        Ok(if bytes.len() < size { Next::Needs(size - bytes.len()) } else { Next::Block(size) })
    }

    fn check_footer(&self, bytes: &[u8], offset: u64) -> Result<Footer, Fault> {
        let footer = Footer::decode(bytes, offset, self.header_crc)?;
        let counted = Footer {
            blocks: self.blocks,
            entries: self.entries,
            data_bytes: self.data_bytes,
            body_crc: self.crc.clone().finalize(),
            header_crc: self.header_crc,
        };
        if footer != counted {
            let what = "the footer counts other blocks, entries or bytes than there are";
            return Err(Fault::Damaged { offset, what });
        }
        Ok(footer)
    }
}
