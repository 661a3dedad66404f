#!/usr/bin/env bash
# Unpacks the dumps of tests/data into a folder as day0.sql, day1.sql, day2.sql, and checks them.
# Does nothing where they are there already.
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
data=$(cd "$(dirname "$0")/../tests/data" && pwd)
mkdir -p "$1"
cd "$1"
sha256sum --check --status "$data/SHA256SUMS" 2>/dev/null && exit 0
zstd -dcq "$data/days.sql.zst" | while read -r name bytes <&3; do
  head -c "$bytes" >"$name"
done 3<"$data/LENGTHS"
sha256sum --check --quiet "$data/SHA256SUMS"
