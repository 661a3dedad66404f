#!/usr/bin/env bash
# Question: how does a replica do on a line that the kernel emulates: 1 Gbit/s at 50 ms, and 200 ms
# with 1 % loss? Expected: the first sync takes 80 % or more of what one plain TCP stream gets over
# 1 Gbit/s (the better of that and of the line); a small change is there in less than 2 s at 50 ms;
# with loss both get there, however slowly.
#
#   sudo scripts/netem-replica.sh          DUMPS=folder takes day0.sql; else 400 MB of noise
#
# Real processes, each server in a network namespace of its own, between them a pair of devices with
# netem. Needs root, ip, tc with netem, and python3 for the plain stream. Leaves nothing behind.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/release
[ "$(id -u)" = 0 ] || { echo 'netem-replica: needs root, for namespaces and netem' >&2; exit 2; }
for tool in ip tc python3; do
  command -v $tool >/dev/null || { echo "netem-replica: needs $tool" >&2; exit 2; }
done
work=$(mktemp -d "${TMPDIR:-/var/tmp}/strongroom-netem.XXXXXX")
near=strongroom-near far=strongroom-far
near_ip=10.213.77.1 far_ip=10.213.77.2
pids=()

clean_up() {
  local code=$?
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  [ "$code" = 0 ] || [ "$code" = 2 ] || tail -n 5 "$work"/*.log 2>/dev/null || true
  ip netns del $near 2>/dev/null || true
  ip netns del $far 2>/dev/null || true
  rm -rf "$work"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

ip netns add $near
ip netns add $far
ip -n $near link add line type veth peer name line netns $far
for end in "$near $near_ip" "$far $far_ip"; do
  set -- $end
  ip -n "$1" addr add "$2/24" dev line
  ip -n "$1" link set lo up
  ip -n "$1" link set line up
done

ip netns exec $near tc qdisc replace dev line root netem delay 1ms 2>/dev/null || {
  echo 'netem-replica: this kernel has no netem (module sch_netem)' >&2
  exit 2
}

# line ONE_WAY LOSS [RATE]: the same in both directions.
line() {
  for end in $near $far; do
    ip netns exec $end tc qdisc replace dev line root netem delay "$1" loss "$2" \
      ${3:+rate "$3"} limit 100000
  done
}

serve() { # NAME NAMESPACE IP
  "$bin/strongroomd" init --data "$work/$1" --host "$3" --port 7443 --json >/dev/null
  ip netns exec "$2" "$bin/strongroomd" serve --data "$work/$1" --listen "$3:7443" \
    --metrics 127.0.0.1:7444 2>"$work/$1.log" &
  pids+=($!)
  for _ in $(seq 600); do
    ip netns exec "$2" python3 -c "
import urllib.request
urllib.request.urlopen('http://127.0.0.1:7444/readyz', timeout=1)" 2>/dev/null && return
    sleep 0.1
  done
  echo "netem-replica: $1 is not ready" >&2
  exit 1
}

client() { ip netns exec $near "$bin/strongroom" --home "$work/home" --json "$@"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }'; }

# Waits until all that the primary has now is on the replica.
synced() {
  local wanted
  wanted=$("$bin/strongroomd" status --data "$work/primary" --json |
    python3 -c 'import json,sys; print(json.load(sys.stdin)["status"]["ledger_size"])')
  for _ in $(seq 20000); do
    "$bin/strongroomd" replica status --data "$work/replica" --json | python3 -c "
import json, sys
row = json.load(sys.stdin)['primaries'][0]
sys.exit(not (row['followed_entries'] >= $wanted and row['pending_snapshots'] == 0))" && return
    sleep 0.02
  done
  echo 'netem-replica: never in sync' >&2
  exit 1
}

received() {
  "$bin/strongroomd" replica status --data "$work/replica" --json |
    python3 -c 'import json,sys; print(json.load(sys.stdin)["primaries"][0]["received_bytes"])'
}

# One plain TCP stream from near to far, MB/s, over so many seconds.
plain() {
  ip netns exec $near python3 -c "
import socket, time
listener = socket.create_server(('$near_ip', 9999))
stream, _ = listener.accept()
piece, end = bytes(1 << 20), time.time() + $1
while time.time() < end:
    stream.sendall(piece)" &
  local sender=$!
  sleep 0.5
  ip netns exec $far python3 -c "
import socket, time
stream = socket.create_connection(('$near_ip', 9999))
began, count = time.time(), 0
while True:
    piece = stream.recv(1 << 20)
    if not piece: break
    count += len(piece)
print('%.1f' % (count / 1e6 / (time.time() - began)))"
  wait $sender
}

small_changes() { # HOW_MANY
  for number in $(seq "$1"); do
    head -c 30000 /dev/urandom >"$work/small"
    client backup small "$work/small" >/dev/null
    began=$(now)
    synced
    since "$began"
    echo
    sleep "0.$((RANDOM % 900 + 100))"
  done | sort -n | awk '{ t[NR] = $1 } END {
    printf "small change: %.2f s in the middle, %.2f s at most, of %d\n",
      t[int((NR + 1) / 2)], t[NR], NR }'
}

serve primary $near $near_ip
serve replica $far $far_ip
token=$("$bin/strongroomd" token --data "$work/primary" --role backup --namespace bench)
client setup --token "$token" --kit-folder "$work/kit" >/dev/null
dump=${DUMPS:+$DUMPS/day0.sql}
if [ -z "$dump" ]; then
  dump=$work/noise
  head -c 400000000 /dev/urandom >"$dump"
fi

echo '== 50 ms, 1 Gbit/s, no loss'
line 25ms 0% 1gbit
stream=$(plain 8)
client backup day "$dump" >/dev/null
token=$("$bin/strongroomd" token --data "$work/primary" --role replica)
began=$(now)
"$bin/strongroomd" replica add --data "$work/replica" --token "$token" --name office >/dev/null
synced
seconds=$(since "$began")
awk -v bytes="$(received)" -v s="$seconds" -v plain="$stream" 'BEGIN {
  rate = bytes / 1e6 / s
  printf "first sync: %.1f MB in %.2f s, %.1f MB/s; %.0f %% of 125 MB/s, plain TCP %s MB/s\n",
    bytes / 1e6, s, rate, rate / 1.25, plain }'
small_changes "${CHANGES:-10}"

echo '== 200 ms, 1 % loss, 1 Gbit/s'
line 100ms 1% 1gbit
stream=$(plain 15)
small_changes 5
head -c 20000000 /dev/urandom >"$work/more"
before=$(received)
client backup day "$work/more" >/dev/null
began=$(now)
synced
awk -v bytes="$(($(received) - before))" -v s="$(since "$began")" -v plain="$stream" 'BEGIN {
  printf "catching up: %.1f MB in %.2f s, %.2f MB/s; plain TCP %s MB/s\n",
    bytes / 1e6, s, bytes / 1e6 / s, plain }'
