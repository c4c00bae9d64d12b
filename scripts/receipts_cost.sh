#!/usr/bin/env bash
# What receipts and histograms cost a leader: instructions for each write with them and with --no-receipts, counted by
# callgrind, and how much of the leader's processor time such instructions are: the rest is the kernel's.
#
#   scripts/receipts_cost.sh [--seconds S]
#
# Three nodes, values of 64 B; 1 and 50 connections, and 50 with 16 requests each under way. callgrind counts what runs
# outside of the kernel; what starting takes is counted alone and left out. Needs valgrind, and `cargo build --release
# --workspace` before. Exit codes: debug/session.sh.

set -u
seconds=3
case ${1:-} in
'') ;;
--seconds) seconds=${2:?--seconds S} ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
# shellcheck source=scripts/debug/session.sh
source "$(dirname "${BASH_SOURCE[0]}")/debug/session.sh"
need valgrind valgrind
kv_bench=$bin/kv_bench
[[ -x $kv_bench ]] || fail "$kv_bench is missing: cargo build --release --workspace"

# start_node N: as in session.sh, but the leader has more flags, and runs under what $watched_by names.
start_node() {
    local command=("$kvstore" --role=follower "--leader=${ports[1]}")
    if (($1 == 1)); then
        # shellcheck disable=SC2206 # the flags are words
        command=(${watched_by:-} "$kvstore" --role=leader "--peers=${ports[2]},${ports[3]}" --insync-timeout-ms=5000 ${flags:-})
    fi
    "${command[@]}" --port "${ports[$1]}" --data-dir "$dir/node$1" --log-level warn </dev/null 2>>"$dir/node$1.log" &
    pids[$1]=$!
}

# load CONNECTIONS PIPELINE: for $seconds.
load() {
    "$kv_bench" --endpoint "127.0.0.1:${ports[1]}" --connections "$1" --pipeline "$2" --keys 1000 --warmup 0.1 \
        --duration "$seconds" --data-dir "$dir" >/dev/null || fail "kv_bench does not measure"
}

# writes: how many the leader has acknowledged.
writes() {
    [[ $(client 1 syscalls -o json) =~ \"writes\":([0-9]+) ]] || fail "the leader tells no ledger"
    echo "${BASH_REMATCH[1]}"
}

# counted FLAGS [CONNECTIONS PIPELINE]: `instructions writes` in the life of a leader with these flags.
counted() (
    flags=$1
    watched_by="valgrind --tool=callgrind --callgrind-out-file=/dev/null"
    start_cluster >/dev/null
    (($# == 1)) || load "$2" "$3"
    answered=$(writes)
    kill "${pids[1]}" && wait "${pids[1]}"
    [[ $(<"$dir/node1.log") =~ Collected\ :\ ([0-9]+) ]] || fail "callgrind did not count: $(tail -n 3 "$dir/node1.log")"
    echo "${BASH_REMATCH[1]} $answered"
)

# per_write FLAGS CONNECTIONS PIPELINE: instructions for each write, without those of a start.
per_write() {
    local start whole
    read -r -a start <<<"$(counted "$1")"
    read -r -a whole <<<"$(counted "$@")"
    echo $(((whole[0] - start[0]) / whole[1]))
}

# outside_percent CONNECTIONS PIPELINE: of the leader's processor time under this load, what is not the kernel's.
outside_percent() (
    start_cluster >/dev/null
    read -r -a before <"/proc/${pids[1]}/stat"
    load "$@"
    read -r -a after <"/proc/${pids[1]}/stat"
    user=$((after[13] - before[13])) system=$((after[14] - before[14]))
    echo $((100 * user / (user + system)))
)

printf '%-20s  %10s  %10s  %8s  %s\n' 'connections x pipe' receipts without 'on/off' 'share of processor time outside of the kernel'
for load in '1 1' '50 1' '50 16'; do
    read -r connections pipeline <<<"$load"
    on=$(per_write '' "$connections" "$pipeline") || fail "$on"
    off=$(per_write --no-receipts "$connections" "$pipeline") || fail "$off"
    outside=$(outside_percent "$connections" "$pipeline") || fail "$outside"
    ratio=$((1000 * on / off))
    printf '%-20s  %10d  %10d  %4d.%03d  %d %%\n' "$connections x $pipeline" "$on" "$off" $((ratio / 1000)) $((ratio % 1000)) "$outside"
done
printf '%s\n' 'Batches of 50 connections differ in size from run to run, and with them what a turn adds to each write: 2 %.' \
    'Readings of the clock are not counted: callgrind does not see the vDSO. See ARCHITECTURE.md, "Measured choices".' \
    'What to look at: what on/off is above 1, times the share, is what the counted part takes of a leader.'
