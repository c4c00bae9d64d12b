//! Known-bad variants of single lines, for the simulator to catch: a test that cannot fail proves nothing.
//!
//! Without the cargo feature `sabotage` (it is in no default set) [`is`] is a constant `false`, and no line
//! that it guards is compiled into the program.

macro_rules! variants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// A rule that is broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Variant { $($(#[$doc])* $variant,)* }

        impl Variant {
            /// Every variant.
            pub const ALL: &'static [Variant] = &[$(Variant::$variant),*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Variant::$variant => $name,)* }
            }
        }
    };
}

variants! {
    /// The log calls durable what was only written.
    AckBeforeFdatasync = "ack-before-fdatasync";
    /// A write is answered without the in-sync followers.
    ReplyBeforeInSync = "reply-before-in-sync";
    /// A follower says that all of its log is the leader's.
    MatchIsOwnLast = "match-is-own-last";
    /// A diverged tail stays.
    NoCut = "no-cut";
    /// A follower takes records from any connection.
    DeadSessionFrames = "dead-session-frames";
    /// A promised term is kept in memory alone.
    TermNotDurable = "term-not-durable";
    /// Recovery takes an entry whose checksum does not hold.
    TornTailKept = "torn-tail-kept";
    /// Damage below a durable claim is cut like a tail.
    MiddleDamageCut = "middle-damage-cut";
    /// A record's checksum covers that record alone.
    ChecksumNotChained = "checksum-not-chained";
    /// A new segment's name is not made durable.
    RenameWithoutDirSync = "rename-without-dir-sync";
    /// A failed sync is tried again.
    RetryFailedFdatasync = "retry-failed-fdatasync";
    /// A leader appends its newest records again when a follower comes back.
    ApplyTwice = "apply-twice";
    /// A follower takes for committed what it does not hold.
    CommitNotClamped = "commit-not-clamped";
    /// A mark calls its own batch durable.
    MarkClaimsTooMuch = "mark-claims-too-much";
    /// What recovery read from the page cache is told without being written again.
    RecoveredTailTold = "recovered-tail-told";
    /// A full disk is noticed after the LSN was told.
    LsnTwiceAfterFullDisk = "lsn-twice-after-full-disk";
    /// A follower takes chunks of a snapshot from any connection and of any transfer.
    OldTransferChunk = "old-transfer-chunk";
    /// Time in which the leader itself did not run counts against its followers.
    OwnStallEmptiesInSync = "own-stall-empties-in-sync";
    /// A cut does not wait for the flush under way, whose token then counts for what was written since.
    OldGenerationToken = "old-generation-token";
    /// Segments are removed without waiting for their copies in the archive.
    ArchivedTooLate = "archived-too-late";
    /// Segments are removed when a snapshot is written, before it has its name.
    RemovalBeforePublish = "removal-before-publish";
    /// A state that is being loaded is read.
    ReadsBeforeComplete = "reads-before-complete";
    /// Zeros ahead of the log begin in the block that it ends in.
    ZerosOverTheLog = "zeros-over-the-log";
    /// The records during the scan of a snapshot are taken to be in it.
    SnapshotTakenTooLate = "snapshot-taken-too-late";
    /// Some nodes apply another value than the record's, now and then.
    WrongValueApplied = "wrong-value-applied";
    /// The hash recomputed from all entries is not compared with the one that was kept.
    ScanNotCompared = "scan-not-compared";
    /// What clients' numbered writes were answered is no part of the state hash.
    SessionsNotHashed = "sessions-not-hashed";
    /// A repeat of a numbered write that is under way is executed like a new one.
    NumberUnderWayAgain = "number-under-way-again";
    /// A leader that begins does not count the numbers that its log holds and its state does not.
    UnappliedNumbersForgotten = "unapplied-numbers-forgotten";
    /// Whom a node voted for is kept in memory alone.
    VoteNotDurable = "vote-not-durable";
    /// The vote is written first, and the term that it is in with a write of its own.
    VoteApartFromTerm = "vote-apart-from-term";
    /// A campaign raises its term before it asks anybody.
    NoPreVote = "no-pre-vote";
    /// A leader that nobody hears goes on.
    NoCheckQuorum = "no-check-quorum";
    /// A lease is as long as the refusal of votes.
    LeaseWithoutDriftBound = "lease-without-drift-bound";
    /// Records of earlier terms are committed by count.
    OlderTermCommitByCount = "older-term-commit-by-count";
    /// A member votes as soon as it is started, whomever it heard before.
    VotesRightAfterRestart = "votes-right-after-restart";
    /// A leader answers reads before a record of its own term is applied.
    ReadBeforeTermRecord = "read-before-term-record";
    /// A follower of an elected leader applies what is on its disk.
    FollowerAppliesUncommitted = "follower-applies-uncommitted";
    /// A leader judges its lease by the time its turn began.
    StaleReadAfterPause = "stale-read-after-pause";
    /// A leader that hands over leads on, with its lease, until it meets the next one.
    LeaseKeptDuringTransfer = "lease-kept-during-transfer";
    /// A leader changes the members before it knows what its log holds of earlier terms to be committed.
    ChangeBeforeFirstCommit = "change-before-first-commit";
    /// A node gets the record that removes it, and campaigns all the same, with its own vote.
    RemovedMemberCampaigns = "removed-member-campaigns";
}

impl Variant {
    /// Those that only a cluster breaks that elects its leader: `tests/elections/model.rs` catches those of its rules,
    /// `tests/elections/apply_committed.rs` and `tests/elections/reads.rs` what a node makes of them.
    pub const ELECTION: &'static [Variant] = &[
        Variant::VoteNotDurable,
        Variant::VoteApartFromTerm,
        Variant::NoPreVote,
        Variant::NoCheckQuorum,
        Variant::LeaseWithoutDriftBound,
        Variant::OlderTermCommitByCount,
        Variant::VotesRightAfterRestart,
        Variant::ReadBeforeTermRecord,
        Variant::FollowerAppliesUncommitted,
        Variant::StaleReadAfterPause,
        Variant::LeaseKeptDuringTransfer,
        Variant::UnappliedNumbersForgotten,
        Variant::ChangeBeforeFirstCommit,
        Variant::RemovedMemberCampaigns,
    ];
}

#[cfg(feature = "sabotage")]
mod switch {
    use super::Variant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Variant>> = const { Cell::new(None) };
    }

    /// Whether this rule is broken on this thread.
    pub fn is(variant: Variant) -> bool {
        ACTIVE.get() == Some(variant)
    }

    /// Breaks one rule on this thread, or none.
    pub fn set(variant: Option<Variant>) {
        ACTIVE.set(variant);
    }
}

#[cfg(feature = "sabotage")]
pub use switch::{is, set};

/// Whether this rule is broken: never, in this build.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn is(_: Variant) -> bool {
    false
}
