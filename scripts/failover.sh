#!/usr/bin/env bash
# Makes the nodes of an elected cluster fail under load, checks all that its clients were told, and shows how long
# they waited. Ends with 1 if anything was lost, out of order, or too slow.
#
#   scripts/failover.sh                  three minutes of kill -9, SIGSTOP and lost packets, on leaders and followers
#   scripts/failover.sh --minutes 60     longer
#   scripts/failover.sh --kills 50       kill -9 the leader fifty times: p99 of what a client waits is below 1 s
#   scripts/failover.sh --kills 50 --election-timeout-ms 100 --p99-ms 300
#   scripts/failover.sh --rolling 10     restart all nodes in turn with SIGTERM, ten times: no failed write, 200 ms
#   scripts/failover.sh --help           all flags: they are those of kv_failover
#
# Packets are lost in network namespaces that live and die with the run: that takes root, or a system that lets users
# make them, and iproute2. Elsewhere links are not cut, and the first line says so. The picture of every failure is in
# bench/out.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

find_binaries
kv_failover=$(dirname "$kvstore")/kv_failover
if [[ -z ${KVSTORE_BIN_DIR:-} ]] && command -v cargo >/dev/null; then
    (cd "$root" && cargo build --release -p kv_bench --bin kv_failover) || exit 1
fi
if [[ ! -x $kv_failover ]]; then
    echo "error: $kv_failover is missing: build it with cargo build --release --workspace" >&2
    exit 1
fi
# What a mode promises, unless something else is asked for.
limit=()
case " $* " in
    *' --p99-ms'*) ;;
    *' --kills'*) limit=(--p99-ms 1000) ;;
    *' --rolling'*) limit=(--p99-ms 200) ;;
esac
exec "$kv_failover" --kvstore "$kvstore" --data-dir "${TMPDIR:-/tmp}" --out "$root/bench/out" "${limit[@]}" "$@"
