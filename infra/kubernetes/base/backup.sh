#!/bin/sh
# Dumps a PostgreSQL database into FOLDER, whole or not at all, and keeps the newest KEEP dumps.
# Which database: PGHOST, PGUSER, PGDATABASE and PGPASSWORD, as of all PostgreSQL's programs.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: backup.sh FOLDER KEEP" >&2
    exit 2
fi
folder=$1
keep=$2
dump="$folder/$PGDATABASE-$(date -u +%Y%m%dT%H%M%SZ).dump"

pg_dump --format=custom --file="$dump.part"
mv "$dump.part" "$dump"
echo "$dump: $(pg_restore --list "$dump" | grep -c 'TABLE DATA') tables"

# The time in the name makes the order of names that of times.
find "$folder" -name "$PGDATABASE-*.dump" | sort -r | tail -n "+$((keep + 1))" | xargs -r rm --
