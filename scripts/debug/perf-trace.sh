#!/usr/bin/env bash
# Where a leader under load spends its time, by perf: a summary of its system calls, then its counters.
#
#   scripts/debug/perf-trace.sh
#
# Each part that perf or the kernel does not offer here is named and left out; exit code 3 if that is all of them.
# Other exit codes: session.sh.

set -u
# shellcheck source=scripts/debug/session.sh
source "$(dirname "${BASH_SOURCE[0]}")/session.sh"
need perf linux-perf
start_cluster

load() {
    while client 1 put hello world >/dev/null 2>&1; do :; done
}
load &
others+=($!)

shown=0
# part WORDS COMMAND...: perf for two seconds, what it says on stderr included.
part() {
    say "$1"
    shift
    local output
    if output=$("$@" -- sleep 2 2>&1) && [[ $output != *'<not supported>'* ]]; then
        echo "$output"
        shown=$((shown + 1))
    else
        echo "not available here: $(grep -m 3 . <<<"$output" | grep -v 'Performance counter')"
    fi
}

before=$(client 1 -o json syscalls)
part 'perf trace -s: calls of the leader in two seconds, with their times' perf trace -s -p "${pids[1]}"
part 'perf stat: what it costs the processor' perf stat -e task-clock,context-switches,cpu-migrations,page-faults -p "${pids[1]}"
part 'perf stat: instructions and cycles (a virtual machine often has no counters for them)' \
    perf stat -e instructions:u,instructions:k,cycles -p "${pids[1]}"

say "the same calls by the node's own ledger, over the whole time"
echo "before: $before"
client 1 syscalls
cat <<'WORDS'

What to look at: a call whose average is far above the others' of its kind is where the loop stands still (pwritev2 is
the disk; epoll_wait is idleness and no cost). More context-switches than epoll_wait calls means that others want the
processor: pin the node. perf counts what the ledger counts; that they agree is tested against strace.
WORDS
((shown > 0)) || exit 3
