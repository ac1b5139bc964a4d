"""What becomes of every column: the old shop on the left, the new one on the right.

Each kind of column is written down twice on purpose. `convert` (Python) is what the copy uses;
`sql` says the same in the source's own SQL and is what the validation uses, so that a mistake in
one of them shows up as a difference instead of being made twice.

Not here: how rows are read or written.
"""

import re
from typing import Callable, NamedTuple

DAY = re.compile(r"(\d\d)\.(\d\d)\.(\d\d\d\d)")
MOMENT = re.compile(r"(\d\d\d\d-\d\d-\d\d) (\d\d:\d\d:\d\d)")
STATES = {0: "cart", 1: "placed", 2: "paid", 3: "sent", 4: "done", 9: "cancelled"}
METHODS = {"cc": "card", "pp": "wallet", "in": "invoice"}
ADDRESS_KINDS = {"B": "billing", "S": "shipping"}


def blank(value):
    """Blanks were how the old forms said "unknown"."""
    return None if value is None or value.strip(" ") == "" else value


def upper(value):
    return None if value is None else value.upper()


def flag(value):
    if value not in ("Y", "N", 1, 0, None):
        raise ValueError("neither a yes nor a no")
    return 1 if value in ("Y", 1) else 0


def money(cents):
    if not isinstance(cents, int):
        raise ValueError("not a number of cents")
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02}"


def moment(value):
    if value is None:
        return None
    if old := DAY.fullmatch(value):
        return f"{old[3]}-{old[2]}-{old[1]}T00:00:00Z"
    if new := MOMENT.fullmatch(value):
        return f"{new[1]}T{new[2]}Z"
    raise ValueError("not a date of either format")


def given(name):
    if ", " in name:
        return name.split(", ", 1)[1]
    return name.rsplit(" ", 1)[0] if " " in name else None


def family(name):
    if ", " in name:
        return name.split(", ", 1)[0]
    return name.rsplit(" ", 1)[-1]


def one_of(words):
    def convert(value):
        if value not in words:
            raise ValueError(f"not one of {', '.join(map(str, words))}")
        return words[value]

    return convert


def one_of_sql(words):
    cases = " ".join(f"WHEN {key!r} THEN {word!r}" for key, word in words.items())
    return f"CASE {{x}} {cases} END"


class Kind(NamedTuple):
    """How a column changes, and what it is afterwards."""

    target: str  # 'text', 'int', 'bool', 'money' or 'time'
    convert: Callable
    sql: str  # `{x}` is the source's column; gives the target's value as text


# What stands before the last word of a name without a comma, with the blank in between.
BEFORE = "rtrim({x}, replace({x}, ' ', ''))"

TEXT = Kind("text", lambda value: value, "{x}")
INT = Kind("int", lambda value: value, "{x}")
ZERO = Kind("int", lambda value: value or 0, "coalesce({x}, 0)")
BLANK = Kind("text", blank, "CASE WHEN trim({x}) <> '' THEN {x} END")
UPPER = Kind("text", upper, "upper({x})")
FLAG = Kind("bool", flag, "CASE WHEN {x} IN ('Y', 1) THEN '1' ELSE '0' END")
MONEY = Kind(
    "money", money,
    "CASE WHEN {x} < 0 THEN '-' ELSE '' END || printf('%d.%02d', abs({x}) / 100, abs({x}) % 100)",
)
TIME = Kind(
    "time", moment,
    "CASE WHEN {x} LIKE '__.__.____' THEN substr({x}, 7) || '-' || substr({x}, 4, 2) || '-'"
    " || substr({x}, 1, 2) || 'T00:00:00Z' ELSE replace({x}, ' ', 'T') || 'Z' END",
)
GIVEN = Kind(
    "text", given,
    "CASE WHEN instr({x}, ', ') > 0 THEN substr({x}, instr({x}, ', ') + 2)"
    f" ELSE nullif(rtrim({BEFORE}), '') END",
)
FAMILY = Kind(
    "text", family,
    "CASE WHEN instr({x}, ', ') > 0 THEN substr({x}, 1, instr({x}, ', ') - 1)"
    f" ELSE substr({{x}}, length({BEFORE}) + 1) END",
)
STATE = Kind("text", one_of(STATES), one_of_sql(STATES))
METHOD = Kind("text", one_of(METHODS), one_of_sql(METHODS))
ADDRESS_KIND = Kind("text", one_of(ADDRESS_KINDS), one_of_sql(ADDRESS_KINDS))


class Column(NamedTuple):
    source: str
    target: str
    kind: Kind

    @property
    def check_sql(self):
        return f"CAST({self.kind.sql.format(x=self.source)} AS TEXT)"


class Table:
    """One table. It has the same name on both sides; its first `keys` columns are its key."""

    def __init__(self, name, *columns, keys=1, tree=False):
        self.name = name
        self.columns = [Column(*column) for column in columns]
        self.keys = self.columns[:keys]
        # Rows point at rows of the same table, in any order: they must be written in one go.
        self.tree = tree

    @property
    def source_key(self):
        return ", ".join(column.source for column in self.keys)

    @property
    def target_key(self):
        return ", ".join(column.target for column in self.keys)

    def convert(self, row):
        """The target's row for a source's row of the mapped columns, in their order."""
        return tuple(column.kind.convert(value) for column, value in zip(self.columns, row))


# In foreign-key order: a table stands below everything it points at.
TABLES = {table.name: table for table in (
    Table(
        "countries",
        ("code", "code", UPPER), ("name", "name", TEXT), ("eu", "in_eu", FLAG),
    ),
    Table(
        "categories",
        ("id", "id", INT), ("parent_id", "parent_id", INT), ("name", "name", TEXT),
        ("position", "sort_order", INT),
        tree=True,
    ),
    Table(
        "customers",
        ("id", "id", INT), ("name", "given_name", GIVEN), ("name", "family_name", FAMILY),
        ("email", "email", BLANK), ("phone", "phone", BLANK),
        ("newsletter", "wants_newsletter", FLAG), ("blocked", "is_blocked", FLAG),
        ("country", "country_code", UPPER), ("created", "created_at", TIME),
    ),
    Table(
        "suppliers",
        ("id", "id", INT), ("name", "name", TEXT), ("contact", "contact", BLANK),
        ("country", "country_code", UPPER),
    ),
    Table(
        "addresses",
        ("id", "id", INT), ("customer_id", "customer_id", INT), ("kind", "kind", ADDRESS_KIND),
        ("street", "street", TEXT), ("zip", "postal_code", BLANK), ("city", "city", TEXT),
        ("country", "country_code", UPPER),
    ),
    Table(
        "products",
        ("id", "id", INT), ("sku", "sku", TEXT), ("category_id", "category_id", INT),
        ("title", "title", TEXT), ("descr", "description", BLANK),
        ("price_cents", "price", MONEY), ("weight_g", "weight_grams", INT),
        ("active", "is_active", FLAG), ("added", "added_at", TIME),
    ),
    Table(
        "product_suppliers",
        ("product_id", "product_id", INT), ("supplier_id", "supplier_id", INT),
        ("cost_cents", "cost", MONEY),
        keys=2,
    ),
    Table(
        "orders",
        ("id", "id", INT), ("customer_id", "customer_id", INT),
        ("bill_address_id", "billing_address_id", INT),
        ("ship_address_id", "shipping_address_id", INT),
        ("ordered", "ordered_at", TIME), ("state", "status", STATE), ("note", "note", BLANK),
        ("total_cents", "total", MONEY),
    ),
    Table(
        "order_items",
        ("order_id", "order_id", INT), ("line", "line_number", INT),
        ("product_id", "product_id", INT), ("qty", "quantity", INT),
        ("price_cents", "unit_price", MONEY), ("discount_pct", "discount_percent", ZERO),
        keys=2,
    ),
    Table(
        "payments",
        ("id", "id", INT), ("order_id", "order_id", INT), ("method", "method", METHOD),
        ("amount_cents", "amount", MONEY), ("paid", "paid_at", TIME),
        ("ref", "reference", BLANK),
    ),
    Table(
        "shipments",
        ("id", "id", INT), ("order_id", "order_id", INT), ("carrier", "carrier", TEXT),
        ("tracking", "tracking_code", BLANK), ("sent", "sent_at", TIME),
        ("arrived", "delivered_at", TIME),
    ),
    Table(
        "reviews",
        ("id", "id", INT), ("product_id", "product_id", INT),
        ("customer_id", "customer_id", INT), ("stars", "rating", INT),
        ("title", "title", BLANK), ("body", "body", BLANK),
        ("visible", "is_visible", FLAG), ("written", "written_at", TIME),
    ),
)}
