//! What flags are taken, and what is refused in words.

use super::*;
use crate::replication::election::reads::ReadMode;

fn validate(arguments: &[&str]) -> Result<Config, String> {
    Flags::try_parse_from(["kvstore"].iter().chain(arguments)).map_err(|error| error.to_string())?.validate()
}

#[test]
fn without_arguments_it_is_a_usable_single_node() {
    let config = validate(&[]).unwrap();
    assert_eq!((config.node.role, config.listen_address.as_str()), (RoleFlag::Leader, "127.0.0.1:9001"));
    assert_eq!(config.promise(), "an acknowledged write is on disk (fdatasync) on this node");
    assert!(!config.beyond_loopback);
}

#[test]
fn a_follower_promises_nothing_in_its_leaders_place() {
    let config = validate(&["--role=follower", "--leader=9001", "--port=9002"]).unwrap();
    assert!(!config.promise().contains("acknowledged write is on disk"), "{}", config.promise());
    assert!(config.promise().contains("on disk (fdatasync)"), "{}", config.promise());
}

#[test]
fn peers_are_ports_or_addresses() {
    let config = validate(&["--peers=9002,db2:9003,[::1]:9004"]).unwrap();
    assert_eq!(config.node.peers, ["127.0.0.1:9002", "db2:9003", "[::1]:9004"]);
}

#[test]
fn what_cannot_work_is_refused_in_words() {
    for (arguments, words) in [
        (&["--role=auto", "--ack=quorum"][..], "any majority"),
        (&["--role=auto", "--min-insync=2"], "--min-insync has no meaning"),
        (&["--role=auto", "--leader=9002"], "elect one"),
        (&["--role=auto", "--listen=0.0.0.0"], "--advertise"),
        (&["--role=auto", "--election-timeout-ms=99"], "allowed are 100 to"),
        (&["--election-timeout-ms=500"], "--role=auto"),
        (&["--reads=local", "--role=follower"], "--role=auto"),
        (&["--peers=9001"], "itself"),
        (&["--peers=9002,9002"], "twice"),
        (&["--peers=nowhere"], "--peers"),
        (&["--leader=9002"], "--role=follower"),
        (&["--min-insync=4", "--peers=9002,9003"], "can never hold"),
        (&["--segment-bytes=1"], "allowed are"),
        (&["--insync-timeout-ms=1"], "allowed are"),
    ] {
        let error = validate(arguments).unwrap_err();
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}

#[test]
fn a_node_that_listens_everywhere_tells_its_port_alone() {
    let config = validate(&["--listen=0.0.0.0", "--port=7000"]).unwrap();
    assert_eq!(config.node.own_address, ":7000");
    assert!(config.beyond_loopback);
    let config = validate(&["--listen=0.0.0.0", "--advertise=db1", "--port=7000"]).unwrap();
    assert_eq!(config.node.own_address, "db1:7000");
}

#[test]
fn an_elected_node_has_its_own_defaults() {
    let config = validate(&["--role=auto", "--peers=9002,9003"]).unwrap();
    assert_eq!((config.node.role, config.node.ack), (RoleFlag::Auto, AckPolicy::Majority));
    assert_eq!((config.node.election.timeout_ms, config.node.heartbeat_ms), (500, 100));
    assert_eq!(
        config.promise(),
        "an acknowledged write is on disk (fdatasync) on any majority (2 of 3 nodes)"
    );
    let quick = validate(&["--role=auto", "--election-timeout-ms=100", "--reads=quorum"]).unwrap();
    assert_eq!((quick.node.heartbeat_ms, quick.node.election.reads), (20, ReadMode::Quorum));
}
