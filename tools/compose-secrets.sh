#!/usr/bin/env bash
# Makes the secrets that docker-compose.yml hands to its services, once: tools/compose-secrets.sh [DIRECTORY]
#
# The directory keeps other users out. The files in it can be read by all because a container sees the file alone, as a
# user of its own. What is there already stays.
set -euo pipefail
directory=${1:-${ROCK_SECRETS:-./secrets}}
mkdir -p "$directory"
chmod 0700 "$directory"
for name in rock_key database_password; do
  file=$directory/$name
  if [ -s "$file" ]; then
    echo "$file: there already"
    continue
  fi
  head -c 32 /dev/urandom | base64 | tr -d '+/=\n' >"$file.new"
  chmod 0444 "$file.new"
  mv "$file.new" "$file"
  echo "$file: made"
done
