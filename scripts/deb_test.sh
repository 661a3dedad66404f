#!/usr/bin/env bash
# Installs, runs, upgrades, removes and purges both packages on a copy of this machine that is gone
# afterwards: an overlay over its root, kept in memory. Where systemd-nspawn is at hand the copy is
# booted, and server and backups run by their units, in their sandboxes; else it is a chroot, which
# says so. Packs the programs as they were built (make test-deb builds them first).
#
# Where it cannot run (no root, no dpkg, no overlay) it says why and ends with 0.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() { echo "test-deb: SKIPPED: $*"; exit 0; }
fail() { echo "test-deb: FAILED: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || skip 'this needs root'
for tool in dpkg dpkg-deb dpkg-shlibdeps unshare runuser adduser; do
  command -v "$tool" >/dev/null || skip "no $tool here"
done
if id strongroom >/dev/null 2>&1 || [ -e /var/lib/strongroom ]; then
  skip 'strongroom is installed on this machine'
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/copy"

# Runs a command where $work/copy/root is a copy of this machine; ends with 77 if that cannot be.
on_a_copy() {
  # shellcheck disable=SC2016 # $1 is the inner shell's
  unshare --mount --propagation private bash -c '
    set -eu
    copy=$1; shift
    mount -t tmpfs tmpfs "$copy" || exit 77
    mkdir "$copy/upper" "$copy/work" "$copy/root"
    mount -t overlay overlay "$copy/root" \
      -o "lowerdir=/,upperdir=$copy/upper,workdir=$copy/work" || exit 77
    "$@"
  ' bash "$work/copy" "$@"
}

# What is done there: as few words as possible, the steps are in deb_test_inside.sh.
fill() {
  local there=$work/copy/root/deb-test
  mkdir "$there"
  cp "$work"/old/*.deb "$work"/new/*.deb "$there"
  cp scripts/deb_test_inside.sh "$there/inside.sh"
  head -c 3000000 /dev/urandom >"$there/dump"
  chmod 0644 "$there/dump"
  cat >"$work/copy/root/etc/systemd/system/deb-test.service" <<'UNIT'
[Unit]
Description=test of the packages
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/bash /deb-test/inside.sh booted
StandardOutput=file:/deb-test/log
StandardError=inherit
TimeoutStartSec=240
UNIT
}

in_booted_copy() {
  fill
  timeout 300 systemd-nspawn --quiet --directory="$work/copy/root" --register=no --keep-unit \
    --private-network --link-journal=no --console=pipe --boot systemd.unit=deb-test.service \
    </dev/null >"$work/console" 2>&1 || true
  [ -s "$work/copy/root/deb-test/log" ] || exit 76
  cat "$work/copy/root/deb-test/log"
  grep -q '^passed$' "$work/copy/root/deb-test/log"
}

in_chroot() {
  fill
  mount --rbind /dev "$work/copy/root/dev"
  unshare --pid --net --fork --kill-child bash -c '
    mount -t proc proc "$1/proc"
    ip link set lo up
    exec chroot "$1" /bin/bash /deb-test/inside.sh chroot
  ' bash "$work/copy/root"
}

export -f fill in_booted_copy in_chroot
export work
on_a_copy true || skip 'no overlay over / can be mounted'

export DEB_COMPRESSION=none
DEB_VERSION=0.0.1 scripts/deb.sh "$work/old" >/dev/null
DEB_VERSION=0.0.1 scripts/deb.sh "$work/again" >/dev/null
DEB_VERSION=0.0.2 scripts/deb.sh "$work/new" >/dev/null
for package in "$work"/old/*.deb; do
  cmp "$package" "$work/again/${package##*/}" || fail 'the same programs gave other packages'
done

code=76
if command -v systemd-nspawn >/dev/null; then
  on_a_copy bash -eu -c in_booted_copy && code=0 || code=$?
  if [ "$code" = 76 ]; then
    tail -n 5 "$work/console" >&2
    echo 'test-deb: the copy does not boot here'
  fi
fi
if [ "$code" = 76 ]; then
  echo 'test-deb: a chroot, without systemd: the units are NOT tried'
  command -v ip >/dev/null || skip 'no ip here, for a loopback device'
  on_a_copy bash -eu -c in_chroot && code=0 || code=$?
fi
[ "$code" = 0 ] || fail "exit code $code"
echo 'test-deb: installed, ran, upgraded, removed, purged: the data stayed'
