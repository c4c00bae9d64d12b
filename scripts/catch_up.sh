#!/usr/bin/env bash
# How long a follower takes to catch up with a snapshot while its leader takes writes, beside a plain copy of the same
# file through one loopback socket to the same disk.
#
#   scripts/catch_up.sh [MIB] [PUTS_PER_SECOND] [VALUE_SIZE]      (2048, 20000, 1024)
#
# A leader and a follower start; the follower is ended; so many MiB are written, and two snapshots made, so that the log
# does not reach back to it. `fill` stops there and keeps the directory (CATCH_UP_DIR), `run` goes on from it: the first
# may then lie outside of the quiet time that the second needs.
set -euo pipefail
# shellcheck source=scripts/bench_cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench_cluster.sh"

mib=${1:-2048} rate=${2:-20000} value_size=${3:-1024}
phase=${CATCH_UP_PHASE:-all}
dir=${CATCH_UP_DIR:-${DATA_DIR:-/tmp}/kv-catch-up}
client=$TARGET_DIR/kv_client
keys=$((mib * 1048576 / (value_size + 40)))
leader_port=${CATCH_UP_PORT:-19701} follower_port=$((${CATCH_UP_PORT:-19701} + 1))

for program in "$KV_BENCH" "$KVSTORE" "$client"; do
    [[ -x $program ]] || die "$program is missing: cargo build --release --workspace"
done
mkdir -p "$dir"
# It is the argument's, not a temporary one: `fill` leaves it for `run`.
trap 'stop_servers' EXIT

start_leader() {
    in_background "$dir/leader.log" "$KVSTORE" --port "$leader_port" --data-dir "$dir/leader" --role=leader \
        --peers="$follower_port" --ack=leader --retain-log-bytes=0 --snapshot-log-bytes=1000000000000
    PORT=$leader_port
    await_writes kvstore
}

start_follower() {
    in_background "$dir/follower.log" "$KVSTORE" --port "$follower_port" --data-dir "$dir/follower" \
        --role=follower --leader="$leader_port"
}

# field NAME: the first number of that name in the leader's status.
field() {
    "$client" --port "$leader_port" -o json status | grep -o "\"$1\": *[0-9]*" | head -n 1 | grep -o '[0-9]*$'
}

in_sync() {
    "$client" --port "$leader_port" -o json status | grep -q '"in_sync_nodes": *2'
}

fill() {
    rm -rf "${dir:?}"/*
    start_follower
    start_leader
    for _ in $(seq 200); do in_sync && break; sleep 0.1; done
    in_sync || die "the follower is not in sync after 20 s; see $dir"
    kill -9 "${PIDS[0]}"
    "$KV_BENCH" --endpoint "127.0.0.1:$leader_port" --op get --keys "$keys" --value-size "$value_size" \
        --connections 8 --pipeline 64 --duration 0.1 --warmup 0 >"$dir/fill.log" 2>&1 || die "see $dir/fill.log"
    for _ in 1 2; do
        "$client" --port "$leader_port" snapshot
        "$client" --port "$leader_port" put between snapshots >/dev/null
    done
    stop_servers
}

run() {
    start_leader
    local snapshot load_pid began now
    # shellcheck disable=SC2012 # the names are the node's own
    snapshot=$(ls "$dir"/leader/*.kvsnap | tail -n 1)
    echo "snapshot: $(stat -c %s "$snapshot") bytes, first LSN of the log: $(field first_lsn)"
    echo -n "plain copy, before:       "; "$KV_BENCH" floor-copy "$snapshot" "$dir"
    "$KV_BENCH" --endpoint "127.0.0.1:$leader_port" --op put --rate "$rate" --keys "$keys" --value-size "$value_size" \
        --connections 50 --duration 60 --warmup 1 >"$dir/load.log" 2>&1 &
    load_pid=$!
    PIDS+=("$load_pid")
    sleep 2
    echo -n "plain copy, beside load:  "; "$KV_BENCH" floor-copy "$snapshot" "$dir"
    began=${EPOCHREALTIME/[.,]/}
    start_follower
    until in_sync; do sleep 0.02; done
    now=${EPOCHREALTIME/[.,]/}
    echo "follower in sync after    $(((now - began) / 1000)) ms, with $rate PUT/s going on"
    grep -h 'installed snap\|has the snapshot\|is in sync again\|fed from memory' "$dir/follower.log" "$dir/leader.log" || true
    kill "$load_pid" 2>/dev/null || true
    echo -n "plain copy, afterwards:   "; "$KV_BENCH" floor-copy "$snapshot" "$dir"
    stop_servers
}

case $phase in
    fill) fill ;;
    run) run ;;
    all) fill; run; rm -rf "${dir:?}" ;;
    *) die "CATCH_UP_PHASE is fill, run or all" ;;
esac
