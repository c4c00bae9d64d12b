#!/usr/bin/env bash
# All that CI runs, in this order: format, clippy with warnings denied, the tests, the release build, the simulator on
# known-bad variants, the demo, three minutes of failovers.
#
#   scripts/check.sh           on a machine with nothing but a Rust toolchain; ends with 1 at the first failure
#
# The tests run in the debug profile: arithmetic is checked for overflow there, debug_assert! counts, and the
# command is the one a person types. The nodes that users run are built with the release profile and are what the
# demo runs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

begun=$SECONDS
results=()

# check NAME COMMAND...: runs it, keeps the time, ends the script if it fails.
check() {
    local name=$1 start=$SECONDS code=0
    shift
    printf '\n%s== %s:%s %s\n' "$bold" "$name" "$plain" "$*"
    "$@" </dev/null || code=$?
    if [[ $code -ne 0 ]]; then
        printf '\n%sFAILED%s: %s (exit code %d): %s\n' "$red" "$plain" "$name" "$code" "$*"
        exit 1
    fi
    results+=("$(printf '%-8s %4d s' "$name" $((SECONDS - start)))")
}

require() {
    local what=$1 remedy=$2
    shift 2
    "$@" >/dev/null 2>&1 && return
    printf '%sFAILED%s: %s is missing; %s\n' "$red" "$plain" "$what" "$remedy"
    exit 1
}

# Nothing fails for want of these, but nothing passes silently either: what is left out is said here. A test that needs
# one of them must say so too when it does not run.
optional() {
    local tool=$1 without=$2
    if command -v "$tool" >/dev/null; then
        echo "optional tool $tool: $(command -v "$tool")"
    else
        echo "optional tool $tool: MISSING; not run without it: $without"
    fi
}

require cargo 'install Rust from https://rustup.rs' cargo --version
require rustfmt 'run: rustup component add rustfmt' cargo fmt --version
require clippy 'run: rustup component add clippy' cargo clippy --version
fs_type=$(df --output=fstype "${TMPDIR:-/tmp}" | tail -n 1)
echo "$(rustc --version), $(nproc) core(s), $(uname -sr), file system of ${TMPDIR:-/tmp}: $fs_type"
if [[ $fs_type == tmpfs ]]; then
    echo "note: ${TMPDIR:-/tmp} is in memory, so fdatasync costs nothing there; TMPDIR names another place"
fi
optional strace 'tests/syscalls_strace.rs, the notes in tests/syscalls_signposts.rs, failing calls in tests/e2e/disk.rs'
optional redis-server 'the RESP dialect of kv_bench against a real server (bench/tests/stores.rs)'
optional etcd 'the gRPC dialect of kv_bench against a real server (bench/tests/stores.rs)'
optional ip 'lost packets in scripts/failover.sh (with unshare and nsenter, as root or where users may make namespaces)'
optional shellcheck 'the check of these scripts'

check fetch cargo fetch --locked
check fmt cargo fmt --all --check
if command -v shellcheck >/dev/null; then
    check shell shellcheck -x scripts/*.sh .ci/run
fi
check clippy cargo clippy --workspace --all-targets -- -D warnings
check test cargo test --workspace
check build cargo build --release --workspace
# What tests must be able to fail: each known-bad variant is caught, in the simulator most of them by the first seeds.
# Built at once, so that all cores have something to compile.
variants=(cargo test --profile sabotage --features sabotage)
check variants "${variants[@]}" --no-run --test sim --test elections --test parts
check sabotage "${variants[@]}" --test sim -- --sabotage all --seeds 2500
check broken-elections "${variants[@]}" --test elections --test parts
check demo scripts/demo.sh
check failover scripts/failover.sh --minutes 3

printf '\n%sAll checks passed%s in %d s:\n' "$green" "$plain" $((SECONDS - begun))
printf '  %s\n' "${results[@]}"
