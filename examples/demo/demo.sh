#!/bin/sh
# The jobs of the demo: five CSV tables in old/ become five tables of another layout in new/, and
# the cutover makes them live/. POSIX sh and awk, so that it runs on any machine.
#
# A job works in a file of its own attempt and renames it at the end. So it may be killed at any
# moment and run again, and an attempt that was given up cannot spoil the next one.
set -eu
LC_ALL=C
export LC_ALL

TABLES="customers categories products orders order_items"
job=$1
attempt=${TOW_ATTEMPT:-1}
draft="draft.$$.$attempt"
trap 'rm -rf "$draft"' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

fail() {
  echo "$*" >&2
  exit 1
}

# Stands for the time that a real copy takes. Not every sleep knows fractions.
pause() {
  sleep "$1" 2>/dev/null || sleep 1
}

# Called when the work is done and before it shows. If the worker was killed meanwhile, somebody
# else will do this job, and this attempt must leave no trace. (The jobs say `exec`, so that the
# parent is the worker and not a shell in between.)
wanted_still() {
  kill -0 "$PPID" 2>/dev/null || fail "the worker is gone"
}

# One line in one write, at the very end.
done_with() {
  printf '%s %s\n' "$1" "$attempt" >> ran.log
}

output() {
  if [ -n "${TOW_OUTPUT:-}" ]; then
    printf '%s\n' "$1" >> "$TOW_OUTPUT"
  fi
}

# Rows of a table without its heading; 0 if it is not there.
rows() {
  if [ -f "$1" ]; then
    awk 'END { print (NR > 0 ? NR - 1 : 0) }' "$1"
  else
    echo 0
  fi
}

generate() {
  mkdir "$draft"
  # The same numbers everywhere: awk's own rand() differs from awk to awk.
  awk -v folder="$draft" '
    function draw(n) { seed = (seed * 16807) % 2147483647; return seed % n }
    function day(n) { return sprintf("%02d.%02d.%04d", n % 28 + 1, int(n / 28) % 12 + 1, 2009 + int(n / 336)) }
    function write(table, line) { print line > (folder "/" table ".csv") }
    BEGIN {
      seed = 1849
      givens = split("Anna Jörg Siobhán Łukasz Zoë Wei Олена Aïcha Ravi Chloé Åsa Ruth", given, " ")
      families = split("Müller O'\''Brien Nguyễn García Kowalski Åberg Patel Null Quirk Weiß", family, " ")
      things = split("lamp mug hook chain box coat map knife pump bell", thing, " ")
      colours = split("brass tarred oak copper linen enamel", colour, " ")

      write("customers", "id,name,newsletter,joined")
      for (i = 1; i <= 120; i++)
        write("customers", i "," given[draw(givens) + 1] " " family[draw(families) + 1] "," (draw(3) ? "N" : "Y") "," day(i * 30))

      write("categories", "id,name")
      for (i = 1; i <= things; i++) write("categories", i "," thing[i] "s")

      write("products", "id,category_id,title,price_cents,active")
      for (i = 1; i <= 80; i++) {
        of = draw(things) + 1
        price[i] = draw(9) ? 95 + draw(20000) : draw(95)
        write("products", i "," of "," colour[draw(colours) + 1] " " thing[of] "," price[i] "," (draw(6) ? "Y" : "N"))
      }

      write("orders", "id,customer_id,ordered,state,total_cents")
      write("order_items", "order_id,line,product_id,qty,price_cents")
      for (i = 1; i <= 240; i++) {
        total = 0
        lines = draw(4)
        for (line = 1; line <= lines; line++) {
          product = draw(80) + 1
          qty = 1 + draw(3)
          total += qty * price[product]
          write("order_items", i "," line "," product "," qty "," price[product])
        }
        write("orders", i "," (draw(120) + 1) "," day(i * 15) "," draw(4) "," total)
      }
    }'
  pause 0.3
  sum=0
  for table in $TABLES; do
    sum=$((sum + $(rows "$draft/$table.csv")))
  done
  wanted_still
  rm -rf old
  mv "$draft" old
  echo "old/: 5 tables, $sum rows"
  output "rows=$sum"
  done_with generate
}

preflight() {
  [ ! -d live ] || fail "live/ is there already: this shop has moved"
  for table in $TABLES; do
    [ "$(rows "old/$table.csv")" -gt 0 ] || fail "old/$table.csv is missing or empty"
  done
  odd=$(awk -F, 'FNR > 1 && $4 !~ /^[0-9][0-9]\.[0-9][0-9]\.[0-9][0-9][0-9][0-9]$/' old/customers.csv)
  [ -z "$odd" ] || fail "customers whose date cannot be read: $odd"
  pause 0.3
  wanted_still
  mkdir -p new
  echo "5 tables, every row can be converted"
  done_with preflight
}

# The new heading of a table, and how long its copy takes.
heading() {
  case $1 in
  customers) echo "id,given_name,family_name,wants_newsletter,joined_on" ;;
  categories) echo "id,name,slug" ;;
  products) echo "id,category_id,title,price,is_active" ;;
  orders) echo "id,customer_id,ordered_on,status,total" ;;
  order_items) echo "order_id,line_number,product_id,quantity,unit_price" ;;
  *) fail "there is no table $1" ;;
  esac
}

duration() {
  case $1 in
  customers | categories) echo 0.5 ;;
  order_items) echo 0.8 ;;
  *) echo 0.6 ;;
  esac
}

# Names are split, dates become ISO 8601, Y/N becomes 1/0, cents become decimals, states get names.
copy() {
  table=$1
  heading "$table" > "$draft"
  awk -F, -v OFS=, -v table="$table" '
    function flag(x) { return x == "Y" ? 1 : 0 }
    function money(cents) { return sprintf("%d.%02d", int(cents / 100), cents % 100) }
    function iso(day) { return substr(day, 7, 4) "-" substr(day, 4, 2) "-" substr(day, 1, 2) }
    BEGIN { split("cart placed sent done", status, " ") }
    FNR == 1 { next }
    table == "customers" {
      blank = index($2, " ")
      print $1, substr($2, 1, blank - 1), substr($2, blank + 1), flag($3), iso($4)
    }
    table == "categories" { print $1, $2, "all-" $2 }
    table == "products" { print $1, $2, $3, money($4), flag($5) }
    table == "orders" { print $1, $2, iso($3), status[$4 + 1], money($5) }
    table == "order_items" { print $1, $2, $3, $4, money($5) }
  ' "old/$table.csv" >> "$draft"
  pause "$(duration "$table")"
  count=$(rows "$draft")
  wanted_still
  mv "$draft" "new/$table.csv"
  echo "$table: $count rows"
  output "rows=$count"
  done_with "copy-$(echo "$table" | tr _ -)"
}

check_counts() {
  pause 0.3
  wrong=
  printf '%-14s%8s%8s\n' table source target
  for table in $TABLES; do
    source=$(rows "old/$table.csv")
    target=$(rows "new/$table.csv")
    verdict=ok
    if [ "$source" -ne "$target" ]; then
      verdict=DIFFERENT
      wrong="$wrong $table"
    fi
    printf '%-14s%8d%8d  %s\n' "$table" "$source" "$target" "$verdict"
  done
  [ -z "$wrong" ] || fail "row counts differ in:$wrong"
  done_with check-counts
}

# Every reference of the child's column finds a row of the parent.
refers() {
  awk -F, -v column="$2" -v what="$1 -> $3" '
    FNR == 1 { file++; next }
    file == 1 { known[$1]; next }
    !($column in known) { dangling++ }
    END {
      print what ": " (dangling ? dangling " point at nothing" : "ok")
      exit dangling > 0
    }
  ' "new/$3.csv" "new/$1.csv" || broken=1
}

check_references() {
  pause 0.4
  broken=0
  refers products 2 categories
  refers orders 2 customers
  refers order_items 1 orders
  refers order_items 3 products
  [ "$broken" -eq 0 ] || fail "there are rows that point at nothing"
  done_with check-references
}

# Money is compared in whole cents: what the orders say now, what they said, and what their items
# add up to.
check_totals() {
  pause 0.4
  [ "$(rows new/orders.csv)" -eq "$1" ] || fail "the copy reported $1 orders, there are $(rows new/orders.csv)"
  before=$(awk -F, 'FNR > 1 { sum += $5 } END { printf "%d", sum }' old/orders.csv)
  after=$(awk -F, 'FNR > 1 { sum += int($5 * 100 + 0.5) } END { printf "%d", sum }' new/orders.csv)
  items=$(awk -F, 'FNR > 1 { sum += $4 * int($5 * 100 + 0.5) } END { printf "%d", sum }' new/order_items.csv)
  echo "orders before $before, orders now $after, items now $items"
  [ "$before" -eq "$after" ] || fail "the orders are not worth what they were"
  [ "$after" -eq "$items" ] || fail "the items do not add up to the orders"
  output "cents=$after"
  done_with check-totals
}

cutover() {
  pause 0.3
  if [ ! -d live ]; then
    echo "version 2" > new/VERSION
    wanted_still
    mv new live
  fi
  echo "live/ is live"
  done_with cutover
}

shift
case $job in
generate | preflight | copy | cutover) "$job" "$@" ;;
check-counts) check_counts ;;
check-references) check_references ;;
check-totals) check_totals "$@" ;;
*) fail "there is no job $job" ;;
esac
