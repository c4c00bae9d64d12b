//! Bytes to types and back: pure, without sockets, clocks or files.
//!
//! A frame is `[len u32][type u8][body]`, all integers big-endian and unsigned, `len` = 1 + body length.
//! A length is checked against [`crate::limits::FRAME_SIZE_MAX`] before anything is allocated for it, so
//! the first byte of a frame is always 0x00.
//!
//! Room to grow: what may be added later stands in a *trailer*, `[length u16][flags u16][fields]`, where
//! `length` counts the flags and the fields. A receiver reads the fields it knows and skips the rest; an
//! absent trailer means that every field has its default. The options of a client's request are a trailer.
//!
//! What is deliberately absent: no compression, no checksum per frame (TCP has one, and every batch of
//! records carries the log's chain checksum), no text protocol.

pub mod client;
mod client_session;
mod codec;
mod frame;
mod members;
mod message_type;
mod numbered;
pub mod peer;
mod record;
mod status;

pub use client_session::{Answer, ClientSession};
pub use codec::{DecodeError, DecodeProblem, Reader, Writer};
pub use frame::{Frame, FrameBuffer, FrameError, begin_frame, end_frame};
pub use members::{MEMBERS_SIZE_MAX, put_member, put_members, read_member, read_members};
pub use message_type::{Authority, MESSAGE_TYPES, MessageType};
pub use record::{
    CMD_TYPES_BASIC, CMD_TYPES_KNOWN, CMD_TYPES_MEMBERS, CMD_TYPES_SESSIONS, Effect, Record, RecordError,
    record_size,
};
