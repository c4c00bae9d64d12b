#!/usr/bin/env bash
# How long a follower takes to catch up with a snapshot while its leader takes writes, beside a plain copy of the same
# file through one loopback socket to the same disk, before and beside the same writes.
#
#   scripts/catch_up.sh [MIB] [PUTS_PER_SECOND] [VALUE_SIZE]      (2048, 20000, 1024)
#
# Both begin from the same directories, one second into the same load: so behind the snapshot the follower gets what is
# written from that second on, and nothing of what was written beside the copy. The copy has no such writes to take.
#
# A leader and a follower start; the follower is ended; so many MiB are written, and two snapshots made, so that the log
# does not reach back to it. `fill` stops there and keeps the directory (CATCH_UP_DIR), `run` goes on from it as often as
# CATCH_UP_RUNS says (3), each time from the same state: `fill` may then lie outside of the quiet time that `run` needs.
# `follow` is `run` without the copies, as for two versions of the program (KVSTORE) in turns.
#
# A virtual machine whose host takes free memory back waits for it at the first touch of a page: 1.3 s per GiB were seen,
# more than all the rest. A follower touches twice the memory that a copy does. So before each measurement as much memory
# as CATCH_UP_WARM_MIB says (8192; 0: none) is touched and given back, and both find pages that the machine has. To give
# it back takes a processor half a second, so writes are measured only behind it.
set -euo pipefail
# shellcheck source=scripts/bench_cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench_cluster.sh"

mib=${1:-2048} rate=${2:-20000} value_size=${3:-1024}
ratios=() quiet_ratios=()
phase=${CATCH_UP_PHASE:-all} runs=${CATCH_UP_RUNS:-3} warm_mib=${CATCH_UP_WARM_MIB:-8192}
dir=${CATCH_UP_DIR:-${DATA_DIR:-/tmp}/kv-catch-up}
client=$TARGET_DIR/kv_client
keys=$((mib * 1048576 / (value_size + 40)))
leader_port=${CATCH_UP_PORT:-19701} follower_port=$((${CATCH_UP_PORT:-19701} + 1))

for program in "$KV_BENCH" "$KVSTORE" "$client"; do
    [[ -x $program ]] || die "$program is missing: cargo build --release --workspace"
done
mkdir -p "$dir"
# It is the argument's, not a temporary one: `fill` leaves it for `run`.
trap 'stop_servers; rm -f "$dir/warm.tmp"' EXIT

start_leader() {
    in_background "$dir/leader.log" "$KVSTORE" --port "$leader_port" --data-dir "$dir/leader" --role=leader \
        --peers="$follower_port" --ack=leader --retain-log-bytes=0 --snapshot-log-bytes=1000000000000
    LEADER_PID=${PIDS[-1]}
    # shellcheck disable=SC2034 # for await_writes
    PORT=$leader_port
    await_writes kvstore
}

start_follower() {
    in_background "$dir/follower.log" "$KVSTORE" --port "$follower_port" --data-dir "$dir/follower" \
        --role=follower --leader="$leader_port"
    FOLLOWER_PID=${PIDS[-1]}
}

# await_line LOG TEXT: until a log has a line, without a look at the clock and without asking anybody.
await_line() {
    timeout 60 tail -n +1 -F "$1" 2>/dev/null | grep -m 1 -q "$2" || true
    grep -q "$2" "$1" || die "no line '$2' in $1 after 60 s"
}

fill() {
    rm -rf "${dir:?}"/*
    start_follower
    start_leader
    await_line "$dir/follower.log" 'session with leader'
    kill -9 "$FOLLOWER_PID"
    "$KV_BENCH" --endpoint "127.0.0.1:$leader_port" --op get --keys "$keys" --value-size "$value_size" \
        --connections 8 --pipeline 64 --duration 0.1 --warmup 0 >"$dir/fill.log" 2>&1 || die "see $dir/fill.log"
    for _ in 1 2; do
        "$client" --port "$leader_port" snapshot
        "$client" --port "$leader_port" put between snapshots >/dev/null
    done
    # Each run copies what is left of the log. Segments go once nothing is kept for the follower any more.
    for _ in $(seq 900); do
        (($(find "$dir/leader" -name '*.seg' | wc -l) > 2)) || break
        sleep 0.1
    done
    stop_servers
    mv "$dir/leader" "$dir/leader.full"
    mv "$dir/follower" "$dir/follower.empty"
}

# The directories as `fill` left them. A snapshot never changes, so it is linked.
restore() {
    local file
    rm -rf "${dir:?}/leader" "$dir/follower"
    mkdir "$dir/leader"
    for file in "$dir"/leader.full/*; do
        if [[ $file == *.kvsnap ]]; then ln "$file" "$dir/leader/"; else cp -a "$file" "$dir/leader/"; fi
    done
    cp -a "$dir/follower.empty" "$dir/follower"
    sync
}

touch_memory() {
    ((warm_mib == 0)) || { truncate -s "${warm_mib}M" "$dir/warm.tmp"; cat "$dir/warm.tmp" >/dev/null; }
}

give_memory_back() { rm -f "$dir/warm.tmp"; }

# copy NAME: sets copy_s to the seconds it took.
copy() {
    local said
    # shellcheck disable=SC2012 # the names are the node's own
    said=$("$KV_BENCH" floor-copy "$(ls "$dir"/leader/*.kvsnap | tail -n 1)" "$dir")
    printf '%-25s%s\n' "$1" "$said"
    copy_s=$(sed -n 's/.* in \([0-9.]*\) s.*/\1/p' <<<"$said")
}

# load SECONDS LOG: PUTs at the rate, open loop.
load() {
    "$KV_BENCH" --endpoint "127.0.0.1:$leader_port" --op put --rate "$rate" --keys "$keys" \
        --value-size "$value_size" --connections 50 --duration "$1" --warmup 0.5 >"$2" 2>&1
}

# time_of PATTERN LOG: seconds of the day of the first such line.
time_of() {
    sed -n "/$1/{s/^[^T]*T\([0-9]*\):\([0-9]*\):\([0-9.]*\)Z.*/\1 \2 \3/p;q}" "$2" |
        awk '{ printf "%.3f\n", $1 * 3600 + $2 * 60 + $3 }'
}

# last_lsn: of the leader's log.
last_lsn() { "$client" --port "$leader_port" -o json status | grep -o '"last_lsn":[0-9]*' | head -n 1 | tr -dc 0-9; }

# Seconds since the epoch, and the LSN there: `writes_since` says how many writes per second there were since.
mark() { marked_at=$EPOCHREALTIME marked_lsn=$(last_lsn); }

writes_since() {
    local lsn
    lsn=$(last_lsn)
    awk -v a="$marked_at" -v b="$EPOCHREALTIME" -v n="$((lsn - marked_lsn))" 'BEGIN { printf "%d", n / (b - a) }'
}

# processor_s PID: seconds of processor time that a process has taken.
processor_s() { awk -v tick="$(getconf CLK_TCK)" '{ printf "%.2f", ($14 + $15) / tick }' "/proc/$1/stat"; }

# under_load LOG COMMAND...: runs the command one second into six of load, on memory that the machine has.
under_load() {
    local log=$1
    shift
    touch_memory
    give_memory_back
    load 6 "$log" &
    local load_pid=$!
    PIDS+=("$load_pid")
    sleep 1
    "$@"
    wait "$load_pid" || true
}

copies() {
    restore
    start_leader
    touch_memory
    give_memory_back
    copy "plain copy, quiet:"
    quiet_s=$copy_s
    under_load "$dir/load.log" copy_beside
    echo "  PUT beside the copy:     $(grep 'response time' "$dir/load.log")"
    stop_servers
}

copy_beside() {
    mark
    copy "plain copy, beside load:"
    echo "  writes meanwhile:        $(writes_since) per s"
}

catch_up() {
    restore
    start_leader
    under_load "$dir/load.log" follow
    echo "  PUT beside the catch-up: $(grep 'response time' "$dir/load.log")"
    # From the moment the loop turns to them, and what of it was the log's sync: the rest is what clients wait elsewhere.
    "$client" --port "$leader_port" latency | grep -E '^microseconds|^put (total|sync)'
    local pid
    for pid in "$LEADER_PID" "$FOLLOWER_PID"; do
        awk -v pid="$pid" -v leader="$LEADER_PID" '/VmHWM/ { peak = $2 } /VmRSS/ { rss = $2 } END {
            printf "  memory of the %s: %d MiB at most, %d MiB now\n", pid == leader ? "leader" : "follower", peak / 1024, rss / 1024
        }' "/proc/$pid/status"
    done
    stop_servers
}

follow() {
    local before writes from has synced
    "$client" --port "$leader_port" reset >/dev/null
    before=$(processor_s "$LEADER_PID")
    mark
    start_follower
    await_line "$dir/leader.log" 'is in sync again'
    local processor
    processor="follower $(processor_s "$FOLLOWER_PID") s, leader $(processor_s "$LEADER_PID") - $before s"
    writes=$(writes_since)
    from=$(time_of 'session with leader' "$dir/follower.log")
    has=$(time_of 'has the snapshot' "$dir/leader.log")
    synced=$(time_of 'is in sync again' "$dir/leader.log")
    follow_s=$(awk -v a="$from" -v c="$synced" 'BEGIN { printf "%.3f", c - a }')
    printf '%-25sthe snapshot after %.2f s, in sync after %.2f s\n' follower: \
        "$(awk -v a="$from" -v b="$has" 'BEGIN { print b - a }')" "$follow_s"
    echo "  writes meanwhile:        $writes per s"
    echo "  processor time:          $processor"
}

# One run: both from the state that `fill` left, in turns the one and the other first.
run() {
    if (($1 % 2)); then copies; catch_up; else catch_up; copies; fi
    ratios+=("$(awk -v a="$follow_s" -v b="$copy_s" 'BEGIN { printf "%.2f", a / b }')")
    quiet_ratios+=("$(awk -v a="$follow_s" -v b="$quiet_s" 'BEGIN { printf "%.2f", a / b }')")
    echo "in sync after ${ratios[-1]} x the copy beside load, ${quiet_ratios[-1]} x the quiet one"
}

run_all() {
    local number
    for ((number = 1; number <= runs; number++)); do
        echo "run $number of $runs"
        run "$number"
    done
    echo "beside load: ${ratios[*]}; median $(median "${ratios[@]}"); quiet: ${quiet_ratios[*]}; median $(median "${quiet_ratios[@]}")"
}

# median NUMBER...: the lower one of two.
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

case $phase in
    fill) fill ;;
    run) run_all ;;
    follow) for ((number = 1; number <= runs; number++)); do catch_up; done ;;
    all) fill; run_all; rm -rf "${dir:?}" ;;
    *) die "CATCH_UP_PHASE is fill, run, follow or all" ;;
esac
