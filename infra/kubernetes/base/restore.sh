#!/bin/sh
# Makes a PostgreSQL database what it was when DUMP was made, in one transaction: whole or not at all.
# Which database: PGHOST, PGUSER, PGDATABASE and PGPASSWORD. It must exist; what it holds is replaced.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: restore.sh DUMP" >&2
    exit 2
fi
pg_restore --clean --if-exists --no-owner --single-transaction --exit-on-error --dbname="$PGDATABASE" "$1"
echo "$PGDATABASE: restored from $1"
