//! etcd's gRPC, as far as KV.Put and KV.Range need it: HTTP/2 frames with prior knowledge, header blocks
//! without compression, one stream per request.
//!
//! etcd's JSON gateway would be simpler and would measure a proxy inside etcd that nobody uses for speed;
//! its own `benchmark` tool is rarely packaged, and would bring another load generator with another idea of
//! latency. What is left out: header blocks of the server are not decoded (a reply with a message is a
//! success, one that ends without is an error), and the server's windows are not accounted for; the flags
//! bound what is under way to half of the first window instead.

use super::{Answers, Found, Operation};
use crate::template::{Template, key, value};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_SIZE: usize = 9;
/// Bytes of one frame that a server may send to us; we never ask for more.
const FRAME_SIZE_MAX: usize = 16_384;
const WINDOW_FIRST: u32 = 65_535;
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Bytes received after which the connection's window is raised again.
const WINDOW_STEP: u32 = 1 << 30;

mod frame_type {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
}

/// One connection. Streams are answered in any order.
#[derive(Debug)]
pub struct Etcd {
    put: StreamTemplate,
    get: StreamTemplate,
    stream_next: u32,
    /// Streams that had a message and not yet their end: as many as the pipeline is deep.
    with_message: Vec<u32>,
    received_since_update: u32,
}

/// HEADERS and DATA of a request; both carry the stream's number.
#[derive(Debug)]
struct StreamTemplate {
    request: Template,
    data_at: usize,
}

impl StreamTemplate {
    fn new(path: &str, message: &[u8]) -> StreamTemplate {
        let headers = header_block(path);
        let mut bytes = Vec::new();
        put_frame_header(&mut bytes, headers.len(), frame_type::HEADERS, flag::END_HEADERS, 0);
        bytes.extend_from_slice(&headers);
        let data_at = bytes.len();
        put_frame_header(&mut bytes, 5 + message.len(), frame_type::DATA, flag::END_STREAM, 0);
        bytes.push(0);
        bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
        bytes.extend_from_slice(message);
        StreamTemplate { request: Template::new(bytes), data_at }
    }

    fn append(&self, out: &mut Vec<u8>, key_index: u64, stream: u32) {
        let start = self.request.append(out, key_index);
        for frame_at in [start, start + self.data_at] {
            out[frame_at + 5..frame_at + 9].copy_from_slice(&stream.to_be_bytes());
        }
    }
}

impl Etcd {
    pub fn new(value_size: usize) -> Etcd {
        let mut put = protobuf_bytes(1, &key(0));
        put.extend_from_slice(&protobuf_bytes(2, &value(value_size)));
        Etcd {
            put: StreamTemplate::new("/etcdserverpb.KV/Put", &put),
            get: StreamTemplate::new("/etcdserverpb.KV/Range", &protobuf_bytes(1, &key(0))),
            stream_next: 1,
            with_message: Vec::with_capacity(64),
            received_since_update: 0,
        }
    }

    pub fn greet(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFACE);
        put_frame_header(out, 0, frame_type::SETTINGS, 0, 0);
        put_window_update(out, WINDOW_MAX - WINDOW_FIRST);
    }

    pub fn request(&mut self, out: &mut Vec<u8>, operation: Operation, key_index: u64) -> u32 {
        let stream = self.stream_next;
        assert!(stream < WINDOW_MAX - 2, "a connection has 2^30 streams; use more connections");
        self.stream_next += 2;
        match operation {
            Operation::Put => self.put.append(out, key_index, stream),
            Operation::Get => self.get.append(out, key_index, stream),
        }
        stream
    }

    pub fn find(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Found, String> {
        let Some(header) = input.first_chunk::<FRAME_HEADER_SIZE>() else { return Ok(Found::NeedMore) };
        let [len_high, len_mid, len_low, kind, flags, stream @ ..] = *header;
        let payload_size = u32::from_be_bytes([0, len_high, len_mid, len_low]) as usize;
        if payload_size > FRAME_SIZE_MAX {
            return Err(format!("not HTTP/2: \"{}\"", header.escape_ascii()));
        }
        let size = FRAME_HEADER_SIZE + payload_size;
        let Some(payload) = input.get(FRAME_HEADER_SIZE..size) else { return Ok(Found::NeedMore) };
        let stream = u32::from_be_bytes(stream) & WINDOW_MAX;
        match kind {
            frame_type::DATA => {
                self.on_data(out, payload_size);
                self.with_message.push(stream);
            }
            frame_type::SETTINGS if flags & flag::ACK == 0 => {
                put_frame_header(out, 0, frame_type::SETTINGS, flag::ACK, 0);
            }
            frame_type::PING if flags & flag::ACK == 0 => {
                put_frame_header(out, payload.len(), frame_type::PING, flag::ACK, 0);
                out.extend_from_slice(payload);
            }
            frame_type::GOAWAY => return Err("the server sent GOAWAY".to_owned()),
            _ => {}
        }
        let ended = matches!(kind, frame_type::DATA | frame_type::HEADERS) && flags & flag::END_STREAM != 0;
        if !ended && kind != frame_type::RST_STREAM {
            return Ok(Found::Skip(size));
        }
        let error = (!self.take_message(stream)).then_some("GrpcError".into());
        Ok(Found::Reply { size, answers: Answers::Number(stream), error })
    }

    fn on_data(&mut self, out: &mut Vec<u8>, size: usize) {
        self.received_since_update += size as u32;
        if self.received_since_update >= WINDOW_STEP {
            put_window_update(out, std::mem::take(&mut self.received_since_update));
        }
    }

    fn take_message(&mut self, stream: u32) -> bool {
        let before = self.with_message.len();
        self.with_message.retain(|other| *other != stream);
        self.with_message.len() < before
    }
}

fn put_frame_header(out: &mut Vec<u8>, size: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(size as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

fn put_window_update(out: &mut Vec<u8>, increment: u32) {
    put_frame_header(out, 4, frame_type::WINDOW_UPDATE, 0, 0);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// A header block of literals that are never indexed, so that no state is shared with the server.
fn header_block(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in headers {
        block.push(0x10);
        for text in [name, value] {
            assert!(text.len() < 127, "a longer text needs a longer length");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn protobuf_bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_frame_header(&mut bytes, payload.len(), kind, flags, stream);
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_stream_that_ends_without_a_message_is_an_error() {
        let mut etcd = Etcd::new(64);
        let mut out = Vec::new();
        let headers = frame(frame_type::HEADERS, flag::END_HEADERS, 1, b"h");
        assert_eq!(etcd.find(&headers, &mut out), Ok(Found::Skip(headers.len())));
        let data = frame(frame_type::DATA, 0, 1, b"\0\0\0\0\0");
        assert_eq!(etcd.find(&data, &mut out), Ok(Found::Skip(data.len())));
        let end = |stream| frame(frame_type::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, b"t");
        let reply =
            |stream, error| Found::Reply { size: end(stream).len(), answers: Answers::Number(stream), error };
        assert_eq!(etcd.find(&end(3), &mut out), Ok(reply(3, Some("GrpcError".into()))));
        assert_eq!(etcd.find(&end(1), &mut out), Ok(reply(1, None)));
        assert!(out.is_empty());
    }

    #[test]
    fn pings_and_settings_are_answered() {
        let mut etcd = Etcd::new(64);
        let mut out = Vec::new();
        etcd.find(&frame(frame_type::PING, 0, 0, b"12345678"), &mut out).unwrap();
        assert_eq!(out, frame(frame_type::PING, flag::ACK, 0, b"12345678"));
        out.clear();
        etcd.find(&frame(frame_type::SETTINGS, 0, 0, b"123456"), &mut out).unwrap();
        assert_eq!(out, frame(frame_type::SETTINGS, flag::ACK, 0, b""));
    }

    #[test]
    fn lengths_of_a_protobuf_field_are_varints() {
        assert_eq!(protobuf_bytes(2, &[7; 300])[..3], [0x12, 0xac, 0x02]);
    }
}
