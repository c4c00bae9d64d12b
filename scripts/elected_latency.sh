#!/usr/bin/env bash
# What an acknowledged write costs in a cluster that elects its leader, beside fixed roles and --ack=insync: three nodes
# on this machine, in turn, so that what changes on it changes both. The target is a ratio of p50 of 1.05 at most.
#
#   scripts/elected_latency.sh [--pairs N] [--seconds S] [--data-dir DIR]
#
# A pair is one fresh cluster of each kind, in alternating order, each measured at 1 and at 50 connections. The ratio is
# that of the medians; ratios of single pairs differ by a fifth on a virtual machine. Needs: cargo build --release --workspace
set -euo pipefail
# shellcheck source=scripts/bench_cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench_cluster.sh"

pairs=10 seconds=1 data_dir=$root/bench/out
read_pairs "$@"

out=$root/bench/out/elected
mkdir -p "$out"
rm -f "$out"/*.json
prepare "$data_dir"

# measure SYSTEM PAIR: at 1 and 50 connections, against PORT.
measure() {
    local connections
    for connections in 1 50; do
        echo "pair $2 of $pairs: $1, $connections connection(s)" >&2
        "$KV_BENCH" --endpoint "127.0.0.1:$PORT" --connections "$connections" --keys 1000 --duration "$seconds" \
            --warmup 0.3 --json "$out/elected-c$connections-n3@$1@$2.json" >/dev/null
    done
}

one() {
    case $1 in
        fixed-insync) start_kvstore 3 insync fsync ;;
        kvstore) start_elected 3 ;;
    esac
    measure "$1" "$2"
    stop_servers
}

for ((pair = 1; pair <= pairs; pair++)); do
    if ((pair % 2)); then order=(fixed-insync kvstore); else order=(kvstore fixed-insync); fi
    for kind in "${order[@]}"; do one "$kind" "$pair"; done
done

"$KV_BENCH" targets "$out" | tee "$out/table.txt"
! grep -q 'MISSED' "$out/table.txt"
