//! Electing a leader: Raft's rules (Ongaro, *Consensus: Bridging Theory and Practice*, 2014) as pure functions. No
//! clock, no I/O and no randomness but as arguments; what must be durable is handed out as a value, and sent by
//! whoever made it durable.
//!
//! What lives where: [`ballot`] is what is asked and answered, [`voter`] decides a vote, [`campaign`] counts them,
//! [`timing`] says when to campaign and for how long to refuse, [`quorum_clock`] knows since when a majority has heard
//! this leader (lease, check-quorum), [`reads`] when a read may be answered. What is committed is
//! `replication::commit`'s, where logs part is `replication::history`'s. Every rule is also a known-bad variant
//! (`sabotage`), and `tests/elections/model.rs` fails for each.
//!
//! The node gives them a clock, a record on disk and connections in `node::elect`.
//!
//! # Why this is Raft
//!
//! *Election safety: at most one leader per term.* A leader has the votes of a majority of its list of members,
//! any two majorities share a member (of lists that differ: see below), and a member votes once in a term:
//! [`voter::decide`] refuses whom it has not
//! voted for, the vote is in the same durable record as its term, and it is told only when that is on both copies. A
//! campaign counts ids, not answers, and only answers to what it asked in this term; its own vote is the first,
//! durable like any other. An election raises the high half of a `Term`, so no two elections and no start of a fixed
//! leader share one.
//!
//! *Leader append-only, log matching.* Within a term one node gives out LSNs, each once. Raft checks (index, term) of
//! the record before on every AppendEntries; here a session is a TCP connection, in order and without gaps, and the
//! check is made once when it opens: the two term histories are compared, the match LSN is the last one on which they
//! agree, and the follower cuts behind it, durably, before it takes a record. A session ends when either side's term
//! moves on, so no record of an older leader follows one of a newer. An OPEN that was left in the socket of an older
//! connection is refused where it would cut: it ends before records of its own term that are here. A chain checksum
//! proves the comparison on every frame.
//!
//! *Leader completeness: whoever leads has all that was committed in earlier terms.* What is committed is on the disks
//! of a majority, and is of the leader's own term or below a record of it that is (`AckPolicy::Majority`: nothing
//! below the leader's own `TERM` record is committed by count). A candidate needs a majority, so one of its voters has
//! that record, and refuses a log that ends in a lower term, or earlier in the same one. What a voter tells and
//! compares is what is durable: its log is settled first. A node that repairs has lost what it said it had: it neither
//! votes nor campaigns. Besides, no one votes for a log, or campaigns with one, that ends below the highest commit LSN
//! it has heard of. Raft does not need this; a disk that loses what it promised does.
//!
//! *State machine safety: no two nodes apply different records at an LSN.* Only what is committed is applied, by leader
//! and follower alike, and by the two properties above it is the same everywhere and stays. A follower takes the
//! smaller of the leader's commit LSN and its own durable end, in a session whose match LSN is behind it, and never
//! cuts below.
//!
//! # What is added to that
//!
//! *Pre-vote.* Before a term is raised, a majority must say that it would vote. So a node that is cut off asks and
//! raises nothing (terms do not grow), and one that comes back deposes nobody.
//!
//! *Check-quorum.* A leader that no majority has heard for an election timeout steps down. Together with pre-vote this
//! needs that a member refuses *real* votes too while it hears a leader, and adopts no term from them: otherwise a node
//! that the leader does not reach would depose it again and again. It costs nothing: while a majority hears a leader,
//! no other can be needed.
//!
//! *Leases.* The lease of a leader begins when the frame was sent that a majority has echoed by now, and is shorter
//! than the time for which each of them refuses votes from hearing it, by more than clocks can differ (see
//! [`timing`]). So it is over before any of them may vote, and no other leader commits a write that this one does not
//! know. Three things belong to this: a member refuses as long after its own *start*, because it does not know whom it
//! heard before; a lease is given up for good in its term before HAND_OVER is sent, because votes for the one who got
//! it skip the refusal; and clock readings err to the safe side, each named at the function that takes it.
//!
//! *Changes of the members* are records of the log, one member at a time. A node goes by the newest list in its log,
//! committed or not, and a cut takes a list back with its record (`replication::members`). Two lists that follow each
//! other differ by one member, so a majority of one shares a node with any majority of the other, and all that is said
//! above of one list holds for both. Lists that are further apart are never in use together: a leader appends a list
//! only when the one before is committed, and a record of its own term is; so whoever can still be elected has the one
//! before in its log. (Without the second condition a leader of an earlier term may have appended a list, alone, that
//! differs by one member from the same list as this one does: the two differ by two.) A node votes for whoever asks,
//! whatever list it goes by itself: who counts the vote knows whether it counts, and a node that has just been added
//! may be needed before it has heard so. What is left of Raft's own rules for changes is in `node::elect::change`.
//!
//! *Learners.* A node that is to be added gets the log first, and its vote when it has caught up: otherwise a cluster
//! could wait for the disk of a node that is hours behind.
//!
//! *Reads* are answered once the leader's own `TERM` record is committed and applied: before that it does not know what
//! was committed by those before it. Then either the lease holds, or a majority has echoed a frame sent since.
//!
//! # What is left out
//!
//! Witnesses, and changes of more than one member in one step (joint consensus). Priorities among nodes: an operator
//! moves leadership by a hand-over. Time that stands still in one node only (a virtual machine that is paused and then
//! told a wrong time) is within the bound only as far as CLOCK_BOOTTIME of its system is.

pub mod ballot;
pub mod campaign;
pub mod quorum_clock;
pub mod reads;
pub mod timing;
pub mod voter;
