#!/usr/bin/env bash
# Installs the Debian packages named on the command line that are missing, as "program:package" pairs, if it can.
# Best effort: what stays missing is said in one line, and the tests that need it skip with a reason.
set -u
missing=()
for pair in "$@"; do
  program=${pair%%:*} package=${pair##*:}
  command -v "$program" >/dev/null 2>&1 || [ -x "$program" ] || compgen -G "$program" >/dev/null || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "system: installing ${missing[*]} (once)"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >/tmp/rock-apt.log 2>&1 && exit 0
fi
echo "system: missing ${missing[*]}; 'sudo apt-get install ${missing[*]}' adds them. What needs them is skipped."
