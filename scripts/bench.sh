#!/usr/bin/env bash
# Builds, finds or makes dumps, and runs the benches of whole programs.
#
#   scripts/bench.sh bench|bench-quick|bench-scaling|bench-more
#
# DUMPS=folder has day0.sql and day1.sql. Without it, ERP_MAKER=script makes them in the target
# folder: it is run with SIZE_MB, ROOT, FORMATS=0 and DAY2=0 and leaves them in
# ROOT/tryton_SIZE_MB. Without either, the small dumps of tests/data are taken.
#
# Rows go to target/bench.json; `bench` writes them into docs/performance.md and
# docs/throughput.svg, too. RUNS sets the runs of each row.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
set -- "${1:-bench}"
case $1 in
  bench)
    size_mb=2048 words=() report=(write)
    benches=(end_to_end crowd segments part replica index budget peers)
    ;;
  bench-quick)
    size_mb=200 words=(quick) report=()
    benches=(end_to_end crowd segments part replica index budget)
    ;;
  bench-scaling) size_mb=2048 words=() report=() benches=(scaling) ;;
  bench-more) size_mb=200 words=() report=() benches=(trees hostile) ;;
  *) echo "usage: $0 bench|bench-quick|bench-scaling|bench-more" >&2; exit 2 ;;
esac
if [ -z "${DUMPS:-}" ] && [ -n "${ERP_MAKER:-}" ]; then
  SIZE_MB=$size_mb ROOT=$CARGO_TARGET_DIR/erp FORMATS=0 DAY2=0 "$ERP_MAKER"
  export DUMPS=$CARGO_TARGET_DIR/erp/tryton_$size_mb
fi
cargo build --release --workspace --locked
# All of them at once, before anything is measured.
cargo bench --locked --workspace --no-run "${benches[@]/#/--bench=}" --bench=report
[ "$1" = bench-scaling ] || [ "$1" = bench-more ] || rm -f "$CARGO_TARGET_DIR/bench.json"
began=$SECONDS
for name in "${benches[@]}"; do
  echo "== $name, after $((SECONDS - began)) s =="
  cargo bench --locked --workspace --bench "$name" -- "${words[@]}"
done
# A short run's figures do not belong into the document.
cargo bench --locked --workspace --bench report -- "${report[@]}"
echo "bench: $((SECONDS - began)) s"
