//! What is remembered of a client's session, as bytes: in snapshots, and as what the state hash is taken over.
//!
//! ```text
//! [LSN u64][nonce u64]        the session's id
//! [last number u64]           the highest one executed; 0: none yet
//! [count u8][answer u64]...   the answers to the last numbers, oldest first: the LSN; bit 63: NOT_FOUND
//! ```
//!
//! The answers are those of consecutive numbers up to the last one, [`CLIENT_SESSION_WINDOW`] at most.

use std::collections::VecDeque;

use super::codec::{DecodeError, DecodeProblem, Reader, Writer};
use crate::ids::{Lsn, SessionId};
use crate::limits::CLIENT_SESSION_WINDOW;

/// Marks the LSN of the removal of a key that was not there. No log reaches 2^63 records.
const NOT_FOUND: u64 = 1 << 63;

/// The answer to a numbered write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where it was executed.
    pub lsn: Lsn,
    /// Whether it found what it was about: `false` for the removal of a key that was not there.
    pub found: bool,
}

/// A client's session.
///
/// Invariants: at most as many answers as the last number; their LSNs rise, all above that of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSession {
    id: SessionId,
    last_number: u64,
    /// As stored: see the top of the module.
    answers: VecDeque<u64>,
}

impl Answer {
    fn as_u64(self) -> u64 {
        self.lsn.0 | if self.found { 0 } else { NOT_FOUND }
    }

    fn from_u64(raw: u64) -> Answer {
        Answer { lsn: Lsn(raw & !NOT_FOUND), found: raw & NOT_FOUND == 0 }
    }
}

impl ClientSession {
    /// One that was just opened.
    pub fn new(id: SessionId) -> ClientSession {
        ClientSession { id, last_number: 0, answers: VecDeque::new() }
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The highest number executed; 0: none yet.
    pub fn last_number(&self) -> u64 {
        self.last_number
    }

    /// Where it was used last: what tells whose turn it is to be forgotten.
    pub fn last_lsn(&self) -> Lsn {
        self.answers.back().map_or(self.id.lsn, |raw| Answer::from_u64(*raw).lsn)
    }

    /// The answer to a number, as far as it is remembered.
    pub fn answer(&self, number: u64) -> Option<Answer> {
        let back = self.last_number.checked_sub(number)?;
        let index = (self.answers.len() as u64).checked_sub(back + 1)?;
        Some(Answer::from_u64(self.answers[index as usize]))
    }

    /// A number was executed. A leader appends none but the next one. Should a log hold another all the same, every
    /// node makes the same of it: the first answer stands, and behind a gap nothing older is remembered.
    pub fn executed(&mut self, number: u64, answer: Answer) {
        if number <= self.last_number || answer.lsn <= self.last_lsn() {
            return;
        }
        if number != self.last_number + 1 {
            self.answers.clear();
        } else if self.answers.len() == CLIENT_SESSION_WINDOW {
            self.answers.pop_front();
        }
        self.last_number = number;
        self.answers.push_back(answer.as_u64());
    }

    /// How many answers are remembered.
    pub fn answers(&self) -> usize {
        self.answers.len()
    }

    /// Flips the bit that tells whether an answer found what it was about, counted from the oldest, as a fault of the
    /// memory would: for tests. False: there is no such answer.
    pub fn flip_answer(&mut self, index: usize) -> bool {
        let Some(answer) = self.answers.get_mut(index) else { return false };
        *answer ^= NOT_FOUND;
        true
    }

    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.id.lsn.0);
        out.put_u64(self.id.nonce);
        out.put_u64(self.last_number);
        out.put_u8(self.answers.len() as u8);
        self.answers.iter().for_each(|answer| out.put_u64(*answer));
    }

    /// Reads one; the reader then stands behind it.
    pub fn decode(reader: &mut Reader<'_>) -> Result<ClientSession, DecodeError> {
        let id = SessionId { lsn: Lsn(reader.u64("session lsn")?), nonce: reader.u64("session nonce")? };
        let last_number = reader.u64("session last number")?;
        let count_error = reader.error("session answers", DecodeProblem::Truncated);
        let count = reader.u8("session answers")?;
        if usize::from(count) > CLIENT_SESSION_WINDOW || u64::from(count) > last_number {
            return Err(DecodeError { problem: DecodeProblem::Invalid(count.into()), ..count_error });
        }
        let (mut answers, mut last) = (VecDeque::with_capacity(count.into()), id.lsn);
        for _ in 0..count {
            let error = reader.error("session answer", DecodeProblem::Truncated);
            let raw = reader.u64("session answer")?;
            if Answer::from_u64(raw).lsn <= last {
                return Err(DecodeError { problem: DecodeProblem::Invalid(raw), ..error });
            }
            last = Answer::from_u64(raw).lsn;
            answers.push_back(raw);
        }
        Ok(ClientSession { id, last_number, answers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SessionId = SessionId { lsn: Lsn(10), nonce: 0xabcd };

    fn after(numbers: impl IntoIterator<Item = u64>) -> ClientSession {
        let mut session = ClientSession::new(ID);
        for number in numbers {
            session.executed(number, Answer { lsn: Lsn(100 + number), found: number % 3 != 0 });
        }
        session
    }

    #[test]
    fn the_window_remembers_the_newest_answers_and_no_others() {
        let (last, window) = (100, CLIENT_SESSION_WINDOW as u64);
        let session = after(1..=last);
        for number in 0..=last + 1 {
            let remembered = number > last - window && number <= last;
            let answer = Answer { lsn: Lsn(100 + number), found: number % 3 != 0 };
            assert_eq!(session.answer(number), remembered.then_some(answer), "number {number}");
        }
        assert_eq!((session.last_number(), session.last_lsn()), (last, Lsn(200)));
    }

    #[test]
    fn a_record_at_its_lsn_again_changes_nothing_and_the_first_answer_stands() {
        let mut session = after(1..=5);
        let before = session.clone();
        for number in 1..=5 {
            session.executed(number, Answer { lsn: Lsn(100 + number), found: true });
            session.executed(number, Answer { lsn: Lsn(1_000), found: true });
        }
        assert_eq!(session, before);
        session.executed(9, Answer { lsn: Lsn(300), found: true });
        assert_eq!((session.answer(9).map(|answer| answer.lsn), session.answer(5)), (Some(Lsn(300)), None));
    }

    #[test]
    fn the_layout_is_the_documented_one_and_nothing_else_is_read_as_a_session() {
        let mut bytes = Vec::new();
        after(2..=3).encode(&mut bytes);
        let answers = [102u64.to_be_bytes(), (103 | NOT_FOUND).to_be_bytes()].concat();
        let head = [10u64.to_be_bytes(), 0xabcd_u64.to_be_bytes(), 3u64.to_be_bytes()].concat();
        assert_eq!(bytes, [&head[..], &[2], &answers[..]].concat());
        let decoded = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes);
            let session = ClientSession::decode(&mut reader)?;
            reader.finish().map(|()| session)
        };
        assert_eq!(decoded(&bytes), Ok(after(2..=3)));
        for size in 0..bytes.len() {
            decoded(&bytes[..size]).unwrap_err();
        }
        let with = |at: usize, byte: u8| {
            let mut changed = bytes.clone();
            changed[at] = byte;
            decoded(&changed)
        };
        with(24, 4).expect_err("more answers than numbers");
        with(24, 1).expect_err("bytes behind the last answer");
        with(32, 10).expect_err("an answer at the LSN of the session");
        with(40, 102).expect_err("two answers at one LSN");
    }
}
