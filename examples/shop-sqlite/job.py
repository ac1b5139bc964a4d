"""What a job of these examples says to its surroundings: outputs, checks, exit codes.

Not here: databases.
"""

import json
import os
import sys

OK, CHECK_FAILED, NOT_READY, TRY_AGAIN = 0, 1, 3, 75
CHECKS = os.path.join("work", "checks")


def emit(**outputs):
    """Hands values to later jobs."""
    if path := os.environ.get("TOW_OUTPUT"):
        with open(path, "a", encoding="utf-8") as file:
            for name, value in outputs.items():
                file.write(f"{name}={value}\n")


def forget_checks():
    if os.path.isdir(CHECKS):
        for name in os.listdir(CHECKS):
            os.remove(os.path.join(CHECKS, name))


def keep_check(name, good, tables):
    """Leaves the result of a check for the report."""
    write_json(os.path.join(CHECKS, f"{name}.json"), {"check": name, "ok": good, "tables": tables})


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    draft = f"{path}.draft"
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
    os.replace(draft, path)


def report(path, **facts):
    """Puts all checks into one file. A check that never ran is named, not left out."""
    checks = []
    for name in ("counts", "sample", "foreign-keys"):
        try:
            with open(os.path.join(CHECKS, f"{name}.json"), encoding="utf-8") as file:
                checks.append(json.load(file))
        except FileNotFoundError:
            checks.append({"check": name, "ok": False, "tables": {}, "note": "it did not run"})
    good = all(check["ok"] for check in checks)
    write_json(path, {"ok": good, **facts, "checks": checks})
    for check in checks:
        print(f"{check['check']:<14} {'ok' if check['ok'] else check.get('note', 'FAILED')}")
    emit(ok=str(good).lower())
    return OK


def counts(rows):
    """Prints source and target counts, keeps them, and says whether they agree.

    `rows` maps a table to (source, target, a few keys that only one side has).
    """
    print(f"{'table':<18}{'source':>9}{'target':>9}")
    for table, (source, target, strays) in rows.items():
        verdict = "DIFFERENT" if strays else "ok"
        if source != target:
            verdict = f"DIFFERENT ({target - source:+})"
        print(f"{table:<18}{source:>9}{target:>9}  {verdict}")
        for stray in strays:
            print(f"{'':<18}{stray}")
    wrong = [table for table, (source, target, strays) in rows.items() if source != target or strays]
    keep_check("counts", not wrong, {
        table: {"source": source, "target": target, "strays": strays}
        for table, (source, target, strays) in rows.items()
    })
    emit(wrong=len(wrong))
    if wrong:
        print(f"row counts differ in: {', '.join(wrong)}", file=sys.stderr)
        return CHECK_FAILED
    return OK


def sample(rows):
    """As `counts`, for compared rows: maps a table to (compared, differences in words)."""
    for table, (compared, differences) in rows.items():
        print(f"{table:<18}{compared:>9} compared  {'ok' if not differences else 'DIFFERENT'}")
        for difference in differences[:5]:
            print(f"    {difference}")
        if len(differences) > 5:
            print(f"    and {len(differences) - 5} more")
    wrong = [table for table, (_, differences) in rows.items() if differences]
    compared = sum(compared for compared, _ in rows.values())
    keep_check("sample", not wrong, {
        table: {"compared": compared, "different": len(differences)}
        for table, (compared, differences) in rows.items()
    })
    emit(compared=compared, wrong=len(wrong))
    if wrong:
        print(f"sampled rows differ in: {', '.join(wrong)}", file=sys.stderr)
        return CHECK_FAILED
    return OK


def foreign_keys(rows):
    """As `counts`, for dangling references: maps a table to the number of them."""
    wrong = {table: dangling for table, dangling in rows.items() if dangling}
    for table, dangling in wrong.items():
        print(f"{table:<18}{dangling:>9} rows point at nothing")
    print(f"{len(rows)} tables checked, {sum(rows.values())} dangling references")
    keep_check("foreign-keys", not wrong, {table: {"dangling": n} for table, n in rows.items()})
    emit(dangling=sum(rows.values()))
    return CHECK_FAILED if wrong else OK


def not_ready(problems, shown=12):
    """Says why a migration must not begin."""
    for problem in problems[:shown]:
        print(f"- {problem}", file=sys.stderr)
    if len(problems) > shown:
        print(f"- and {len(problems) - shown} more", file=sys.stderr)
    print(f"not ready: {len(problems)} problem{'s' if len(problems) != 1 else ''}", file=sys.stderr)
    return NOT_READY
