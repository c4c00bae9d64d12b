#!/usr/bin/env bash
# Histograms of a leader's writes from its probes: receipt to reply, and each flush, without stopping it.
#
#   scripts/debug/bpftrace-histogram.sh
#
# Needs bpftrace and root. Exit codes: session.sh.

set -u
# shellcheck source=scripts/debug/session.sh
source "$(dirname "${BASH_SOURCE[0]}")/session.sh"
need bpftrace bpftrace
if ((EUID != 0)); then
    echo "skipped: bpftrace needs root"
    exit 3
fi
start_cluster

load() {
    while client 1 put hello world >/dev/null 2>&1; do :; done
}
load &
others+=($!)

say "five seconds of writes"
timeout -s INT 10 bpftrace -p "${pids[1]}" -e '
usdt:'"$kvstore"':kvstore:put_received { @received[arg0] = nsecs; }
usdt:'"$kvstore"':kvstore:replied /@received[arg0]/ {
    @put_us = hist((nsecs - @received[arg0]) / 1000); delete(@received[arg0]);
}
usdt:'"$kvstore"':kvstore:synced { @sync_us = hist(arg1 / 1000); }
usdt:'"$kvstore"':kvstore:ack_received /arg2 > 0/ { @follower_sync_us[arg0] = hist(arg2 / 1000); }
interval:s:5 { exit(); }
END { clear(@received); }' || fail "bpftrace did not work (kernel without uprobes?)"
cat <<'WORDS'

What to look at: two humps in @put_us are two kinds of writes; compare @sync_us (the leader's disk) and
@follower_sync_us (by the follower's place in --peers) to see whose disk makes the second one.
WORDS
