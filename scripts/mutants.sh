#!/usr/bin/env bash
# Mutation testing of the files that decide about locks, proofs and time without I/O: the rules in
# protocol/src and the retention clock of the server, copied into a workspace of their own, so that
# a mutant costs seconds and RocksDB is never built. Called by make campaign-mutants; arguments go
# to cargo-mutants (--file, --re, --list, --shard ...).
set -euo pipefail
cd "$(dirname "$0")/.."

home=${CARGO_TARGET_DIR:-$PWD/target}/mutants
files=(protocol/src/{retention,policy,proposal,merkle,checkpoint,tile,event,entry,codec}.rs
  clock/src/clock_state.rs)

mkdir -p "$home"
exec 9>"$home/lock"
flock -n 9 || { echo "campaign-mutants runs already in $home" >&2; exit 1; }
rm -rf "$home/protocol" "$home/clock"
mkdir -p "$home/protocol" "$home/clock/src"
cp -r protocol/Cargo.toml protocol/src "$home/protocol/"
cp -r server/src/clock.rs server/src/clock_state.rs server/src/clock_state "$home/clock/src/"
cp Cargo.lock "$home/"

# What the packages share is the repository's own: versions, lints, dependencies.
{
  printf '[workspace]\nresolver = "3"\nmembers = ["protocol", "clock"]\n\n'
  sed -n '/^\[workspace\.package\]/,/^\[package\]/p' Cargo.toml |
    grep -v -e '^\[package\]' -e '^strongroom-client' -e '^strongroom-server'
  printf '[profile.dev]\ndebug = false\nincremental = true\n\n'
  printf '[profile.dev.package."*"]\nopt-level = 2\n'
} >"$home/Cargo.toml"
cat >"$home/clock/Cargo.toml" <<'END'
[package]
name = "clock"
version = "0.1.0"
edition.workspace = true

[dependencies]
blake3.workspace = true
parking_lot.workspace = true
rustix.workspace = true
strongroom-protocol.workspace = true

[dev-dependencies]
proptest.workspace = true
END
cat >"$home/clock/src/lib.rs" <<'END'
//! The retention clock alone.
pub mod clock;
pub mod clock_state;
END

# A seed that fails with one mutant must not help to find the next.
for seeds in protocol:retention clock:clock_state/tests; do
  seeds=$home/${seeds/:/\/proptest-regressions\/}.txt
  mkdir -p "${seeds%/*}"
  ln -s /dev/null "$seeds"
done

# A failing property need not be made small: it failed.
export PROPTEST_MAX_SHRINK_ITERS=0 FUZZ_ITERATIONS=${FUZZ_ITERATIONS:-300}
unset CARGO_TARGET_DIR
cd "$home"
exec cargo mutants --in-place --timeout "${MUTANT_SECONDS:-60}" --output "$home" \
  "${files[@]/#/--file=}" "$@" -- --lib
