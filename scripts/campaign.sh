#!/usr/bin/env bash
# Runs a long campaign of the integration tests, in a copy of their binary, so that a build beside
# it changes nothing.
#
#   scripts/campaign.sh campaign-kills     KILLS=1000 SEED=1
#   scripts/campaign.sh campaign-replica-kills KILLS=200 SEED=1
#   scripts/campaign.sh campaign-locks     OPS=1000000 SEED=1
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target} SEED=${SEED:-1}
case ${1:-} in
  campaign-kills) export KILLS=${KILLS:-1000} test=survives_kill ;;
  campaign-replica-kills) export KILLS=${KILLS:-200} test=nothing_is_lost_or_torn ;;
  campaign-locks) export OPS=${OPS:-1000000} test=promises_hold_whatever_happens ;;
  *) echo "usage: $0 campaign-kills|campaign-replica-kills|campaign-locks" >&2; exit 2 ;;
esac
cargo build --release --workspace --locked --tests
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
binary=$(cargo test --release --workspace --locked --test integration --no-run \
  --message-format=json |
  sed -n 's/.*"executable":"\([^"]*integration-[^"]*\)".*/\1/p' | tail -1)
cp "$binary" "$folder/integration"
# A name that fits nothing would pass.
"$folder/integration" --list "$test" | grep -q ': test$' || {
  echo "$0: no test is called *$test*" >&2
  exit 1
}
# Where memory has a folder, it spares the disk.
if [ "$1" = campaign-locks ] && [ -d /dev/shm ]; then export TMPDIR=/dev/shm; fi
"$folder/integration" --nocapture --test-threads=1 "$test"
