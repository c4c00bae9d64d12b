#!/usr/bin/env bash
# One PUT through three nodes, seen from below: the system calls of all three processes in one timeline, each with
# what it is for.
#
#   scripts/strace-put.sh [--marks]
#
# --marks starts the nodes with --strace-marks and shows their notes too. Needs strace and the right to attach to a
# process of one's own; where that is missing it says so and ends with exit code 3. Other exit codes: 0 shown, 1 the
# number of calls is not in the budget, 2 no binaries. The nodes are this script's own, and end with it.

set -u
# The records of strace are bytes: no character set may get in awk's way.
export LC_ALL=C
# A small segment is full of zeros before anybody looks; a node that was just started with a large one writes some more
# ahead of its log whenever it has nothing to do.
flags='--heartbeat-ms=1000 --segment-bytes=1048576'
case ${1:-} in
'') ;;
--marks) flags+=' --strace-marks' ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
# shellcheck source=scripts/debug/session.sh
source "$(dirname "${BASH_SOURCE[0]}")/debug/session.sh"
need_strace
start_cluster

# A connection that is open before anybody looks, so that the PUT stands alone. The frame by hand: length 19, type
# 1 (PUT), key length and key, value length and value. The reply has 30 bytes.
exec {connection}<>"/dev/tcp/127.0.0.1/${ports[1]}"
put() {
    printf '\0\0\0\23\1\0\0\0\5hello\0\0\0\5world' >&"$connection"
    head -c 30 <&"$connection" >/dev/null
}
put

declare -a straces=()
for n in 1 2 3; do
    strace_node "$n" -ttt -T -yy -xx -s 160 -o "$dir/calls$n"
    straces+=("$strace_pid")
done
# One more beforehand: the leader's next heartbeat is a second away from now on, however long strace took to attach.
put
asked_at=$EPOCHREALTIME
put
# The nodes go back to sleep behind both replies. What strace saw of the first is cut off below.
answered() { (($(grep -c 'sendto.*"\\x00\\x00\\x00\\x1a\\x20' "$dir/calls1") >= 2)); }
wait_until 5 answered || fail "strace did not see the reply: $(tail -n 3 "$dir/calls1")"
sleep 0.05
for pid in "${straces[@]}"; do stop_strace "$pid"; done

# First pass: a line per call, `end of wait or begin of call, node, call, seconds, result, text`, in order of time.
# Second pass: what each is for. A node is done with this PUT when its last word on it is sent.
awk -v asked_at="$asked_at" '
FNR == 1 { node++ }
/detached|unfinished|resumed/ { next }
{
    at = $1
    text = substr($0, length($1) + 2)
    call = substr(text, 1, index(text, "(") - 1)
    if (!match(text, /<[0-9.]+>$/)) next
    took = substr(text, RSTART + 1, RLENGTH - 2)
    text = substr(text, 1, RSTART - 2)
    if (!match(text, /\) += [-0-9]/)) next
    result = substr(text, RSTART); sub(/^\) += /, "", result)
    # A wait counts from its end; one that ends with nothing is not of the PUT.
    if (call == "epoll_wait") { at += took; if (result + 0 == 0) next }
    if (at >= asked_at) printf "%.6f\t%d\t%s\t%s\t%s\t%s\n", at, node, call, took, result, text
}' "$dir"/calls1 "$dir"/calls2 "$dir"/calls3 | sort -s -t $'\t' -k1,1 >"$dir/merged"

awk -F '\t' -v port2="${ports[2]}" -v port3="${ports[3]}" '
function unhex(text,    out, code) {
    out = ""
    while (match(text, /\\x[0-9a-f][0-9a-f]/)) {
        code = (index(digits, substr(text, RSTART + 2, 1)) - 1) * 16 + index(digits, substr(text, RSTART + 3, 1)) - 1
        out = out substr(text, 1, RSTART - 1) (code >= 32 && code < 127 ? sprintf("%c", code) : ".")
        text = substr(text, RSTART + RLENGTH)
    }
    return out text
}
# The type of the frame: its fifth byte.
function frame_type(text) {
    if (!match(text, /"\\x[0-9a-f]/)) return ""
    return substr(text, RSTART + 1 + 4 * 4 + 2, 2)
}
function whom(text) {
    if (text ~ ":" port2 "[^0-9]") return "follower 2"
    if (text ~ ":" port3 "[^0-9]") return "follower 3"
    return "the client"
}
function purpose(node, call, type, text, result) {
    if (call == "epoll_wait") return "wakes up: " (result + 0 == 1 ? "1 connection has" : result + 0 " connections have") " something to read"
    if (call == "pwrite64" && result + 0 == 1048576) return "zeros ahead of the log: of no PUT, not counted"
    if (call == "pwritev2") { synced[node] = 1; return "its log: batch and fdatasync in one call (RWF_DSYNC)" }
    if (node == 1 && call == "recvfrom" && type == "01") return "the PUT, whole, in one read"
    if (node == 1 && call == "recvfrom" && type == "05") { acks++; return "ACK of " whom(text) ": durable there" }
    if (node == 1 && call == "sendto" && type == "04")
        return "the record for " whom(text) (synced[1] ? "" : " leaves before the leader writes its own log")
    if (node == 1 && call == "sendto" && type == "20") { done[1] = 1; return "OK to the client: durable on " acks + 1 " of 3 nodes" }
    if (call == "recvfrom" && type == "04") return "the record from the leader"
    if (call == "sendto" && type == "05") { done[node] = 1; return "ACK, with what its own disk took" }
    return "-"
}
BEGIN {
    digits = "0123456789abcdef"
    line = "%8s  %-10s  %-43s  %8s  %s\n"
    name[1] = "leader"; name[2] = "follower 2"; name[3] = "follower 3"
    printf line, "us", "node", "call", "took us", "what for"
}
done[$2] { next }
{
    if (!first) first = $1
    text = unhex($6)
    # Descriptor and what it is, without the inode; the bytes are told by the purpose.
    match(text, /^[a-z0-9_]+\([0-9]+/)
    shown = substr(text, 1, RLENGTH)
    if ($3 == "write") {
        match(text, /"[^"]*"/)
        notes++
        printf line, sprintf("%.0f", ($1 - first) * 1e6), name[$2], "write(...) = -1 EBADF", sprintf("%.0f", $4 * 1e6), "note: " substr(text, RSTART, RLENGTH)
        next
    }
    if ($3 == "pwritev2" && match(text, /wal-[0-9]+\.seg/)) shown = shown "<" substr(text, RSTART, RLENGTH) ">"
    what = purpose($2, $3, frame_type($6), text, $5)
    if ($3 == "epoll_wait") took = ""; else took = sprintf("%.0f", $4 * 1e6)
    if ($3 ~ /recvfrom|sendto/) shown = shown "<" whom_else($2, text) ">"
    printf line, sprintf("%.0f", ($1 - first) * 1e6), name[$2], shown ") = " $5 + 0, took, what
    if (what !~ /not counted$/) calls[$2]++
}
function whom_else(node, text) { return node == 1 ? whom(text) : "the leader" }
END {
    printf "\ncalls for this PUT: leader %d, follower 2 %d, follower 3 %d", calls[1], calls[2], calls[3]
    printf " (budget: leader 10, 9 when both ACKs are read in one turn; follower 4)\n"
    if (notes) printf "notes: %d, not counted\n", notes
    if (!done[1] || calls[1] > 10 || calls[2] != 4 || calls[3] != 4) exit 1
}' "$dir/merged" || fail "the calls above are not in the budget, or some are missing"
printf '%s\n' \
    'Each call is stopped twice by strace, so everything takes longer than it does: the order is real, durations are' \
    'upper bounds. For the real ones: kv_client put --explain.'
