#!/usr/bin/env bash
# The whole matrix of loads against a local cluster of kvstore: one table, one page with the plots.
#
#   scripts/latency.sh [--quick] [--runs N] [--seconds S] [--data-dir DIR]
#
# 3 nodes and 1, `fsync` and `os`; 1 and 50 connections, pipeline 16, values of 64 B and 1 KiB, a mixed load, and
# an open loop at half of the maximum rate. Writes with `fsync` are measured beside the floor of the machine.
# Results: bench/out/latency/ (table.txt, index.html, and per load .json, .hgrm, .svg). --quick is for CI: it
# shows that everything works, its numbers mean nothing.
set -euo pipefail
# shellcheck source=scripts/bench_cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench_cluster.sh"

runs=3 seconds=5 warmup=1 keys=100000 data_dir=$root/bench/out quick=
while (($# > 0)); do
    case $1 in
        --quick) quick=1 runs=1 seconds=0.3 warmup=0.1 keys=1000 ;;
        --runs) runs=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --data-dir) data_dir=$2; shift ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown flag $1 (see --help)" ;;
    esac
    shift
done

have "$KVSTORE" || die "$KVSTORE is not there: cargo build --release --workspace"
out=$root/bench/out/latency
mkdir -p "$out"
rm -f "$out"/*
prepare "$data_dir"

# name | flags. "half" is half of what put-c50 of the same cluster did just before.
loads=(
    "put-c1|--connections 1"
    "put-c50|--connections 50"
    "put-c50-half|--connections 50 --rate half"
    "put-c50-p16|--connections 50 --pipeline 16"
    "put-c1-1k|--connections 1 --value-size 1024"
    "put-c50-1k|--connections 50 --value-size 1024"
    "put-c50-p16-1k|--connections 50 --pipeline 16 --value-size 1024"
    "get-c1|--connections 1 --op get"
    "get-c50|--connections 50 --op get"
    "get-c50-p16|--connections 50 --pipeline 16 --op get"
    "mix90-c50|--connections 50 --op mix:90"
    "mix90-c50-half|--connections 50 --op mix:90 --rate half"
)

results=()

# measure CLUSTER NODES DURABILITY NAME FLAGS...
measure() {
    local cluster=$1 nodes=$2 durability=$3 name=$4 index base
    local file="$out/$cluster-$4"
    shift 4
    local flags=("$@")
    base="$out/$cluster-${name%-half}.json"
    for index in "${!flags[@]}"; do
        if [[ ${flags[index]} == half ]]; then flags[index]=$(half_of "$(ops_of "$base")"); fi
    done
    # The floor takes three seconds beside its load: quick runs do without, but for one.
    if [[ $durability == fsync && $name == put-* && (-z $quick || $name == put-c1) ]]; then
        flags+=(--floor --floor-nodes "$nodes")
    fi
    echo "$cluster: $name" >&2
    "$KV_BENCH" --endpoint "127.0.0.1:$PORT" --protocol kv "${flags[@]}" --keys "$keys" --runs "$runs" \
        --duration "$seconds" --warmup "$warmup" --data-dir "$data_dir" --label "$nodes node(s), $durability: $name" \
        --json "$file.json" --hgrm "$file.hgrm" --svg "$file.svg" >/dev/null
    results+=("$file")
}

for nodes in 3 1; do
    for durability in fsync os; do
        start_kvstore "$nodes" quorum "$durability"
        for entry in "${loads[@]}"; do
            IFS='|' read -r name flags <<<"$entry"
            # shellcheck disable=SC2086 # the flags are words
            measure "n$nodes-$durability" "$nodes" "$durability" "$name" $flags
        done
        stop_servers
    done
done

machine() {
    grep -E '^  "(kernel|cpu|cpu_count|load_average|file_system|device|device_write_cache|cpu_dma_latency|git_revision)":' \
        "${results[0]}.json"
}

{
    "$KV_BENCH" table "${results[@]/%/.json}"
    echo
    echo "Acknowledged by a majority (--ack quorum). Floor: a bare leader and bare followers that only recv,"
    echo "write, send, fdatasync and ack, in the same minutes on the same disk; \"void\" where it was disturbed."
    if [[ -n $quick ]]; then echo "Quick: these numbers mean nothing."; fi
    echo
    echo "Machine:"
    machine
} | tee "$out/table.txt"

escape() { sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g'; }

{
    cat <<'HEAD'
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>kvstore: latency</title>
<style>
  body { font-family: sans-serif; color: #333; max-width: 1800px; margin: 2em auto; padding: 0 1em }
  pre { overflow-x: auto; font-size: 13px; line-height: 1.4 }
  .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(520px, 1fr)); gap: 1em }
  svg { width: 100%; height: auto; border: 1px solid #ddd }
</style>
<h1>kvstore: latency</h1>
<p>Response time over percentiles, one curve per run; both axes are logarithmic.</p>
<div class="plots">
HEAD
    for result in "${results[@]}"; do cat "$result.svg"; done
    echo '</div>'
    echo '<pre>'
    escape <"$out/table.txt"
    echo '</pre>'
    echo '</html>'
} >"$out/index.html"
echo "Plots: $out/index.html"
