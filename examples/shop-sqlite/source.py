"""Reading the old shop: never writes to it.

Not here: anything about the target.
"""

import hashlib
import os
import sqlite3

from mapping import TABLES


class SourceUnusable(Exception):
    """The source cannot be read at all."""


def open_source(path):
    if not os.path.exists(path):
        raise SourceUnusable(f"there is no source at {path}: run generate.py first")
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10, isolation_level=None)
    db.create_function("sampled", -1, sampled, deterministic=True)
    return db


def source_version(path):
    """A number that every committed write to the file changes (bytes 24 to 27 of its header).

    SQLite keeps it up to date in every journal mode but WAL, which `problems` refuses.
    """
    with open(path, "rb") as file:
        return int.from_bytes(file.read(28)[24:28], "big")


def sampled(fraction, table, *key):
    """Whether a row belongs to the sample. The same rows do on every machine, every time."""
    name = ":".join([table, *map(str, key)])
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") < fraction * 2**48


def count(db, table):
    return db.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0]


def pages(db, table, size):
    """The mapped columns of all rows, page by page along the key.

    No page costs more than another, however far it is from the beginning, and no read
    transaction stays open between two pages.
    """
    columns = ", ".join(column.source for column in table.columns)
    width = len(table.keys)
    marks = ", ".join("?" * width)
    limit = -1 if table.tree else size
    where, after = "", ()
    while True:
        rows = db.execute(
            f"SELECT {columns} FROM {table.name} {where} ORDER BY {table.source_key} LIMIT ?",
            (*after, limit),
        ).fetchall()
        if rows:
            yield rows
        if table.tree or len(rows) < size:
            return
        where, after = f"WHERE ({table.source_key}) > ({marks})", rows[-1][:width]


def expected(db, table, fraction):
    """What the target must hold for the sampled rows, as text, worked out by SQL alone."""
    columns = ", ".join(column.check_sql for column in table.columns)
    return db.execute(
        f"SELECT {columns} FROM {table.name} WHERE sampled(?, ?, {table.source_key})"
        f" ORDER BY {table.source_key}",
        (fraction, table.name),
    ).fetchall()


def problems(db):
    """Everything that would make the copy fail or lie, in words. Converts every row to find out."""
    if db.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        yield "the source is in WAL mode, so a late write to it could not be noticed"
    present = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for name in sorted(present - TABLES.keys() - {"sqlite_sequence", "sqlite_stat1"}):
        yield f"table {name} is in the source, and nothing says what becomes of it"
    for table in TABLES.values():
        if table.name not in present:
            yield f"table {table.name} is missing in the source"
            continue
        columns = {row[1] for row in db.execute(f"PRAGMA table_info({table.name})")}
        mapped = {column.source for column in table.columns}
        for name in sorted(mapped - columns):
            yield f"{table.name}.{name} is missing in the source"
        for name in sorted(columns - mapped):
            yield f"{table.name}.{name} is in the source, and nothing says what becomes of it"
        if mapped <= columns:
            yield from unconvertible(db, table)
    orphans = {}
    for child, _, parent, _ in db.execute("PRAGMA foreign_key_check"):
        orphans[child, parent] = orphans.get((child, parent), 0) + 1
    for (child, parent), rows in sorted(orphans.items()):
        yield f"{rows} rows of {child} point at rows of {parent} that do not exist"


def unconvertible(db, table):
    for rows in pages(db, table, 5_000):
        for row in rows:
            for column, value in zip(table.columns, row):
                try:
                    column.kind.convert(value)
                except (ValueError, AttributeError, TypeError) as cause:
                    key = ", ".join(map(str, row[: len(table.keys)]))
                    yield f"{table.name} ({key}): {column.source} is {value!r}: {cause}"
