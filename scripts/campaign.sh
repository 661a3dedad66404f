#!/usr/bin/env bash
# Runs a long campaign of the integration tests, in a copy of their binary, so that a build beside
# it changes nothing.
#
#   scripts/campaign.sh campaign-kills     KILLS=1000 SEED=1
#   scripts/campaign.sh campaign-replica-kills KILLS=200 SEED=1
#   scripts/campaign.sh campaign-locks     OPS=1000000 SEED=1
#   scripts/campaign.sh campaign-faults    POINTS=600 SEED=1
#   scripts/campaign.sh campaign-power     DAYS=5 CUTS=50 SEED=1
#   scripts/campaign.sh campaign-terms     TERMS=100 SEED=1
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target} SEED=${SEED:-1}
case ${1:-} in
  campaign-kills) export KILLS=${KILLS:-1000} test=survives_kill ;;
  campaign-replica-kills) export KILLS=${KILLS:-200} test=nothing_is_lost_or_torn ;;
  campaign-locks) export OPS=${OPS:-1000000} test=promises_hold_whatever_happens ;;
  campaign-faults) export POINTS=${POINTS:-600} test=when_any_call_of_the_disk_fails ;;
  campaign-power) export DAYS=${DAYS:-5} CUTS=${CUTS:-50} test=is_lost_by_a_power_cut ;;
  campaign-terms) export TERMS=${TERMS:-100} test=orders_to_end_at_random_moments ;;
  *) echo "usage: $0 campaign-kills|replica-kills|locks|faults|power|terms" >&2; exit 2 ;;
esac
cargo build --release --workspace --locked --tests --bins
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
binary=$(cargo test --release --workspace --locked --test integration --no-run \
  --message-format=json |
  sed -n 's/.*"executable":"\([^"]*integration-[^"]*\)".*/\1/p' | tail -1)
# Beside the programs, where the tests look for them.
mkdir "$folder/deps"
cp "$binary" "$folder/deps/integration"
cp "$CARGO_TARGET_DIR"/release/{strongroomd,strongroom} "$folder/"
# A name that fits nothing would pass.
"$folder/deps/integration" --list "$test" | grep -q ': test$' || {
  echo "$0: no test is called *$test*" >&2
  exit 1
}
# Where memory has a folder, it spares the disk.
case $1 in
  campaign-locks | campaign-faults | campaign-power)
    if [ -d /dev/shm ]; then export TMPDIR=/dev/shm; fi ;;
esac
"$folder/deps/integration" --nocapture --test-threads=1 "$test"
