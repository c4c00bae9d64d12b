#!/usr/bin/env bash
# Shows what kvstore promises, on three real processes, and fails if any of it is not so.
#
#   scripts/demo.sh            no root, no arguments, under 20 s after the build; from any directory
#
# It uses free ports and a directory of its own under ${TMPDIR:-/tmp}, and ends only processes it started. When
# a step fails, it says which, shows the ends of the logs, exits with 1, and leaves the directory for a look.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ $# -gt 0 ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    [[ $1 == --help || $1 == -h ]] && exit 0
    exit 2
fi
# What somebody set for nodes of their own is not meant for these.
for variable in "${!KVSTORE_@}" "${!KV_CLIENT_@}"; do
    [[ $variable == KVSTORE_BIN_DIR ]] || unset "$variable"
done

steps=8
step=0
title='before the first step'
work=''
# By node number, 1 to 3: its port, its process (empty: it does not run).
port=('' '' '' '')
pid=('' '' '' '')
# Of an elected cluster: the other nodes of each, all of them, and the number of the one that leads.
peers_of=('' '' '' '')
endpoints=''
leader=''
writer_pids=()
failure_told=''

begin_step() {
    step=$((step + 1))
    title=$1
    printf '\n%s[%d/%d] %s%s\n' "$bold" "$step" "$steps" "$1" "$plain"
}

say() {
    printf '      %s\n' "$*"
}

good() {
    printf '  %sok%s  %s\n' "$green" "$plain" "$*"
}

fail() {
    failure_told=yes
    printf '\n%sFAILED%s in step %d (%s): %s\n' "$red" "$plain" "$step" "$title" "$*"
    local node
    for node in 1 2 3; do
        [[ -f $work/node$node.log ]] || continue
        printf '\n--- the last lines of node %d:\n' "$node"
        tail -n 12 "$work/node$node.log"
    done
    [[ -z $work ]] || printf '\nLogs and data are left in %s\n' "$work"
    exit 1
}

cleanup() {
    local code=$? one
    trap - EXIT
    # What the load loops started ends with its one request; only the loops and the nodes need a word.
    for one in "${writer_pids[@]}" "${pid[@]}"; do
        [[ -n $one ]] || continue
        kill -9 "$one" 2>/dev/null || true
        wait "$one" 2>/dev/null || true
    done
    if [[ $code -eq 0 || $code -ge 128 ]]; then
        [[ -z $work ]] || rm -rf "$work"
    elif [[ -z $failure_told ]]; then
        # A command of this script itself failed; it must not look like an end.
        printf '\nFAILED in step %d (%s), in the script itself; logs and data are left in %s\n' "$step" "$title" "$work"
    fi
    exit "$code"
}

# run NODE ARGUMENT...: a client command as a person would type it, shown with what it prints. Its words are in
# $output and its exit code in $code.
run() {
    local node=$1
    shift
    code=0
    output=$("$kv_client" --port "${port[$node]}" "$@" 2>&1) || code=$?
    printf '      %s$ kv_client --port %s %s%s\n' "$dim" "${port[$node]}" "$*" "$plain"
    [[ -z $output ]] || printf '%s\n' "$output" | sed 's/^/      /'
}

expect() {
    [[ $code -eq $1 ]] || fail "the command above ended with exit code $code instead of $1"
    [[ $# -lt 2 || $output == *"$2"* ]] || fail "the command above did not say \"$2\""
}

start_node() {
    local node=$1 role
    case $node in
        1) role=(--role=leader "--peers=${port[2]},${port[3]}") ;;
        *) role=(--role=follower "--leader=${port[1]}") ;;
    esac
    "$kvstore" --port "${port[$node]}" --data-dir "$work/node$node" "${role[@]}" 2>>"$work/node$node.log" &
    pid[node]=$!
}

# Kills as a crash does: no handler runs, nothing is flushed.
kill_node() {
    kill -9 "${pid[$1]}"
    wait "${pid[$1]}" 2>/dev/null || true
    pid[$1]=''
}

is_up() {
    kill -0 "${pid[$1]}" 2>/dev/null || return 0
    answers "${port[$1]}"
}

# False if the node ended instead of answering: the port was taken by somebody else in the meantime.
wait_for_node() {
    wait_until 15 is_up "$1" && kill -0 "${pid[$1]}" 2>/dev/null
}

# Three ports where nobody answers, below the range that the kernel gives to outgoing connections.
choose_ports() {
    local node candidate
    for node in 1 2 3; do
        candidate=$((15000 + RANDOM % 15000))
        while port_is_taken "$candidate" || [[ " ${port[*]} " == *" $candidate "* ]]; do
            candidate=$((15000 + RANDOM % 15000))
        done
        port[node]=$candidate
    done
}

start_cluster() {
    local node up
    choose_ports
    up=yes
    for node in 1 2 3; do
        start_node "$node"
    done
    for node in 1 2 3; do
        wait_for_node "$node" || up=no
    done
    [[ $up == no ]] || return 0
    for node in 1 2 3; do
        kill_node "$node" 2>/dev/null || true
    done
    return 1
}

# LEADER OTHER: the leader streams to that node, which lacks nothing and counts as in sync.
follows() {
    status_of "${port[$1]}"
    peer_of "${port[$2]}"
    [[ $peer == *'"state":"streaming"'* && $peer == *'"in_sync":true'* && $peer == *'"lag":0'* ]]
}

# Fails unless all three nodes hold the same log end and the same state.
same_everywhere() {
    local node hash lsn keys first=''
    for node in 1 2 3; do
        status_of "${port[$node]}"
        field state_hash; hash=$value
        field applied_lsn; lsn=$value
        field keys; keys=$value
        field role
        say "node $node  $(printf '%-9s' "$value") applied_lsn=$lsn keys=$keys state_hash=$hash"
        [[ -n $hash ]] || fail "node $node does not say its state"
        [[ -z $first || $first == "$lsn $hash" ]] || fail "node $node differs from node 1"
        first="$lsn $hash"
    done
}

# put KEY to NODE, quietly; microseconds in $took.
timed_put() {
    local begin
    now_us
    begin=$now
    "$kv_client" --port "${port[$1]}" put "$2" "value-of-$2" >/dev/null 2>&1 || fail "put $2 failed with exit code $?"
    now_us
    took=$((now - begin))
}

# Puts one key after the other to node 1 until one is not acknowledged; that one's outcome is unknown or "not done".
load_loop() {
    local i key code
    for ((i = 1; ; i++)); do
        key=load-$1-$i
        code=0
        "$kv_client" --port "${port[1]}" --no-follow --timeout-ms 3000 put "$key" "value-of-$key" >/dev/null 2>&1 || code=$?
        if [[ $code -ne 0 ]]; then
            echo "$code" >"$work/ended-$1"
            return 0
        fi
        echo "$key" >>"$work/acknowledged-$1"
    done
}

# Three nodes that elect their leader, on ports of their own.
start_elected() {
    local node other peers
    choose_ports
    for node in 1 2 3; do
        peers=''
        for other in 1 2 3; do
            [[ $other == "$node" ]] || peers+=",${port[$other]}"
        done
        start_elected_node "$node" "${peers#,}"
    done
    endpoints="${port[1]},${port[2]},${port[3]}"
    # One that ended instead found its port taken.
    wait_until 15 somebody_leads && kill -0 "${pid[1]}" "${pid[2]}" "${pid[3]}" 2>/dev/null && return 0
    for node in 1 2 3; do
        kill_node "$node" 2>/dev/null || true
    done
    return 1
}

# NODE PEERS
start_elected_node() {
    "$kvstore" --port "${port[$1]}" --data-dir "$work/elected$1" --role=auto --peers="$2" 2>>"$work/node$1.log" &
    pid[$1]=$!
    peers_of[$1]=$2
}

# The number of the node that leads is in $leader.
somebody_leads() {
    local node
    status=$("$kv_client" --endpoints "$endpoints" --timeout-ms 1000 -o json status 2>/dev/null) || return 1
    leader=''
    for node in 1 2 3; do
        [[ $status != *"\"leader\":\"127.0.0.1:${port[$node]}\",\"nodes\""* ]] || leader=$node
    done
    [[ -n $leader ]]
}

# Puts one key after the other to whoever leads, until it is told to stop. A write without an answer is noted.
elected_loop() {
    local i key code
    for ((i = 1; ; i++)); do
        [[ ! -e $work/stop ]] || return 0
        key=elected-$1-$i
        code=0
        "$kv_client" --endpoints "$endpoints" --timeout-ms 10000 put "$key" "value-of-$key" >/dev/null 2>&1 || code=$?
        now_us
        case $code in
            0) echo "$now $key" >>"$work/elected-acknowledged-$1" ;;
            6) echo "$key" >>"$work/elected-unknown-$1" ;;
            *) echo "$key: exit code $code" >>"$work/elected-failed-$1" ;;
        esac
    done
}

# COUNT: so many writes of the elected cluster are acknowledged.
elected_writes() {
    [[ $(cat "$work"/elected-acknowledged-* 2>/dev/null | wc -l) -ge $1 ]]
}

# All three nodes have applied the same.
applied_alike() {
    local node first=''
    for node in 1 2 3; do
        status_of "${port[$node]}"
        field applied_lsn
        [[ -n $value && ( -z $first || $first == "$value" ) ]] || return 1
        first=$value
    done
}

# Fails unless the node has every write that was acknowledged under load, with its value.
look_for_acknowledged() {
    local key found missing=()
    for key in "${acknowledged[@]}"; do
        found=$("$kv_client" --port "${port[$1]}" get "$key" 2>/dev/null) || found=''
        [[ $found == "value-of-$key" ]] || missing+=("$key")
    done
    [[ ${#missing[@]} -eq 0 ]] || fail "${#missing[@]} acknowledged write(s) are missing on node $1: ${missing[*]:0:10}"
}

# QUARTER NUMBER...: the number at 1, 2 or 3 quarters of the sorted ones.
at_quarter() {
    local quarter=$1
    shift
    printf '%s\n' "$@" | sort -n | sed -n "$((($# - 1) * quarter / 4 + 1))p"
}

median() {
    at_quarter 2 "$@"
}

find_binaries || exit 1
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
work=$(mktemp -d "${TMPDIR:-/tmp}/kvstore-demo.XXXXXX")
begun=$SECONDS

cat <<INTRO

${bold}kvstore in eight steps.${plain} Three nodes run as processes of this machine, each with its own log on disk. A write that
is answered with OK is on the disk of the leader and of every follower in sync: that is what an acknowledgement
means here, and the steps below try to break it. Every line marked ok was checked; the first that is not so ends
this with exit code 1.
INTRO

begin_step 'Start a leader and two followers'
# A port that was free a moment ago may be taken now: then others are tried.
attempts=10
until start_cluster; do
    attempts=$((attempts - 1))
    ((attempts > 0)) || fail 'the three nodes did not start'
    rm -rf "$work"/node*
done
say "${dim}\$ kvstore --port ${port[1]} --data-dir node1 --role=leader   --peers=${port[2]},${port[3]}${plain}"
say "${dim}\$ kvstore --port ${port[2]} --data-dir node2 --role=follower --leader=${port[1]}${plain}"
say "${dim}\$ kvstore --port ${port[3]} --data-dir node3 --role=follower --leader=${port[1]}${plain}"
for node in 2 3; do
    wait_until 15 follows 1 "$node" || fail "node $node did not get a session with the leader"
done
good 'both followers have a session with the leader and are in sync'

begin_step 'Write on the leader, read on the followers at once'
run 1 put hello world
expect 0 OK
run 2 get hello
expect 0 world
run 3 get hello
expect 0 world
good 'what was acknowledged is readable on every follower in sync, with no waiting'

begin_step 'The same, as the nodes tell it: one replicated write in their logs'
run 1 -o json put traced write
expect 0 '"ok":true'
field lsn "$output"
lsn=$value
logs_tell() {
    grep -q "sent AppendEntries.* lsn=$lsn\.\.$lsn" "$work/node1.log" &&
        grep -q "received AppendEntries, applied 1 record(s) lsn=$lsn\.\.$lsn" "$work/node2.log" &&
        grep -q "received AppendEntries, applied 1 record(s) lsn=$lsn\.\.$lsn" "$work/node3.log" &&
        [[ $(grep -c "ACK from .* last_lsn=$lsn " "$work/node1.log") -eq 2 ]]
}
wait_until 2 logs_tell || fail "the logs do not tell of the write with LSN $lsn"
for node in 1 2 3; do
    # A time of day with nine digits behind the point, so that text sorts as time; six of them are shown.
    grep -E "(AppendEntries.* lsn=$lsn\.\.$lsn( |\$)|ACK from .* last_lsn=$lsn )" "$work/node$node.log" |
        sed "s/^[^T]*T\([0-9:]*\)\.\([0-9]*\)Z /\1.\2000000000 node $node  /; s/\.\([0-9]\{9\}\)0*/.\1/"
done | LC_ALL=C sort -s -k1,1 | sed 's/^\([^ ]*\)[0-9]\{3\} /      \1 /; s/\[INFO\] \[replication\] //'
good "LSN $lsn went to both followers, was written, synced and applied there, and both said so"

begin_step 'kill -9 a follower, write on, bring it back'
kill_node 3
say 'node 3 is dead. The leader waits for it once, --insync-timeout-ms (500 ms) at most, then goes on without it:'
timed_put 1 without-node3-0
say "first put: $((took / 1000)) ms"
[[ $took -lt 3000000 ]] || fail 'a dead follower stalled a write for seconds'
puts=()
for i in {1..100}; do
    timed_put 1 "without-node3-$i"
    puts+=("$took")
done
put_p50=$(median "${puts[@]}")
say "the next 100 puts: $((put_p50 / 1000)) ms each (p50 of the whole command)"
# One slow write proves nothing on a busy machine; if each one waited, half of them would take 500 ms.
[[ $put_p50 -lt 250000 ]] || fail 'the leader goes on waiting for the dead follower'
status_of "${port[1]}"
peer_of "${port[3]}"
[[ $peer == *'"in_sync":false'* ]] || fail 'the leader counts the dead follower as in sync'
start_node 3
wait_for_node 3 || fail 'node 3 did not start again'
wait_until 15 follows 1 3 || fail 'node 3 did not catch up'
grep 'session with follower.*:'"${port[3]}"'.* behind' "$work/node1.log" | tail -n 1 | sed 's/^/      /'
run 3 get without-node3-100
expect 0 value-of-without-node3-100
same_everywhere
good 'node 3 is back in sync with lag 0, and its state is equal to that of the others'

begin_step 'kill -9 the leader under load, restart it, look for every acknowledged write'
for writer in 1 2 3 4; do
    load_loop "$writer" &
    writer_pids+=($!)
done
enough() {
    [[ $(cat "$work"/acknowledged-* 2>/dev/null | wc -l) -ge 300 ]]
}
# On a slow disk fewer do as well.
wait_until 3 enough || true
kill_node 1
for writer in "${writer_pids[@]}"; do
    wait "$writer" 2>/dev/null || true
done
writer_pids=()
mapfile -t acknowledged < <(cat "$work"/acknowledged-* 2>/dev/null)
say "four writers had ${#acknowledged[@]} writes acknowledged when the leader died in the middle of others"
unknown=$(grep -lx 6 "$work"/ended-* | wc -l) || true
say "$unknown write(s) were under way and got no answer: their outcome is unknown (exit code 6), they may be there or not"
[[ ${#acknowledged[@]} -ge 20 ]] || fail 'too few writes were acknowledged to prove anything'
run 2 --timeout-ms 1000 put during-the-outage x
[[ $code -ne 0 ]] || fail 'a write was acknowledged while no leader lived'
start_node 1
wait_for_node 1 || fail 'node 1 did not start again'
look_for_acknowledged 1
for node in 2 3; do
    wait_until 15 follows 1 "$node" || fail "node $node did not find back to its leader"
done
same_everywhere
good "all ${#acknowledged[@]} acknowledged writes are there, on all three nodes"

begin_step 'A planned hand-over: promote a follower'
run 2 promote
expect 0 'leads in term'
run 1 --no-follow put after-promotion x
expect 5 "${port[2]}"
good 'the old leader takes no writes any more and says who does'
run 1 put after-promotion yes
expect 0 OK
run 1 follow "${port[2]}"
expect 0
for node in 1 3; do
    wait_until 15 follows 2 "$node" || fail "node $node did not follow the new leader"
done
run 1 get after-promotion
expect 0 yes
same_everywhere
look_for_acknowledged 2
good "node 2 leads, node 1 follows it, and all ${#acknowledged[@]} acknowledged writes are still there"

begin_step 'What a write costs here'
puts=() pings=() round_trips=() differences=()
for i in {1..60}; do
    timed_put 2 "receipt-$i"
    puts+=("$took")
    now_us; begin=$now
    output=$("$kv_client" --port "${port[2]}" ping) || fail 'the leader does not answer a ping'
    now_us
    pings+=($((now - begin)))
    differences+=($((took - now + begin)))
    [[ $output =~ ([0-9]+) ]] && round_trips+=("${BASH_REMATCH[1]}")
done
status_of "${port[2]}"
say "p50 of ${#puts[@]} puts and pings in turn, one at a time, on $(nproc) cores, $(df --output=fstype "$work" | tail -n 1) in ${TMPDIR:-/tmp}:"
say "  $(printf '%6d' "$(median "${puts[@]}")") us  the whole command \`kv_client put\`: start, connect, the write on three disks, end"
say "  $(printf '%6d' "$(median "${pings[@]}")") us  the whole command \`kv_client ping\`: the same without a write"
say "  $(printf '%6d' "$(median "${differences[@]}")") us  put minus the ping after it; half of the pairs lie between $(at_quarter 1 "${differences[@]}") and $(at_quarter 3 "${differences[@]}") us"
say "  $(printf '%6d' "$(median "${round_trips[@]}")") us  a round trip on an open connection without a write, as ping measures it"
say 'Most of the first two is the start of a process; that and other load is what makes the pairs differ.'
# NAME: the p50 of a stage as the leader measured it, in $value, and of how many in $count.
stage() {
    value='' count=''
    if [[ $status =~ \"$1\":\{\"count\":([0-9]+),\"p50_us\":([0-9.]+) ]]; then
        count=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    fi
}
stage 'put total'
[[ -n $value && $count -gt 0 ]] || fail 'the leader does not say where the time of its writes went'
say "The leader's own account of its last $count puts (\`kv_client status\`), from the request read to the reply sent, p50:"
say "  $(printf '%8s' "$value") us  in all"
stage 'put sync'
say "  $(printf '%8s' "$value") us  its own write and sync, while the followers do theirs"
stage 'put commit'
say "  $(printf '%8s' "$value") us  then waiting for the last follower's ACK"
say 'The three nodes share this disk and these cores; on machines of their own they would not.'

begin_step 'Nodes that elect their leader: kill -9 the leader under load'
for node in 1 2 3; do
    kill_node "$node"
done
attempts=10
until start_elected; do
    attempts=$((attempts - 1))
    ((attempts > 0)) || fail 'the three nodes elected no leader'
    rm -rf "$work"/elected[123]
done
say "${dim}\$ kvstore --port ${port[1]} --data-dir elected1 --role=auto --peers=${port[2]},${port[3]}   (likewise on the others)${plain}"
say "${dim}\$ kv_client --endpoints $endpoints status${plain}"
"$kv_client" --endpoints "$endpoints" status | cut -c 1-110 | sed 's/^/      /'
for writer in 1 2 3 4; do
    elected_loop "$writer" &
    writer_pids+=($!)
done
wait_until 10 elected_writes 150 || fail 'an elected cluster takes no writes'
somebody_leads || fail 'nobody leads'
killed=$leader
kill_node "$killed"
behind=$(($(cat "$work"/elected-acknowledged-* | wc -l) + 100))
wait_until 15 elected_writes "$behind" || fail 'no other node took over'
touch "$work/stop"
for writer in "${writer_pids[@]}"; do
    wait "$writer" 2>/dev/null || true
done
writer_pids=()
failed=$(cat "$work"/elected-failed-* 2>/dev/null | head -n 1) || true
[[ -z $failed ]] || fail "a write failed although another node could take over: $failed"
mapfile -t times < <(cat "$work"/elected-acknowledged-* | cut -d ' ' -f 1 | sort -n)
gap=0
for ((i = 1; i < ${#times[@]}; i++)); do
    ((times[i] - times[i - 1] <= gap)) || gap=$((times[i] - times[i - 1]))
done
somebody_leads || fail 'nobody leads'
unknown=$(cat "$work"/elected-unknown-* 2>/dev/null | wc -l) || true
say "node $killed led and was killed, node $leader took over: $((gap / 1000)) ms in which no write was acknowledged"
say "${#times[@]} writes were acknowledged; $unknown were under way at the dead leader, and their outcome is unknown"
start_elected_node "$killed" "${peers_of[$killed]}"
wait_until 15 applied_alike || fail "node $killed did not find back"
same_everywhere
mapfile -t acknowledged < <(cat "$work"/elected-acknowledged-* | cut -d ' ' -f 2)
look_for_acknowledged "$leader"
good "all ${#acknowledged[@]} acknowledged writes are there; the gap was $((gap / 1000)) ms, and nobody had to promote anything"

printf '\n%sEverything above was so.%s %d s, processes ended, files removed.\n' "$green" "$plain" "$((SECONDS - begun))"
