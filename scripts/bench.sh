#!/usr/bin/env bash
# Builds, finds or makes dumps, and runs the benches of whole programs.
#
#   scripts/bench.sh bench|bench-quick
#
# DUMPS=folder has day0.sql and day1.sql. Without it, ERP_MAKER=script makes them in the target
# folder: it is run with SIZE_MB, ROOT, FORMATS=0 and DAY2=0 and leaves them in
# ROOT/tryton_SIZE_MB. Without either, the small dumps of tests/data are taken.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
case ${1:-bench} in
  bench) size_mb=2048 words=() ;;
  bench-quick) size_mb=200 words=(quick) ;;
  *) echo "usage: $0 bench|bench-quick" >&2; exit 2 ;;
esac
if [ -z "${DUMPS:-}" ] && [ -n "${ERP_MAKER:-}" ]; then
  SIZE_MB=$size_mb ROOT=$CARGO_TARGET_DIR/erp FORMATS=0 DAY2=0 "$ERP_MAKER"
  export DUMPS=$CARGO_TARGET_DIR/erp/tryton_$size_mb
fi
cargo build --release --workspace --locked
cargo bench --locked --bench end_to_end -- "${words[@]}"
exec cargo bench --locked --bench replica -- "${words[@]}"
