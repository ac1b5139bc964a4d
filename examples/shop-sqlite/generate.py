#!/usr/bin/env python3
"""Makes the source database: a shop that has been in business since 2009.

The same seed and scale give the same rows on every machine. The data has the oddities that a
migration trips over: two date formats, `Y`/`N` flags that may be NULL, names in two orders,
blanks that mean "unknown", quotes, line breaks, backslashes, and a category tree in which some
parents have higher ids than their children.

Not here: anything about the target.
"""

import argparse
import datetime
import os
import random
import sqlite3
import sys

SCHEMA = """
CREATE TABLE countries (
  code TEXT PRIMARY KEY,            -- lower case: 'de'
  name TEXT NOT NULL,
  eu   TEXT NOT NULL                -- 'Y' or 'N'
);
CREATE TABLE customers (
  id         INTEGER PRIMARY KEY,
  name       TEXT NOT NULL,         -- 'Family, Given', 'Given Family' or one word
  email      TEXT,                  -- NULL and '' both mean: none
  phone      TEXT,
  newsletter TEXT,                  -- 'Y', 'N' or NULL
  blocked    INTEGER,               -- 1, 0 or NULL
  country    TEXT REFERENCES countries (code),
  created    TEXT NOT NULL          -- '31.12.2011' in old rows, '2019-12-31 23:59:59' in newer ones
);
CREATE TABLE addresses (
  id          INTEGER PRIMARY KEY,
  customer_id INTEGER NOT NULL REFERENCES customers (id),
  kind        TEXT NOT NULL,        -- 'B'illing or 'S'hipping
  street      TEXT NOT NULL,
  zip         TEXT,
  city        TEXT NOT NULL,
  country     TEXT NOT NULL REFERENCES countries (code)
);
CREATE TABLE categories (
  id        INTEGER PRIMARY KEY,
  parent_id INTEGER REFERENCES categories (id) DEFERRABLE INITIALLY DEFERRED,
  name      TEXT NOT NULL,
  position  INTEGER NOT NULL
);
CREATE TABLE suppliers (
  id      INTEGER PRIMARY KEY,
  name    TEXT NOT NULL,
  contact TEXT,
  country TEXT REFERENCES countries (code)
);
CREATE TABLE products (
  id          INTEGER PRIMARY KEY,
  sku         TEXT NOT NULL UNIQUE,
  category_id INTEGER NOT NULL REFERENCES categories (id),
  title       TEXT NOT NULL,
  descr       TEXT,
  price_cents INTEGER NOT NULL,
  weight_g    INTEGER,
  active      TEXT NOT NULL,        -- 'Y' or 'N'
  added       TEXT NOT NULL
);
CREATE TABLE product_suppliers (
  product_id  INTEGER NOT NULL REFERENCES products (id),
  supplier_id INTEGER NOT NULL REFERENCES suppliers (id),
  cost_cents  INTEGER NOT NULL,
  PRIMARY KEY (product_id, supplier_id)
) WITHOUT ROWID;
CREATE TABLE orders (
  id              INTEGER PRIMARY KEY,
  customer_id     INTEGER NOT NULL REFERENCES customers (id),
  bill_address_id INTEGER REFERENCES addresses (id),
  ship_address_id INTEGER REFERENCES addresses (id),
  ordered         TEXT NOT NULL,
  state           INTEGER NOT NULL, -- 0 cart, 1 placed, 2 paid, 3 sent, 4 done, 9 cancelled
  note            TEXT,
  total_cents     INTEGER NOT NULL
);
CREATE TABLE order_items (
  order_id     INTEGER NOT NULL REFERENCES orders (id),
  line         INTEGER NOT NULL,
  product_id   INTEGER NOT NULL REFERENCES products (id),
  qty          INTEGER NOT NULL,
  price_cents  INTEGER NOT NULL,
  discount_pct INTEGER,
  PRIMARY KEY (order_id, line)
) WITHOUT ROWID;
CREATE TABLE payments (
  id           INTEGER PRIMARY KEY,
  order_id     INTEGER NOT NULL REFERENCES orders (id),
  method       TEXT NOT NULL,       -- 'cc', 'pp' or 'in'
  amount_cents INTEGER NOT NULL,    -- negative: paid back
  paid         TEXT,
  ref          TEXT
);
CREATE TABLE shipments (
  id       INTEGER PRIMARY KEY,
  order_id INTEGER NOT NULL REFERENCES orders (id),
  carrier  TEXT NOT NULL,
  tracking TEXT,
  sent     TEXT,
  arrived  TEXT
);
CREATE TABLE reviews (
  id          INTEGER PRIMARY KEY,
  product_id  INTEGER NOT NULL REFERENCES products (id),
  customer_id INTEGER REFERENCES customers (id),  -- NULL: the customer asked to be forgotten
  stars       INTEGER NOT NULL,
  title       TEXT,
  body        TEXT,
  visible     TEXT,
  written     TEXT NOT NULL
);
CREATE INDEX orders_by_customer ON orders (customer_id);
CREATE INDEX items_by_product ON order_items (product_id);
"""

COUNTRIES = [
    ("at", "Österreich", "Y"), ("au", "Australia", "N"), ("be", "België", "Y"),
    ("br", "Brasil", "N"), ("ca", "Canada", "N"), ("ch", "Schweiz", "N"),
    ("ci", "Côte d'Ivoire", "N"), ("cz", "Česko", "Y"), ("de", "Deutschland", "Y"),
    ("dk", "Danmark", "Y"), ("es", "España", "Y"), ("fi", "Suomi", "Y"),
    ("fr", "France", "Y"), ("gb", "United Kingdom", "N"), ("gr", "Ελλάδα", "Y"),
    ("ie", "Éire", "Y"), ("in", "भारत", "N"), ("is", "Ísland", "N"), ("it", "Italia", "Y"),
    ("jp", "日本", "N"), ("nl", "Nederland", "Y"), ("no", "Norge", "N"), ("nz", "Aotearoa", "N"),
    ("pl", "Polska", "Y"), ("pt", "Portugal", "Y"), ("se", "Sverige", "Y"),
    ("tr", "Türkiye", "N"), ("ua", "Україна", "N"), ("us", "United States", "N"),
    ("vn", "Việt Nam", "N"),
]
GIVEN = [
    "Anna", "Jörg", "Siobhán", "Łukasz", "Zoë", "María José", "Jean-Luc", "Ingrid", "Øyvind",
    "Thị Hương", "Wei", "Олена", "Γιώργος", "Aïcha", "Björk", "D'Arcy", "Ravi", "Emre", "Chloé",
    "Tom", "Priya", "Mateusz", "Renée", "Åsa", "小龍", "花子", "Ann Marie", "Noël", "Ewan", "Ruth",
]
FAMILY = [
    "Müller", "O'Brien", "Nguyễn", "García", "Smith", "Kowalski", "Åberg", "Ferreira",
    "Lefèvre", "Шевченко", "Παπαδόπουλος", "Yılmaz", "Guðmundsdóttir", "Patel", "李", "山田",
    "Lloyd-Jones", "D'Angelo", "Novák", "Jansen", "Virtanen", "Sørensen", "Rossi", "Weiß", "Quirk",
    "Null", "Test", "Fitzgerald", "N'Diaye", "Ó Súilleabháin",
]
SINGLE = ["Prince", "Sukarno", "Björk", "Teller", "Suharto"]
STREETS = [
    "Hauptstraße", "Rue de l'Église", "High Street", "Via Roma", "Calle Mayor", "Storgatan",
    "ul. Długa", "Kerkstraat", "Treidelweg", "Lock Lane", 'Passage "Le Canal"', "Λεωφ. Κηφισίας",
]
CITIES = [
    "Köln", "Paris", "Leeds", "Málaga", "Göteborg", "Łódź", "'s-Hertogenbosch", "Αθήνα",
    "São Paulo", "Zürich", "Galway", "Plzeň", "Turku", "Reykjavík", "L'Aquila", "大阪",
]
WORDS = [
    "brass", "canal", "rope", "lantern", "kettle", "anchor", "tar", "linen", "oak", "copper",
    "windlass", "tiller", "bilge", "barge", "fender", "cleat", "stove", "enamel", "wool", "cork",
]
NOUNS = ["lamp", "mug", "hook", "chain", "box", "coat", "map", "knife", "pump", "bell", "rug"]
NOTES = [
    None, None, None, None, None, "", "Please ring twice", 'Label it "fragile"', "it's a gift 🎁",
    "Leave with neighbour;\nnot before 5 pm", "100% sure, no returns", "C:\\temp\\label.pdf",
    "Tür hinten", "first line\r\nsecond line", "a\tb", "NULL", "-- drop it off --",
]
BODIES = [
    None, "", "Works.", "Does what it says.\n\nWould buy again.", 'My "favourite" kettle!',
    "Trop cher…", "とても良い", "5 ★ out of 5", "broke after 2 days :'(", "path: C:\\new\\table",
    "end of data:\n\\.\nnot really", "50% off; 100% fun", "😀👍🏽",
]
FIRST_DAY = datetime.datetime(2009, 3, 1)
DAYS = 5800


def moment(day, rng):
    """A moment within `day`, as the newer parts of the shop write it."""
    at = FIRST_DAY + datetime.timedelta(days=day, seconds=rng.randrange(86_400))
    return at.strftime("%Y-%m-%d %H:%M:%S")


def day_only(day):
    """A day, as the shop wrote it before 2014."""
    return (FIRST_DAY + datetime.timedelta(days=day)).strftime("%d.%m.%Y")


def person(rng):
    if rng.random() < 0.01:
        return rng.choice(SINGLE)
    given, family = rng.choice(GIVEN), rng.choice(FAMILY)
    # The old form had one field and the hint "Family, Given". Not everybody read it.
    if rng.random() < 0.6 or " " in family:
        return f"{family}, {given}"
    return f"{given} {family}"


def customers(rng, count):
    for key in range(1, count + 1):
        day = (key - 1) * (DAYS - 200) // count
        email = f"c{key}@example.{rng.choice(['com', 'org', 'net'])}"
        created = day_only(day) if day < 1800 else moment(day, rng)
        yield (
            key, person(rng), rng.choice([email] * 18 + [None, ""]),
            rng.choice([None, "", f"+49 221 {rng.randrange(10**6):06}", f"0{rng.randrange(10**8)}"]),
            rng.choice(["Y", "N", "N", None]), rng.choice([0] * 30 + [None] * 8 + [1]),
            None if rng.random() < 0.02 else rng.choice(COUNTRIES)[0], created,
        )


def addresses(rng, count, customer_count):
    for key in range(1, count + 1):
        # Every customer gets one address before anybody gets a second.
        owner = key if key <= customer_count else rng.randint(1, customer_count)
        yield (
            key, owner, rng.choice("BBS"), f"{rng.choice(STREETS)} {rng.randint(1, 240)}",
            rng.choice([None, f"{rng.randrange(100_000):05}", f"SW{rng.randint(1, 9)} 4LQ"]),
            rng.choice(CITIES), rng.choice(COUNTRIES)[0],
        )


def categories(rng, count):
    """A tree; ids are shuffled, so that some parents come after their children."""
    ids = list(range(1, count + 1))
    rng.shuffle(ids)
    for place, key in enumerate(ids):
        parent = None if place < 6 else ids[rng.randrange(min(place, 40))]
        name = f"{rng.choice(WORDS).title()} & {rng.choice(NOUNS)}s"
        yield key, parent, name, place


def products(rng, count, category_count):
    for key in range(1, count + 1):
        day = key * (DAYS - 400) // count
        title = f"{rng.choice(WORDS).title()} {rng.choice(NOUNS)} {rng.choice(['', 'no. 2', '12″', 'XL'])}"
        yield (
            key, f"TP-{key:05}", rng.randint(1, category_count), title.strip(),
            rng.choice([None, "", f"A {rng.choice(WORDS)} thing.\nHand-made."]),
            rng.choice([0, rng.randint(1, 99), rng.randint(100, 9_999), rng.randint(10_000, 250_000)]),
            rng.choice([None, rng.randint(5, 40_000)]), "Y" if rng.random() < 0.85 else "N",
            day_only(day) if day < 1800 else moment(day, rng),
        )


def product_suppliers(rng, product_count, supplier_count):
    for key in range(1, product_count + 1):
        for supplier in sorted(rng.sample(range(1, supplier_count + 1), rng.choice([1, 1, 2, 3]))):
            yield key, supplier, rng.randint(1, 90_000)


def sales(rng, count, customer_count, addresses_of, prices):
    """Orders with their items, payments and shipments, which must agree with each other."""
    orders, items, payments, shipments = [], [], [], []
    for key in range(1, count + 1):
        customer = rng.randint(1, customer_count)
        home = addresses_of[customer]
        state = rng.choice([0, 1, 2, 3, 4, 4, 4, 4, 4, 9])
        day = key * (DAYS - 30) // count
        ordered = day_only(day) if day < 1800 else moment(day, rng)
        total = 0
        for line in range(1, rng.choice([0, 1, 1, 2, 2, 3, 4, 6]) + 1):
            product = rng.randint(1, len(prices))
            qty, off = rng.choice([1, 1, 1, 2, 3, 12]), rng.choice([None, None, None, 0, 5, 10])
            price = prices[product - 1]
            total += qty * price * (100 - (off or 0)) // 100
            items.append((key, line, product, qty, price, off))
        ship = rng.choice(home) if state else None
        orders.append((key, customer, home[0] if state else None, ship, ordered, state,
                       rng.choice(NOTES), total))
        if state in (2, 3, 4):
            paid = None if rng.random() < 0.02 else moment(min(day + rng.randint(0, 20), DAYS), rng)
            payments.append((len(payments) + 1, key, rng.choice(["cc", "pp", "in"]), total, paid,
                             rng.choice([None, f"R{rng.randrange(10**9):09}"])))
            if rng.random() < 0.03:
                payments.append((len(payments) + 1, key, "cc", -total, moment(day + 25, rng), None))
        if state in (3, 4):
            arrived = moment(day + rng.randint(2, 9), rng) if state == 4 else None
            shipments.append((len(shipments) + 1, key, rng.choice(["DHL", "La Poste", "Barge & Co"]),
                              rng.choice([None, f"{rng.randrange(10**12):012}"]),
                              moment(day + 1, rng), arrived))
    return orders, items, payments, shipments


def reviews(rng, count, product_count, customer_count):
    for key in range(1, count + 1):
        yield (
            key, rng.randint(1, product_count),
            None if rng.random() < 0.05 else rng.randint(1, customer_count),
            rng.randint(1, 5), rng.choice([None, "", "Great", "Hm…", '"meh"', "don't"]),
            rng.choice(BODIES), rng.choice(["Y", "Y", "Y", "N", None]),
            moment(key * DAYS // count, rng),
        )


def fill(db, rng, scale):
    def count(base):
        return max(4, int(base * scale))

    def insert(table, rows):
        rows = list(rows)
        db.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
        return rows

    customer_count, product_count = count(6_000), count(2_400)
    supplier_count, category_count = count(180), count(120)
    insert("countries", COUNTRIES)
    insert("customers", customers(rng, customer_count))
    addresses_of = {}
    for row in insert("addresses", addresses(rng, count(9_000), customer_count)):
        addresses_of.setdefault(row[1], []).append(row[0])
    insert("categories", categories(rng, category_count))
    insert("suppliers", (
        (key, f"{rng.choice(FAMILY)} & {rng.choice(['Sons', 'Söhne', 'Fils'])}",
         rng.choice([None, "", person(rng)]), rng.choice(COUNTRIES)[0])
        for key in range(1, supplier_count + 1)
    ))
    prices = [row[5] for row in insert("products", products(rng, product_count, category_count))]
    insert("product_suppliers", product_suppliers(rng, product_count, supplier_count))
    sold = sales(rng, count(14_000), customer_count, addresses_of, prices)
    for table, rows in zip(("orders", "order_items", "payments", "shipments"), sold):
        insert(table, rows)
    insert("reviews", reviews(rng, count(7_000), product_count, customer_count))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="work/shop.db", help="the file to write")
    parser.add_argument("--seed", type=int, default=1849)
    parser.add_argument("--scale", type=float, default=1.0, help="1.0 is about 100,000 rows")
    parser.add_argument("--force", action="store_true", help="write it again if it is there")
    args = parser.parse_args()
    if os.path.exists(args.out) and not args.force:
        print(f"{args.out} is there already")
        return 0
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    # Under another name first: whoever finds the file finds all of it.
    draft = f"{args.out}.draft"
    for leftover in (draft, f"{draft}-journal"):
        if os.path.exists(leftover):
            os.remove(leftover)
    db = sqlite3.connect(draft)
    db.execute("PRAGMA foreign_keys = ON")
    db.executescript(SCHEMA)
    fill(db, random.Random(args.seed), args.scale)
    db.execute("PRAGMA user_version = 1")
    db.commit()
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = sum(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)
    db.close()
    os.replace(draft, args.out)
    print(f"{args.out}: {len(tables)} tables, {rows} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
