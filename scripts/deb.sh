#!/usr/bin/env bash
# Packs strongroomd and strongroom, as they were built, into two Debian packages. The same programs
# give the same packages, byte for byte: times are those of the last commit, files are sorted and
# belong to root.
#
#   scripts/deb.sh [FOLDER]       where to put them (default: target/debian)
#
# DEB_VERSION=1.2.3 instead of the workspace's version; DEB_COMPRESSION=none is quick.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC
root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
bin=$target/release
folder=${1:-$target/debian}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$root"

fail() { echo "deb: $*" >&2; exit 1; }
for program in strongroomd strongroom strongroom-manual; do
  [ -x "$bin/$program" ] || fail "$bin/$program is missing: make deb builds it"
done
command -v dpkg-shlibdeps >/dev/null || fail 'dpkg-shlibdeps is missing (package dpkg-dev)'

version=${DEB_VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)}
architecture=$(dpkg --print-architecture)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null ||
  stat -c %Y CHANGELOG.md)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

put() { # mode, file, place in the package
  install -D -m "$1" "$2" "$stage/$3"
}

put_packed() { # file, place in the package
  mkdir -p "$(dirname "$stage/$2")"
  gzip -9n <"$1" >"$stage/$2"
}

# The packages of the libraries that a program needs, with their least versions.
libraries_of() { # program
  mkdir -p "$work/shlibdeps/debian"
  printf 'Source: %s\n\nPackage: %s\nArchitecture: any\n' x x >"$work/shlibdeps/debian/control"
  (cd "$work/shlibdeps" && dpkg-shlibdeps -O "$1" 2>"$work/shlibdeps.log") |
    sed -n 's/^shlibs:Depends=//p'
}

lay_out() { # package, section of its pages
  local package=$1 section=$2 doc=usr/share/doc/$1 page maintainer
  mkdir -p "$stage/usr/bin"
  strip --strip-unneeded -o "$stage/usr/bin/$package" "$bin/$package"
  chmod 0755 "$stage/usr/bin/$package"
  for page in "$work/man/$package".*[0-9] "$work/man/$package"-*; do
    put_packed "$page" "usr/share/man/man$section/${page##*/}.gz"
  done
  put 0644 "$work/completions/$package.bash" "usr/share/bash-completion/completions/$package"
  put 0644 "$work/completions/_$package" "usr/share/zsh/vendor-completions/_$package"
  put 0644 "$work/completions/$package.fish" \
    "usr/share/fish/vendor_completions.d/$package.fish"
  put 0644 deploy/debian/copyright "$doc/copyright"
  put_packed "$work/licences/$package" "$doc/third-party-licences.gz"
  put_packed CHANGELOG.md "$doc/NEWS.gz"
  # Debian's own form of it, with the version that is packed.
  maintainer=$(sed -n 's/^Maintainer: //p' "deploy/debian/$package.control")
  printf '%s (%s) stable; urgency=medium\n\n  * See NEWS.gz.\n\n -- %s  %s\n' "$package" \
    "$version" "$maintainer" "$(date -R -d "@$SOURCE_DATE_EPOCH")" >"$work/changelog"
  put_packed "$work/changelog" "$doc/changelog.gz"
  for page in deployment operations retention security; do
    put_packed "docs/$page.md" "$doc/$page.md.gz"
  done
}

units=usr/lib/systemd/system
lay_out_strongroomd() {
  lay_out strongroomd 8
  put 0644 deploy/strongroomd.service "$units/strongroomd.service"
  put 0644 deploy/server.toml etc/strongroom/server.toml
}

lay_out_strongroom() {
  lay_out strongroom 1
  put 0644 "deploy/strongroom-backup@.service" "$units/strongroom-backup@.service"
  put 0644 "deploy/strongroom-backup@.timer" "$units/strongroom-backup@.timer"
  put 0644 deploy/backup.env usr/share/doc/strongroom/examples/backup.env
  mkdir -p "$stage/etc/strongroom/backup"
}

pack() { # package
  local package=$1 script size libraries
  stage=$work/$package
  "lay_out_$package"
  size=$(find "$stage" -type f -printf '%s\n' |
    awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
  libraries=$(libraries_of "$stage/usr/bin/$package")
  [ -n "$libraries" ] || { cat "$work/shlibdeps.log" >&2; fail "libraries of $package"; }
  mkdir "$stage/DEBIAN"
  sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@SIZE@/$size/" \
    -e "s/@LIBRARIES@/$libraries/" "deploy/debian/$package.control" >"$stage/DEBIAN/control"
  for script in postinst prerm postrm; do
    put 0755 "deploy/debian/$package.$script" "DEBIAN/$script"
  done
  (cd "$stage" && find etc -type f | sort | sed 's|^|/|') >"$stage/DEBIAN/conffiles"
  [ -s "$stage/DEBIAN/conffiles" ] || rm "$stage/DEBIAN/conffiles"
  (cd "$stage" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"
  find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group -Z"${DEB_COMPRESSION:-xz}" --build "$stage" \
    "$folder/${package}_${version}_$architecture.deb" >/dev/null
  echo "deb: $folder/${package}_${version}_$architecture.deb"
}

"$bin/strongroom-manual" man "$work/man"
"$bin/strongroom-manual" completions "$work/completions"
"$bin/strongroom-manual" licences "$work/licences"
pack strongroomd
pack strongroom
