#!/bin/bash
# Installs what building, testing and the demo need on Debian 12 or 13 (amd64), as root or with sudo.
# Source it (it then also puts cargo's directory on PATH) or run it. When all is there it only looks, and takes no second.
#
# SETUP_FOR=demo leaves out what only ci/test needs (cargo-deny takes minutes to build).

setup_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
guest_cache=${CARGO_TARGET_DIR:-$setup_root/target}/guest-cache

# The oldest QEMU whose tools and system emulator agree with the qemu-storage-daemon we are compared with.
qemu_version_min=10.0
cargo_deny_version=0.20.2
qmp_client_version=0.0.6

setup_say() { echo "setup: $*" >&2; }

setup_fail() {
    setup_say "$*"
    return 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

apt_install() {
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        </dev/null >"$setup_tmp/apt.log" 2>&1; then
        cat "$setup_tmp/apt.log" >&2
        return 1
    fi
}

# The package lists are fetched at most once per run, and only when something is missing.
apt_lists_fresh=no
apt_update_once() {
    [ "$apt_lists_fresh" = yes ] && return 0
    setup_say "apt-get update"
    as_root apt-get update -qq </dev/null >&2 || return 1
    apt_lists_fresh=yes
}

is_installed() {
    dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

setup_packages() {
    local package missing=()
    for package in gcc libc6-dev pkg-config git ca-certificates python3 python3-venv cpio xz-utils util-linux e2fsprogs \
        fio busybox-static libnbd-bin nbdkit openssl strace valgrind; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return 0
    apt_update_once || return 1
    setup_say "installing ${missing[*]}"
    apt_install "${missing[@]}"
}

qemu_is_there() {
    local package version
    for package in qemu-system-x86 qemu-system-common qemu-utils; do
        version=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$package" 2>/dev/null)
        [ "${version%% *}" = installed ] || return 1
        dpkg --compare-versions "${version#* }" ge "1:$qemu_version_min" || return 1
    done
}

# Writes the machine's own first Debian source again with the backports suite, so that whatever mirror and proxy it uses stays in use.
add_backports() {
    local suite=$1-backports dir=/etc/apt/sources.list.d list
    grep -rqs "$suite" /etc/apt/sources.list "$dir" && return 0
    # "Suites: bookworm bookworm-updates" must match, "Suites: bookworm-security" must not.
    for list in "$dir"/*.sources; do
        [ -e "$list" ] || continue
        if awk -v RS= -v suite="$1" -v new="$suite" '
            $0 ~ "(^|\n)Suites:([^\n]*[ \t])?" suite "([ \t\n]|$)" {
                sub("(^|\n)Suites:[^\n]*", "\nSuites: " new); sub("^\n", ""); print; found = 1; exit
            } END { exit !found }' "$list" >"$setup_tmp/backports"; then
            as_root install -m 644 "$setup_tmp/backports" "$dir/$suite.sources"
            return
        fi
    done
    for list in /etc/apt/sources.list "$dir"/*.list; do
        [ -e "$list" ] || continue
        sed -n "s/^\(deb .*[ \t]\)$1\([ \t].*\)\$/\1$suite\2/p" "$list" | head -n 1 >"$setup_tmp/backports"
        if [ -s "$setup_tmp/backports" ]; then
            as_root install -m 644 "$setup_tmp/backports" "$dir/$suite.list"
            return
        fi
    done
    setup_fail "no apt source for $1 found to derive $suite from; QEMU >= $qemu_version_min is needed"
}

setup_qemu() {
    qemu_is_there && return 0
    local codename packages=(qemu-system-x86 qemu-system-common qemu-utils)
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    setup_say "installing QEMU"
    if [ "$codename" = bookworm ]; then
        # Debian 12's own QEMU is 7.2.
        add_backports bookworm || return 1
        apt_lists_fresh=no
        apt_update_once && apt_install -t bookworm-backports "${packages[@]}" || return 1
    else
        apt_update_once && apt_install "${packages[@]}" || return 1
    fi
    qemu_is_there || setup_fail "QEMU >= $qemu_version_min is needed, this system's apt has none"
}

# The guest's kernel is unpacked, not installed: no boot loader, no initramfs hooks, no root needed.
setup_kernel() {
    [ -e "$guest_cache/kernel/ready" ] && return 0
    local package dir=$guest_cache/kernel.new
    apt_update_once || return 1
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || setup_fail "apt knows no linux-image-cloud-amd64" || return 1
    setup_say "fetching the guest's kernel, $package"
    rm -rf "$dir" && mkdir -p "$dir" || return 1
    (cd "$setup_tmp" && apt-get download -qq "$package" >&2 && dpkg-deb -x "$package"_*.deb "$dir") || return 1
    echo "$package" >"$dir/ready"
    rm -rf "$guest_cache/kernel" && mv "$dir" "$guest_cache/kernel"
}

setup_cargo() {
    [ -d "$HOME/.cargo/bin" ] && PATH=$HOME/.cargo/bin:$PATH
    if ! command -v cargo >/dev/null && ! command -v rustup >/dev/null; then
        apt_update_once || return 1
        if ! apt-cache show rustup >/dev/null 2>&1; then
            setup_fail "cargo is missing and this Debian packages no rustup: install Rust (stable) with rustup from its own site and run this again"
            return 1
        fi
        setup_say "installing rustup"
        apt_install rustup || return 1
    fi
    # rustup's cargo without a toolchain behind it only says so.
    if ! cargo --version >/dev/null 2>&1; then
        setup_say "installing the stable Rust toolchain"
        rustup default stable >&2 || setup_fail "rustup could not fetch the stable toolchain" || return 1
    fi
    local want have
    want=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$setup_root/Cargo.toml")
    have=$(cd "$setup_root" && cargo --version | cut -d ' ' -f 2)
    dpkg --compare-versions "$have" ge "$want" || setup_fail "Rust $want is needed, found $have: run 'rustup update stable'"
}

setup_rust_parts() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return 0
    command -v rustup >/dev/null || setup_fail "rustfmt and clippy are missing, and there is no rustup to add them" || return 1
    rustup component add rustfmt clippy >&2
}

# No registry ships a current binary of cargo-deny, so it is built once. Without default features it has no TLS of its own:
# ci/deny.toml makes it fetch the advisory database with git.
setup_cargo_deny() {
    cargo deny --version >/dev/null 2>&1 && return 0
    setup_say "building cargo-deny $cargo_deny_version, once (a minute or two)"
    CARGO_TARGET_DIR=$setup_tmp/deny cargo install --quiet --locked --debug --no-default-features \
        cargo-deny --version "$cargo_deny_version" >&2
}

# QEMU's own client library, which is published for Python alone.
setup_qmp_client() {
    local venv=${CARGO_TARGET_DIR:-$setup_root/target}/qmp-client
    "$venv/bin/python" -c 'import qemu.qmp' 2>/dev/null && return 0
    setup_say "installing the qemu.qmp client $qmp_client_version"
    rm -rf "$venv"
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "qemu.qmp==$qmp_client_version" >&2
}

setup_all() {
    [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || setup_fail "this script knows Debian on amd64 only" || return 1
    local setup_tmp status=0
    setup_tmp=$(mktemp -d) || return 1
    # apt drops to its own user to download.
    chmod 1777 "$setup_tmp"
    mkdir -p "$guest_cache"
    setup_packages && setup_qemu && setup_kernel && setup_cargo &&
        { [ "${SETUP_FOR:-test}" = demo ] || { setup_rust_parts && setup_cargo_deny && setup_qmp_client; }; } || status=1
    rm -rf "$setup_tmp"
    return $status
}

setup_all
