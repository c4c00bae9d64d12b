//! Any body under any type: decoding ends, and what it accepts survives being said again.

use kvstore::wire::client::{Reply, Request};
use kvstore::wire::peer::{
    Ack, AppendEntries, Fence, FenceReply, Form, FormReply, HandOver, Hello, HelloError, Open, OpenReply,
    Refuse, SnapshotAck, SnapshotChunk, SnapshotOffer, Vote, VoteReply,
};
use kvstore::wire::{DecodeError, MessageType};

/// Decodes `body` as a message of the type and, if it is one, encodes it again: the frame. Exhaustive, so that a new
/// type cannot be left out.
pub fn recoded(message_type: MessageType, body: &[u8]) -> Result<Vec<u8>, DecodeError> {
    use MessageType as Type;
    let mut out = Vec::new();
    match message_type {
        Type::Put
        | Type::Get
        | Type::Delete
        | Type::Ping
        | Type::Status
        | Type::Promote
        | Type::Follow
        | Type::Transfer
        | Type::ChangeMembers
        | Type::Inspect
        | Type::Snapshot
        | Type::Backup
        | Type::OpenSession => {
            let request = Request::decode(message_type, body)?.expect("the type is a request's");
            // Whatever it says about sizes, it says so without a panic.
            let _problem = request.size_problem().map(|problem| problem.to_string());
            request.encode(&mut out);
        }
        Type::Reply => Reply::decode(body)?.encode(&mut out),
        Type::Hello | Type::HelloReply => match Hello::decode(body) {
            Ok(hello) => hello.encode(message_type == Type::HelloReply, &mut out),
            Err(HelloError::Malformed(error)) => return Err(error),
            // Refused by its first four bytes: nothing else of it may be looked at.
            Err(HelloError::Version { .. }) => {
                return Err(DecodeError {
                    field: "version",
                    at: 0,
                    problem: kvstore::wire::DecodeProblem::Invalid(0),
                });
            }
        },
        Type::Refuse => Refuse::decode(body)?.encode(&mut out),
        Type::Open => Open::decode(body)?.encode(&mut out),
        Type::OpenReply => OpenReply::decode(body)?.encode(&mut out),
        Type::Fence => Fence::decode(body)?.encode(&mut out),
        Type::FenceReply => FenceReply::decode(body)?.encode(&mut out),
        Type::AppendEntries => {
            let mut record_bytes = 0;
            let entries = AppendEntries::decode(body, |_, bytes| {
                record_bytes += bytes.len();
                Ok(())
            })?;
            assert_eq!(record_bytes, entries.records.len(), "every record was walked");
            entries.encode(&mut out);
        }
        Type::SnapshotOffer => SnapshotOffer::decode(body)?.encode(&mut out),
        Type::SnapshotChunk => SnapshotChunk::decode(body)?.encode(&mut out),
        Type::SnapshotAck => SnapshotAck::decode(body)?.encode(&mut out),
        Type::Vote => Vote::decode(body)?.encode(&mut out),
        Type::VoteReply => VoteReply::decode(body)?.encode(&mut out),
        Type::Form => Form::decode(body)?.encode(&mut out),
        Type::FormReply => FormReply::decode(body)?.encode(&mut out),
        Type::HandOver => HandOver::decode(body)?.encode(&mut out),
        Type::AppendEntriesAck => Ack::decode(body)?.encode(&mut out),
    }
    Ok(out)
}

/// The check of one input: the first byte is the type, the rest a body.
pub fn check_message(input: &[u8]) {
    let Some((type_byte, body)) = input.split_first() else { return };
    let Some(message_type) = MessageType::from_u8(*type_byte) else { return };
    match recoded(message_type, body) {
        Err(error) => assert!(error.at <= body.len(), "{error} is behind the body's end"),
        Ok(frame) => {
            assert_eq!(frame[4], *type_byte);
            let again = recoded(message_type, &frame[5..]).expect("what was encoded can be decoded");
            assert_eq!(again, frame, "the second time says what the first one did");
        }
    }
}
