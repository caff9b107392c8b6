"""Claim: the operators are the fastest, on a CPU, that one can install, and as exact as the others.

    python benchmarks/operators.py                   all of them, one after another (a quarter of an hour)
    python benchmarks/operators.py ssd linear_scan   only these
    python benchmarks/operators.py --resume          those that have not been measured today

Each has its own file, results/operators_NAME.json, written as soon as it is measured, and its table in the
README is written anew from all of them. It is `ssmcourse bench` with its results kept. Nothing is kept where a
peer is missing (`pip install -e '.[bench]'` installs them): a table without the best rival would flatter.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

from record import RESULTS, store

from ssmcourse.bench import command, promises, tables
from ssmcourse.bench.contestants import rivals
from ssmcourse.bench.operators import OPERATORS
from ssmcourse.bench.session import Plan

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- performance: written by benchmarks/operators.py -->\n", "<!-- end of performance -->\n"


def main(arguments: list[str]) -> int:
    wanted = [a for a in arguments if not a.startswith("-")] or list(OPERATORS)
    unknown = [a for a in arguments if a not in (*OPERATORS, "--resume")]
    if unknown:
        print(f"got {' '.join(unknown)}, expected --resume or some of {' '.join(OPERATORS)}", file=sys.stderr)
        return 2
    missing = sorted({package for name in wanted for package in rivals(OPERATORS[name])[1].values()})
    if missing:
        print(f"not installed: {', '.join(missing)} (pip install -e '.[bench]')", file=sys.stderr)
        return 1
    today, sound = datetime.date.today().isoformat(), True
    for name in wanted:
        if "--resume" in arguments and results().get(name, {}).get("date") == today:
            continue
        result = command.measured(name, Plan())
        store(f"operators_{name}", quiet=True, **result)
        write_readme()
        sound = sound and command.sound(result)
    broken = [f"{name} {line}" for name in wanted for line in promises.shortfalls(results()[name])]
    print("\n".join(broken or ["all that is promised holds"]))
    return 0 if sound and not broken else 1


def results() -> dict[str, dict]:
    """The stored results, operator by operator, in the order of the table."""
    paths = {name: RESULTS / f"operators_{name}.json" for name in OPERATORS}
    return {name: json.loads(p.read_text(encoding="utf-8")) for name, p in paths.items() if p.is_file()}


def write_readme() -> None:
    """Put the tables between the two marks of the README."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(before + BEGIN + tables.readme(results()) + END + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
