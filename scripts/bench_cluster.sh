# Sourced by the scripts that measure clusters beside each other: starts and ends clusters of each system on free ports of
# this machine.
#
# Every process is ended by its own id, also when the script is interrupted; all data lies in one directory
# of our own below $DATA_DIR, which is removed. No root. start_* functions set PORT, where clients go.
# shellcheck shell=bash

# Where the sourcing script lies, so that it runs from anywhere.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}/release
KV_BENCH=${KV_BENCH:-$TARGET_DIR/kv_bench}
KVSTORE=${KVSTORE:-$TARGET_DIR/kvstore}

PIDS=()
WORK_DIR=

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

have() { command -v "$1" >/dev/null 2>&1; }

# Ends the servers that run, and forgets their data.
stop_servers() {
    local pid
    for pid in ${PIDS[@]+"${PIDS[@]}"}; do kill "$pid" 2>/dev/null || true; done
    # A server that is stopped or hangs must not hold the script: it has 5 s.
    for pid in ${PIDS[@]+"${PIDS[@]}"}; do
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    PIDS=()
    [[ -z $WORK_DIR ]] || rm -rf "${WORK_DIR:?}"/*
}

cleanup() {
    local status=$?
    trap - EXIT INT TERM
    stop_servers
    [[ -z $WORK_DIR ]] || rm -rf "$WORK_DIR"
    exit "$status"
}

# prepare DATA_DIR: a directory of our own on that disk, and the trap that empties it.
prepare() {
    [[ -x $KV_BENCH ]] || die "$KV_BENCH is not there: cargo build --release --workspace"
    mkdir -p "$1"
    WORK_DIR=$(mktemp -d "$1/kv_bench.XXXXXX")
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# read_pairs FLAGS...: of a script that measures pairs; sets pairs, seconds and data_dir where a flag says so. --help shows
# what stands at the head of the script.
read_pairs() {
    while (($# > 0)); do
        # shellcheck disable=SC2034 # for the script
        case $1 in
            --pairs) pairs=$2; shift ;;
            --seconds) seconds=$2; shift ;;
            --data-dir) data_dir=$2; shift ;;
            -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
            *) die "unknown flag $1 (see --help)" ;;
        esac
        shift
    done
}

# Sets REPLY to a port that nothing listens on, below the range that the kernel gives to clients.
free_port() {
    while :; do
        REPLY=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$REPLY") 2>/dev/null || return 0
    done
}

# in_background LOG COMMAND...: starts a server and remembers its id.
in_background() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 </dev/null &
    PIDS+=($!)
}

# await_writes NAME FLAGS...: until a write succeeds, 20 s at most.
await_writes() {
    local name=$1 result
    shift
    for _ in $(seq 200); do
        if result=$("$KV_BENCH" --endpoint "127.0.0.1:$PORT" "$@" --op put --connections 1 --keys 1 \
            --duration 0.02 --warmup 0 --json - 2>/dev/null) && grep -q '"errors": {}' <<<"$result"; then
            return 0
        fi
        sleep 0.1
    done
    tail -n 5 "$WORK_DIR"/*.log >&2 || true
    die "$name took no write for 20 s; its last words are above"
}

# start_kvstore NODES ACK DURABILITY
start_kvstore() {
    local nodes=$1 ack=$2 durability=$3 peers=() index
    free_port
    PORT=$REPLY
    local common=(--durability "$durability")
    for ((index = 2; index <= nodes; index++)); do
        free_port
        peers+=("$REPLY")
        in_background "$WORK_DIR/kvstore$index.log" "$KVSTORE" --port "$REPLY" \
            --data-dir "$WORK_DIR/kvstore$index" --role=follower --leader="$PORT" "${common[@]}"
    done
    local leader=(--port "$PORT" --data-dir "$WORK_DIR/kvstore1" --role=leader --ack "$ack" "${common[@]}")
    if ((nodes > 1)); then
        leader+=(--peers="$(IFS=,; echo "${peers[*]}")")
    fi
    in_background "$WORK_DIR/kvstore1.log" "$KVSTORE" "${leader[@]}"
    await_writes kvstore
}

# start_elected NODES: PORT is the port of the node that was elected, so that no write is sent on.
start_elected() {
    local nodes=$1 ports=() index other peers
    for ((index = 0; index < nodes; index++)); do
        free_port
        ports+=("$REPLY")
    done
    for ((index = 0; index < nodes; index++)); do
        peers=''
        for other in "${ports[@]}"; do
            [[ $other == "${ports[index]}" ]] || peers+=,$other
        done
        in_background "$WORK_DIR/kvstore$index.log" "$KVSTORE" --port "${ports[index]}" \
            --data-dir "$WORK_DIR/kvstore$index" --role=auto --peers="${peers#,}"
    done
    local endpoints
    endpoints=$(IFS=,; echo "${ports[*]}")
    for _ in $(seq 200); do
        PORT=$("$(dirname "$KVSTORE")/kv_client" --endpoints "$endpoints" --timeout-ms 500 -o json status 2>/dev/null |
            sed -n 's/^{"ok":true,"leader":"127.0.0.1:\([0-9]*\)".*/\1/p')
        if [[ -n $PORT ]]; then
            await_writes 'elected kvstore'
            return 0
        fi
        sleep 0.1
    done
    die "no leader was elected in 20 s"
}

# start_redis SERVER NODES: every write in the append-only file is synced before it is answered, on all nodes.
start_redis() {
    local server=$1 nodes=$2 index primary
    local always=(--appendonly yes --appendfsync always --save "" --bind 127.0.0.1
        --repl-diskless-sync-delay 0)
    free_port
    primary=$REPLY
    for ((index = 1; index <= nodes; index++)); do
        mkdir -p "$WORK_DIR/redis$index"
        local flags=("${always[@]}" --dir "$WORK_DIR/redis$index")
        if ((index == 1)); then
            flags+=(--port "$primary")
        else
            free_port
            flags+=(--port "$REPLY" --replicaof 127.0.0.1 "$primary")
        fi
        in_background "$WORK_DIR/redis$index.log" "$server" "${flags[@]}"
    done
    PORT=$primary
    if ((nodes > 1)); then
        await_writes "$server" --protocol resp --wait $((nodes - 1))
    else
        await_writes "$server" --protocol resp
    fi
}

# etcd_leads PORT: whether this member is the leader, asked through its JSON gateway.
etcd_leads() {
    local answer member leader
    answer=$(
        exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf 'POST /v3/maintenance/status HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}' >&3
        cat <&3
    ) || return 1
    member=$(sed -n 's/.*"member_id":"\([0-9]*\)".*/\1/p' <<<"$answer")
    leader=$(sed -n 's/.*"leader":"\([0-9]*\)".*/\1/p' <<<"$answer")
    [[ -n $leader && $member == "$leader" ]]
}

# start_etcd NODES: as it is. PORT is the leader's, so that no write is forwarded.
start_etcd() {
    local nodes=$1 index clients=() peers=() members=()
    for ((index = 1; index <= nodes; index++)); do
        free_port
        clients+=("$REPLY")
        free_port
        peers+=("$REPLY")
        members+=("n$index=http://127.0.0.1:$REPLY")
    done
    for ((index = 1; index <= nodes; index++)); do
        local client="http://127.0.0.1:${clients[index - 1]}" peer="http://127.0.0.1:${peers[index - 1]}"
        in_background "$WORK_DIR/etcd$index.log" etcd --name "n$index" --data-dir "$WORK_DIR/etcd$index" \
            --listen-client-urls "$client" --advertise-client-urls "$client" \
            --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
            --initial-cluster "$(IFS=,; echo "${members[*]}")" --initial-cluster-state new
    done
    for _ in $(seq 100); do
        for PORT in "${clients[@]}"; do
            if etcd_leads "$PORT"; then
                await_writes etcd --protocol etcd
                return 0
            fi
        done
        sleep 0.1
    done
    die "etcd elected no leader in 10 s"
}

# Operations per second in a result file (the first such field is the median's).
ops_of() { sed -n 's/^ *"ops_per_s": *\([0-9.e+]*\),*$/\1/p;T;q' "$1"; }

# half_of NUMBER, not below 1.
half_of() { awk -v ops="$1" 'BEGIN { half = ops / 2; print (half < 1 ? 1 : half) }'; }
