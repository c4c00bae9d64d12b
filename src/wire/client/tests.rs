//! Requests on their way over the wire and back.

use super::*;
use crate::wire::FrameBuffer;

fn through_the_wire(request: Request<'_>) {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    let mut buffer = FrameBuffer::new();
    buffer.space()[..bytes.len()].copy_from_slice(&bytes);
    buffer.filled(bytes.len());
    let frame = buffer.next_frame().unwrap().unwrap();
    let message_type = MessageType::from_u8(frame.type_byte).unwrap();
    assert_eq!(Request::decode(message_type, frame.body), Ok(Some(request)));
}

#[test]
fn requests_survive_the_round_trip() {
    through_the_wire(Request::Put { key: b"k", value: b"v" });
    through_the_wire(Request::PutExplained { key: b"k", value: b"v" });
    through_the_wire(Request::Inspect(Inspect::Receipt(Lsn(7))));
    through_the_wire(Request::Inspect(Inspect::Tail(999_000)));
    through_the_wire(Request::Get { key: b"" });
    for (_, reads) in GET_READS {
        through_the_wire(Request::GetWith { key: b"k", reads });
    }
    through_the_wire(Request::Delete { key: &[0xff; 100] });
    through_the_wire(Request::Ping);
    through_the_wire(Request::Status);
    through_the_wire(Request::Promote { force: true });
    through_the_wire(Request::Snapshot { wait: true });
    through_the_wire(Request::Backup(BackupStep::BeginNewest));
    through_the_wire(Request::OpenSession);
    let session = SessionId { lsn: Lsn(7), nonce: 8 };
    let put = WriteOp::Put { key: b"k", value: b"v" };
    through_the_wire(Request::Numbered { session, number: 9, write: put });
    through_the_wire(Request::Numbered { session, number: 9, write: WriteOp::Delete { key: b"k" } });
    through_the_wire(Request::Follow { address: "127.0.0.1:9001", discard: false });
}

#[test]
fn options_of_a_later_version_are_skipped() {
    let mut body = Vec::new();
    body.put_bytes32(b"k");
    body.put_trailer(0x8000, |fields| fields.put_u64(1));
    assert_eq!(Request::decode(MessageType::Get, &body), Ok(Some(Request::Get { key: b"k" })));
}

#[test]
fn a_write_that_says_it_is_numbered_and_not_how_is_broken_and_not_executed_unnumbered() {
    let mut body = Vec::new();
    body.put_bytes32(b"k");
    body.put_trailer(NUMBERED, |fields| fields.put_u64(1));
    let error = Request::decode(MessageType::Delete, &body).unwrap_err();
    assert_eq!((error.field, error.problem), ("session nonce", DecodeProblem::Truncated));
}

#[test]
fn sizes_beyond_the_limits_are_an_outcome_and_not_a_broken_frame() {
    let key = vec![0; KEY_SIZE_MAX + 1];
    let request = Request::Get { key: &key };
    through_the_wire(Request::Get { key: b"" });
    assert_eq!(request.size_problem().unwrap().what, "key");
    assert_eq!(Request::Get { key: b"" }.size_problem().unwrap().size, 0);
    assert_eq!(Request::Put { key: &key[1..], value: b"" }.size_problem(), None);
    let value = vec![0; VALUE_SIZE_MAX + 1];
    assert_eq!(Request::Put { key: b"k", value: &value }.size_problem().unwrap().what, "value");
}
