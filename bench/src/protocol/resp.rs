//! RESP, as redis and valkey speak it.
//!
//! With `--wait N` a write is done when a `WAIT N 0` behind it says that N replicas have it. The server reads
//! nothing behind a WAIT before it is answered, so a pipeline waits once per SET: that is what it costs to
//! know of each write that it is replicated before the next one is begun. With `--wait-batch` one WAIT stands
//! behind all SETs of a turn, which is the most favourable way to use it.

use super::{Answers, Found, Operation};
use crate::template::{Template, key, value};

#[derive(Debug)]
pub struct Resp {
    set: Template,
    get: Template,
    wait_command: Vec<u8>,
    replicas_wanted: u32,
    wait_batch: bool,
    /// SETs appended since the last WAIT.
    sets_unsealed: u32,
    /// Replies to SETs that came since the last reply to a WAIT.
    sets_replied: u32,
    /// The first error among them.
    set_error: Option<super::ErrorName>,
}

impl Resp {
    pub fn new(value_size: usize, replicas_wanted: u32, wait_batch: bool) -> Resp {
        Resp {
            set: Template::new(command(&[b"SET", &key(0), &value(value_size)])),
            get: Template::new(command(&[b"GET", &key(0)])),
            wait_command: command(&[b"WAIT", replicas_wanted.to_string().as_bytes(), b"0"]),
            replicas_wanted,
            wait_batch,
            sets_unsealed: 0,
            sets_replied: 0,
            set_error: None,
        }
    }

    pub fn request(&mut self, out: &mut Vec<u8>, operation: Operation, key_index: u64) {
        match operation {
            Operation::Get => {
                self.get.append(out, key_index);
            }
            Operation::Put => {
                self.set.append(out, key_index);
                self.sets_unsealed += u32::from(self.replicas_wanted > 0);
                if !self.wait_batch {
                    self.end_turn(out);
                }
            }
        }
    }

    pub fn end_turn(&mut self, out: &mut Vec<u8>) {
        if self.sets_unsealed > 0 {
            out.extend_from_slice(&self.wait_command);
            self.sets_unsealed = 0;
        }
    }

    pub fn find(&mut self, input: &[u8]) -> Result<Found, String> {
        let Some(line_size) = input.iter().position(|byte| *byte == b'\n').map(|at| at + 1) else {
            return Ok(Found::NeedMore);
        };
        let line = input[..line_size].strip_suffix(b"\r\n").ok_or("a line without a carriage return")?;
        let Some((kind, text)) = line.split_first() else { return Err("an empty line".to_owned()) };
        match kind {
            b'+' => Ok(self.on_set(line_size, None)),
            b'-' => {
                let name = text.split(|byte| *byte == b' ').next().unwrap_or_default();
                Ok(self.on_set(line_size, Some(name.escape_ascii().to_string().into())))
            }
            b':' => Ok(self.on_wait(line_size, number(text)?)),
            b'$' => Ok(match usize::try_from(number(text)?) {
                Err(_) => one(line_size, Some("NotFound".into())),
                Ok(size) if input.len() < line_size + size + 2 => Found::NeedMore,
                Ok(size) => one(line_size + size + 2, None),
            }),
            _ => Err(format!("not a reply in RESP: \"{}\"", line.escape_ascii())),
        }
    }

    fn on_set(&mut self, size: usize, error: Option<super::ErrorName>) -> Found {
        if self.replicas_wanted == 0 {
            return one(size, error);
        }
        self.sets_replied += 1;
        self.set_error = self.set_error.take().or(error);
        Found::Skip(size)
    }

    fn on_wait(&mut self, size: usize, replicas: i64) -> Found {
        let short = (replicas < i64::from(self.replicas_wanted)).then(|| "TooFewReplicas".into());
        let answers = Answers::Oldest(std::mem::take(&mut self.sets_replied));
        Found::Reply { size, answers, error: self.set_error.take().or(short) }
    }
}

fn one(size: usize, error: Option<super::ErrorName>) -> Found {
    Found::Reply { size, answers: Answers::Oldest(1), error }
}

fn number(text: &[u8]) -> Result<i64, String> {
    let parsed = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("not a number: \"{}\"", text.escape_ascii()))
}

fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_done_when_their_wait_is() {
        let mut resp = Resp::new(3, 1, true);
        let mut out = Vec::new();
        resp.request(&mut out, Operation::Put, 1);
        resp.request(&mut out, Operation::Put, 2);
        resp.end_turn(&mut out);
        resp.end_turn(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("WAIT").count(), 1);
        assert!(text.ends_with("*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\n0\r\n"));
        assert_eq!(resp.find(b"+OK\r\n+OK\r\n:2\r\n"), Ok(Found::Skip(5)));
        assert_eq!(resp.find(b"+OK\r\n:2\r\n"), Ok(Found::Skip(5)));
        assert_eq!(
            resp.find(b":2\r\n"),
            Ok(Found::Reply { size: 4, answers: Answers::Oldest(2), error: None })
        );
    }

    #[test]
    fn by_default_a_wait_stands_behind_each_set() {
        let mut resp = Resp::new(3, 1, false);
        let mut out = Vec::new();
        resp.request(&mut out, Operation::Put, 1);
        resp.request(&mut out, Operation::Put, 2);
        resp.end_turn(&mut out);
        assert_eq!(String::from_utf8(out).unwrap().matches("WAIT").count(), 2);
        resp.find(b"+OK\r\n").unwrap();
        assert_eq!(resp.find(b":1\r\n"), Ok(one(4, None)));
    }

    #[test]
    fn too_few_replicas_and_refused_sets_are_errors() {
        let mut resp = Resp::new(3, 2, false);
        resp.find(b"+OK\r\n").unwrap();
        let found = resp.find(b":1\r\n").unwrap();
        assert!(matches!(found, Found::Reply { error: Some(name), .. } if name == "TooFewReplicas"));
        resp.find(b"-OOM command not allowed\r\n").unwrap();
        let found = resp.find(b":2\r\n").unwrap();
        assert!(matches!(found, Found::Reply { error: Some(name), .. } if name == "OOM"));
    }

    #[test]
    fn a_bulk_reply_is_found_whole_and_a_nil_is_a_missing_key() {
        let mut resp = Resp::new(3, 0, false);
        for size in 0..8 {
            assert_eq!(resp.find(&b"$2\r\nab\r\n"[..size]), Ok(Found::NeedMore), "{size}");
        }
        assert_eq!(resp.find(b"$2\r\nab\r\n"), Ok(one(8, None)));
        assert_eq!(resp.find(b"$-1\r\n"), Ok(one(5, Some("NotFound".into()))));
    }
}
