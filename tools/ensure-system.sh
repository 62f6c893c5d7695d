#!/usr/bin/env bash
# Installs the Debian packages named on the command line that are missing, as "program:package" pairs, if it can.
# A program may be a name, a path or a pattern. Best effort, and never through sudo: what stays missing is said in one
# line with the command that adds it, and what needs it is skipped or says so itself.
set -u
missing=()
for pair in "$@"; do
  program=${pair%%:*} package=${pair##*:}
  command -v "$program" >/dev/null 2>&1 || compgen -G "$program" >/dev/null || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
  echo "system: missing ${missing[*]} (names of Debian packages); install what corresponds here."
  exit 0
fi
if [ "$(id -u)" = 0 ]; then
  log=${TMPDIR:-/tmp}/rock-apt-$$.log
  echo "system: installing ${missing[*]} (once)"
  for package in "${missing[@]}"; do # one by one, so that a name this release does not have spoils nothing
    [ -s "$log" ] || apt-get update -qq >"$log" 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >>"$log" 2>&1 ||
      echo "system: $package could not be installed (see $log)"
    echo >>"$log"
  done
  exit 0
fi
echo "system: missing ${missing[*]}. To add them: sudo apt-get install ${missing[*]}"
