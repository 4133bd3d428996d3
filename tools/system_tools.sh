#!/usr/bin/env bash
# Install the real servers of tests and demo where they are missing and root and apt-get allow:
#   tools/system_tools.sh orthanc dcmtk postgresql prometheus chromium fonts-dejavu-core
# Where they do not: say so and go on, since tests then skip; with CLARA_RESULTS_REQUIRE_TOOLS=1 that is a failure.
set -euo pipefail

has() {
  case $1 in
    orthanc) command -v Orthanc ;;
    orthanc-dicomweb) compgen -G '/usr/share/orthanc/plugins/libOrthancDicomWeb.so*' ;;
    dcmtk) command -v dcmqrscp ;;
    prometheus) command -v promtool ;;
    rabbitmq-server) command -v rabbitmq-server ;;
    chromium) command -v chromium ;;
    fonts-dejavu-core) compgen -G '/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf' ;;
    postgresql) [ -n "${DATABASE_URL:-}" ] || command -v initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' ;;
    *) echo "$1: not one of orthanc, orthanc-dicomweb, dcmtk, postgresql, prometheus, rabbitmq-server, chromium," \
      "fonts-dejavu-core" >&2 && exit 2 ;;
  esac >/dev/null
}

missing=()
for tool in "$@"; do
  has "$tool" || missing+=("$tool")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

give_up() {
  echo "Not installed: ${missing[*]} ($1). Tests that need them are skipped; the demo uses its own receiver." >&2
  if [ "${CLARA_RESULTS_REQUIRE_TOOLS:-}" = 1 ]; then exit 1; else exit 0; fi
}

[ "$(id -u)" = 0 ] || give_up "only root may install packages"
command -v apt-get >/dev/null || give_up "there is no apt-get"

# Debian starts a service as soon as its package is there, unless this file says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
echo "installing ${missing[*]}"
for pause in 2 10 0; do
  if apt-get -qq -o Acquire::Retries=3 update >/dev/null &&
    apt-get -qq -y -o Acquire::Retries=3 --no-install-recommends install "${missing[@]}" >/dev/null; then
    exit 0
  fi
  sleep "$pause"
done
give_up "apt-get failed"
