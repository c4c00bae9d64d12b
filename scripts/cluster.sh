#!/usr/bin/env bash
# A local cluster to play with: one leader, the rest followers, on ports 9001, 9002, ...; or nodes that elect theirs.
#
#   scripts/cluster.sh start [N]    start N nodes (3); those that run already are left alone
#   scripts/cluster.sh start [N] --elected    the same with --role=auto: whoever leads can be stopped
#   scripts/cluster.sh status       what each node says about itself
#   scripts/cluster.sh logs [N]     the logs of all nodes, or of node N; followed on a terminal
#   scripts/cluster.sh stop         stop all nodes; their data stays, and `start` goes on with it
#   scripts/cluster.sh stop N       stop node N; `start` brings it back
#   scripts/cluster.sh wipe         stop all nodes and remove their data and logs
#
# Data, logs and pid files are in scripts/.cluster, or in $KVSTORE_CLUSTER_DIR. KVSTORE_CLUSTER_PORT is the first
# port (9001). Other KVSTORE_* variables reach the nodes, for example KVSTORE_ACK=quorum or KVSTORE_LOG_LEVEL=debug.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dir=${KVSTORE_CLUSTER_DIR:-$root/scripts/.cluster}
first_port=${KVSTORE_CLUSTER_PORT:-9001}
nodes_max=16

usage() {
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit "$1"
}

die() {
    echo "error: $*" >&2
    exit 1
}

port_of() {
    port=$((first_port + $1 - 1))
}

# How many nodes the cluster in $dir has, in $size; 0 if there is none.
load_size() {
    size=0
    if [[ -f $dir/size ]]; then
        size=$(<"$dir/size")
        [[ $size =~ ^[0-9]+$ && $size -ge 1 ]] || die "$dir/size does not hold a number of nodes; is $dir a cluster's directory?"
    fi
}

# Whether a process is a kvstore with the data directory of node N.
is_node() {
    local arguments i
    [[ $2 =~ ^[0-9]+$ ]] || return 1
    mapfile -d '' -t arguments 2>/dev/null <"/proc/$2/cmdline" || return 1
    [[ ${arguments[0]:-} == */kvstore ]] || return 1
    for ((i = 1; i < ${#arguments[@]}; i++)); do
        [[ ${arguments[i]} != --data-dir || ${arguments[i + 1]:-} != "$dir/node$1" ]] || return 0
    done
    return 1
}

# The pid of node N in $pid if it runs: from the pid file or, if that is lost, from the node's own lock file, and only
# if that process is a kvstore with this very data directory. A pid that the system gave to somebody else since is
# never touched.
running_pid() {
    local file
    for file in "$dir/node$1.pid" "$dir/node$1/LOCK"; do
        [[ -f $file ]] || continue
        read -r pid _ <"$file" || true
        if is_node "$1" "$pid"; then
            return 0
        fi
    done
    pid=''
    return 1
}

is_stopped() {
    ! running_pid "$1"
}

node_number() {
    [[ $1 =~ ^[0-9]+$ && $1 -ge 1 && $1 -le $size ]] || die "there is no node $1; the cluster in $dir has $size node(s)"
}

start_node() {
    local node=$1 other peers=() role
    for ((other = 2; other <= size; other++)); do
        port_of "$other"
        peers+=("$port")
    done
    if [[ -f $dir/elected ]]; then
        peers=()
        for ((other = 1; other <= size; other++)); do
            port_of "$other"
            [[ $other -eq $node ]] || peers+=("$port")
        done
        role=(--role=auto "--peers=$(IFS=,; echo "${peers[*]:-}")")
    elif [[ $node -eq 1 ]]; then
        role=(--role=leader "--peers=$(IFS=,; echo "${peers[*]:-}")")
    else
        role=(--role=follower "--leader=$first_port")
    fi
    port_of "$node"
    nohup "$kvstore" --port "$port" --data-dir "$dir/node$node" "${role[@]}" >/dev/null 2>>"$dir/node$node.log" </dev/null &
    echo $! >"$dir/node$node.pid"
    disown
}

ended_or_answers() {
    ! kill -0 "$(<"$dir/node$1.pid")" 2>/dev/null || answers "$port"
}

start() {
    local wanted='' elected=no argument node failed=0 begun=()
    for argument in "$@"; do
        if [[ $argument == --elected ]]; then elected=yes; else wanted=$argument; fi
    done
    load_size
    if [[ $size -gt 0 && $elected == yes && ! -f $dir/elected ]]; then
        die "the cluster in $dir has fixed roles; \`$0 wipe\` removes it, then \`$0 start --elected\` makes another"
    fi
    if [[ -z $wanted ]]; then
        wanted=$size
        [[ $wanted -gt 0 ]] || wanted=3
    fi
    [[ $wanted =~ ^[0-9]+$ && $wanted -ge 1 && $wanted -le $nodes_max ]] || die "start takes a number of nodes, 1 to $nodes_max, and not '$wanted'"
    if [[ $size -gt 0 && $size -ne $wanted ]]; then
        die "the cluster in $dir has $size node(s); \`$0 wipe\` removes it, then \`$0 start $wanted\` makes another"
    fi
    size=$wanted
    find_binaries || exit 1
    mkdir -p "$dir"
    echo "$size" >"$dir/size"
    [[ $elected == no ]] || touch "$dir/elected"
    for ((node = 1; node <= size; node++)); do
        port_of "$node"
        if running_pid "$node"; then
            echo "node $node runs already on port $port (pid $pid)"
        elif port_is_taken "$port"; then
            echo "error: port $port of node $node is taken by another process; KVSTORE_CLUSTER_PORT names another first port" >&2
            failed=1
        else
            start_node "$node"
            begun+=("$node")
        fi
    done
    for node in "${begun[@]}"; do
        port_of "$node"
        wait_until 30 ended_or_answers "$node" || true
        if running_pid "$node" && answers "$port"; then
            echo "node $node started on port $port (pid $pid)"
        else
            echo "error: node $node did not start; its log ends with:" >&2
            tail -n 3 "$dir/node$node.log" >&2
            failed=1
        fi
    done
    if [[ ${#begun[@]} -gt 0 && $failed -eq 0 ]]; then
        echo "try: $kv_client --port $first_port put hello world"
    fi
    return "$failed"
}

stop_node() {
    if ! running_pid "$1"; then
        rm -f "$dir/node$1.pid"
        echo "node $1 does not run"
        return
    fi
    kill -TERM "$pid"
    local was=$pid
    # A node ends within 5 s of SIGTERM, whatever is under way.
    if ! wait_until 7 is_stopped "$1"; then
        echo "node $1 (pid $was) did not end within 7 s of SIGTERM; killing it" >&2
        running_pid "$1" && kill -9 "$pid"
        wait_until 5 is_stopped "$1" || die "node $1 (pid $was) cannot be killed"
    fi
    rm -f "$dir/node$1.pid"
    echo "node $1 stopped"
}

# The leader first: it stops taking writes while its followers still answer it.
stop_all() {
    local node
    for ((node = 1; node <= size; node++)); do
        stop_node "$node"
    done
}

stop() {
    load_size
    if [[ $size -eq 0 ]]; then
        echo "there is no cluster in $dir"
    elif [[ -n ${1:-} ]]; then
        node_number "$1"
        stop_node "$1"
    else
        stop_all
    fi
}

# Exit code 0 only if every node runs and answers.
status() {
    local node failed=0
    load_size
    [[ $size -gt 0 ]] || die "there is no cluster in $dir; \`$0 start\` makes one"
    find_binaries || exit 1
    for ((node = 1; node <= size; node++)); do
        port_of "$node"
        printf '%s== node %d, port %d%s\n' "$bold" "$node" "$port" "$plain"
        if ! running_pid "$node"; then
            echo "does not run"
            failed=1
        elif ! "$kv_client" --port "$port" --timeout-ms 2000 status; then
            failed=1
        fi
        echo
    done
    return "$failed"
}

logs() {
    local node files=()
    load_size
    [[ $size -gt 0 ]] || die "there is no cluster in $dir; \`$0 start\` makes one"
    for ((node = 1; node <= size; node++)); do
        [[ -f $dir/node$node.log ]] && files+=("$dir/node$node.log")
    done
    if [[ -n ${1:-} ]]; then
        node_number "$1"
        files=("$dir/node$1.log")
    fi
    [[ ${#files[@]} -gt 0 ]] || die "nothing was started in $dir yet"
    if [[ -t 1 ]]; then
        exec tail -n 20 -F "${files[@]}"
    fi
    tail -n 100 "${files[@]}"
}

# Removes what this script made, by name, and the directory only if nothing else is in it.
wipe() {
    local node
    load_size
    if [[ $size -eq 0 ]]; then
        echo "there is no cluster in $dir"
        return
    fi
    stop_all
    for ((node = 1; node <= size; node++)); do
        rm -rf "$dir/node$node" "$dir/node$node.log" "$dir/node$node.pid"
    done
    rm -f "$dir/size" "$dir/elected"
    rmdir "$dir" 2>/dev/null || echo "$dir holds other files and stays"
    echo "the cluster's data and logs are removed"
}

for variable in "${!KV_CLIENT_@}"; do
    unset "$variable"
done
unset KVSTORE_PORT KVSTORE_DATA_DIR KVSTORE_ROLE KVSTORE_PEERS KVSTORE_LEADER
# A node is told apart by its data directory, so the path must not depend on where this is called from.
[[ $dir == /* ]] || dir=$PWD/$dir
case ${1:-} in
    start)
        [[ $# -le 3 ]] || usage 2
        start "${@:2}"
        ;;
    stop | logs)
        [[ $# -le 2 ]] || usage 2
        "$1" "${2:-}"
        ;;
    status | wipe)
        [[ $# -le 1 ]] || usage 2
        "$1"
        ;;
    -h | --help | help) usage 0 ;;
    *) usage 2 >&2 ;;
esac
