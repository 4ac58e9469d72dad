#!/usr/bin/env bash
# Installs what the tests need, where it is missing, and runs all of them. Needs Rust (Cargo.toml's
# rust-version), Node 20 or later and apt; works as root and as a user with sudo.
#
#   tests/run.sh               all: unit, contract and end-to-end tests, doc tests, browser
#   tests/run.sh --unit        the packages adapters and gateway alone
#   tests/run.sh --no-browser  all but the browser
#   tests/run.sh --install     installs what is missing, and runs nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

unit=false browser=true install_only=false
for option in "$@"; do
    case $option in
        --unit) unit=true browser=false ;;
        --no-browser) browser=false ;;
        --install) install_only=true ;;
        -h | --help)
            sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *)
            echo "tests/run.sh: $option is unknown; expected --unit, --no-browser or --install" >&2
            exit 2
            ;;
    esac
done
# The browser's tests come with a lock file, or are not there.
[[ -f tests/browser/package.json ]] || browser=false

if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
    PATH=$HOME/.cargo/bin:$PATH
fi

missing_command() { ! command -v "$1" >/dev/null; }

# Debian keeps them out of PATH.
postgres_binaries() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || ! missing_command initdb; }

chromium_path() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        command -v "$name" && return
    done
    return 1
}

install_packages() {
    local packages=()
    # aws-lc and SQLite are compiled from C; libc6-dev has crt1.o and the headers.
    if missing_command cc || ! echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1; then
        packages+=(gcc libc6-dev)
    fi
    # A test runs the README's production commands, openssl among them.
    if missing_command openssl; then
        packages+=(openssl)
    fi
    # Several gateways share a store on it.
    if ! postgres_binaries; then
        packages+=(postgresql)
    fi
    # Gateways with a clock of their own.
    if ! compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null; then
        packages+=(faketime)
    fi
    if $browser && ! chromium_path >/dev/null; then
        packages+=(chromium)
    fi
    ((${#packages[@]})) || return 0
    local as_root=()
    if ((EUID != 0)); then
        if missing_command sudo; then
            echo "tests/run.sh: ${packages[*]} missing, and neither root nor sudo to install them" >&2
            return 1
        fi
        as_root=(sudo)
    fi
    echo "installing ${packages[*]}"
    "${as_root[@]}" apt-get update -qq &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
}

install_node_modules() {
    local version
    if missing_command node || missing_command npm; then
        echo "tests/run.sh: node and npm are missing; expected Node 20 or later for tests/browser" >&2
        return 1
    fi
    version=$(node -p 'process.versions.node.split(".")[0]')
    if ((version < 20)); then
        echo "tests/run.sh: Node $version, expected 20 or later for tests/browser" >&2
        return 1
    fi
    (cd tests/browser && npm ci --no-audit --no-fund)
}

install_all() {
    if missing_command cargo; then
        echo "tests/run.sh: cargo is missing; expected Rust, see https://rustup.rs" >&2
        return 1
    fi
    install_packages && { ! $browser || install_node_modules; }
}

run_browser() {
    local files=(tests/browser/*.test.mjs)
    # npm ci without a single test would be a suite that cannot fail.
    if [[ ! -e ${files[0]} ]]; then
        echo "tests/run.sh: tests/browser has a package.json and no *.test.mjs" >&2
        return 1
    fi
    CHROMIUM=$(chromium_path) node --test "${files[@]}"
}

parts=() failed=0
# What ran, how long it took, and how it ended.
part() {
    local name=$1 start=$SECONDS end=passed
    shift
    echo "── $name"
    "$@" || { end=FAILED failed=1; }
    parts+=("$(printf '%-8s %-22s %4d s' "$end" "$name" $((SECONDS - start)))")
}

summary() {
    echo
    printf '%s\n' "${parts[@]}"
    $browser || echo "not run  browser"
    exit "$failed"
}

part "install" install_all
if $install_only || ((failed)); then summary; fi

if $unit; then
    part "unit" cargo test --package mantel-adapters --package mantel
    summary
fi
part "build" cargo build --workspace --all-targets
if ((failed)); then summary; fi
part "unit, contract, e2e" cargo test --workspace --no-fail-fast
if $browser; then part "browser" run_browser; fi
summary
