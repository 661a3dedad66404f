#!/usr/bin/env bash
# Runs a long campaign, in copies of the binaries, so that a build beside it changes nothing.
#
#   scripts/campaign.sh campaign-crash         KILLS=1000 SEED=1
#   scripts/campaign.sh campaign-fuzz          FUZZ_ITERATIONS=100000000 FUZZ_SEED=1 FUZZ_THREADS=2
#   scripts/campaign.sh campaign-fuzz-guided   FUZZ_SECONDS=600 KEEP=1
#   scripts/campaign.sh campaign-kills         KILLS=1000 SEED=1
#   scripts/campaign.sh campaign-replica-kills KILLS=200 SEED=1
#   scripts/campaign.sh campaign-locks         OPS=1000000 SEED=1
#   scripts/campaign.sh campaign-faults        POINTS=600 SEED=1
#   scripts/campaign.sh campaign-power         DAYS=5 CUTS=50 SEED=1
#   scripts/campaign.sh campaign-terms         TERMS=100 SEED=1
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target} SEED=${SEED:-1}
folder=

# Names of the test binaries called $1.
binaries() {
  cargo test --release --workspace --locked --test "$1" --no-run --message-format=json |
    sed -n "s/.*\"executable\":\"\([^\"]*\/$1-[^\"]*\)\".*/\1/p"
}

# All entry points on stable: one binary of each crate that has some.
fuzz() {
  export FUZZ_SEED=${FUZZ_SEED:-$(date +%s)} FUZZ_ITERATIONS=${FUZZ_ITERATIONS:-100000000}
  local binary crate status=0 log=$folder/log
  echo "campaign-fuzz: seed $FUZZ_SEED, $FUZZ_ITERATIONS executions of each target"
  for binary in $(binaries fuzz); do
    cp "$binary" "$folder/fuzz"
    "$folder/fuzz" campaign --ignored --exact --nocapture 2>&1 | tee -a "$log" || status=1
  done
  awk -v seed="$FUZZ_SEED" '
    /^fuzz (reading|signing): / {
      count[$2] += $3; findings += $5 / 2
      if (!($2 in least) || $4 < least[$2]) least[$2] = $4
    }
    END {
      printf "campaign-fuzz: besides %d targets that make signatures, %.0f executions each\n",
        count["signing:"], least["signing:"]
      printf "campaign-fuzz: %d targets, %.0f executions each at least, %d findings, seed %s\n",
        count["reading:"], least["reading:"], findings, seed
    }' "$log"
  return $status
}

# libFuzzer and the address sanitizer, on nightly; KEEP=1 adds to the corpus what leads to new code.
guided() {
  local crate target found
  for crate in protocol client; do
    for target in $(ls "$crate/fuzz/fuzz_targets" | sed 's/\.rs$//'); do
      found=$CARGO_TARGET_DIR/fuzz-corpus/$target
      mkdir -p "$found"
      echo "fuzz: $target, ${FUZZ_SECONDS:-600} s"
      (
        cd "$crate"
        unset CARGO_TARGET_DIR
        cargo +nightly fuzz run "$target" "$found" "fuzz/corpus/$target" -- -timeout=5 \
          -max_total_time="${FUZZ_SECONDS:-600}" -rss_limit_mb=512 -max_len=65536
        if [ -n "${KEEP:-}" ]; then
          cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "$found" -- -merge=1 -max_len=2048
        fi
      )
    done
  done
}

# Tests of the integration tests whose name has $1 in it; the programs that they start lie as in the
# target folder.
integration() {
  cargo build --release --workspace --locked --tests --bins
  mkdir "$folder/deps"
  cp "$(binaries integration | tail -1)" "$folder/deps/integration"
  cp "$CARGO_TARGET_DIR"/release/{strongroom,strongroomd} "$folder/"
  # A name that fits nothing would pass. (Not through a pipe: who is not read to its end fails.)
  local found
  found=$("$folder/deps/integration" --list "$1")
  grep -q ': test$' <<<"$found" || {
    echo "$0: no test is called *$1*" >&2
    exit 1
  }
  "$folder/deps/integration" --nocapture --test-threads=1 "$1"
}

usage() {
  sed -n 's/^#   scripts/usage: scripts/p' "$0" >&2
  exit 2
}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Where memory has a folder, it spares the disk: what is looked for is not what a disk does.
in_memory() { if [ -d /dev/shm ]; then export TMPDIR=/dev/shm; fi; }
case ${1:-} in
  campaign-crash)
    export KILLS=${KILLS:-1000}
    in_memory
    status=0
    integration programs_are_killed | tee "$folder/log" || status=1
    grep '^campaign-crash: .* half visible$' "$folder/log" || status=1
    exit $status
    ;;
  campaign-fuzz) fuzz ;;
  campaign-fuzz-guided) guided ;;
  campaign-kills) KILLS=${KILLS:-1000} integration survives_kill ;;
  campaign-replica-kills) KILLS=${KILLS:-200} integration nothing_is_lost_or_torn ;;
  campaign-locks)
    in_memory
    OPS=${OPS:-1000000} integration promises_hold_whatever_happens
    ;;
  campaign-faults)
    in_memory
    POINTS=${POINTS:-600} integration when_any_call_of_the_disk_fails
    ;;
  campaign-power)
    in_memory
    DAYS=${DAYS:-5} CUTS=${CUTS:-50} integration is_lost_by_a_power_cut
    ;;
  campaign-terms) TERMS=${TERMS:-100} integration orders_to_end_at_random_moments ;;
  *) usage ;;
esac
