#!/usr/bin/env python3
"""Moves the old shop (SQLite) to PostgreSQL through `psql`. Each subcommand is one job.

Everything is built in the schema `shop_next`; the cutover renames it to `shop`. Every subcommand
is one transaction, may be killed at any moment and run again.

Exit codes: 0 done; 1 a check found a difference; 2 wrong usage; 3 not ready, or the server refused
something; 75 the connection was lost, try again.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "shop-sqlite"))

import job  # noqa: E402
from mapping import TABLES  # noqa: E402
from source import (  # noqa: E402
    SourceUnusable, count, expected, open_source, pages, problems, source_version,
)

SOURCE = os.environ.get("SHOP_SOURCE", "work/shop.db")
LIVE, STAGING = "shop", "shop_next"
VERSION = 2
OLDEST_SERVER = 120_000
NO_PSQL = (
    "there is no psql on PATH: install the PostgreSQL client programs"
    " (Debian, Ubuntu: apt-get install postgresql-client)"
)

# How a column of each kind reads as text, which is how both sides are compared.
AS_TEXT = {
    "text": "{x}",
    "int": "{x}::text",
    "bool": "{x}::int::text",
    "money": "{x}::text",
    "time": """to_char({x} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')""",
}


class PsqlFailed(Exception):
    def __init__(self, code, words):
        super().__init__(words)
        self.code = code


def psql(*pieces):
    """Runs SQL text and returns the lines it printed. A piece may be an iterator of lines.

    All of it is one transaction, opened here and not by `psql --single-transaction`: if this
    program dies, psql sees the end of its input before the COMMIT and nothing has happened.
    """
    environment = {"PGCONNECT_TIMEOUT": "10", **os.environ, "PGCLIENTENCODING": "UTF8"}
    # Its answers go to files: a pipe that nobody empties while we write would stop both of us.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            ["psql", "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-f", "-"],
            stdin=subprocess.PIPE, stdout=out, stderr=errors, env=environment,
        )
        try:
            process.stdin.write(b"SET client_min_messages = warning;\nBEGIN;\n")
            for piece in pieces:
                for text in (f"{piece}\n",) if isinstance(piece, str) else piece:
                    process.stdin.write(text.encode())
            process.stdin.write(b"COMMIT;\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # psql has ended, and says why below
        code = process.wait()
        out.seek(0)
        errors.seek(0)
        if code != 0:
            raise PsqlFailed(code, errors.read().decode().strip())
        return out.read().decode().split("\n")[:-1]


def copy_lines(table, rows):
    """A COPY with its data: text format, because CSV cannot hold a line that is only `\\.`."""
    yield f"COPY {table} FROM STDIN;\n"
    for row in rows:
        yield "\t".join(map(copy_field, row)) + "\n"
    yield "\\.\n"


def copy_field(value):
    if value is None:
        return "\\N"
    text = str(value).replace("\\", "\\\\")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def live_version():
    """The version of the live schema; `None` if there is none, 0 if it is not one of ours."""
    there, marked = psql(
        f"SELECT to_regnamespace('{LIVE}') IS NOT NULL;",
        f"SELECT to_regclass('{LIVE}.schema_version') IS NOT NULL;",
    )
    if there == "f":
        return None
    if marked == "f":
        return 0
    return int(psql(f"SELECT coalesce(max(version), 0) FROM {LIVE}.schema_version;")[0])


def preflight(_args):
    found = []
    if shutil.which("psql") is None:
        found.append(NO_PSQL)
    else:
        found.extend(server_problems())
    source = open_source(SOURCE)
    found.extend(problems(source))
    if found:
        return job.not_ready(found)
    rows = sum(count(source, table) for table in TABLES.values())
    print(f"ready: {len(TABLES)} tables, {rows} rows, all of them convertible")
    job.emit(tables=len(TABLES), rows=rows, source_version=source_version(SOURCE))
    return job.OK


def server_problems():
    try:
        facts = psql("""
            SELECT json_build_object(
              'version', current_setting('server_version_num')::int,
              'words', current_setting('server_version'),
              'encoding', current_setting('server_encoding'),
              'read_only', current_setting('transaction_read_only') = 'on',
              'user', current_user, 'database', current_database(),
              'may_create', has_database_privilege(current_database(), 'CREATE'));
        """)
    except PsqlFailed as cause:
        tried = " ".join(
            f"{name}={os.environ.get(name, '(unset)')}"
            for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER")
        )
        password = "set" if os.environ.get("PGPASSWORD") else "not set"
        yield (f"no PostgreSQL server lets us in: {cause}\n"
               f"  tried {tried}, PGPASSWORD {password};"
               " the first four stand in towpath.yml under `env`")
        return
    server = json.loads(facts[0])
    print(f"PostgreSQL {server['words']}, database {server['database']}, user {server['user']}")
    if server["version"] < OLDEST_SERVER:
        yield f"the server is PostgreSQL {server['words']}; 12 or newer is needed"
    if server["encoding"] != "UTF8":
        yield f"the database is encoded in {server['encoding']}; it must be UTF8"
    if server["read_only"]:
        yield "the server is a read-only standby"
    if not server["may_create"]:
        yield (f"user {server['user']} may not create a schema: GRANT CREATE ON DATABASE"
               f" {server['database']} TO {server['user']}")
    try:
        version = live_version()
    except PsqlFailed:
        yield f"schema {LIVE} exists, and user {server['user']} may not look into it"
        return
    if version is not None:
        what = f"is live already (version {version})" if version else "exists and is not ours"
        yield f"schema {LIVE} {what}; move it away first"


def create_schema(_args):
    if live_version() is not None:
        print(f"schema {LIVE} exists already", file=sys.stderr)
        return job.NOT_READY
    with open(os.path.join(HERE, "schema.sql"), encoding="utf-8") as file:
        tables = file.read()
    psql(
        # IF NOT EXISTS does not save two sessions that create the same thing at once; this does.
        f"SELECT pg_advisory_xact_lock(hashtext('{STAGING}')) \\g /dev/null",
        f"CREATE SCHEMA IF NOT EXISTS {STAGING}; SET LOCAL search_path = {STAGING};",
        tables,
    )
    job.forget_checks()
    print(f"{STAGING}: schema is there")
    return job.OK


def drop_schema(_args):
    psql(f"DROP SCHEMA IF EXISTS {STAGING} CASCADE;")
    print(f"{STAGING}: gone")
    return job.OK


def copy(args):
    table = TABLES[args.table]
    source = open_source(SOURCE)
    columns = [column.target for column in table.columns]
    keys = {column.target for column in table.keys}
    rest = [name for name in columns if name not in keys]
    names = ", ".join(columns)
    rows = 0

    def converted():
        nonlocal rows
        for page in pages(source, table, 5_000):
            rows += len(page)
            yield from map(table.convert, page)

    # First into a table of this session alone, in the target's own types, then in one statement
    # into the real one: rows that are there already and do not differ are not touched.
    lines = psql(
        f"CREATE TEMPORARY TABLE incoming ON COMMIT DROP AS"
        f" SELECT {names} FROM {STAGING}.{table.name} WITH NO DATA;",
        copy_lines("incoming", converted()),
        f"""
        WITH written AS (
          INSERT INTO {STAGING}.{table.name} AS old ({names}) SELECT {names} FROM incoming
          ON CONFLICT ({table.target_key}) DO UPDATE
          SET {', '.join(f'{name} = excluded.{name}' for name in rest)}, migrated_at = now()
          WHERE ({', '.join(f'old.{name}' for name in rest)})
            IS DISTINCT FROM ({', '.join(f'excluded.{name}' for name in rest)})
          RETURNING 1
        ) SELECT count(*) FROM written;
        """,
    )
    written = int(lines[0])
    print(f"{table.name}: {rows} rows read, {written} written, {rows - written} were there already")
    job.emit(rows=rows, written=written)
    return job.OK


def clear(args):
    psql(f"DELETE FROM {STAGING}.{args.table};")
    print(f"{args.table}: empty")
    return job.OK


def wanted_table(table, columns, rows):
    """Puts what the source says into a table of this session, as text."""
    names = ", ".join(f"{column.target} text" for column in columns)
    yield f"CREATE TEMPORARY TABLE want_{table.name} ({names}) ON COMMIT DROP;\n"
    yield from copy_lines(f"want_{table.name}", rows)


def as_text(columns):
    return ", ".join(
        f"{AS_TEXT[column.kind.target].format(x=column.target)} AS {column.target}"
        for column in columns
    )


def validate_counts(args):
    source = open_source(SOURCE)
    promised = dict(pair.split("=", 1) for pair in args.copied)

    def checks():
        for table in TABLES.values():
            keys = ", ".join(column.check_sql for column in table.keys)
            yield from wanted_table(
                table, table.keys, source.execute(f"SELECT {keys} FROM {table.name}"))
            want, have = f"want_{table.name}", f"{STAGING}.{table.name}"
            shown = " || ', ' || ".join(column.target for column in table.keys)
            # The keys in their own order, not in that of their text.
            order = ", ".join(f"length({name}), {name}" for name in
                              (column.target for column in table.keys))
            text = as_text(table.keys)
            yield f"""
                WITH want AS (SELECT * FROM {want}), have AS (SELECT {text} FROM {have}),
                lost AS (SELECT * FROM want EXCEPT SELECT * FROM have),
                extra AS (SELECT * FROM have EXCEPT SELECT * FROM want)
                SELECT json_build_object(
                  'table', '{table.name}',
                  'source', (SELECT count(*) FROM want), 'target', (SELECT count(*) FROM have),
                  'missing', (SELECT count(*) FROM lost),
                  'in the target alone', (SELECT count(*) FROM extra),
                  'lost', (SELECT json_agg('(' || k || ')') FROM
                    (SELECT {shown} AS k FROM lost ORDER BY {order} LIMIT 3) AS few),
                  'extra', (SELECT json_agg('(' || k || ')') FROM
                    (SELECT {shown} AS k FROM extra ORDER BY {order} LIMIT 3) AS few));
            """.replace("\n", " ") + "\n"

    rows = {}
    for line in psql(checks()):
        found = json.loads(line)
        notes = [
            f"{words}: {' '.join(found[keys])}{' ...' if found[words] > 3 else ''}"
            for words, keys in (("missing", "lost"), ("in the target alone", "extra"))
            if found[words]
        ]
        name = found["table"]
        if name in promised and int(promised[name]) != found["target"]:
            notes.append(f"its copy reported {promised[name]} rows")
        rows[name] = found["source"], found["target"], notes
    return job.counts(rows)


def validate_sample(args):
    source = open_source(SOURCE)
    compared = {}

    def checks():
        for table in TABLES.values():
            sample = expected(source, table, args.fraction)
            compared[table.name] = len(sample)
            yield from wanted_table(table, table.columns, sample)
            keys = ", ".join(column.target for column in table.keys)
            shown = " || ', ' || ".join(f"want.{column.target}" for column in table.keys)
            found = f"have.{table.keys[0].target} IS NOT NULL"
            yield f"""
                WITH have AS (SELECT {as_text(table.columns)} FROM {STAGING}.{table.name})
                SELECT json_build_object('table', '{table.name}', 'difference',
                  '(' || {shown} || ')' || coalesce(
                    ': ' || w.key || ' is ' || coalesce(quote_literal(h.value), 'NULL')
                    || ', should be ' || coalesce(quote_literal(w.value), 'NULL'), ' is missing'))
                FROM want_{table.name} AS want LEFT JOIN have USING ({keys})
                LEFT JOIN LATERAL jsonb_each_text(to_jsonb(want)) AS w ON {found}
                LEFT JOIN LATERAL jsonb_each_text(to_jsonb(have)) AS h ON h.key = w.key
                WHERE NOT ({found}) OR w.value IS DISTINCT FROM h.value
                ORDER BY length({shown}), {shown} LIMIT 1000;
            """.replace("\n", " ") + "\n"

    differences = {name: [] for name in TABLES}
    for line in psql(checks()):
        found = json.loads(line)
        differences[found["table"]].append(found["difference"])
    return job.sample({name: (compared[name], differences[name]) for name in TABLES})


def check_foreign_keys(_args):
    """Every foreign key of the source has one here, is valid, and no row breaks it.

    The server sees to the last point, unless somebody has switched its triggers off.
    """
    source = open_source(SOURCE)
    dangling, there = dict.fromkeys(TABLES, 0), dict.fromkeys(TABLES, 0)
    lines = psql(f"""
        SELECT format(
          'SELECT %L, %L, count(*) FROM %s AS c WHERE c.%I IS NOT NULL AND NOT EXISTS'
          ' (SELECT 1 FROM %s AS p WHERE p.%I = c.%I)',
          child.relname, f.convalidated, f.conrelid::regclass, c.attname,
          f.confrelid::regclass, p.attname, c.attname)
        FROM pg_constraint AS f
        JOIN pg_class AS child ON child.oid = f.conrelid
        JOIN pg_attribute AS c ON c.attrelid = f.conrelid AND c.attnum = f.conkey[1]
        JOIN pg_attribute AS p ON p.attrelid = f.confrelid AND p.attnum = f.confkey[1]
        WHERE f.contype = 'f' AND child.relnamespace = '{STAGING}'::regnamespace
        ORDER BY f.conname
        \\gexec
    """)
    for line in lines:
        child, valid, rows = line.split("|")
        there[child] += valid == "t"
        dangling[child] += int(rows)
    verdict = job.foreign_keys(dangling)
    for name in TABLES:
        wanted = len(source.execute(f"PRAGMA foreign_key_list({name})").fetchall())
        if there[name] != wanted:
            print(f"{name} has {there[name]} valid foreign keys and should have {wanted}",
                  file=sys.stderr)
            verdict = job.CHECK_FAILED
    if verdict != job.OK:
        job.keep_check("foreign-keys", False, {
            name: {"dangling": dangling[name], "constraints": there[name]} for name in TABLES
        })
    return verdict


def report(_args):
    target = f"{os.environ.get('PGDATABASE', '')}.{LIVE}"
    return job.report("work/report.json", source=SOURCE, target=target, version=VERSION)


def sequences():
    """The tables whose keys the server hands out."""
    return [table for table in TABLES.values() if table.target_key == "id"]


def cutover(args):
    version = live_version()
    if version == VERSION:
        print(f"schema {LIVE} is live already: nothing left to do")
        job.emit(live=LIVE)
        return job.OK
    now = source_version(SOURCE)
    if now != args.source_version:
        print(
            f"the source was written to after the preflight (version {args.source_version} then,"
            f" {now} now): run again from preflight", file=sys.stderr,
        )
        return job.NOT_READY
    # All or nothing, and visible to everybody at the same moment. Who waits too long for a lock
    # gives up instead of holding up the others.
    psql(
        "SET LOCAL lock_timeout = '5s';",
        *(f"SELECT setval(pg_get_serial_sequence('{STAGING}.{table.name}', 'id'),"
          f" (SELECT coalesce(max(id), 1) FROM {STAGING}.{table.name})) \\g /dev/null"
          for table in sequences()),
        f"INSERT INTO {STAGING}.schema_version (version, source_version) VALUES ({VERSION}, {now});",
        f"ALTER SCHEMA {STAGING} RENAME TO {LIVE};",
    )
    print(f"schema {LIVE} is live")
    job.emit(live=LIVE)
    return job.OK


def check_live(_args):
    if live_version() != VERSION:
        print(f"schema {LIVE} does not say version {VERSION}", file=sys.stderr)
        return job.CHECK_FAILED
    orders, cents, *behind = psql(
        f"SELECT count(*) FROM {LIVE}.orders;",
        f"SELECT (sum(total) * 100)::bigint FROM {LIVE}.orders;",
        *(f"SELECT last_value < (SELECT coalesce(max(id), 1) FROM {LIVE}.{table.name})"
          f" FROM {LIVE}.{table.name}_id_seq;" for table in sequences()),
    )
    before = open_source(SOURCE).execute("SELECT sum(total_cents) FROM orders").fetchone()[0]
    if int(cents) != before:
        print(f"orders are worth {cents} cents, and were worth {before}", file=sys.stderr)
        return job.CHECK_FAILED
    late = [table.name for table, late in zip(sequences(), behind) if late == "t"]
    if late:
        print(f"the next keys are taken already in: {', '.join(late)}", file=sys.stderr)
        return job.CHECK_FAILED
    print(f"version {VERSION}; {orders} orders worth {cents} cents, as before")
    return job.OK


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(required=True, metavar="JOB")

    def add(name, run):
        sub = jobs.add_parser(name)
        sub.set_defaults(run=run)
        return sub

    add("preflight", preflight)
    add("create-schema", create_schema)
    add("drop-schema", drop_schema)
    add("copy", copy).add_argument("table", choices=TABLES)
    add("clear", clear).add_argument("table", choices=TABLES)
    add("validate-counts", validate_counts).add_argument(
        "--copied", action="append", default=[], metavar="TABLE=ROWS",
        help="what the copy of a table reported",
    )
    add("validate-sample", validate_sample).add_argument("--fraction", type=float, default=0.02)
    add("check-foreign-keys", check_foreign_keys)
    add("report", report)
    add("cutover", cutover).add_argument("--source-version", type=int, required=True)
    add("check-live", check_live)
    return parser.parse_args()


def main():
    args = arguments()
    try:
        return args.run(args)
    except SourceUnusable as cause:
        print(cause, file=sys.stderr)
        return job.NOT_READY
    except PsqlFailed as cause:
        # psql: 2 is a connection that failed or broke, 3 an error in the SQL, less than 0 a signal.
        print(cause, file=sys.stderr)
        return job.TRY_AGAIN if cause.code == 2 or cause.code < 0 else job.NOT_READY
    except FileNotFoundError as cause:
        if cause.filename != "psql":
            raise
        print(NO_PSQL, file=sys.stderr)
        return job.NOT_READY
    except sqlite3.OperationalError as cause:
        print(f"the source cannot be read: {cause}", file=sys.stderr)
        return job.TRY_AGAIN


if __name__ == "__main__":
    sys.exit(main())
