//! Replication as pure state: no sockets, files, clocks, threads or randomness except as arguments.
//!
//! **A session is a connection.** The leader keeps one connection to every follower. On it:
//!
//! 1. HELLO, HELLO_REPLY: versions, cluster, identities, terms. A mismatch is refused in words.
//! 2. OPEN: the leader says its term, what it holds and its term history.
//! 3. OPEN_REPLY: the follower has made the term durable, dropped any older session, found the *match LSN*
//!    (the last LSN on which the two histories agree), cut its own log behind it, durably, and says so.
//! 4. APPEND_ENTRIES from match + 1 without gaps; ACKs for what is on the follower's disk.
//!
//! TCP keeps order, so what other designs check on every append is checked once, in step 3. A session is
//! dead as soon as either side's term moves on or a newer one exists; its frames change nothing then.
//!
//! What lives where: [`history`] finds the match LSN, [`progress`] keeps what is known of one follower and
//! who is in sync, [`commit`] says what is committed, [`link`] when to dial again, [`promotion`] who may
//! lead after an operator asked, [`election`] who leads where no operator is asked, [`members`] who votes then,
//! [`divergence`] whose state is wrong where states differ.
//!
//! Deliberately absent: membership changes, snapshots for followers that are behind the log.

pub mod commit;
pub mod divergence;
pub mod election;
pub mod history;
pub mod link;
pub mod members;
pub mod progress;
pub mod promotion;
