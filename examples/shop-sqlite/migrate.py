#!/usr/bin/env python3
"""Moves the old shop into a new SQLite file with another schema. Each subcommand is one job.

Everything is built in a staging file; the cutover gives it its real name. Every subcommand may be
killed at any moment and run again.

Exit codes: 0 done; 1 a check found a difference; 2 wrong usage; 3 not ready; 75 the target was
busy, try again.
"""

import argparse
import os
import shutil
import sqlite3
import sys
import time

import job
from mapping import TABLES
from source import (
    SourceUnusable, count, expected, open_source, pages, problems, source_version,
)

SOURCE = os.environ.get("SHOP_SOURCE", "work/shop.db")
LIVE = os.environ.get("SHOP_TARGET", "work/shop_v2.db")
STAGING = f"{LIVE}.staging"
HERE = os.path.dirname(os.path.abspath(__file__))
VERSION = 2
NOW = "strftime('%Y-%m-%dT%H:%M:%SZ', 'now')"


class NotReady(Exception):
    """The target is not in the state that this job expects."""


def open_target(path=STAGING):
    if not os.path.exists(path):
        raise NotReady(f"there is no {path}: run create-schema first")
    # Copies of several tables write to one file: each waits for its turn.
    db = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=20, isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    return db


def version_of(path):
    if not os.path.exists(path):
        return None
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return db.execute("PRAGMA user_version").fetchone()[0]
    finally:
        db.close()


def preflight(_args):
    found = []
    if sqlite3.sqlite_version_info < (3, 24):
        found.append(f"SQLite is {sqlite3.sqlite_version}; upserts need 3.24 or newer")
    if os.path.exists(LIVE):
        found.append(f"{LIVE} is live already (version {version_of(LIVE)}); move it away first")
    db = open_source(SOURCE)
    found.extend(problems(db))
    needed = 2 * os.path.getsize(SOURCE)
    free = shutil.disk_usage(os.path.dirname(LIVE) or ".").free
    if free < needed:
        found.append(f"the target needs about {needed} bytes and there are {free}")
    if found:
        return job.not_ready(found)
    rows = sum(count(db, table) for table in TABLES.values())
    print(f"ready: {len(TABLES)} tables, {rows} rows, all of them convertible")
    job.emit(tables=len(TABLES), rows=rows, source_version=source_version(SOURCE))
    return job.OK


def create_schema(_args):
    if os.path.exists(LIVE):
        raise NotReady(f"{LIVE} is live already")
    with open(os.path.join(HERE, "schema.sql"), encoding="utf-8") as file:
        schema = file.read()
    db = sqlite3.connect(STAGING, timeout=20, isolation_level=None)
    db.executescript(f"BEGIN IMMEDIATE; {schema} COMMIT;")
    db.close()
    job.forget_checks()
    print(f"{STAGING}: schema is there")
    return job.OK


def drop_schema(_args):
    for path in (f"{STAGING}-journal", STAGING):
        if os.path.exists(path):
            os.remove(path)
    print(f"{STAGING}: gone")
    return job.OK


def upsert(table):
    """Writes a row, and touches one that is there only if it differs."""
    columns = [column.target for column in table.columns]
    keys = {column.target for column in table.keys}
    rest = [name for name in columns if name not in keys]
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}, migrated_at)"
        f" VALUES ({', '.join('?' * len(columns))}, {NOW})"
        f" ON CONFLICT ({table.target_key}) DO UPDATE SET"
        f" {', '.join(f'{name} = excluded.{name}' for name in rest)},"
        f" migrated_at = excluded.migrated_at"
        f" WHERE {' OR '.join(f'{table.name}.{name} IS NOT excluded.{name}' for name in rest)}"
    )


def copy(args):
    table = TABLES[args.table]
    source, target = open_source(SOURCE), open_target()
    statement, rows, written = upsert(table), 0, 0
    for page in pages(source, table, args.batch):
        before = target.total_changes
        target.execute("BEGIN IMMEDIATE")
        target.executemany(statement, map(table.convert, page))
        target.execute("COMMIT")
        rows += len(page)
        written += target.total_changes - before
        time.sleep(args.pause_ms / 1000)
    print(f"{table.name}: {rows} rows read, {written} written, {rows - written} were there already")
    job.emit(rows=rows, written=written)
    return job.OK


def clear(args):
    target = open_target()
    target.execute("BEGIN IMMEDIATE")
    gone = target.execute(f"DELETE FROM {args.table}").rowcount
    target.execute("COMMIT")
    print(f"{args.table}: {gone} rows deleted")
    return job.OK


def strays(source, target, table):
    """A few keys that only one side has, in words."""
    keys = ", ".join(column.check_sql for column in table.keys)
    there = set(source.execute(f"SELECT {keys} FROM {table.name}"))
    keys = ", ".join(f"CAST({column.target} AS TEXT)" for column in table.keys)
    here = set(target.execute(f"SELECT {keys} FROM {table.name}"))
    for words, only in (("missing", there - here), ("in the target alone", here - there)):
        if only:
            few = sorted(only, key=lambda key: [(len(part), part) for part in key])[:3]
            shown = " ".join(f"({', '.join(key)})" for key in few)
            yield f"{words}: {shown}{' ...' if len(only) > 3 else ''}"


def validate_counts(args):
    source, target = open_source(SOURCE), open_target()
    promised = dict(pair.split("=", 1) for pair in args.copied)
    rows = {}
    for table in TABLES.values():
        notes = list(strays(source, target, table))
        there, here = count(source, table), count(target, table)
        if table.name in promised and int(promised[table.name]) != here:
            notes.append(f"its copy reported {promised[table.name]} rows")
        rows[table.name] = there, here, notes
    return job.counts(rows)


def validate_sample(args):
    source, target = open_source(SOURCE), open_target()
    rows = {}
    for table in TABLES.values():
        columns = ", ".join(f"CAST({column.target} AS TEXT)" for column in table.columns)
        # Keys may change on the way (`de` becomes `DE`), so the target is asked for the keys of
        # the sample and does not draw its own.
        wanted = expected(source, table, args.fraction)
        marks = " AND ".join(f"CAST({column.target} AS TEXT) = ?" for column in table.keys)
        if all(column.kind.target == "int" for column in table.keys):
            marks = " AND ".join(f"{column.target} = CAST(? AS INTEGER)" for column in table.keys)
        differences = []
        for row in wanted:
            key = row[: len(table.keys)]
            found = target.execute(
                f"SELECT {columns} FROM {table.name} WHERE {marks}", key
            ).fetchone()
            if found is None:
                differences.append(f"({', '.join(key)}) is missing")
            elif found != row:
                differences.extend(
                    f"({', '.join(key)}): {column.target} is {have!r}, should be {want!r}"
                    for column, want, have in zip(table.columns, row, found) if want != have
                )
        rows[table.name] = len(wanted), differences
    return job.sample(rows)


def check_foreign_keys(_args):
    target = open_target()
    dangling = dict.fromkeys(TABLES, 0)
    for child, *_ in target.execute("PRAGMA foreign_key_check"):
        dangling[child] += 1
    return job.foreign_keys(dangling)


def report(_args):
    return job.report("work/report.json", source=SOURCE, target=LIVE, version=VERSION)


def cutover(args):
    if not os.path.exists(STAGING) and version_of(LIVE) == VERSION:
        print(f"{LIVE} is live already: nothing left to do")
        job.emit(live=LIVE)
        return job.OK
    now = source_version(SOURCE)
    if now != args.source_version:
        print(
            f"the source was written to after the preflight (version {args.source_version} then,"
            f" {now} now): run again from preflight", file=sys.stderr,
        )
        return job.NOT_READY
    target = open_target()
    verdict = target.execute("PRAGMA quick_check").fetchone()[0]
    if verdict != "ok":
        print(f"{STAGING} is damaged: {verdict}", file=sys.stderr)
        return job.CHECK_FAILED
    target.execute("BEGIN EXCLUSIVE")
    target.execute(f"INSERT OR IGNORE INTO schema_version VALUES (?, ?, {NOW})", (VERSION, now))
    target.execute(f"PRAGMA user_version = {VERSION}")
    target.execute("COMMIT")
    target.close()
    # From here on the file says what it is; the new name is what makes it so for everybody.
    os.replace(STAGING, LIVE)
    folder = os.open(os.path.dirname(LIVE) or ".", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    print(f"{LIVE} is live")
    job.emit(live=LIVE)
    return job.OK


def check_live(_args):
    db = open_target(LIVE)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    marker = db.execute("SELECT version, live_since FROM schema_version").fetchone()
    if version != VERSION or marker is None or marker[0] != VERSION:
        print(f"{LIVE} says version {version}, its marker row {marker}", file=sys.stderr)
        return job.CHECK_FAILED
    orders, total = db.execute(
        "SELECT count(*), sum(CAST(replace(total, '.', '') AS INTEGER)) FROM orders"
    ).fetchone()
    cents = open_source(SOURCE).execute("SELECT sum(total_cents) FROM orders").fetchone()[0]
    if total != cents:
        print(f"orders are worth {total} cents, and were worth {cents}", file=sys.stderr)
        return job.CHECK_FAILED
    print(f"version {version}, live since {marker[1]}; {orders} orders worth {total} cents, as before")
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
    one = add("copy", copy)
    one.add_argument("table", choices=TABLES)
    one.add_argument("--batch", type=int, default=1_000, help="rows per transaction")
    one.add_argument("--pause-ms", type=int, default=0, help="rest after each batch")
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
    except (SourceUnusable, NotReady) as cause:
        print(cause, file=sys.stderr)
        return job.NOT_READY
    except sqlite3.OperationalError as cause:
        if "locked" in str(cause) or "busy" in str(cause):
            print(f"the target is busy: {cause}", file=sys.stderr)
            return job.TRY_AGAIN
        raise


if __name__ == "__main__":
    sys.exit(main())
