#!/usr/bin/env bash
# Runs the README's two commands on a fresh machine: a minimal Debian 12 in a folder, with nothing but git, make,
# python3-venv and ca-certificates. It clones HEAD: uncommitted changes are not tested.
# Mounts and processes live in namespaces of their own, so that they end with this script, however it ends.
set -euo pipefail

MIRROR=http://deb.debian.org/debian
SUITE=bookworm
PACKAGES=ca-certificates,git,make,python3-venv # what the README asks for, and what TLS needs
BUNDLE=/etc/ssl/certs/ca-certificates.crt
SOURCE=/root/neurolux-imagegen # where `git clone` of the public repository would put it
PROMPT="red apple, blue background"
KEEP="" ENTER=""

usage() {
  cat <<'END'
usage: scripts/fresh-machine.sh [--mirror URL] [--keep FOLDER] [--prompt TEXT]
       scripts/fresh-machine.sh --enter FOLDER

Make a minimal Debian 12 with debootstrap, clone HEAD into it, and run `make demo` and `make test` there.
Needs root, debootstrap, 15 GB of disk and half an hour. Exit code 1 if one of the two commands fails.

  --mirror URL    the Debian mirror (http://deb.debian.org/debian); security updates come from URL-security
  --keep FOLDER   build in this new folder and leave it there (default: a folder in $TMPDIR, deleted at the end)
  --prompt TEXT   what `make demo` draws
  --enter FOLDER  open a shell in a machine that was kept

Certificates, /etc/resolv.conf and the configuration of apt's downloads, pip and uv are copied from this machine;
PIP_*, UV_*, NPM_CONFIG_* and the proxy variables are passed on. Nothing else of the environment is.
END
}

fail() {
  echo "fresh-machine: $*" >&2
  exit 1
}

# Run a command in the new machine, with a clean environment. The shell in between is its process 1, and reaps orphans.
inside() {
  local variables=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}")
  local name
  for name in $(compgen -e); do
    case $name in
      PIP_CERT | SSL_CERT_FILE | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE | NODE_EXTRA_CA_CERTS | GIT_SSL_CAINFO)
        variables+=("$name=$BUNDLE") ;;
      PIP_* | UV_* | NPM_CONFIG_* | npm_config_* | *_PROXY | *_proxy) variables+=("$name=${!name}") ;;
    esac
  done
  # a background job ignores Ctrl-C unless it is told not to, and so would all that it starts
  env --default-signal=INT,QUIT unshare --mount --pid --fork --kill-child bash -euc '
    root=$1
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount -t tmpfs tmpfs "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
    chroot "$@"
    exit $?' bash "$root" env -i "${variables[@]}" "$@" <&0 &
  child=$!
  wait "$child"
}

clean_up() {
  if [ -n "$child" ]; then # with it dies everything that runs in the new machine
    kill -KILL "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  [ -n "$ENTER" ] && return
  if [ -n "$KEEP" ]; then
    echo "kept: $root (scripts/fresh-machine.sh --enter $root)"
  else
    rm -rf --one-file-system "$root"
  fi
}

# Make the new machine in $root.
build() {
  local log=$root/debootstrap.log host=$root/usr/local/share/ca-certificates/host.crt file
  debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$root" "$MIRROR" >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; fail "debootstrap failed; choose another mirror with --mirror, or check the network"; }
  printf '127.0.0.1 localhost %s\n::1 localhost\n' "$(uname -n)" >"$root/etc/hosts"
  for suite in "$MIRROR $SUITE" "$MIRROR $SUITE-updates" "$MIRROR-security $SUITE-security"; do
    echo "deb $suite main"
  done >"$root/etc/apt/sources.list"
  apt-config dump 2>/dev/null | grep -E '^Acquire::(http|https|ftp|Check|Retries)' >"$root/etc/apt/apt.conf.d/90host" || true
  cp -L --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
  for file in /etc/pip.conf /etc/uv/uv.toml ~/.config/pip/pip.conf ~/.pip/pip.conf ~/.config/uv/uv.toml; do
    if [ -f "$file" ]; then
      install -D -m 600 "$file" "$root${file/#"$HOME"//root}"
    fi
  done
  if [ -f "${SSL_CERT_FILE:-$BUNDLE}" ]; then # a private mirror may have a certificate of a private authority
    cp "${SSL_CERT_FILE:-$BUNDLE}" "$host"
    inside update-ca-certificates >>"$log" 2>&1
  fi
  git clone --quiet --no-hardlinks "$repository" "$root$SOURCE"
}

# Run one of the two commands, and add its result and its time to the report.
try() {
  local begin=$SECONDS result=passed
  printf '\n== %s\n' "$1"
  inside bash -c "cd $SOURCE && $2" bash "$PROMPT" </dev/null || { result=FAILED failed=1; }
  report+=$(printf '%-10s  %s in %d min %d s' "$1" "$result" $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60)))$'\n'
}

while [ $# -gt 0 ]; do
  case $1 in
    --help) usage; exit ;;
    --mirror | --keep | --prompt | --enter) [ $# -gt 1 ] || { usage >&2; exit 2; } ;;&
    --mirror) MIRROR=${2%/} ;;
    --keep) KEEP=$2 ;;
    --prompt) PROMPT=$2 ;;
    --enter) ENTER=$2 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift 2
done

[ "$(id -u)" -eq 0 ] || fail "this needs root, for debootstrap and chroot: sudo make fresh-machine"
for program in debootstrap git unshare; do
  command -v "$program" >/dev/null || fail "there is no $program here; install it: apt-get install $program"
done
unshare --mount --pid --fork true 2>/dev/null || fail "root may not mount here (in a container?): use a machine where it may"

child=""
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -n "$ENTER" ]; then
  [ -x "$ENTER/bin/bash" ] || fail "$ENTER holds no machine that --keep left"
  root=$(realpath "$ENTER")
  inside bash -c "cd $SOURCE && exec bash"
  exit
fi

repository=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
[ ! -e "$KEEP" ] || fail "$KEEP is there already; name a new folder with --keep"
root=${KEEP:-$(mktemp -d -t fresh-machine.XXXXXX)}
mkdir -p "$root"
root=$(realpath "$root")
report="" failed=0

echo "building a Debian $SUITE in $root"
build
echo "it has $(git -C "$root$SOURCE" log -1 --format='%h, %s')"
[ -z "$(git -C "$repository" status --porcelain)" ] || echo "what is not committed in $repository is not in it"
try "make demo" 'make demo PROMPT="$1" && ls -l output/*.png'
try "make test" 'make test'
printf '\n%s' "$report"
exit "$failed"
