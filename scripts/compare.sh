#!/usr/bin/env bash
# The same loads against kvstore, redis or valkey, etcd, and the floor of this machine; one table of medians
# and ratios beside the targets.
#
#   scripts/compare.sh [--quick] [--runs N] [--seconds S] [--data-dir DIR] [--only SYSTEM,...]
#
# One generator (kv_bench) measures all of them. The systems take turns in every run, each with a fresh
# cluster on the same disk; idle ones are not there to disturb. What is not installed is left out, and said.
set -euo pipefail
# shellcheck source=scripts/bench_cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench_cluster.sh"

runs=3 seconds=5 warmup=1 keys=100000 data_dir=$root/bench/out only=
while (($# > 0)); do
    case $1 in
        --quick) runs=1 seconds=0.5 warmup=0.2 keys=1000 ;;
        --runs) runs=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --data-dir) data_dir=$2; shift ;;
        --only) only=$2; shift ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown flag $1 (see --help)" ;;
    esac
    shift
done

out=$root/bench/out/compare
mkdir -p "$out"
rm -f "$out"/*.json
prepare "$data_dir"

systems=()
add() { # add SYSTEM COMMAND HINT
    [[ -z $only || ,$only, == *,$1,* ]] || return 0
    if have "$2"; then systems+=("$1"); else echo "not measured: $1 ($3)"; fi
}
add kvstore "$KVSTORE" "cargo build --release --workspace"
add floor "$KV_BENCH" ""
add redis redis-server "redis-server is not installed"
add valkey valkey-server "valkey-server is not installed"
add etcd etcd "etcd is not installed"
((${#systems[@]} > 0)) || die "there is nothing to measure"

# name | nodes | flags. "half" is half of what the same system did in put-c1-n3 just before.
loads=(
    "put-c1-n3|3|--connections 1"
    "put-c1-n3-half|3|--connections 1 --pipeline 16 --rate half"
    "put-c50-n3|3|--connections 50"
    "put-c50-p16-n3|3|--connections 50 --pipeline 16"
    "put-c1-n3-1k|3|--connections 1 --value-size 1024"
    "put-c50-n3-1k|3|--connections 50 --value-size 1024"
    "put-c50-p16-n3-1k|3|--connections 50 --pipeline 16 --value-size 1024"
    "put-c1-n1|1|--connections 1"
    "put-c50-n1|1|--connections 50"
    "get-c50-n1|1|--connections 50 --op get"
    "get-c50-p16-n1|1|--connections 50 --pipeline 16 --op get"
)

# Whether a system takes part in a load: the floor does not read, `insync` is compared with `quorum` where
# there are targets for it, and etcd with pipelines has none.
takes_part() {
    case $1@$2 in
        floor@get-*) return 1 ;;
        kvstore-insync@put-c1-n3 | kvstore-insync@put-c50-n3 | kvstore-insync@put-c50-p16-n3) return 0 ;;
        kvstore-insync@*) return 1 ;;
        etcd@*-p16-*) return 1 ;;
    esac
}

# measure SYSTEM LOAD NODES RUN FLAGS...
measure() {
    local system=$1 load=$2 nodes=$3 run=$4
    shift 4
    local file="$out/$load@$system@$run.json" flags=("$@") index
    for index in "${!flags[@]}"; do
        [[ ${flags[index]} == half ]] || continue
        flags[index]=$(half_of "$(ops_of "$out/put-c1-n3@$system@$run.json")")
    done
    flags+=(--duration "$seconds" --warmup "$warmup" --keys "$keys" --data-dir "$data_dir"
        --label "$system, $load" --json "$file")
    case $system in
        floor | fdatasync) flags+=(--floor --floor-nodes "$nodes" --floor-ack quorum) ;;
        kvstore*) flags+=(--endpoint "127.0.0.1:$PORT" --protocol kv) ;;
        etcd) flags+=(--endpoint "127.0.0.1:$PORT" --protocol etcd) ;;
        *)
            flags+=(--endpoint "127.0.0.1:$PORT" --protocol resp)
            if ((nodes > 1)); then flags+=(--wait 1); fi
            if [[ $system == *-batch ]]; then flags+=(--wait-batch); fi
            ;;
    esac
    echo "run $run of $runs: $system, $load" >&2
    "$KV_BENCH" "${flags[@]}" >/dev/null
}

start() { # start SYSTEM NODES
    case $1 in
        floor) ;; # kv_bench starts its own processes.
        kvstore) start_kvstore "$2" quorum fsync ;;
        kvstore-insync) start_kvstore "$2" insync fsync ;;
        etcd) start_etcd "$2" ;;
        *) start_redis "$1-server" "$2" ;;
    esac
}

# measure_loads SYSTEM NODES RUN: a cluster, and all loads for so many nodes.
measure_loads() {
    local system=$1 nodes=$2 run=$3 entry load load_nodes flags
    start "$system" "$nodes"
    for entry in "${loads[@]}"; do
        IFS='|' read -r load load_nodes flags <<<"$entry"
        if [[ $load_nodes == "$nodes" ]] && takes_part "$system" "$load"; then
            # shellcheck disable=SC2086 # the flags are words
            measure "$system" "$load" "$nodes" "$run" $flags
            if [[ $load == put-*-p16-n3* && ($system == redis || $system == valkey) ]]; then
                # shellcheck disable=SC2086
                measure "$system-batch" "$load" "$nodes" "$run" $flags
            fi
        fi
    done
    stop_servers
}

# A reader alone, then the same reader while another connection writes 20,000 PUT/s.
measure_reader_beside_writer() {
    local run=$1 load=get-c1-beside-puts writer
    start_kvstore 1 quorum fsync
    measure kvstore-idle $load 1 "$run" --op get --connections 1
    "$KV_BENCH" --endpoint "127.0.0.1:$PORT" --op put --connections 1 --pipeline 256 --rate 20000 \
        --keys "$keys" --duration 600 >/dev/null 2>&1 </dev/null &
    writer=$!
    PIDS+=("$writer")
    measure kvstore $load 1 "$run" --op get --connections 1 --no-fill
    kill "$writer" 2>/dev/null || die "the writer beside the reader ended early"
    stop_servers
    measure fdatasync $load 1 "$run"
}

for ((run = 1; run <= runs; run++)); do
    for system in "${systems[@]}"; do
        variants=("$system")
        if [[ $system == kvstore ]]; then variants+=(kvstore-insync); fi
        for variant in "${variants[@]}"; do
            measure_loads "$variant" 3 "$run"
        done
        if [[ $system == kvstore ]]; then measure_reader_beside_writer "$run"; fi
    done
    for system in "${systems[@]}"; do measure_loads "$system" 1 "$run"; done
done

{
    "$KV_BENCH" targets "$out"
    cat <<'NOTE'

What is not alike:
- redis, valkey: `appendfsync always` on all nodes, a WAIT 1 behind each SET: a pipeline waits once per SET.
  "-batch" has one WAIT behind all SETs that a connection has under way instead, the most favourable way to use
  it. WAIT counts replicas that have received the write; that they have synced it follows from `always`, not
  from WAIT. A write that WAIT does not confirm is visible all the same.
- etcd: elects its leader, keeps every version of a key, answers reads after asking a majority, syncs a
  second file now and then, speaks gRPC. kv_bench speaks just enough of it, from the same loop. The pipelined
  loads are left out.
- the floor stores nothing, checks nothing and survives nothing.
- kvstore: `--ack quorum`, `--durability fsync`, a fixed leader.
- Half rate: half of what each system itself did in the closed loop with one connection; up to 16 requests
  may be under way, so that a stall delays what comes behind it and is not hidden.
NOTE
    sample=$(find "$out" -name '*.json' | sort | head -n 1)
    echo
    echo "Machine:"
    grep -E '^  "(kernel|cpu|cpu_count|load_average|file_system|device|device_write_cache|cpu_dma_latency|git_revision)":' "$sample"
} | tee "$out/table.txt"
