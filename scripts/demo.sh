#!/usr/bin/env bash
# The whole machine once, on real dumps: server, enrolment, backups, restore on a machine that has
# nothing but the recovery kit, and a lock that holds. Stops what it starts, leaves nothing behind.
#
#   make demo        builds what this needs first
#
# Ends with "demo: restored N bytes, identical; lock held".
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/release
work=$(mktemp -d "${TMPDIR:-/tmp}/strongroom-demo.XXXXXX")
server_pid=
postgres_folder=
restored_bytes=0

step() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: FAILED: %s\n' "$*" >&2; exit 1; }

stop_server() {
  [ -n "$server_pid" ] || return 0
  kill -TERM "$server_pid" 2>/dev/null || true
  for _ in $(seq 300); do
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$server_pid" 2>/dev/null || true
  server_code=0
  wait "$server_pid" 2>/dev/null || server_code=$?
  server_pid=
}

clean_up() {
  local code=$?
  trap - EXIT INT TERM
  if [ "$code" != 0 ] && [ -s "$work/server.log" ]; then
    echo 'demo: the end of the server log:' >&2
    tail -n 20 "$work/server.log" >&2
  fi
  [ -z "$postgres_folder" ] || stop_postgres
  stop_server
  rm -rf "$work" ${postgres_folder:+"$postgres_folder"}
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
  fail 'no free port on loopback'
}

# The value of a key in one JSON object on standard input.
field() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p" | head -n 1; }

megabytes() { awk -v n="$1" 'BEGIN { printf "%.1f MB", n / 1e6 }'; }

strongroomd() { "$bin/strongroomd" "$@"; }
# Three machines: the ERP server, one that has nothing but the kit, and the operator's.
on_erp() { "$bin/strongroom" --home "$work/erp" "$@"; }
on_fresh() { "$bin/strongroom" --home "$work/fresh" "$@"; }
on_operator() { "$bin/strongroom" --home "$work/operator" "$@"; }

# Prints the figures of a backup, and keeps its answer in $answer.
back_up() { # source, then what makes the dump
  local source=$1
  shift
  answer=$(on_erp --json backup "$source" "$@") || fail "backup of $source"
  local bytes elapsed
  bytes=$(field plaintext_bytes <<<"$answer")
  elapsed=$(field elapsed_ms <<<"$answer")
  snapshot=$(field snapshot <<<"$answer")
  locked_until=$(field locked_until_seconds <<<"$answer")
  printf 'snapshot %.16s: %s in %s ms (%s MB/s)\n' "$snapshot" "$(megabytes "$bytes")" \
    "$elapsed" "$((bytes / 1000 / (elapsed > 0 ? elapsed : 1)))"
  printf '  deduplicated %s, sent %s\n' \
    "$(megabytes "$(field deduplicated_bytes <<<"$answer")")" \
    "$(megabytes "$(field sent_bytes <<<"$answer")")"
  printf '  locked until %s\n' \
    "$(date -u -d "@$locked_until" '+%F %T UTC')"
}

restore_and_compare() { # snapshot, original
  local to=$work/restored.sql
  rm -f "$to"
  on_fresh restore "$1" --to "$to" --kit "$kit" >/dev/null || fail "restore of $1"
  cmp "$to" "$2" || fail "what was restored of $1 differs"
  local bytes
  bytes=$(stat -c %s "$to")
  restored_bytes=$((restored_bytes + bytes))
  printf '%.16s: %s bytes, identical\n' "$1" "$bytes"
}

# --- Server ---------------------------------------------------------------------------------------

start_server() {
  local port metrics
  port=$(free_port)
  metrics=$(free_port)
  probes=http://127.0.0.1:$metrics
  # A demo may run on a nearly full disk; everything else is as by default.
  printf '[store]\nreserve = "64MiB"\n' >"$work/strongroomd.toml"
  strongroomd init --data "$work/data" --host localhost --port "$port" >"$work/init.txt"
  operator_token=$(grep -o 'srk1_[A-Za-z0-9_-]*' "$work/init.txt")
  # Not through the function: $! must be the server itself.
  "$bin/strongroomd" serve --data "$work/data" --config "$work/strongroomd.toml" \
    --listen "127.0.0.1:$port" --metrics "127.0.0.1:$metrics" >"$work/server.log" 2>&1 &
  server_pid=$!
  for _ in $(seq 300); do
    curl -fsS "$probes/readyz" >/dev/null 2>&1 && return
    kill -0 "$server_pid" 2>/dev/null || fail 'the server ended'
    sleep 0.1
  done
  fail 'the server is not ready after 30 seconds'
}

# --- A live database, where PostgreSQL is installed -----------------------------------------------

find_postgres() { # prints the folder of its programs
  local folder major
  folder=$(find_postgres_folder) && [ -n "$folder" ] || return 0
  major=$("$folder/initdb" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
  # The dumps are of version 15.
  if [ "$major" -ge 15 ]; then echo "$folder"; fi
}

find_postgres_folder() {
  if command -v initdb >/dev/null && command -v pg_ctl >/dev/null; then
    dirname "$(readlink -f "$(command -v pg_ctl)")"
    return
  fi
  compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1
}

# PostgreSQL refuses to run as root.
as_postgres() {
  if [ "$(id -u)" = 0 ]; then
    runuser -u "$postgres_user" -- env HOME="$postgres_folder" "$@"
  else
    "$@"
  fi
}

start_postgres() {
  postgres_user=$(id -un)
  if [ "$postgres_user" = root ]; then
    if id postgres >/dev/null 2>&1; then postgres_user=postgres; else postgres_user=nobody; fi
  fi
  postgres_folder=$(mktemp -d "${TMPDIR:-/tmp}/strongroom-demo-pg.XXXXXX")
  chown "$postgres_user" "$postgres_folder"
  PGPORT=$(free_port)
  export PGPORT PGHOST=127.0.0.1 PGUSER=erp PATH="$postgres_programs:$PATH"
  cd "$postgres_folder"
  as_postgres "$postgres_programs/initdb" -D "$postgres_folder/data" -U erp -A trust -E UTF8 \
    --locale=C.UTF-8 >/dev/null
  as_postgres "$postgres_programs/pg_ctl" -D "$postgres_folder/data" -w \
    -l "$postgres_folder/log" -o "-c listen_addresses=127.0.0.1 -c port=$PGPORT" \
    -o "-c unix_socket_directories=$postgres_folder -c fsync=off" start >/dev/null
}

stop_postgres() {
  as_postgres "$postgres_programs/pg_ctl" -D "$postgres_folder/data" -w -m immediate stop \
    >/dev/null 2>&1 || true
}

load() { # database, dump; an older psql does not know \restrict
  createdb "$1"
  sed '/^\\\(un\)\{0,1\}restrict /d' "$2" | psql -X -q -v ON_ERROR_STOP=1 -d "$1" -o /dev/null
}

row_counts() { # database
  psql -X -q -A -t -v ON_ERROR_STOP=1 -d "$1" <<'SQL'
select format('select %L, count(*) from %I.%I', tablename, schemaname, tablename)
  from pg_tables where schemaname = 'public' order by tablename \gexec
SQL
}

live_database() {
  start_postgres
  psql -X -A -t -d postgres -c 'select split_part(version(), $$,$$, 1)'
  load live "$work/dumps/day1.sql"
  # Newer minor versions write a random key into each dump, unless they are given one.
  local dump=(pg_dump --format=plain)
  # Not through a pipe: a reader that has seen enough would make pg_dump fail.
  case $(pg_dump --help) in *--restrict-key*) dump+=(--restrict-key=demo) ;; esac
  back_up erp-live -- "${dump[@]}" live
  on_fresh restore erp-live@latest --to "$work/live.sql" --kit "$kit" >/dev/null
  load again "$work/live.sql"
  row_counts live >"$work/live.rows"
  row_counts again >"$work/again.rows"
  cmp "$work/live.rows" "$work/again.rows" || fail 'row counts differ'
  "${dump[@]}" again >"$work/again.sql"
  cmp "$work/live.sql" "$work/again.sql" || fail 'pg_dump of the restored database differs'
  local bytes
  bytes=$(stat -c %s "$work/live.sql")
  restored_bytes=$((restored_bytes + bytes))
  awk -F'|' '{ rows += $2 } END { printf "%d tables, %d rows: same counts", NR, rows }' \
    "$work/again.rows"
  echo ', and the same pg_dump output'
}

# --- The demo -------------------------------------------------------------------------------------

[ -x "$bin/strongroomd" ] && [ -x "$bin/strongroom" ] ||
  fail "no strongroomd and strongroom in $bin; run make demo"
"$root/scripts/unpack_dumps.sh" "$work/dumps"

step 'Server: a new repository'
start_server
echo "listening; data in $work/data"

step 'ERP machine: enrol, make keys and the recovery kit'
token=$(strongroomd token --data "$work/data" --namespace erp --role backup --name erp-server)
mkdir "$work/kit"
on_erp setup --token "$token" --kit-folder "$work/kit" >"$work/setup.txt"
kit=$work/kit/recovery-kit-erp.txt
echo "enrolled; recovery kit of $(wc -l <"$kit") lines, and as a page to print:"
(cd "$work" && ls kit)

step 'First backup: a pg_dump of an ERP database, from standard input'
back_up erp --stdin <"$work/dumps/day0.sql"
first=$snapshot
first_locked_until=$locked_until

step 'The next day: only what changed'
back_up erp --stdin <"$work/dumps/day1.sql"
second=$snapshot

step 'The same again'
back_up erp --stdin <"$work/dumps/day1.sql"

step 'A dump command that fails makes no snapshot'
code=0
on_erp backup erp -- sh -c 'head -c 10000000 "$0"; exit 3' "$work/dumps/day0.sql" \
  >/dev/null 2>"$work/message" || code=$?
tail -n 1 "$work/message"
[ "$code" = 9 ] || fail "a failed dump command ended with $code, not 9"

step 'Does the kit open the newest snapshot?'
on_erp key kit check --kit "$kit"

step 'Fresh machine, with nothing but the kit: list'
on_fresh list erp --kit "$kit"

step 'Fresh machine: restore and compare byte for byte'
restore_and_compare "$first" "$work/dumps/day0.sql"
restore_and_compare "$second" "$work/dumps/day1.sql"
restore_and_compare erp@latest "$work/dumps/day1.sql"

step 'Verify: read everything, check everything, write nothing'
on_fresh verify "$second" --kit "$kit"

postgres_programs=$(find_postgres)
if [ -n "$postgres_programs" ]; then
  step 'A live PostgreSQL: dump, back up, restore into an empty database, compare'
  live_database
fi

step 'The lock: an operator asks to forget the first snapshot'
on_operator enroll --token "$operator_token" >/dev/null
code=0
on_operator forget "$first" --namespace erp >/dev/null 2>"$work/message" || code=$?
cat "$work/message"
[ "$code" = 4 ] || fail "forget of a locked snapshot ended with $code, not 4"
grep -q "$(date -u -d "@$first_locked_until" '+%FT%TZ')" "$work/message" ||
  fail 'the refusal does not name the end of the lock'
restore_and_compare "$first" "$work/dumps/day0.sql"

step 'What Prometheus sees'
curl -fsS "$probes/metrics" >"$work/metrics"
grep -E -e '^strongroom_(commits|envelopes_new|envelopes_deduplicated)_total' \
  -e '^strongroom_((received|sent)_bytes_total|last_backup_timestamp_seconds)' "$work/metrics"

step 'The server stops cleanly'
stop_server
[ "$server_code" = 0 ] || fail "the server ended with $server_code"
printf 'demo: restored %s bytes, identical; lock held\n' "$restored_bytes"
