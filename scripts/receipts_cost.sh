#!/usr/bin/env bash
# What receipts and histograms cost a leader: instructions for each request with them and with --no-receipts, counted by
# callgrind, and how much of the leader's processor time such instructions are: the rest is the kernel's.
#
#   scripts/receipts_cost.sh [--seconds S] [--runs N] [--only 'OP CONNECTIONS PIPELINE'] [--keep DIR]
#
# Three nodes, values of 64 B; PUT and GET with 1 and 50 connections, and 50 with 16 requests each under way. Of N runs
# with and without in turns the medians. callgrind counts what runs outside of the kernel, while the load lasts; its
# counts, for callgrind_annotate, are kept in DIR. Needs valgrind, and `cargo build --release --workspace` before. Exit codes: debug/session.sh; 1 if a load costs over 3 %.

set -u
seconds=3 runs=3 only='' keep=''
while (($#)); do
    case $1 in
    --seconds) seconds=${2:?--seconds S} ;;
    --runs) runs=${2:?--runs N} ;;
    --only) only=${2:?--only 'OP CONNECTIONS PIPELINE'} ;;
    --keep) keep=${2:?--keep DIR} ;;
    *)
        sed -n '2,9s/^# \{0,1\}//p' "$0"
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
# Hundredths of a per cent.
limit=300

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
# when it has run for a second: what is slow at first, and is kept as such, is no part of the measurement.
begin_load() {
    "$kv_bench" --endpoint "127.0.0.1:${ports[1]}" --op "$1" --connections "$2" --pipeline "$3" --keys 1000 \
        --warmup 0.1 --duration 3600 --data-dir "$dir" >/dev/null 2>"$dir/bench.log" &
    load_pid=$!
    others+=("$load_pid")
    sleep 1
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

# per_request FLAGS OP CONNECTIONS PIPELINE: instructions of the leader for each request. The load stands still while the
# counting begins and ends, so that no request is in one count and not in the other.
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
    [[ $(grep '^totals:' "$dir/counts") =~ ([0-9]+) ]] || fail "callgrind did not count: $(tail -n 3 "$dir/node1.log")"
    [[ -z $keep ]] || cp "$dir/counts" "$keep/${*:2}${flags:+ $flags}"
    echo $((BASH_REMATCH[1] / (after - before)))
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

# median NUMBERS...
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

printf '%-10s  %10s  %10s  %8s  %s\n' 'requests' receipts without 'more' 'share of processor time outside of the kernel'
over=0
for load in 'put 1 1' 'put 50 1' 'put 50 16' 'get 1 1' 'get 50 1' 'get 50 16'; do
    [[ -z $only || $only == "$load" ]] || continue
    read -r -a words <<<"$load"
    on=() off=()
    for ((run = 0; run < runs; run++)); do
        on+=("$(per_request '' "${words[@]}")") || fail "${on[-1]}"
        off+=("$(per_request --no-receipts "${words[@]}")") || fail "${off[-1]}"
    done
    outside=$(outside_percent "${words[@]}") || fail "$outside"
    with=$(median "${on[@]}") without=$(median "${off[@]}")
    more=$((10000 * (with - without) / without)) sign=+
    ((more <= limit)) || over=1
    ((more >= 0)) || sign=-
    printf '%-10s  %10d  %10d  %3s%d.%02d %%  %d %%\n' "$load" "$with" "$without" "$sign" $((${more#-} / 100)) \
        $((${more#-} % 100)) "$outside"
done
printf '%s\n' 'PUT or GET, connections, requests under way on each. Batches of 50 connections differ in size from run to run,' \
    'and with them what a turn adds to each request. Readings of the clock are not counted: callgrind does not see the vDSO.' \
    'See ARCHITECTURE.md, "Measured choices". What to look at: "more", times the share, is what the counted part takes.'
((over == 0)) || fail 'receipts cost more than 3 % of the instructions'
