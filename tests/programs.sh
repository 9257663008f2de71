#!/usr/bin/env bash
# Installs the programs that some tests start, where they are missing: Redis, nginx and a browser. It needs root and apt;
# without them those tests are skipped and say so.
set -euo pipefail
PATH=$PATH:/usr/sbin

missing=()
for pair in redis-server:redis-server nginx:nginx-light chromium:chromium; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "Missing: ${missing[*]}. Tests that start them are skipped; to run those too: apt-get install ${missing[*]}" >&2
  exit 0
fi

log=$(mktemp)
# the packages would start their servers at once; this forbids it while they are installed
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f $policy "$log"' EXIT
else
  trap 'rm -f "$log"' EXIT
fi

echo "Installing ${missing[*]} for the tests"
export DEBIAN_FRONTEND=noninteractive
apt="apt-get -q -y -o DPkg::Lock::Timeout=300"
$apt update >"$log" 2>&1 || true # an old list may do
for package in "${missing[@]}"; do # one by one, so that one which a system does not have leaves the others
  $apt install --no-install-recommends "$package" >"$log" 2>&1 || {
    tail -3 "$log" >&2
    echo "$package could not be installed: tests that start it are skipped" >&2
  }
done
