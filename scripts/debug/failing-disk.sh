#!/usr/bin/env bash
# A disk that refuses a write of the log (EIO): the process ends at once, with exit code 13, and a restart recovers.
#
#   scripts/debug/failing-disk.sh [follower|leader]
#
# strace makes one pwritev2 fail; no disk is harmed. Exit codes: session.sh.

set -u
whose=${1:-follower}
case $whose in
follower) failing=3 ;;
leader) failing=1 ;;
*)
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
# shellcheck source=scripts/debug/session.sh
source "$(dirname "${BASH_SOURCE[0]}")/session.sh"
need_strace
start_cluster
client 1 put before acknowledged >/dev/null || fail "the PUT failed"

say "the next log write of node $failing ($whose) fails with EIO"
strace_node "$failing" -o /dev/null -e trace=pwritev2 -e inject=pwritev2:error=EIO:when=1 -e signal=none
echo "\$ kv_client put hello world"
client 1 put hello world
put_code=$?
echo "(exit code $put_code)"
wait "${pids[failing]}"
code=$?
pids[failing]=''
wait "$strace_pid"
echo "node $failing ended with exit code $code and these words:"
tail -n 2 "$dir/node$failing.log"
((code == 13)) || fail "exit code 13 was expected"
case $whose in
follower) ((put_code == 0)) || fail "the leader and the other follower should have gone on" ;;
leader) ((put_code == 6)) || fail "a write whose leader dies has an unknown outcome: exit code 6" ;;
esac

say "restarted with the same data"
start_node "$failing"
wait_until 10 answers "$failing" || fail "node $failing does not come back: $(cat "$dir/node$failing.log")"
wait_until 10 in_sync 3 || fail "three nodes are not in sync again"
client 1 status | head -n 1
echo "\$ kv_client --port ${ports[failing]} get before"
[[ $(client "$failing" get before) == acknowledged ]] || fail "an acknowledged write is missing"
echo acknowledged
cat <<'WORDS'

What to look at: exit code 13 and the last line of the node's log, which names file, offset and errno. A node never
retries a flush that failed (the kernel may have dropped what it could not write, and the second flush would succeed
without it): it ends, and recovery reads what really is on the disk. Restarting by itself (systemd: Restart=on-failure)
is fine; a disk that fails again ends it again. Next: dmesg, smartctl.
WORDS
