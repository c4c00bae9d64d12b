//! The table of message types: number, name, and who may send it.

/// Who may send a message. Today nothing authenticates, so a connection proves a peer by its hello, and
/// every client is its own operator; the table is where that will change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Anybody, as the first frame or later.
    Client,
    /// A connection whose first frame was a hello.
    Peer,
    /// Whoever runs the cluster.
    Operator,
}

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $authority:ident;)*) => {
        /// The type byte of a frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum MessageType { $($(#[$doc])* $name = $number,)* }

        /// Every message type.
        pub const MESSAGE_TYPES: &[MessageType] = &[$(MessageType::$name),*];

        impl MessageType {
            /// The type of a received byte.
            pub fn from_u8(raw: u8) -> Option<MessageType> {
                match raw { $($number => Some(MessageType::$name),)* _ => None }
            }

            /// Who may send it.
            pub fn authority(self) -> Authority {
                match self { $(MessageType::$name => Authority::$authority,)* }
            }
        }
    };
}

message_types! {
    /// Request: set a key.
    Put = 0x01, Client;
    /// Request: read a key.
    Get = 0x02, Client;
    /// Request: remove a key.
    Delete = 0x03, Client;
    /// Leader to follower: records, or none (the heartbeat).
    AppendEntries = 0x04, Peer;
    /// Follower to leader: every record up to this LSN equals yours and is on my disk.
    AppendEntriesAck = 0x05, Peer;
    /// Request: are you there?
    Ping = 0x06, Client;
    /// Request: the node's state as a JSON document.
    Status = 0x07, Client;
    /// Request: fence, compare, then lead.
    Promote = 0x08, Operator;
    /// Request: stop leading and follow another node.
    Follow = 0x09, Operator;
    /// Request: where time and system calls went.
    Inspect = 0x0a, Client;
    /// Request: make a snapshot.
    Snapshot = 0x0b, Operator;
    /// Request: make a backup, or send the next part of it.
    Backup = 0x0c, Operator;
    /// Request: begin a session in which writes are numbered.
    OpenSession = 0x0d, Client;
    /// Request: move leadership to a follower.
    Transfer = 0x0e, Operator;
    /// Request: add a member to the cluster, or remove one.
    ChangeMembers = 0x0f, Operator;
    /// The dialling node introduces itself.
    Hello = 0x10, Peer;
    /// The dialled node introduces itself.
    HelloReply = 0x11, Peer;
    /// Either side refuses, in words, and closes.
    Refuse = 0x12, Peer;
    /// The leader opens a session.
    Open = 0x13, Peer;
    /// The follower answers with the match LSN.
    OpenReply = 0x14, Peer;
    /// A node about to lead asks for a position, and fences.
    Fence = 0x15, Peer;
    /// The answer to that.
    FenceReply = 0x16, Peer;
    /// The leader offers a snapshot in the place of the log that it does not have any more.
    SnapshotOffer = 0x17, Peer;
    /// A part of it.
    SnapshotChunk = 0x18, Peer;
    /// The follower says how much of it it has, and that it is installed.
    SnapshotAck = 0x19, Peer;
    /// A candidate asks for a vote.
    Vote = 0x1a, Peer;
    /// The answer to that.
    VoteReply = 0x1b, Peer;
    /// The founder of a cluster says who is in it.
    Form = 0x1c, Peer;
    /// The answer to that, once it is durable.
    FormReply = 0x1d, Peer;
    /// The leader asks its follower to campaign now.
    HandOver = 0x1e, Peer;
    /// The answer to any request; requests are answered in order.
    Reply = 0x20, Client;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_number_and_one_authority() {
        for (index, message_type) in MESSAGE_TYPES.iter().enumerate() {
            assert_eq!(MessageType::from_u8(*message_type as u8), Some(*message_type));
            assert!(MESSAGE_TYPES[..index].iter().all(|other| *other as u8 != *message_type as u8));
        }
        let of = |authority| MESSAGE_TYPES.iter().filter(|t| t.authority() == authority).count();
        assert_eq!(
            of(Authority::Client) + of(Authority::Peer) + of(Authority::Operator),
            MESSAGE_TYPES.len()
        );
        assert_eq!(MessageType::Promote.authority(), Authority::Operator);
        assert_eq!(MessageType::Follow.authority(), Authority::Operator);
        assert_eq!(MessageType::Snapshot.authority(), Authority::Operator);
        assert_eq!(MessageType::Backup.authority(), Authority::Operator);
    }

    #[test]
    fn the_first_five_numbers_are_the_published_ones() {
        let first: Vec<u8> = MESSAGE_TYPES[..5].iter().map(|t| *t as u8).collect();
        assert_eq!(first, [1, 2, 3, 4, 5]);
    }
}
