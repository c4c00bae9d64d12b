#!/usr/bin/env bash
# What receipts and histograms cost a leader in processor time, the kernel's included: nanoseconds for each request with
# them and with --no-receipts. The aim is 1.03 at most. What of it are instructions of the node: receipts_cost.sh.
#
#   scripts/receipts_time.sh [--pairs N] [--seconds S] [--data-dir DIR]      (20, 1)
#
# Two clusters of three stand side by side and are asked in turns, so that what changes on the machine changes both: a
# pair differs by 5 % now and then, so what counts is the median of many. Needs: cargo build --release --workspace
set -euo pipefail
# shellcheck source=scripts/bench_cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench_cluster.sh"

pairs=20 seconds=1 data_dir=$root/bench/out
read_pairs "$@"
prepare "$data_dir"
client=$(dirname "$KVSTORE")/kv_client

declare -A port leader
# start KIND: `on` or `off`.
start() {
    local work=$WORK_DIR
    WORK_DIR=$work/$1
    mkdir -p "$WORK_DIR"
    start_kvstore 3 quorum fsync
    WORK_DIR=$work
    port[$1]=$PORT leader[$1]=${PIDS[-1]}
}
start on
KVSTORE_NO_RECEIPTS=true start off

# spent KIND: nanoseconds that its leader has run, and requests that it has answered.
spent() {
    local ns
    read -r ns _ <"/proc/${leader[$1]}/schedstat"
    [[ $("$client" --port "${port[$1]}" -o json syscalls) =~ \"writes\":([0-9]+),\"reads\":([0-9]+) ]] ||
        die "the leader at ${port[$1]} tells no ledger"
    echo "$ns" $((BASH_REMATCH[1] + BASH_REMATCH[2]))
}

# ask KIND OP CONNECTIONS: sets REPLY to the picoseconds for each request.
ask() {
    local before after
    read -r -a before <<<"$(spent "$1")"
    "$KV_BENCH" --endpoint "127.0.0.1:${port[$1]}" --op "$2" --connections "$3" --keys 1000 --warmup 0.1 \
        --duration "$seconds" --data-dir "$WORK_DIR" >/dev/null 2>"$WORK_DIR/kv_bench.log" ||
        die "$(cat "$WORK_DIR/kv_bench.log")"
    read -r -a after <<<"$(spent "$1")"
    REPLY=$((1000 * (after[0] - before[0]) / (after[1] - before[1])))
}

# quartiles: of the numbers of one column, the three.
quartiles() {
    sort -n | awk '{ all[NR] = $1 }
        function at(share, place) { place = 1 + share * (NR - 1); return all[int(place)] + (place - int(place)) * (all[int(place) + 1] - all[int(place)]) }
        END { print at(0.25), at(0.5), at(0.75) }'
}

printf '%-10s %9s %9s  %s\n' requests 'ns, with' without "ratio of $pairs pairs: median (quartiles)"
for load in 'put 1' 'put 50' 'get 50'; do
    read -r -a words <<<"$load"
    # The first of each is no pair: caches, and memory that is touched for the first time.
    for kind in on off; do ask "$kind" "${words[@]}"; done
    rows=''
    for ((pair = 1; pair <= pairs; pair++)); do
        if ((pair % 2)); then order=(on off); else order=(off on); fi
        declare -A cost
        for kind in "${order[@]}"; do
            ask "$kind" "${words[@]}"
            cost[$kind]=$REPLY
        done
        rows+="${cost[on]} ${cost[off]}"$'\n'
    done
    read -r _ with _ <<<"$(awk 'NF { print $1 / 1000 }' <<<"$rows" | quartiles)"
    read -r _ without _ <<<"$(awk 'NF { print $2 / 1000 }' <<<"$rows" | quartiles)"
    read -r low median high <<<"$(awk 'NF { print $1 / $2 }' <<<"$rows" | quartiles)"
    printf '%-10s %9.0f %9.0f  %.3f (%.3f to %.3f)\n' "$load" "$with" "$without" "$median" "$low" "$high"
done
