#!/usr/bin/env bash
# The whole disaster once, on real dumps and with the real programs (docs/operations.md, 13): the
# first site is gone with its disks, the dump comes back from the replica with the recovery kit
# alone, the replica is promoted, and backups go on. Stops what it starts, leaves nothing behind.
#
#   make drill-replica     builds what this needs first
#
# Ends with "drill: restored N bytes from the replica, identical".
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/release
work=$(mktemp -d "${TMPDIR:-/tmp}/strongroom-drill.XXXXXX")
declare -A pid port probes
restored_bytes=0

step() { printf '\n== %s\n' "$*"; }
fail() { printf 'drill: FAILED: %s\n' "$*" >&2; exit 1; }

stop() { # server, signal
  [ -n "${pid[$1]:-}" ] || return 0
  kill "-$2" "${pid[$1]}" 2>/dev/null || true
  for _ in $(seq 300); do
    kill -0 "${pid[$1]}" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "${pid[$1]}" 2>/dev/null || true
  wait "${pid[$1]}" 2>/dev/null || true
  pid[$1]=
}

clean_up() {
  local code=$?
  trap - EXIT INT TERM
  for server in "${!pid[@]}"; do
    if [ "$code" != 0 ] && [ -s "$work/$server.log" ]; then
      echo "drill: the end of the log of $server:" >&2
      tail -n 20 "$work/$server.log" >&2
    fi
    stop "$server" TERM
  done
  rm -rf "$work"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

free_port() {
  local candidate
  for _ in $(seq 100); do
    candidate=$((20000 + RANDOM % 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || { echo "$candidate"; return; }
  done
  fail 'no free port on loopback'
}

# The value of a key in one JSON object on standard input.
field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p" | head -n 1; }
now_ms() { date +%s%3N; }
megabytes() { awk -v n="$1" 'BEGIN { printf "%.1f MB", n / 1e6 }'; }

on() { # server, command of strongroomd
  local server=$1
  shift
  "$bin/strongroomd" "$@" --data "$work/$server"
}
# Two machines: the ERP server, and one that has nothing but the kit.
on_erp() { "$bin/strongroom" --home "$work/erp" "$@"; }
on_fresh() { "$bin/strongroom" --home "$work/fresh-$RANDOM" "$@"; }

init() { # server
  port[$1]=${port[$1]:-$(free_port)}
  probes[$1]=${probes[$1]:-$(free_port)}
  on "$1" init --host localhost --port "${port[$1]}" >/dev/null
}

serve() { # server
  # A drill may run on a nearly full disk; everything else is as by default.
  printf '[store]\nreserve = "64MiB"\n' >"$work/strongroomd.toml"
  # Not through a function: $! must be the server itself.
  "$bin/strongroomd" serve --data "$work/$1" --config "$work/strongroomd.toml" \
    --listen "127.0.0.1:${port[$1]}" --metrics "127.0.0.1:${probes[$1]}" >>"$work/$1.log" 2>&1 &
  pid[$1]=$!
  for _ in $(seq 300); do
    curl -fsS "http://127.0.0.1:${probes[$1]}/readyz" >/dev/null 2>&1 && return
    kill -0 "${pid[$1]}" 2>/dev/null || fail "the server $1 ended"
    sleep 0.1
  done
  fail "the server $1 is not ready after 30 seconds"
}

in_sync() { # server: all that its primary's ledger says is here
  local status entries
  entries=$(on "$2" status --json | field ledger_size)
  for _ in $(seq 600); do
    status=$(on "$1" replica status --json)
    [ "$(field state <<<"$status")" = in_sync ] &&
      [ "$(field followed_entries <<<"$status")" -ge "$entries" ] && return
    sleep 0.1
  done
  on "$1" replica status
  fail "$1 is not in sync after a minute"
}

follow() { # who follows whom, under which name
  local token
  token=$(on "$2" token --role replica)
  on "$1" replica add --token "$token" --name "$3"
}

back_up() { # dump; keeps the id in $snapshot
  local answer
  answer=$(on_erp --json backup erp "$1") || fail "backup of $1"
  snapshot=$(field snapshot <<<"$answer")
  printf 'snapshot %.16s: %s in %s ms, sent %s\n' "$snapshot" \
    "$(megabytes "$(field plaintext_bytes <<<"$answer")")" "$(field elapsed_ms <<<"$answer")" \
    "$(megabytes "$(field sent_bytes <<<"$answer")")"
}

restore_and_compare() { # server, snapshot, original, further options
  local server=$1 name=$2 original=$3 to=$work/restored.sql since
  shift 3
  rm -f "$to"
  since=$(now_ms)
  on_fresh restore "$name" --to "$to" --kit "$kit" --server "localhost:${port[$server]}" "$@" \
    >/dev/null || fail "restore of $name"
  since=$(($(now_ms) - since))
  cmp "$to" "$original" || fail "what was restored of $name differs"
  local bytes
  bytes=$(stat -c %s "$to")
  restored_bytes=$((restored_bytes + bytes))
  printf '%.16s: %s bytes in %s ms, identical\n' "$name" "$bytes" "$since"
}

ledger_key_of() { grep -o 'ledger key *[0-9a-f]*' "$1" | head -n 1 | grep -o '[0-9a-f]*$'; }

move_to() { # server; leaves the descriptor in $work/descriptor
  rm -f "$work/request" "$work/descriptor"
  on "$1" promote --namespace erp --request "$work/request" >"$work/asked.txt"
  on_fresh key kit promote --kit "$kit" --request "$work/request" --out "$work/descriptor" |
    tee "$work/signed.txt"
  [ "$(ledger_key_of "$work/asked.txt")" = "$(ledger_key_of "$work/signed.txt")" ] ||
    fail 'another ledger key was signed than the one that asked'
}

# --- The drill ------------------------------------------------------------------------------------

[ -x "$bin/strongroomd" ] && [ -x "$bin/strongroom" ] ||
  fail "no strongroomd and strongroom in $bin; run make drill-replica"
"$root/scripts/unpack_dumps.sh" "$work/dumps"

step 'Two sites: a primary, and a replica that follows it'
init office
init offsite
serve office
serve offsite
follow offsite office office

step 'ERP machine: enrol, make the recovery kit, back up'
mkdir "$work/kit"
on_erp setup --token "$(on office token --namespace erp --role backup)" --kit-folder "$work/kit" \
  >/dev/null
kit=$work/kit/recovery-kit-erp.txt
back_up "$work/dumps/day0.sql"
first=$snapshot
in_sync offsite office
echo 'the replica is in sync'

step 'ERP machine: the replica is its second server'
on_erp enroll --standby --token "$(on offsite token --namespace erp --role backup)"
on offsite namespaces

step 'The first site is gone: killed, and its data folder with it'
stop office KILL
rm -rf "$work/office"
gone=$(now_ms)

step 'Fresh machine, the kit alone: restore from the replica'
restore_and_compare offsite erp@latest "$work/dumps/day0.sql" --from-replica

step 'Promote the replica: request, signature where the kit is, descriptor'
move_to offsite
on offsite promote --namespace erp --descriptor "$work/descriptor"
on offsite namespaces

step 'ERP machine: the same command goes on with the second server'
back_up "$work/dumps/day1.sql"
second=$snapshot
printf 'from the loss of the site to the next backup: %s ms\n' "$(($(now_ms) - gone))"

step 'Fresh machine: restore both from the promoted server'
restore_and_compare offsite "$first" "$work/dumps/day0.sql"
restore_and_compare offsite "$second" "$work/dumps/day1.sql"

step 'The first site is rebuilt, with new disks and keys, and follows'
init office
serve office
follow office offsite offsite
in_sync office offsite
on office namespaces

step 'Fail back: the one that steps down gets the descriptor first'
move_to office
on offsite demote --namespace erp --descriptor "$work/descriptor"
on office promote --namespace erp --descriptor "$work/descriptor"
on offsite replica remove office
follow offsite office office
# A server that was rebuilt is another one, so it takes the second place in the profile.
mv "$work/erp/default/standby" "$work/erp/default.standby-before"
on_erp enroll --standby --token "$(on office token --namespace erp --role backup)" >/dev/null
back_up "$work/dumps/day2.sql"
restore_and_compare office "$snapshot" "$work/dumps/day2.sql"
in_sync offsite office
restore_and_compare offsite "$snapshot" "$work/dumps/day2.sql" --from-replica

step 'The servers stop cleanly'
stop office TERM
stop offsite TERM
printf 'drill: restored %s bytes from the replica, identical\n' "$restored_bytes"
