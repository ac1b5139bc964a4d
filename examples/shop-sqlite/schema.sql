-- The new shop, for SQLite. Safe to run again.
--
-- Money is a decimal in text, because SQLite has no exact decimal and cents were forever being
-- forgotten. Flags are 0 or 1. Moments are ISO 8601 in UTC. `migrated_at` is when a row was last
-- written by the migration.
CREATE TABLE IF NOT EXISTS countries (
  code        TEXT PRIMARY KEY CHECK (code = upper(code) AND length(code) = 2),
  name        TEXT NOT NULL,
  in_eu       INTEGER NOT NULL CHECK (in_eu IN (0, 1)),
  migrated_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS categories (
  id          INTEGER PRIMARY KEY,
  parent_id   INTEGER REFERENCES categories (id) DEFERRABLE INITIALLY DEFERRED,
  name        TEXT NOT NULL,
  sort_order  INTEGER NOT NULL,
  migrated_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS customers (
  id               INTEGER PRIMARY KEY,
  given_name       TEXT,
  family_name      TEXT NOT NULL,
  email            TEXT CHECK (email <> ''),
  phone            TEXT CHECK (phone <> ''),
  wants_newsletter INTEGER NOT NULL CHECK (wants_newsletter IN (0, 1)),
  is_blocked       INTEGER NOT NULL CHECK (is_blocked IN (0, 1)),
  country_code     TEXT REFERENCES countries (code),
  created_at       TEXT NOT NULL CHECK (created_at GLOB '????-??-??T??:??:??Z'),
  migrated_at      TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS suppliers (
  id           INTEGER PRIMARY KEY,
  name         TEXT NOT NULL,
  contact      TEXT CHECK (contact <> ''),
  country_code TEXT REFERENCES countries (code),
  migrated_at  TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS addresses (
  id           INTEGER PRIMARY KEY,
  customer_id  INTEGER NOT NULL REFERENCES customers (id),
  kind         TEXT NOT NULL CHECK (kind IN ('billing', 'shipping')),
  street       TEXT NOT NULL,
  postal_code  TEXT,
  city         TEXT NOT NULL,
  country_code TEXT NOT NULL REFERENCES countries (code),
  migrated_at  TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS products (
  id           INTEGER PRIMARY KEY,
  sku          TEXT NOT NULL UNIQUE,
  category_id  INTEGER NOT NULL REFERENCES categories (id),
  title        TEXT NOT NULL,
  description  TEXT,
  price        TEXT NOT NULL CHECK (price GLOB '*[0-9].[0-9][0-9]'),
  weight_grams INTEGER,
  is_active    INTEGER NOT NULL CHECK (is_active IN (0, 1)),
  added_at     TEXT NOT NULL CHECK (added_at GLOB '????-??-??T??:??:??Z'),
  migrated_at  TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS product_suppliers (
  product_id  INTEGER NOT NULL REFERENCES products (id),
  supplier_id INTEGER NOT NULL REFERENCES suppliers (id),
  cost        TEXT NOT NULL CHECK (cost GLOB '*[0-9].[0-9][0-9]'),
  migrated_at TEXT NOT NULL,
  PRIMARY KEY (product_id, supplier_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS orders (
  id                  INTEGER PRIMARY KEY,
  customer_id         INTEGER NOT NULL REFERENCES customers (id),
  billing_address_id  INTEGER REFERENCES addresses (id),
  shipping_address_id INTEGER REFERENCES addresses (id),
  ordered_at          TEXT NOT NULL CHECK (ordered_at GLOB '????-??-??T??:??:??Z'),
  status              TEXT NOT NULL
    CHECK (status IN ('cart', 'placed', 'paid', 'sent', 'done', 'cancelled')),
  note                TEXT,
  total               TEXT NOT NULL CHECK (total GLOB '*[0-9].[0-9][0-9]'),
  migrated_at         TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS order_items (
  order_id         INTEGER NOT NULL REFERENCES orders (id),
  line_number      INTEGER NOT NULL CHECK (line_number > 0),
  product_id       INTEGER NOT NULL REFERENCES products (id),
  quantity         INTEGER NOT NULL CHECK (quantity > 0),
  unit_price       TEXT NOT NULL CHECK (unit_price GLOB '*[0-9].[0-9][0-9]'),
  discount_percent INTEGER NOT NULL CHECK (discount_percent BETWEEN 0 AND 100),
  migrated_at      TEXT NOT NULL,
  PRIMARY KEY (order_id, line_number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS payments (
  id          INTEGER PRIMARY KEY,
  order_id    INTEGER NOT NULL REFERENCES orders (id),
  method      TEXT NOT NULL CHECK (method IN ('card', 'wallet', 'invoice')),
  amount      TEXT NOT NULL CHECK (amount GLOB '*[0-9].[0-9][0-9]'),
  paid_at     TEXT,
  reference   TEXT,
  migrated_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS shipments (
  id            INTEGER PRIMARY KEY,
  order_id      INTEGER NOT NULL REFERENCES orders (id),
  carrier       TEXT NOT NULL,
  tracking_code TEXT,
  sent_at       TEXT,
  delivered_at  TEXT,
  migrated_at   TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS reviews (
  id          INTEGER PRIMARY KEY,
  product_id  INTEGER NOT NULL REFERENCES products (id),
  customer_id INTEGER REFERENCES customers (id),
  rating      INTEGER NOT NULL CHECK (rating BETWEEN 1 AND 5),
  title       TEXT,
  body        TEXT,
  is_visible  INTEGER NOT NULL CHECK (is_visible IN (0, 1)),
  written_at  TEXT NOT NULL,
  migrated_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS schema_version (
  version        INTEGER PRIMARY KEY,
  source_version INTEGER NOT NULL,
  live_since     TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS addresses_by_customer ON addresses (customer_id);
CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer_id);
CREATE INDEX IF NOT EXISTS order_items_by_product ON order_items (product_id);
CREATE INDEX IF NOT EXISTS payments_by_order ON payments (order_id);
CREATE INDEX IF NOT EXISTS shipments_by_order ON shipments (order_id);
CREATE INDEX IF NOT EXISTS reviews_by_product ON reviews (product_id);
