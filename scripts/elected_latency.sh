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
while (($# > 0)); do
    case $1 in
        --pairs) pairs=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --data-dir) data_dir=$2; shift ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown flag $1 (see --help)" ;;
    esac
    shift
done

out=$root/bench/out/elected
mkdir -p "$out"
rm -f "$out"/*.json
prepare "$data_dir"

# measure KIND PAIR: at 1 and 50 connections, against PORT.
measure() {
    local connections
    for connections in 1 50; do
        echo "pair $2 of $pairs: $1, $connections connections" >&2
        "$KV_BENCH" --endpoint "127.0.0.1:$PORT" --connections "$connections" --keys 1000 --duration "$seconds" \
            --warmup 0.3 --json "$out/$1-c$connections-$2.json" >/dev/null
    done
}

one() {
    case $1 in
        fixed) start_kvstore 3 insync fsync ;;
        elected) start_elected 3 ;;
    esac
    measure "$1" "$2"
    stop_servers
}

for ((pair = 1; pair <= pairs; pair++)); do
    if ((pair % 2)); then order=(fixed elected); else order=(elected fixed); fi
    for kind in "${order[@]}"; do one "$kind" "$pair"; done
done

# FIELD KIND CONNECTIONS: the median of it.
median() {
    cat "$out/$2-c$3"-*.json | awk -v field="$1" '
        /"response_us"/ { inside = 1 }
        field == "ops_per_s" && /^ *"ops_per_s"/ && !(FILENAME in seen) { gsub(/[^0-9.]/, ""); print }
        field == "p50" && inside && /^ *"p50"/ { sub(/.*: */, ""); gsub(/[^0-9.]/, ""); print; inside = 0 }
    ' | sort -n | awk '{ all[NR] = $1 } END { print NR % 2 ? all[(NR + 1) / 2] : (all[NR / 2] + all[NR / 2 + 1]) / 2 }'
}

bad=0
printf '%-16s %14s %14s %8s   (medians of %s pairs)\n' 'p50, us' 'insync, fixed' 'elected' 'ratio' "$pairs"
for connections in 1 50; do
    fixed=$(median p50 fixed "$connections") elected=$(median p50 elected "$connections")
    ratio=$(awk -v a="$elected" -v b="$fixed" 'BEGIN { printf "%.3f", a / b }')
    printf '%-16s %14s %14s %8s\n' "$connections connection(s)" "$fixed" "$elected" "$ratio"
    awk -v ratio="$ratio" 'BEGIN { exit !(ratio > 1.05) }' && bad=1
done
if ((bad)); then
    echo "MISSED: the ratio is above 1.05"
    exit 1
fi
