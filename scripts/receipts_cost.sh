#!/usr/bin/env bash
# What receipts and histograms cost a leader: instructions for each request that are theirs, and all others, counted by
# callgrind, and how much of the leader's processor time such instructions are: the rest is the kernel's.
#
#   scripts/receipts_cost.sh [--seconds S] [--only 'OP CONNECTIONS PIPELINE'] [--keep DIR]
#
# Three nodes, values of 64 B; PUT and GET with 1 and 50 connections, and 50 with 16 requests each under way. callgrind
# counts what runs outside of the kernel; receipts_cost.awk says what of it is for receipts, less what the same functions
# run with --no-receipts. The two whole counts differ more than that from run to run, by the turns that the requests
# happen to share. The counts are kept in DIR. Needs valgrind, and `cargo build --release --workspace` before. Exit codes:
# debug/session.sh; 1 if a load costs over 4 %.

set -u
seconds=3 only='' keep=''
while (($#)); do
    case $1 in
    --seconds) seconds=${2:?--seconds S} ;;
    --only) only=${2:?--only 'OP CONNECTIONS PIPELINE'} ;;
    --keep) keep=${2:?--keep DIR} ;;
    *)
        sed -n '2,13s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
    esac
    shift 2
done
# shellcheck source=scripts/debug/session.sh
source "$(dirname "${BASH_SOURCE[0]}")/debug/session.sh"
need valgrind valgrind
kv_bench=$bin/kv_bench
[[ -x $kv_bench ]] || fail "$kv_bench is missing: cargo build --release --workspace"
# Hundredths of a per cent. 3 % are aimed at; this is what a change must not go beyond.
limit=400

# start_node N: as in session.sh, but the leader has more flags, and runs under callgrind if it is $counted.
start_node() {
    local command=("$kvstore" --role=follower "--leader=${ports[1]}")
    if (($1 == 1)); then
        # shellcheck disable=SC2206 # the flags are words
        command=("$kvstore" --role=leader "--peers=${ports[2]},${ports[3]}" --insync-timeout-ms=5000 ${flags:-})
        [[ -z ${counted:-} ]] ||
            command=(valgrind --tool=callgrind --instr-atstart=no "--callgrind-out-file=$dir/counts" "${command[@]}")
    fi
    "${command[@]}" --port "${ports[$1]}" --data-dir "$dir/node$1" --log-level warn </dev/null 2>>"$dir/node$1.log" &
    pids[$1]=$!
}

# begin_load OP CONNECTIONS PIPELINE: in the background, as $load_pid, until end_load; it writes the keys first. Returns
# when it has run for some seconds: what is slow at first, and is kept as such, is no part of the measurement.
begin_load() {
    "$kv_bench" --endpoint "127.0.0.1:${ports[1]}" --op "$1" --connections "$2" --pipeline "$3" --keys 1000 \
        --warmup 0.1 --duration 3600 --data-dir "$dir" >/dev/null 2>"$dir/bench.log" &
    load_pid=$!
    others+=("$load_pid")
    sleep 3
}

# load SIGNAL: for the load under way.
load() { kill "-$1" "$load_pid" || fail "kv_bench does not measure: $(cat "$dir/bench.log")"; }
end_load() {
    load TERM
    wait "$load_pid"
}

# answered: how many requests the leader has answered.
answered() {
    [[ $(client 1 syscalls -o json) =~ \"writes\":([0-9]+),\"reads\":([0-9]+) ]] || fail 'the leader tells no ledger'
    echo $((BASH_REMATCH[1] + BASH_REMATCH[2]))
}

# callgrind FLAGS: of callgrind_control, for the leader.
callgrind() {
    callgrind_control "$@" "${pids[1]}" >/dev/null 2>>"$dir/control.log" ||
        fail "callgrind does not count: $(cat "$dir/control.log")"
}

# per_request FLAGS OP CONNECTIONS PIPELINE: instructions of the leader for each request, all and those for receipts. The
# load stands still while the counting begins and ends, so that no request is in one count and not in the other.
per_request() (
    flags=$1 counted=yes
    start_cluster >/dev/null
    callgrind -i on
    begin_load "${@:2}"
    load STOP
    before=$(answered)
    callgrind -z
    load CONT
    sleep "$seconds"
    load STOP
    after=$(answered)
    callgrind -i off
    load CONT
    end_load
    kill "${pids[1]}" && wait "${pids[1]}"
    [[ -z $keep ]] || cp "$dir/counts" "$keep/${*:2}${flags:+ $flags}"
    read -r all receipts <<<"$(awk -f "$root/scripts/receipts_cost.awk" "$dir/counts")"
    ((${all:-0} > 0)) || fail "callgrind did not count: $(tail -n 3 "$dir/node1.log")"
    echo $((all / (after - before))) $((receipts / (after - before)))
)

# outside_percent OP CONNECTIONS PIPELINE: of the leader's processor time under this load, what is not the kernel's.
outside_percent() (
    start_cluster >/dev/null
    begin_load "$@"
    read -r -a before <"/proc/${pids[1]}/stat"
    sleep "$seconds"
    read -r -a after <"/proc/${pids[1]}/stat"
    end_load
    user=$((after[13] - before[13])) system=$((after[14] - before[14]))
    echo $((100 * user / (user + system)))
)

printf '%-10s  %8s  %8s  %8s  %s\n' requests receipts 'the rest' share 'processor time outside of the kernel'
over=0
for load in 'put 1 1' 'put 50 1' 'put 50 16' 'get 1 1' 'get 50 1' 'get 50 16'; do
    [[ -z $only || $only == "$load" ]] || continue
    read -r -a words <<<"$load"
    on=$(per_request '' "${words[@]}") || fail "$on"
    off=$(per_request --no-receipts "${words[@]}") || fail "$off"
    outside=$(outside_percent "${words[@]}") || fail "$outside"
    read -r all receipts <<<"$on"
    receipts=$((receipts - ${off#* }))
    share=$((10000 * receipts / (all - receipts)))
    ((share <= limit)) || over=1
    printf '%-10s  %8d  %8d  %4d.%02d %%  %d %%\n' "$load" $receipts $((all - receipts)) $((share / 100)) $((share % 100)) "$outside"
done
printf '%s\n' 'PUT or GET, connections, requests under way on each. What a reading of the clock takes in the vDSO is not counted:' \
    'callgrind does not see it. See ARCHITECTURE.md, "Measured choices". What to look at: the share of the instructions,' \
    'times that of the processor time outside of the kernel, is what the counted part takes of a leader.'
((over == 0)) || fail 'receipts cost more than 4 % of the instructions'
