# Shared by the scripts beside it and by ../strace-put.sh. Sourced, never run.
#
# What it promises: the nodes of a session are its own, on free ports with data in a directory of its own, and end
# with it, however it ends; only processes that were started here are ever signalled, each by its pid.
#
# Exit codes of the scripts: 0 all went as it should, 1 something did not (the line says what), 2 usage or no
# binaries, 3 a tool is missing or not permitted here: nothing was shown.
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
bin=${KVSTORE_BIN_DIR:-$root/target/release}
kvstore=$bin/kvstore kv_client=$bin/kv_client
for binary in "$kvstore" "$kv_client"; do
    if [[ ! -x $binary ]]; then
        echo "error: $binary is missing: cargo build --release, or name a directory in KVSTORE_BIN_DIR" >&2
        exit 2
    fi
done

declare -a ports=() pids=() others=()
dir=''

# say WORDS: what happens next. fail WORDS: what is not as it should be.
say() { printf '\n== %s\n' "$*"; }
fail() {
    printf 'NOT AS IT SHOULD BE: %s\n' "$*"
    exit 1
}

# need TOOL PACKAGE: ends the session with exit code 3 if the tool is not there.
need() {
    command -v "$1" >/dev/null && return
    echo "skipped: $1 is not installed here (on Debian: apt install $2)"
    exit 3
}

# need_strace: strace is there, and this user may attach to a process of its own.
need_strace() {
    need strace strace
    local words
    sleep 5 &
    local sleeper=$!
    others+=("$sleeper")
    if ! words=$(timeout 1 strace -qq -e trace=none -p "$sleeper" 2>&1) && [[ $words == *"ttach"*"not permitted"* ]]; then
        echo "skipped: strace may not attach here: $words (run as root, or set /proc/sys/kernel/yama/ptrace_scope to 0)"
        exit 3
    fi
    kill "$sleeper"
}

end_session() {
    local pid
    for pid in "${others[@]}" "${pids[@]}"; do
        [[ -n $pid ]] || continue
        kill -CONT "$pid" 2>/dev/null
        kill "$pid" 2>/dev/null
    done
    wait 2>/dev/null
    [[ -n $dir ]] && rm -rf "$dir"
}

# client N ARGUMENTS...: kv_client at node N.
client() {
    local port=${ports[$1]}
    shift
    "$kv_client" --port "$port" "$@"
}

# wait_until SECONDS COMMAND...: true as soon as the command is.
wait_until() {
    local deadline=$((${EPOCHREALTIME/[.,]/} + $1 * 1000000))
    shift
    until "$@"; do
        ((${EPOCHREALTIME/[.,]/} < deadline)) || return 1
        sleep 0.02
    done
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
answers() { client "$1" --timeout-ms 500 ping >/dev/null 2>&1; }
# in_sync N: exactly so many nodes are in sync, the leader included.
in_sync() { [[ $(client 1 status 2>/dev/null) == *" $1 of 3 nodes in sync"* ]]; }

# start_node N: node 1 leads, 2 and 3 follow. More flags come from $flags.
start_node() {
    local role=(--role=follower "--leader=${ports[1]}")
    (($1 == 1)) && role=(--role=leader "--peers=${ports[2]},${ports[3]}")
    # shellcheck disable=SC2154,SC2086
    "$kvstore" --port "${ports[$1]}" --data-dir "$dir/node$1" "${role[@]}" --log-level warn ${flags:-} \
        </dev/null 2>>"$dir/node$1.log" &
    pids[$1]=$!
}

# ours_run: every node that was started here runs. One whose port somebody else took has ended, and the leader might have
# made that stranger its follower.
ours_run() {
    local n
    for n in 1 2 3; do
        kill -0 "${pids[n]}" 2>/dev/null || fail "node $n has ended: $(tail -n 1 "$dir/node$n.log")"
    done
}

ours_in_sync() { ours_run && in_sync 3; }

# start_cluster: three nodes, all in sync, on free ports from $KVSTORE_DEBUG_PORT on, or on the three that
# $KVSTORE_DEBUG_PORTS names, which whoever named them keeps free.
start_cluster() {
    trap end_session EXIT
    trap 'exit 130' INT TERM
    dir=$(mktemp -d "${TMPDIR:-/tmp}/kvstore-debug.XXXXXX")
    local port=${KVSTORE_DEBUG_PORT:-9701} n named
    read -r -a named <<<"${KVSTORE_DEBUG_PORTS:-}"
    for n in 1 2 3; do
        ports[n]=${named[n - 1]:-}
        [[ -z ${ports[n]} ]] || continue
        until is_free "$port"; do port=$((port + 1)); done
        ports[n]=$port
        port=$((port + 1))
    done
    for n in 2 3 1; do start_node "$n"; done
    wait_until 10 answers 1 || fail "node 1 does not answer: $(cat "$dir/node1.log")"
    wait_until 10 ours_in_sync || fail "three nodes are not in sync after 10 s"
    ours_run
    echo "three nodes: leader on port ${ports[1]} (pid ${pids[1]}), followers on ${ports[2]} (pid ${pids[2]}) and ${ports[3]} (pid ${pids[3]})"
}

# strace_node N ARGUMENTS...: attaches strace to node N and returns when it is attached; its pid is in $strace_pid.
strace_node() {
    local n=$1
    shift
    strace "$@" -p "${pids[n]}" 2>"$dir/strace$n.words" &
    strace_pid=$!
    others+=("$strace_pid")
    wait_until 5 grep -qs attached "$dir/strace$n.words" || fail "strace does not attach: $(cat "$dir/strace$n.words")"
}

# stop_strace PID: detaches; the node goes on.
stop_strace() {
    kill "$1" 2>/dev/null
    wait "$1" 2>/dev/null
    return 0
}
