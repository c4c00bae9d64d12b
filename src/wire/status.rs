//! How a request may end: the first byte of every reply.

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The key is (GET) or was (DELETE) absent.
    NotFound = 1,
    /// The request makes no sense; payload says why.
    BadRequest = 2,
    /// A key or value is beyond its limit; payload says which. Nothing was written.
    TooLarge = 3,
    /// A condition did not hold. Nothing was written.
    ConditionFailed = 4,
    /// This node does not lead. Payload: the leader's address, or empty. Nothing was written.
    NotLeader = 5,
    /// Not enough replicas to accept it. Nothing was written.
    NotEnoughReplicas = 6,
    /// A memory budget is used up; try again. Nothing was written.
    Busy = 7,
    /// No room on disk. Nothing was written.
    DiskFull = 8,
    /// The write was begun and its outcome is not known here.
    OutcomeUnknown = 9,
    /// An operator's command was refused; payload says why and what to do.
    Refused = 10,
    /// The node is about to end. Nothing was written.
    ShuttingDown = 11,
    /// The node's state is not complete yet; payload says how far it is. Nothing was written.
    Loading = 12,
    /// The node held more than it holds now and fetches the rest from its leader: it answers no reads. The payload says
    /// how far it is.
    Repairing = 13,
    /// The node's state is known to be wrong, so it answers nothing from it and takes no writes. The payload says since
    /// when, and what to do. Nothing was written.
    Diverged = 14,
    /// The session of this numbered write is not known, or not any more. Nothing was written by this request.
    SessionExpired = 15,
    /// This number was executed so long ago that its answer is forgotten. Nothing was written by this request.
    NumberTooOld = 16,
    /// A number before this one has not come. Nothing was written.
    NumberSkips = 17,
}

impl Status {
    /// Every status.
    pub const ALL: [Status; 18] = [
        Status::Ok,
        Status::NotFound,
        Status::BadRequest,
        Status::TooLarge,
        Status::ConditionFailed,
        Status::NotLeader,
        Status::NotEnoughReplicas,
        Status::Busy,
        Status::DiskFull,
        Status::OutcomeUnknown,
        Status::Refused,
        Status::ShuttingDown,
        Status::Loading,
        Status::Repairing,
        Status::Diverged,
        Status::SessionExpired,
        Status::NumberTooOld,
        Status::NumberSkips,
    ];

    pub(super) fn from_u8(raw: u8) -> Option<Status> {
        Status::ALL.get(usize::from(raw)).copied()
    }
}
