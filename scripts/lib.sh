# Shared by the scripts beside it. Sourced, never run.
#
# What it promises: nothing here needs root, jq or Python; a wait is for an event and has a deadline; every
# message names the thing it is about.
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if [[ -z ${EPOCHREALTIME:-} ]]; then
    echo "error: these scripts need bash 5 or newer (this is ${BASH_VERSION:-no bash})" >&2
    exit 2
fi
if [[ $(uname -s) != Linux ]]; then
    echo "error: kvstore runs on Linux (this is $(uname -s))" >&2
    exit 2
fi

# Colours on a terminal only.
# shellcheck disable=SC2034
if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' plain=''
fi

# now_us: microseconds since the epoch, in $now, without a process.
now_us() {
    now=${EPOCHREALTIME/[.,]/}
}

# Sets $kvstore and $kv_client. KVSTORE_BIN_DIR names binaries to take as they are. Else cargo is asked: it
# builds what is missing or older than its source, and does nothing if nothing is.
find_binaries() {
    local dir=${KVSTORE_BIN_DIR:-}
    if [[ -z $dir ]] && command -v cargo >/dev/null; then
        (cd "$root" && cargo build --release --bin kvstore --bin kv_client) || {
            echo "error: the build failed; see above" >&2
            return 1
        }
        # The directory may be set by the environment or by a cargo configuration: cargo knows.
        dir=$(cd "$root" && cargo metadata --no-deps --format-version 1 --offline |
            sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/release
    fi
    dir=${dir:-$root/target/release}
    kvstore=$dir/kvstore
    kv_client=$dir/kv_client
    local binary
    for binary in "$kvstore" "$kv_client"; do
        [[ -x $binary ]] && continue
        echo "error: $binary is missing: install Rust (https://rustup.rs), or name a directory in KVSTORE_BIN_DIR" >&2
        return 1
    done
}

# port_is_taken PORT: whether something answers there.
port_is_taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# wait_until SECONDS COMMAND...: true as soon as the command is; false if it is not by then.
wait_until() {
    local deadline
    now_us
    deadline=$((now + $1 * 1000000))
    shift
    until "$@"; do
        now_us
        ((now < deadline)) || return 1
        sleep 0.02
    done
}

answers() {
    "$kv_client" --port "$1" --timeout-ms 500 ping >/dev/null 2>&1
}

# status_of PORT: the node's status document in $status, or an empty text.
status_of() {
    status=$("$kv_client" --port "$1" --timeout-ms 1000 -o json status 2>/dev/null) || status=''
}

# field NAME [DOCUMENT]: the field of a flat JSON object (by default of $status, its peers left out) in
# $value; quotes are taken off.
field() {
    local document=${2:-${status%%\"peers\":*}}
    value=''
    if [[ $document =~ \"$1\":(\"([^\"]*)\"|[^,}]*) ]]; then
        value=${BASH_REMATCH[2]:-${BASH_REMATCH[1]}}
        [[ $value == '""' ]] && value=''
    fi
    return 0
}

# peer_of PORT: the leader's entry about that peer, from $status, in $peer.
peer_of() {
    local behind=${status#*\"peers\":}
    peer=''
    [[ $behind == *"\"address\":\"127.0.0.1:$1\""* ]] || return 0
    peer=${behind#*"\"address\":\"127.0.0.1:$1\""}
    peer=${peer%%\}*}
}
