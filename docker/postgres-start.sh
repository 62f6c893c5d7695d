#!/bin/sh
# postgres-start postgres [OPTION...]: make the cluster, its user and its database the first time, then become the server.
# What is made is renamed into place at the end, so that a start that was cut off begins anew.
set -eu
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
as_postgres() { setpriv --reuid postgres --regid postgres --init-groups env HOME=/var/lib/postgresql "$@"; }

install -d -o postgres -g postgres -m 0700 "$(dirname "$PGDATA")"
install -d -o postgres -g postgres -m 0755 /var/run/postgresql
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  rm -rf "$PGDATA.new"
  as_postgres "$bin/initdb" --pgdata "$PGDATA.new" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" \
    --auth scram-sha-256 --encoding UTF8 --locale C.UTF-8
  echo "CREATE DATABASE \"$POSTGRES_DB\"" | as_postgres "$bin/postgres" --single -D "$PGDATA.new" postgres
  mv "$PGDATA.new" "$PGDATA"
fi
program=$1
shift
exec setpriv --reuid postgres --regid postgres --init-groups "$bin/$program" -D "$PGDATA" "$@"
