#!/usr/bin/env bash
# What deb_test.sh does on its copy of the machine. Never run it anywhere else.
#
#   inside.sh booted|chroot       the packages of two versions and a dump lie in /deb-test
set -euo pipefail
cd /deb-test
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mode=$1
data=/var/lib/strongroom
home=/var/lib/strongroom-backup
server_pid=

step() { printf -- '-- %s (%s s)\n' "$*" "$SECONDS"; }
fail() {
  printf 'FAILED: %s\n' "$*"
  if [ "$mode" = booted ]; then journalctl --no-pager -n 40 -u 'strongroom*'; fi
  exit 1
}
trap 'fail "line $LINENO"' ERR
is_booted() { [ "$mode" = booted ]; }

as_server() { runuser -u strongroom -- strongroomd "$@"; }
as_client() { runuser -u strongroom-backup -- env STRONGROOM_HOME="$home" strongroom "$@"; }

ready() {
  (
    exec 3<>/dev/tcp/127.0.0.1/7444
    printf 'GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n' >&3
    grep -q '200 OK' <&3
  ) 2>/dev/null
}

wait_for() { # what
  for _ in $(seq 300); do
    if "$@"; then return; fi
    sleep 0.1
  done
  fail "no success in 30 seconds: $*"
}

start_server() {
  # Type=notify: systemctl comes back when the server says that it is ready.
  if is_booted; then systemctl start strongroomd.service && ready && return; fi
  # It takes the place of setpriv, so that it gets the signal that ends it.
  setpriv --reuid strongroom --regid strongroom --clear-groups \
    strongroomd serve --data "$data" --config /etc/strongroom/server.toml 2>server.log &
  server_pid=$!
  wait_for ready
}

stop_server() {
  if is_booted; then return; fi
  kill "$server_pid"
  wait "$server_pid" || true
}

main_pid() { systemctl show --property MainPID --value strongroomd.service; }

back_up() {
  if is_booted; then
    systemctl start strongroom-backup@erp.service
  else
    as_client --quiet backup erp --retain 90d -- cat /deb-test/dump
  fi
}

restore_and_compare() {
  rm -f /tmp/restored
  strongroom --quiet restore erp@latest --to /tmp/restored --kit /deb-test/kit/recovery-kit-erp.txt
  cmp /tmp/restored dump || fail 'what was restored differs'
}

# Without triggers: the index of all man pages of the machine is not what is tested.
install_version() {
  dpkg --no-triggers --install "strongroomd_$1_"*.deb "strongroom_$1_"*.deb >dpkg.log
}
version_of() { dpkg-query --show --showformat '${Version} ${db:Status-Status}' "$1"; }

# --- The steps ------------------------------------------------------------------------------------

step 'install'
install_version 0.0.1
[ "$(stat -c '%a %U:%G' "$data" "$home" | tr '\n' ' ')" = \
  '700 strongroom:strongroom 700 strongroom-backup:strongroom-backup ' ] || fail 'owners, modes'
if command -v man >/dev/null; then
  man --where strongroomd-init strongroom-key-kit-check >/dev/null
fi
for shell_file in strongroom strongroomd; do
  (. "/usr/share/bash-completion/completions/$shell_file" && complete -p "$shell_file" >/dev/null)
done
if is_booted; then
  # Nothing runs, and nothing starts before a repository was made.
  [ "$(systemctl is-enabled strongroomd.service || true)" = disabled ] || fail 'it is enabled'
  systemctl start strongroomd.service
  [ "$(systemctl is-active strongroomd.service || true)" = inactive ] || fail 'it runs'
fi

step 'init, serve'
as_server init --data "$data" --host localhost >/dev/null 2>&1
printf '[store]\nreserve = "64MiB"\n' >/etc/strongroom/server.toml
start_server
if is_booted; then
  systemctl --quiet enable strongroomd.service
  facts=$(grep -E '^(Uid|Cap(Eff|Prm|Bnd)|NoNewPrivs|Seccomp|Umask):' \
    "/proc/$(main_pid)/status" | tr -s '\t ' ' ')
  uid=$(id -u strongroom)
  # The retention clock needs both.
  for file in /proc/sys/kernel/random/boot_id /etc/machine-id; do
    [ -r "/proc/$(main_pid)/root$file" ] || fail "the server does not see $file"
  done
  for fact in "Uid: $uid $uid $uid $uid" 'CapEff: 0000000000000000' 'CapPrm: 0000000000000000' \
    'CapBnd: 0000000000000000' 'NoNewPrivs: 1' 'Seccomp: 2' 'Umask: 0077'; do
    grep -qx "$fact" <<<"$facts" || fail "the server lacks '$fact': $facts"
  done
fi

step 'enrol, back up, restore'
install -d -m 0700 -o strongroom-backup kit
as_server token --data "$data" --namespace erp --role backup >token
chmod 0644 token
as_client setup --token @/deb-test/token --kit-folder /deb-test/kit >/dev/null
echo 'BACKUP=--retain 90d -- cat /deb-test/dump' >/etc/strongroom/backup/erp.env
back_up
restore_and_compare
if is_booted; then
  systemctl --quiet enable --now strongroom-backup@erp.timer
  [ "$(systemctl is-active strongroom-backup@erp.timer)" = active ]
  # A source without its file, and a dump that fails, are failures.
  ! systemctl start strongroom-backup@other.service 2>/dev/null || fail 'a backup of nothing'
  echo 'BACKUP=-- false' >/etc/strongroom/backup/broken.env
  ! systemctl start strongroom-backup@broken.service 2>/dev/null || fail 'a failed dump'
  code=$(systemctl show --property ExecMainStatus --value strongroom-backup@broken.service)
  [ "$code" = 9 ] || fail "a failed dump ended with $code"
fi

step 'an upgrade that is cut off between its two halves'
if is_booted; then before=$(main_pid); fi
dpkg --no-triggers --unpack strongroomd_0.0.2_*.deb >dpkg.log
[ "$(version_of strongroomd)" = '0.0.2 unpacked' ]
ready || fail 'the old program serves no more'
if is_booted; then
  [ "$(main_pid)" = "$before" ] || fail 'restarted too early'
  systemctl kill --signal KILL strongroomd.service
  is_anew() { [ "$(main_pid)" != "$before" ] && ready; }
  wait_for is_anew
  before=$(main_pid)
fi
restore_and_compare

step 'the upgrade is ended'
dpkg --no-triggers --configure strongroomd >dpkg.log
if is_booted; then
  [ "$(main_pid)" != "$before" ] || fail 'the old program still serves'
else
  stop_server
  start_server
fi
install_version 0.0.2
[ "$(version_of strongroomd)$(version_of strongroom)" = '0.0.2 installed0.0.2 installed' ]
grep -q 64MiB /etc/strongroom/server.toml || fail 'the configuration was replaced'
back_up
restore_and_compare
as_client list --kit /deb-test/kit/recovery-kit-erp.txt | grep -c erp | grep -qx 2 ||
  fail 'there are not two snapshots'

step 'remove, and install again'
stop_server
dpkg --no-triggers --remove strongroomd strongroom >dpkg.log
! ready || fail 'it serves on'
[ ! -e /usr/bin/strongroomd ] && [ ! -e /usr/bin/strongroom ]
grep -q 64MiB /etc/strongroom/server.toml || fail 'the configuration went with the package'
install_version 0.0.2
if is_booted; then
  [ "$(systemctl is-active strongroomd.service || true)" = inactive ] || fail 'it runs by itself'
fi
start_server
restore_and_compare

step 'purge, and install again'
stop_server
dpkg --no-triggers --purge strongroomd strongroom >dpkg.log
grep -q "$data and the user strongroom stay" dpkg.log || fail 'purge does not say what stays'
[ ! -e /etc/strongroom/server.toml ]
[ -e "$data/keys/ledger.key" ] || fail 'purge deleted the keys'
[ -e "$home/default/tls.key" ] || fail "purge deleted the client's keys"
[ "$(stat -c '%a %U:%G' "$data")" = '700 strongroom:strongroom' ]
install_version 0.0.1
printf '[store]\nreserve = "64MiB"\n' >/etc/strongroom/server.toml
start_server
restore_and_compare
stop_server
echo passed
