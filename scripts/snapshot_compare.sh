#!/usr/bin/env bash
# What a snapshot costs while it is made, what a restart takes and what a key costs in memory, beside redis or valkey.
#
#   scripts/snapshot_compare.sh [--keys N] [--runs N] [--restarts N] [--seconds S] [--only kvstore] (5000000, 5, 5, 3)
#
# Both stores hold the same keys (16 bytes, values of 64) and run at the same time; only one is asked at a time, in
# turns. kvstore syncs every write before it answers; redis keeps an append-only file with `everysec`, as most do.
# `fill` makes the data and stops there, `run` measures with it (SNAPSHOT_COMPARE_PHASE, SNAPSHOT_COMPARE_DIR): the
# first may then lie outside of the quiet time that the second needs. Runs of a directory add up: each `run` goes on
# behind those before it, so that many pairs can be measured in short quiet times. Beside each load of kvstore lies what
# its slowest writes waited for (`slowest/`).
set -euo pipefail
# shellcheck source=scripts/bench_cluster.sh
source "$(dirname "${BASH_SOURCE[0]}")/bench_cluster.sh"

keys=5000000 runs=5 restarts=5 seconds=3 only=
while (($# > 0)); do
    case $1 in
        --keys) keys=$2; shift ;;
        --runs) runs=$2; shift ;;
        --restarts) restarts=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --only) only=$2; shift ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown flag $1 (see --help)" ;;
    esac
    shift
done
phase=${SNAPSHOT_COMPARE_PHASE:-all}
dir=${SNAPSHOT_COMPARE_DIR:-${DATA_DIR:-/tmp}/kv-snapshot-compare}
client=$TARGET_DIR/kv_client
out=$dir/out
systems=(kvstore)
for server in redis valkey; do
    [[ -z $only || $only == "$server" ]] || continue
    if have "$server-server" && have "$server-cli"; then
        systems+=("$server")
    else
        echo "not measured: $server ($server-server or $server-cli is not installed)"
    fi
done
for program in "$KV_BENCH" "$KVSTORE" "$client"; do
    [[ -x $program ]] || die "$program is missing: cargo build --release --workspace"
done
mkdir -p "$out" "$dir/slowest"
trap 'stop_servers' EXIT

declare -A port pid
for system in "${systems[@]}"; do
    free_port
    port[$system]=$REPLY
    mkdir -p "$dir/$system"
done

# start SYSTEM FLAGS...
start() {
    local system=$1
    shift
    case $system in
        kvstore)
            in_background "$dir/kvstore.log" "$KVSTORE" --port "${port[kvstore]}" --data-dir "$dir/kvstore" \
                --snapshot-log-bytes=1000000000000 "$@"
            ;;
        *)
            in_background "$dir/$system.log" "$system-server" --port "${port[$system]}" --bind 127.0.0.1 --save "" \
                --dir "$dir/$system" --appendfsync everysec --auto-aof-rewrite-percentage 0 "$@"
            ;;
    esac
    pid[$system]=${PIDS[-1]}
}

# stop SYSTEM: ends that one.
stop() {
    local gone=${pid[$1]} one rest=()
    kill "$gone" 2>/dev/null || true
    wait "$gone" 2>/dev/null || true
    for one in "${PIDS[@]}"; do [[ $one == "$gone" ]] || rest+=("$one"); done
    PIDS=("${rest[@]+"${rest[@]}"}")
}

cli() { # cli SYSTEM WORDS...: of redis or valkey
    local system=$1
    shift
    "$system-cli" -p "${port[$system]}" "$@"
}

info() { # info SYSTEM FIELD
    cli "$1" info "$([[ $2 == used_* ]] && echo memory || echo persistence)" | sed -n "s/^$2:\([0-9]*\).*/\1/p"
}

status() { # status FIELD OF THE SNAPSHOT: a word or a number
    "$client" --port "${port[kvstore]}" -o json status |
        sed -n "s/.*\"snapshot\": *{.*\"$1\": *\"\{0,1\}\([a-z0-9]*\).*/\1/p"
}

# Whether reads are served: the state is whole.
serves() {
    case $1 in
        kvstore) [[ $("$client" --port "${port[kvstore]}" --timeout-ms 200 get key:000000000001 2>/dev/null) ]] ;;
        *) [[ $(cli "$1" get key:000000000001 2>/dev/null) == ?????????* && $(cli "$1" exists key:000000000001) == 1 ]] ;;
    esac
}

await() { # await SYSTEM: until it serves, 120 s at most
    for _ in $(seq 12000); do
        kill -0 "${pid[$1]}" 2>/dev/null || die "$1 ended; see $dir/$1.log"
        if serves "$1"; then return 0; fi
        sleep 0.01
    done
    die "$1 serves nothing after 120 s; see $dir/$1.log"
}

is_saving() {
    case $1 in
        kvstore) [[ $(status state) == running ]] ;;
        *) [[ $(info "$1" rdb_bgsave_in_progress) == 1 ]] ;;
    esac
}

save() { # save SYSTEM: begins a snapshot
    case $1 in
        kvstore) "$client" --port "${port[kvstore]}" snapshot --no-wait >/dev/null ;;
        *) cli "$1" bgsave >/dev/null ;;
    esac
}

await_saved() {
    while is_saving "$1"; do sleep 0.05; done
}

memory() { # memory SYSTEM VmRSS|VmHWM: in bytes
    awk -v field="$2:" '$1 == field { print $2 * 1024 }' "/proc/${pid[$1]}/status"
}

language() { [[ $1 == kvstore ]] && echo kv || echo resp; }

load() { # load SYSTEM FLAGS...
    local system=$1
    shift
    "$KV_BENCH" --endpoint "127.0.0.1:${port[$system]}" --protocol "$(language "$system")" --keys "$keys" \
        --connections 50 --data-dir "$dir" "$@"
}

figure() { # figure NAME SYSTEM RUN NUMBER
    printf '{"%s": %s}\n' "$1" "$4" >"$out/$1@$2@$3.json"
}

fill() {
    rm -rf "${dir:?}"/*
    mkdir -p "$out" "$dir/slowest"
    for system in "${systems[@]}"; do
        mkdir -p "$dir/$system"
        if [[ $system == kvstore ]]; then start kvstore; else start "$system" --appendonly yes; fi
        PORT=${port[$system]}
        await_writes "$system" --protocol "$(language "$system")"
        load "$system" --op get --pipeline 64 --duration 0.1 --warmup 0 >"$dir/fill.log" 2>&1 || die "see $dir/fill.log"
        figure filled_bytes "$system" 1 "$(memory "$system" VmRSS)"
        save "$system"
        await_saved "$system"
        stop "$system"
        # What is loaded is the snapshot, and nothing beside it.
        rm -rf "$dir/$system/appendonlydir"
    done
}

measure_restarts() {
    local run system began now
    for ((run = 1; run <= restarts; run++)); do
        for system in "${systems[@]}"; do
            echo "restart $run of $restarts: $system" >&2
            began=${EPOCHREALTIME/[.,]/}
            if [[ $system == kvstore ]]; then start kvstore; else start "$system" --appendonly no; fi
            await "$system"
            now=${EPOCHREALTIME/[.,]/}
            figure restart_us "$system" "$run" "$((now - began))"
            figure loaded_bytes "$system" "$run" "$(memory "$system" VmRSS)"
            ((run == restarts)) || stop "$system"
        done
    done
}

# measure SYSTEM LOAD RUN
measure() {
    echo "run $3 of $last: $1, $2" >&2
    [[ $1 != kvstore ]] || "$client" --port "${port[kvstore]}" reset >/dev/null
    load "$1" --op put --duration "$seconds" --warmup 0.5 --label "$1, $2" --json "$out/$2@$1@$3.json" >/dev/null
    [[ $1 != kvstore ]] || keep_slowest "$2" "$3"
}

# keep_slowest LOAD RUN: the slowest sync of the log meanwhile, and what each of the slowest writes waited for.
keep_slowest() {
    local latency
    latency=$("$client" --port "${port[kvstore]}" -o json latency)
    [[ $latency =~ \"put\ sync\":\{[^}]*\"max_us\":([0-9.]+) ]] || die "no time of a sync in $latency"
    figure "$1-sync" kvstore "$2" "${BASH_REMATCH[1]}"
    "$client" --port "${port[kvstore]}" slowest >"$dir/slowest/$1@$2.txt"
    printf '%s\n' "$latency" >"$dir/slowest/$1@$2.json"
}

measure_saving() { # measure_saving SYSTEM RUN
    local system=$1 run=$2 before
    before=$(memory "$system" VmRSS)
    echo 5 >"/proc/${pid[$system]}/clear_refs"
    save "$system"
    measure "$system" put-saving "$run"
    if ! is_saving "$system"; then
        echo "run $run: $system had its snapshot before the load ended: left out; shorten --seconds" >&2
        rm "$out/put-saving@$system@$run.json"
    fi
    await_saved "$system"
    if [[ $system == kvstore ]]; then
        figure peak_bytes kvstore "$run" "$(($(memory kvstore VmHWM) - before))"
    else
        figure peak_bytes "$system" "$run" "$(info "$system" rdb_last_cow_size)"
    fi
}

run() {
    local first
    # shellcheck disable=SC2012 # the names are this script's own
    first=$(ls "$out" | sed -n 's/^put@kvstore@\([0-9]*\)\.json$/\1/p' | sort -n | tail -n 1)
    last=$((${first:-0} + runs)) first=$((${first:-0} + 1))
    if ((restarts > 0)); then measure_restarts; else start kvstore; await kvstore; fi
    for system in "${systems[@]:1}"; do
        cli "$system" config set appendonly yes >/dev/null
        while [[ $(info "$system" aof_rewrite_in_progress)$(info "$system" aof_rewrite_scheduled) != 00 ]]; do
            sleep 0.05
        done
    done
    local number system
    for ((number = first; number <= last; number++)); do
        for system in "${systems[@]}"; do
            # In turns: what a load leaves behind for the next one is left behind for either.
            if ((number % 2)); then
                measure "$system" put "$number"
                measure_saving "$system" "$number"
            else
                measure_saving "$system" "$number"
                measure "$system" put "$number"
            fi
        done
    done
    stop_servers
    "$KV_BENCH" snapshots --keys "$keys" "$out" | tee "$dir/table.txt"
}

case $phase in
    fill) fill ;;
    run) run ;;
    all) fill; run ;;
    *) die "SNAPSHOT_COMPARE_PHASE is fill, run or all" ;;
esac
