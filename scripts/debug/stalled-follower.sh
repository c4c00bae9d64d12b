#!/usr/bin/env bash
# A follower that stands still (SIGSTOP) while its connections stay open: one write waits, the follower leaves the
# in-sync set, writes go on without it, and it catches up when it runs again.
#
#   scripts/debug/stalled-follower.sh
#
# Needs no tools. Exit codes: session.sh.

set -u
flags='--insync-timeout-ms=500'
# shellcheck source=scripts/debug/session.sh
source "$(dirname "${BASH_SOURCE[0]}")/session.sh"
start_cluster

say "node 3 stands still (kill -STOP ${pids[3]}); the next PUT waits for it, until the in-sync timeout (500 ms here)"
kill -STOP "${pids[3]}"
first=$(client 1 put hello world --explain) || fail "the PUT failed"
echo "$first"
[[ $first == *"durable on 2 of 3 nodes"* ]] || fail "the receipt should name two nodes"

say "it is out of sync now: what an acknowledgement means has changed, and status says so"
client 1 status | sed -n '1p;/^peer/,/^$/p'
in_sync 2 || fail "two nodes should be in sync"

say "the next PUT does not wait for it"
client 1 put hello again --explain || fail "the PUT failed"

say "it runs again (kill -CONT ${pids[3]}), catches up, and is in sync"
kill -CONT "${pids[3]}"
wait_until 10 in_sync 3 || fail "node 3 does not come back"
client 1 status | sed -n '1p;/^peer/,/^$/p'
[[ $(client 3 get hello) == again ]] || fail "node 3 lacks the last write"
cat <<'WORDS'

What to look at: the leader's log (`left the in-sync set`), `insync_left` under counters, and the receipt: it lists
who has the write, and `no ACK` for who does not. With --min-insync=3 the leader would refuse writes meanwhile. A
process that stands still: `ps -o pid,stat,wchan,comm` (T stopped, D in the disk), `kv_client ping` runs into its timeout.
WORDS
