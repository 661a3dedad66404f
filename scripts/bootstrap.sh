#!/usr/bin/env bash
# Installs what building strongroom needs and this machine lacks. Instant where all is there.
#
#   scripts/bootstrap.sh [build|test|deb|copy|fuzz|demo]...   what the caller is about to do
#                                                           (default: build)
#
# Asks before it changes the system or the home folder; YES=1 means yes to everything.
# Knows Debian, Ubuntu and what descends from them (apt).
set -euo pipefail

RUST_WANTED=1.91

say() { printf 'bootstrap: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

agreed() { # question
  [ "${YES:-}" = 1 ] && return 0
  [ -t 0 ] || fail "$1 Answer by setting YES=1; this is no terminal."
  local answer
  read -r -p "bootstrap: $1 [y/N] " answer
  case $answer in y | Y | yes) return 0 ;; *) return 1 ;; esac
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

may_become_root() { [ "$(id -u)" = 0 ] || have sudo; }

# --- Distribution packages -----------------------------------------------------------------------

has_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null && return 0
  compgen -G '/usr/lib/*/libclang*.so*' >/dev/null
}

missing_packages() { # purposes
  have cc && have c++ && have make || echo build-essential
  have cmake || echo cmake
  have clang && has_libclang || echo clang libclang-dev
  have pkg-config || echo pkg-config
  for purpose in "$@"; do
    case $purpose in
      demo) # unpacks the dumps of tests/data, reads the metrics
        have zstd || echo zstd
        have curl || echo curl ca-certificates ;;
      deb) # finds out what a program is linked with
        have dpkg-shlibdeps || echo dpkg-dev ;;
    esac
  done
}

apt_updated=
update_lists() {
  [ -n "$apt_updated" ] && return 0
  agreed "let apt-get update its lists of packages?" || return 1
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 || say "apt-get update failed"
  apt_updated=1
}

install_packages() { # packages
  have apt-get || fail "please install by hand, this is no apt system: $*"
  may_become_root || fail "no root and no sudo; as root, run: apt-get install $*"
  agreed "install with apt-get: $*?" || fail "cannot go on without: $*"
  update_lists || true
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -qq -y --no-install-recommends "$@" >&2 || fail "apt-get could not install: $*"
}

# --- The Rust toolchain --------------------------------------------------------------------------

version_at_least() { # found wanted
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

rust_is_good() {
  local found
  found=$(cargo --version 2>/dev/null | cut -d' ' -f2) || return 1
  [ -n "$found" ] && version_at_least "$found" "$RUST_WANTED" &&
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1
}

rust_from_rustup() {
  agreed "let rustup install the stable toolchain and make it the default?" || return 1
  rustup toolchain install stable --profile minimal --component rustfmt,clippy >&2 &&
    rustup default stable >&2
}

# The packages of the distribution's own toolchain, where one is new enough. Debian keeps a second,
# newer one for building browsers.
packaged_rust() {
  local group version
  for group in 'cargo rustc rustfmt rust-clippy' \
    'cargo-web rustc-web rustfmt-web rust-web-clippy'; do
    version=$(LC_ALL=C apt-cache policy "${group%% *}" |
      sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
    [ -n "$version" ] || continue
    # Old packages of cargo are numbered 0.x, which belongs to Rust 1.(x - 1).
    case $version in 0.*) version=1.$(($(cut -d. -f2 <<<"$version") - 1)) ;; esac
    version_at_least "$version" "$RUST_WANTED" && echo "$group" && return
  done
}

install_rust() {
  if have rustup; then rust_from_rustup || true; fi
  rust_is_good && return 0
  if have apt-cache && may_become_root && update_lists; then
    if [ -n "$(apt-cache search --names-only '^rustup$')" ]; then
      install_packages rustup
      hash -r
      rust_from_rustup || true
      rust_is_good && return 0
    fi
    local group
    read -r -a group < <(packaged_rust) || true
    if [ ${#group[@]} -gt 0 ]; then
      install_packages "${group[@]}"
      rust_is_good && return 0
    fi
  fi
  if have snap && agreed "install rustup with snap?"; then
    as_root snap install rustup --classic >&2 && rust_from_rustup || true
    rust_is_good && return 0
  fi
  fail "no Rust toolchain of version $RUST_WANTED or newer with rustfmt and clippy, and this" \
    "distribution packages none. Install rustup as the Rust project describes, then run" \
    "'rustup toolchain install stable --component rustfmt,clippy' and this again."
}

# --- Test runner ---------------------------------------------------------------------------------

# Tests run without it too (cargo test), so that a failure here is no failure.
install_nextest() {
  agreed "build cargo-nextest, the test runner, into your cargo home (a few minutes)?" || return 0
  # A folder of its own: what it needs has nothing in common with the project's build.
  local folder
  folder=$(mktemp -d)
  CARGO_TARGET_DIR=$folder cargo install --quiet --locked cargo-nextest >&2 ||
    say "cargo-nextest could not be installed; cargo test will do"
  rm -rf "$folder"
}

# --- A copy of this machine, booted ---------------------------------------------------------------

# Packages are tried without it too, in a chroot, so that a no is no failure. Only root can use it.
install_nspawn() {
  [ "$(id -u)" = 0 ] && have apt-get && ! have systemd-nspawn || return 0
  agreed "install systemd-container, to try packages in a copy of this machine?" || return 0
  update_lists || true
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    systemd-container >&2 || say "no systemd-container; a chroot will do"
}

# --- Main ----------------------------------------------------------------------------------------

[ $# -gt 0 ] || set -- build
# rustup's folder first, as its installer has it; the Makefile sets the same.
export PATH="${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin:$PATH:/snap/bin"
read -r -d '' -a packages < <(missing_packages "$@" | tr '\n' ' ' && printf '\0') || true
[ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
rust_is_good || install_rust
case " $* " in *" test "*) have cargo-nextest || install_nextest ;; esac
case " $* " in *" copy "*) install_nspawn ;; esac
