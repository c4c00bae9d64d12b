#!/usr/bin/env bash
# A disk that takes 20 ms longer for every flush, and what the receipt then says.
#
#   scripts/debug/slow-disk.sh [follower|leader]
#
# strace delays the return of pwritev2 and fdatasync in one process; no disk is harmed. Exit codes: session.sh.

set -u
whose=${1:-follower}
case $whose in
follower) slow=3 ;;
leader) slow=1 ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
# shellcheck source=scripts/debug/session.sh
source "$(dirname "${BASH_SOURCE[0]}")/session.sh"
need_strace
start_cluster
address=127.0.0.1:${ports[slow]}

say "before: a PUT, and where its time went"
client 1 put hello world --explain || fail "the PUT failed"

say "from now on every flush of node $slow ($whose, $address) takes 20 ms longer"
strace_node "$slow" -o /dev/null -e trace=pwritev2,fdatasync -e inject=pwritev2,fdatasync:delay_exit=20000 -e signal=none
client 1 reset >/dev/null
for n in {1..10}; do client 1 put "key$n" value >/dev/null || fail "a PUT failed"; done

say "the receipt of one PUT"
client 1 put hello again --explain || fail "the PUT failed"

say "the slowest half of the last writes: kv_client tail --percentile 50"
tail=$(client 1 tail --percentile 50) || fail "no tail"
echo "$tail"
stop_strace "$strace_pid"

say "the stages: kv_client latency"
client 1 latency
[[ $tail == *"most time went to $address sync:"* ]] || fail "the tail does not name the flush of $address"
cat <<WORDS

What to look at: the sentence of \`kv_client tail\` names the node and the stage. In a receipt a slow disk of a follower
shows as \`commit\` (the leader waits) with a long \`sync\` under that follower; one of the leader's own as \`sync\`. A long
\`network\` with a short \`sync\` is no disk. Next: that machine's disk (iostat -x 1), or --ack=quorum, which waits for the
faster follower only.
WORDS
