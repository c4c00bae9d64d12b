//! The rules of elections against Raft's properties: members that are nothing but the pure functions, and a world that
//! does to them what it can (`support/election`). Every check names the property it looks at; every rule that is taken
//! out is caught (`cargo test --features sabotage --test elections model::`).
//!
//! `KVSTORE_MODEL_SEEDS=N` runs N seeds of each size in place of the few that belong to every run of the tests;
//! `KVSTORE_MODEL_FROM=N` begins there. A failure prints its seed.

use crate::election::World;

/// Milliseconds of trouble in one run.
const RUN_MS: u64 = 2_500;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One run; how many elections and reads it saw.
fn run(seed: u64, count: usize) -> (u64, u64) {
    let mut world = World::new(seed, count);
    world.run_ms(RUN_MS);
    world.check_liveness();
    (world.checks.elections, world.checks.reads)
}

fn run_seeds(count: usize, default: u64) {
    let (from, seeds) = (env("KVSTORE_MODEL_FROM", 1), env("KVSTORE_MODEL_SEEDS", default));
    let (mut elections, mut reads) = (0, 0);
    for seed in from..from + seeds {
        println!("{count} members, seed {seed}");
        let (more_elections, more_reads) = run(seed, count);
        (elections, reads) = (elections + more_elections, reads + more_reads);
    }
    println!("{count} members, {seeds} seeds: {elections} elections, {reads} reads answered");
    assert!(elections >= 2 * seeds && reads > 20 * seeds, "{elections} elections, {reads} reads: too calm");
}

#[test]
fn three_members_keep_every_property_through_crashes_pauses_and_cut_links() {
    run_seeds(3, 60);
}

#[test]
fn five_members_keep_every_property_through_crashes_pauses_and_cut_links() {
    run_seeds(5, 30);
}

#[test]
fn two_and_four_members_keep_every_property_too() {
    run_seeds(2, 20);
    run_seeds(4, 20);
}

/// Every rule that is taken out is missed by some check, in few runs. (Without the feature there is nothing to take
/// out.)
#[cfg(feature = "sabotage")]
mod broken {
    use super::run;
    use kvstore::sabotage::{Variant, set};

    /// Runs of three and of five members, at most.
    const SEEDS_MAX: u64 = 400;

    fn caught(variant: Variant, properties: &[&str]) {
        for seed in 1..=SEEDS_MAX {
            for count in [3, 5] {
                set(Some(variant));
                let ended = std::panic::catch_unwind(|| run(seed, count));
                set(None);
                let Err(panic) = ended else { continue };
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                println!("{}: seed {seed}, {count} members: {}", variant.name(), text.replace('\n', " "));
                let named = properties.iter().any(|property| text.contains(property));
                assert!(named, "{} was caught by something else: {text}", variant.name());
                return;
            }
        }
        panic!("{} escaped {SEEDS_MAX} seeds", variant.name());
    }

    #[test]
    fn a_vote_that_is_not_durable_is_given_twice() {
        caught(Variant::VoteNotDurable, &["election safety"]);
    }

    #[test]
    fn without_pre_votes_terms_grow() {
        caught(Variant::NoPreVote, &["terms do not grow"]);
    }

    #[test]
    fn without_check_quorum_a_leader_that_is_cut_off_stays() {
        caught(Variant::NoCheckQuorum, &["check-quorum"]);
    }

    #[test]
    fn a_lease_without_a_bound_on_drift_answers_stale_reads() {
        caught(Variant::LeaseWithoutDriftBound, &["stale read"]);
    }

    #[test]
    fn a_vote_right_after_a_restart_breaks_a_lease() {
        caught(Variant::VotesRightAfterRestart, &["stale read"]);
    }

    #[test]
    fn a_read_before_the_term_record_is_stale() {
        caught(Variant::ReadBeforeTermRecord, &["stale read"]);
    }

    /// Two more are caught in `elections/properties.rs`: commits of older terms by count, which are rare at random, and
    /// a lease that is kept during a hand-over, which in the model ends with the office. What a node makes of the rules
    /// is broken, and caught, in `elections/apply_committed.rs` and `elections/reads.rs`; the rules of changes in
    /// `elections/members.rs`. The numbers that a new leader finds in its log, and a vote that is written apart from
    /// its term, are the simulator's.
    #[test]
    fn every_variant_of_elections_has_a_test() {
        assert_eq!(Variant::ELECTION.len(), 6 + 2 + 2 + 2 + 2);
    }
}
