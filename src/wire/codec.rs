//! Reading and writing of fixed-width fields.
//!
//! A [`Reader`] knows what it is reading, so that an error names the field; it cannot read beyond its
//! bytes, and [`Reader::finish`] rejects what is left over.

use std::fmt;

/// Why bytes are not the message they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The field that was being read.
    pub field: &'static str,
    /// The offset of the field in the body.
    pub at: usize,
    /// What is wrong with it.
    pub problem: DecodeProblem,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeProblem {
    /// The body ends before the field does.
    Truncated,
    /// Bytes follow where the body should end.
    TrailingBytes,
    /// The value is above the limit.
    TooLarge {
        /// What was announced.
        value: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The value means nothing.
    Invalid(u64),
    /// Text that is not UTF-8.
    NotText,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: ", self.field, self.at)?;
        match self.problem {
            DecodeProblem::Truncated => f.write_str("truncated"),
            DecodeProblem::TrailingBytes => f.write_str("unexpected bytes behind the message"),
            DecodeProblem::TooLarge { value, limit } => write!(f, "{value} is above the limit of {limit}"),
            DecodeProblem::Invalid(value) => write!(f, "{value} has no meaning here"),
            DecodeProblem::NotText => f.write_str("not UTF-8"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Reads fields from the front of a byte slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Offset of the next field.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The error for the field that begins here.
    pub fn error(&self, field: &'static str, problem: DecodeProblem) -> DecodeError {
        DecodeError { field, at: self.at, problem }
    }

    /// The next `size` bytes.
    pub fn bytes(&mut self, field: &'static str, size: usize) -> Result<&'a [u8], DecodeError> {
        if size > self.left() {
            return Err(self.error(field, DecodeProblem::Truncated));
        }
        let taken = &self.bytes[self.at..self.at + size];
        self.at += size;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        Ok(self.bytes(field, N)?.try_into().expect("the slice has N bytes"))
    }

    /// An u8.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(field)?[0])
    }

    /// A big-endian u16.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    /// A big-endian u32.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    /// A big-endian u64.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// Bytes behind a u32 length, at most `limit` of them.
    pub fn bytes32(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let start = self.error(field, DecodeProblem::Truncated);
        let size = self.u32(field)?;
        if size as usize > limit {
            let problem = DecodeProblem::TooLarge { value: size.into(), limit: limit as u64 };
            return Err(DecodeError { problem, ..start });
        }
        self.bytes(field, size as usize)
    }

    /// Bytes behind a u16 length, at most `limit` of them.
    pub fn bytes16(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let start = self.error(field, DecodeProblem::Truncated);
        let size = self.u16(field)?;
        if usize::from(size) > limit {
            let problem = DecodeProblem::TooLarge { value: size.into(), limit: limit as u64 };
            return Err(DecodeError { problem, ..start });
        }
        self.bytes(field, size.into())
    }

    /// Text behind a u16 length, at most `limit` bytes of it.
    pub fn text16(&mut self, field: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        let start = self.error(field, DecodeProblem::NotText);
        std::str::from_utf8(self.bytes16(field, limit)?).map_err(|_| start)
    }

    /// The trailer, if one is there, as its flags and a reader of its fields. What the caller does not
    /// read of the fields is skipped.
    pub fn trailer(&mut self) -> Result<Option<(u16, Reader<'a>)>, DecodeError> {
        if self.left() == 0 {
            return Ok(None);
        }
        let length = self.u16("trailer length")?;
        let mut fields = Reader::new(self.bytes("trailer", length.into())?);
        let flags = fields.u16("trailer flags")?;
        Ok(Some((flags, fields)))
    }

    /// Ends the message: nothing may be left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.left() == 0 { Ok(()) } else { Err(self.error("end", DecodeProblem::TrailingBytes)) }
    }
}

/// Appends fields to a byte vector.
pub trait Writer {
    /// Appends an u8.
    fn put_u8(&mut self, value: u8);
    /// Appends a big-endian u16.
    fn put_u16(&mut self, value: u16);
    /// Appends a big-endian u32.
    fn put_u32(&mut self, value: u32);
    /// Appends a big-endian u64.
    fn put_u64(&mut self, value: u64);
    /// Appends bytes behind their u32 length.
    fn put_bytes32(&mut self, bytes: &[u8]);
    /// Appends bytes behind their u16 length.
    fn put_bytes16(&mut self, bytes: &[u8]);
    /// Appends a trailer: flags, and the fields that `fill` writes.
    fn put_trailer(&mut self, flags: u16, fill: impl FnOnce(&mut Vec<u8>));
}

impl Writer for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_bytes32(&mut self, bytes: &[u8]) {
        self.put_u32(u32::try_from(bytes.len()).expect("fields are bounded by the frame"));
        self.extend_from_slice(bytes);
    }

    fn put_bytes16(&mut self, bytes: &[u8]) {
        self.put_u16(u16::try_from(bytes.len()).expect("short fields are bounded by their limit"));
        self.extend_from_slice(bytes);
    }

    fn put_trailer(&mut self, flags: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.len();
        self.put_u16(0);
        self.put_u16(flags);
        fill(self);
        let length = u16::try_from(self.len() - start - 2).expect("a trailer is small");
        self[start..start + 2].copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailer_of_a_later_version_is_read_as_far_as_it_is_known() {
        let mut body = Vec::new();
        body.put_trailer(1, |fields| {
            fields.put_u64(42);
            fields.put_u64(43);
        });
        let mut reader = Reader::new(&body);
        let (flags, mut fields) = reader.trailer().unwrap().unwrap();
        assert_eq!((flags, fields.u64("known").unwrap()), (1, 42));
        reader.finish().unwrap();
    }

    #[test]
    fn a_length_above_its_limit_is_refused_before_it_is_believed() {
        let error = Reader::new(&[0xff; 4]).bytes32("key", 65_535).unwrap_err();
        assert_eq!(error.problem, DecodeProblem::TooLarge { value: u64::from(u32::MAX), limit: 65_535 });
        assert_eq!(error.at, 0);
    }
}
