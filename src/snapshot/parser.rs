//! Reads a snapshot from bytes as they come: an object that bytes are put into, in order, in pieces of any size.
//!
//! They are judged where they lie, or from the buffer that it fills ([`Parser::step_over`], [`Parser::step`]).
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
    place: Place,
    bytes: Range<usize>,
    held: Held,
}

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Put into the parser.
    Within,
    /// Among those that a step went over.
    Over,
}

/// Judges the bytes of a file in their order, and keeps none of them.
#[derive(Debug)]
struct Judge {
    expected: Option<ClusterId>,
    /// Bytes that were judged.
    offset: u64,
    stage: Stage,
}

/// What stands at the front of some bytes.
enum Verdict {
    /// Nothing can be said without so many more.
    Needs(usize),
    /// A header or footer of so many bytes.
    Passed(usize),
    /// A block of so many bytes, checked.
    Block(usize, Held),
    /// What is behind the end.
    Done,
}

/// Invariants: `buffer[from..to]` are the bytes of the file from [`Parser::offset`] on, not judged yet.
#[derive(Debug)]
pub(super) struct Parser {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    judge: Judge,
}

impl Parser {
    /// A parser for a file of this cluster, or of any.
    pub fn new(expected: Option<ClusterId>) -> Parser {
        let judge = Judge { expected, offset: 0, stage: Stage::Header };
        Parser { buffer: Vec::new(), from: 0, to: 0, judge }
    }

    /// The header, once it was read.
    pub fn header(&self) -> Option<&Header> {
        match &self.judge.stage {
            Stage::Body(body) | Stage::Done(body, _) => Some(&body.header),
            Stage::Header | Stage::Invalid(_) => None,
        }
    }

    /// The checksum of the header, once it was read.
    pub fn header_crc(&self) -> Option<u32> {
        match &self.judge.stage {
            Stage::Body(body) | Stage::Done(body, _) => Some(body.header_crc),
            Stage::Header | Stage::Invalid(_) => None,
        }
    }

    /// The footer, once everything was read.
    pub fn footer(&self) -> Option<&Footer> {
        if let Stage::Done(_, footer) = &self.judge.stage { Some(footer) } else { None }
    }

    /// Bytes of the file that were judged.
    pub fn offset(&self) -> u64 {
        self.judge.offset
    }

    /// Bytes of the file that were put in.
    pub fn end(&self) -> u64 {
        self.offset() + self.held() as u64
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
            match self.judge.next(&self.buffer[self.from..self.to])? {
                Verdict::Needs(size) => return Ok(Step::Needs(size)),
                Verdict::Passed(size) => self.from += size,
                Verdict::Block(size, held) => {
                    self.from += size;
                    let bytes = self.from - size..self.from;
                    return Ok(Step::Block(Checked { place: Place::Within, bytes, held }));
                }
                Verdict::Done => return Ok(Step::Done),
            }
        }
    }

    /// The block that the last step found.
    pub fn block(&self, checked: &Checked) -> Block<'_> {
        self.block_over(checked, &[])
    }

    /// The block that the last step found over `rest`.
    pub fn block_over<'a>(&'a self, checked: &Checked, rest: &'a [u8]) -> Block<'a> {
        let bytes = if checked.place == Place::Over { rest } else { &self.buffer };
        Block::new(&bytes[checked.bytes.clone()], checked.held)
    }

    /// Takes the next step over bytes that were not put in: `rest` follows [`Parser::end`]. Returns how many of them
    /// were taken: all, unless the step found a block or the end. A block that is whole there is judged where it lies;
    /// only one that began in the bytes of before, or ends in those to come, is copied.
    pub fn step_over(&mut self, rest: &[u8]) -> Result<(Step, usize), Fault> {
        let mut taken = 0;
        while self.held() > 0 {
            match self.step()? {
                Step::Needs(size) if taken < rest.len() => {
                    let part = &rest[taken..rest.len().min(taken + size)];
                    self.room(part.len()).copy_from_slice(part);
                    taken += part.len();
                }
                step => return Ok((step, taken)),
            }
        }
        loop {
            match self.judge.next(&rest[taken..])? {
                Verdict::Needs(size) => {
                    self.room(rest.len() - taken).copy_from_slice(&rest[taken..]);
                    return Ok((Step::Needs(size), rest.len()));
                }
                Verdict::Passed(size) => taken += size,
                Verdict::Block(size, held) => {
                    let bytes = taken..taken + size;
                    return Ok((Step::Block(Checked { place: Place::Over, bytes, held }), taken + size));
                }
                Verdict::Done => return Ok((Step::Done, taken)),
            }
        }
    }
}

impl Judge {
    /// What stands at the front of `bytes`, which follow those that were judged. Once a fault, always that fault.
    fn next(&mut self, bytes: &[u8]) -> Result<Verdict, Fault> {
        let next = match &self.stage {
            Stage::Invalid(fault) => return Err(*fault),
            Stage::Done(..) => return Ok(Verdict::Done),
            Stage::Header => read_header(bytes, self.expected),
            Stage::Body(body) => body.next(bytes, self.offset),
        };
        let verdict = next.and_then(|next| self.take(next, bytes));
        if let Err(fault) = verdict {
            self.stage = Stage::Invalid(fault);
        }
        verdict
    }

    fn take(&mut self, next: Next, bytes: &[u8]) -> Result<Verdict, Fault> {
        let (size, verdict) = match next {
            Next::Needs(size) => (0, Verdict::Needs(size)),
            Next::Header(body, size) => {
                self.stage = Stage::Body(*body);
                (size, Verdict::Passed(size))
            }
            Next::Footer(footer) => {
                if let Stage::Body(body) = std::mem::replace(&mut self.stage, Stage::Header) {
                    self.stage = Stage::Done(body, footer);
                }
                (FOOTER_SIZE, Verdict::Passed(FOOTER_SIZE))
            }
            Next::Block(size) => (size, Verdict::Block(size, self.check(&bytes[..size])?)),
        };
        self.offset += size as u64;
        Ok(verdict)
    }

    fn check(&mut self, block: &[u8]) -> Result<Held, Fault> {
        let Stage::Body(body) = &mut self.stage else { unreachable!("blocks follow the header") };
        let held = Block::check(block, body.identity_crc, self.offset)?;
        if held.sessions > 0 && !body.header.has_sessions {
            let what = "client sessions in a file of a version that has none";
            return Err(Fault::Damaged { offset: self.offset, what });
        }
        body.crc.update(block);
        body.blocks += 1;
        body.entries += u64::from(held.entries);
        body.data_bytes += held.data_bytes;
        Ok(held)
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
