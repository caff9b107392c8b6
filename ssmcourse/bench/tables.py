"""Results as tables: for the terminal, and for the README.

A ratio is a time divided by ours: above 1 the other one takes longer. It is of CPU time where there is one
thread, of wall time where there are more. Only valid peers are compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ssmcourse.bench.operators import OPERATORS, Operator, Promise

Case = dict[str, Any]
Row = dict[str, Any]
DIRECTIONS = {"forward": "forward", "both": "with backward"}


def clock(case: Case) -> str:
    """Which of the two times counts."""
    return "cpu_ms" if case["threads"] == 1 else "wall_ms"


def ours(case: Case) -> Row:
    """The row of our best backend: the first."""
    return next(row for row in case["rows"] if row["kind"] == "ours")


def time_of(case: Case, row: Row, direction: str) -> float | None:
    """Milliseconds of a row, where it ran and was right."""
    part = row.get(direction, {})
    return part.get(clock(case)) if part.get("valid") else None


def best_peer(case: Case, direction: str, against: str = "") -> tuple[str, float] | None:
    """The quickest valid rival and how many times as long as ours it takes.

    Args:
        against: the name of a peer; or "torch" or "jax"; or "as ours", those whose arrays lie as ours do;
            empty: anyone.
    """
    mine = time_of(case, ours(case), direction)
    times = [
        (time, row["name"])
        for row in case["rows"]
        if row["kind"] != "ours" and against in ("", row["name"], row["kind"], _lies(row))
        if (time := time_of(case, row, direction)) is not None
    ]
    if mine is None or not times:
        return None
    time, name = min(times)
    return name, time / mine


def _lies(row: Row) -> str:
    return "as it likes" if row["turned"] else "as ours"


def of_limit(case: Case, direction: str) -> float | None:
    """How many times the machine's limit our best backend takes."""
    limit, mine = case["limits"].get(direction, {}).get("ms"), time_of(case, ours(case), direction)
    return mine / limit if limit and mine is not None else None


def speed_up(case: Case, direction: str) -> float | None:
    """Of our best backend: wall time on one thread over that on the case's threads."""
    part = ours(case).get(direction, {})
    alone, together = part.get("one_thread_wall_ms"), part.get("wall_ms")
    return alone / together if alone and together else None


def number(value: float | None, digits: int = 2) -> str:
    """Two significant digits and no exponent; a dash for nothing."""
    if value is None:
        return "–"
    if value >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


# --- For the terminal ----------------------------------------------------------------------------


def terminal(result: dict[str, Any]) -> Iterator[Any]:
    """What `ssmcourse bench` prints of one operator: rich tables and texts."""
    from rich.text import Text

    for piece in _pieces(result):
        yield Text(piece) if isinstance(piece, str) else piece


def _pieces(result: dict[str, Any]) -> Iterator[Any]:
    for case in result["cases"]:
        yield _case_table(result, case)
        yield from _verdicts(case)
    missing = {name: package for case in result["cases"] for name, package in case["missing"].items()}
    if missing:
        yield f"not installed: {'; '.join(missing)} (pip install 'ssmcourse[bench]')"
    if result["scaling"]:
        yield _scaling_line(result["scaling"])
    if result["memory"]:
        yield _memory_table(result)
    yield from (f"failed: {line}" for line in result["failed"])
    yield from (f"warning: {line}" for line in result["warnings"])
    yield ""


def _case_table(result: dict[str, Any], case: Case) -> Any:
    from rich.table import Table

    sizes = ", ".join(f"{n:,}" for n in case["sizes"])
    threads = f"{case['threads']} thread{'s'[: case['threads'] > 1]}"
    title = f"{result['operator']}  {result['letters']} = {sizes}, {result['dtype']}, {threads}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in DIRECTIONS.values():
        if name == "forward" or "both" in case["limits"]:
            table.add_column(f"{name}\nms", justify="right")
            table.add_column("\n× ours", justify="right")
            table.add_column("\nerror", justify="right")
    for row in case["rows"]:
        style = {"ours": "bold"}.get(row["kind"], "")
        cells = [cell for direction in case["limits"] for cell in _cells(case, row, direction)]
        table.add_row(row["name"], *cells, style=style)
    limits = [cell for d in case["limits"] for cell in (number(case["limits"][d].get("ms"), 3), "", "")]
    table.add_row("limit of the machine", *limits, style="dim")
    return table


def _cells(case: Case, row: Row, direction: str) -> tuple[str, str, str]:
    part = row.get(direction, {})
    if "error" not in part:
        return ("failed" if "failed" in row or "failed" in part else "–", "", "")
    time, mine = part.get(clock(case)), time_of(case, ours(case), direction)
    ratio = number(time / mine) if time is not None and mine else "–"
    shown = "O(l²)" if "left_out" in part else number(time, 3)
    return shown, ratio if part["valid"] else "invalid", f"{part['error']:.0e}"


def _verdicts(case: Case) -> Iterator[str]:
    for direction, words in DIRECTIONS.items():
        if direction not in case["limits"]:
            continue
        found, limit, gain = best_peer(case, direction), of_limit(case, direction), speed_up(case, direction)
        parts = [f"the best peer, {found[0]}, takes {number(found[1])} times as long"] if found else []
        if limit is not None:
            by = case["limits"][direction]["by"]
            parts.append(f"ours takes {number(limit)} times the machine's limit ({by})")
        if gain is not None:
            parts.append(f"{number(gain)} times as quick as on one thread")
        if parts:
            yield f"{words}: {'; '.join(parts)}"
    rates = case["limits"]["forward"]
    yield (
        f"machine: copy {rates['copy_gb_s']:.0f} GB/s, sgemm {rates['sgemm_gflop_s']:.0f} GFLOP/s, "
        f"exp {rates['exp_g_s']:.1f} G/s"
    )


def _scaling_line(scaling: dict[str, Any]) -> str:
    short, long = scaling["lengths"]
    parts = [
        f"{words} {number(scaling[d]['ratio'], 3)} times, moving {100 * scaling[d]['of_copy_bandwidth']:.0f} % "
        "of the bytes that a copy moves"
        for d, words in DIRECTIONS.items()
        if d in scaling
    ]
    return f"a step at l = {long:,} against one at {short:,}: {'; '.join(parts)}"


def _memory_table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    title = f"{result['operator']}, peak memory of forward with backward"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("", result["letters"], "MB", "× inputs, outputs, gradients"):
        table.add_column(name, justify="right" if "M" in name or "×" in name else "left")
    for m in result["memory"]:
        sizes = ", ".join(f"{n:,}" for n in m["sizes"])
        table.add_row(m["who"], sizes, number(m["mb"], 3), number(m["ratio"]))
    return table


# --- For the README ------------------------------------------------------------------------------


def readme(results: Mapping[str, dict[str, Any]]) -> str:
    """The tables of the README's performance section, in Markdown, from the stored results."""
    if not results:
        return "Nothing has been measured yet.\n"
    lines = [
        "| operator (sizes) | ours, ms | a peer takes, times ours | aim: at least; best | ours takes, times the machine's limit | errors: ours; best peer |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        op = OPERATORS[name]
        lines += [_readme_row(op, case) for case in result["cases"] if case["threads"] == 1]
    lines += ["", *_readme_more(results)]
    dates = sorted({result["date"] for result in results.values()})
    machines = sorted({result["machine"] for result in results.values()})
    lines += ["", f"Measured {' and '.join(dates)} on: {'; '.join(machines)}."]
    return "\n".join(lines) + "\n"


def _readme_row(op: Operator, case: Case) -> str:
    directions = list(case["limits"])
    times = " / ".join(number(time_of(case, ours(case), d), 3) for d in directions)
    promises = op.cases.get(tuple(case["sizes"]), ()) or (Promise(),)
    peers = "; ".join(_against(case, directions, promise) for promise in promises)
    aims = "; ".join(map(_aim, promises))
    limits = [of_limit(case, d) for d in directions]
    within = " / ".join(map(number, limits)) if any(limits) else "–"
    most = next((f" (aim {p.limit[0]} / {p.limit[1]})" for p in promises if p.limit), "")
    return f"| `{op.name}` ({_sizes(op, case)}) | {times} | {peers} | {aims} | {within}{most} | {_errors(case)} |"


def _aim(promise: Promise) -> str:
    pairs = ((promise.forward, promise.both), promise.aim)
    texts = [" / ".join(f"{v:g}" for v in pair if v is not None) for pair in pairs]
    return " and ".join(text for text in texts if text) or "–"


def _sizes(op: Operator, case: Case) -> str:
    return ", ".join(f"{letter} {n:,}" for letter, n in zip(op.letters.split(), case["sizes"], strict=True))


def _against(case: Case, directions: Iterable[str], promise: Promise) -> str:
    found = [best_peer(case, d, promise.against) for d in directions]
    names = list(dict.fromkeys(f[0] for f in found if f))
    ratios = " / ".join(number(f[1] if f else None) for f in found)
    return f"{ratios} ({' / '.join(names) or 'no valid peer'})"


def _errors(case: Case) -> str:
    found = best_peer(case, "forward")
    rows = [ours(case), *(row for row in case["rows"] if found and row["name"] == found[0])]
    return "; ".join(f"{row['forward']['error']:.0e}" for row in rows if "error" in row.get("forward", {}))


def _readme_more(results: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Two threads, long sequences, memory."""
    yield "| operator | two threads, times as quick | a step at l = 65,536 against 4,096 | peak memory with backward |"
    yield "|---|---|---|---|"
    for name, result in results.items():
        gains = [speed_up(case, d) for case in result["cases"] for d in case["limits"]]
        gains = [gain for gain in gains if gain is not None]
        two = number(min(gains)) + (f" to {number(max(gains))}" if len(gains) > 1 else "") if gains else "–"
        scaling = result["scaling"]
        steps = " / ".join(number(scaling[d]["ratio"], 3) for d in DIRECTIONS) if scaling else "–"
        if scaling and OPERATORS[name].by_memory:
            shares = " / ".join(f"{100 * scaling[d]['of_copy_bandwidth']:.0f} %" for d in DIRECTIONS)
            steps += f", moving {shares} of what a copy moves"
        yield f"| `{name}` | {two} | {steps} | {_readme_memory(result)} |"


def _readme_memory(result: dict[str, Any]) -> str:
    weighed, parts = result["memory"], []
    for sizes in dict.fromkeys(tuple(m["sizes"]) for m in weighed):
        here = [m for m in weighed if tuple(m["sizes"]) == sizes]
        mine = here[0]
        text = f"{number(mine['mb'], 3)} MB, {number(mine['ratio'])} times what goes in and out"
        rivals = [m for m in here[1:] if not m["who"].startswith("ours")]
        named = OPERATORS[result["operator"]].memory_of
        for m in sorted(rivals, key=lambda m: m["mb"]):
            if m["who"] in named or m["mb"] == min(r["mb"] for r in rivals):
                text += f"; {m['who']} {number(m['mb'], 3)} MB"
        parts.append(f"({', '.join(f'{n:,}' for n in sizes)}): {text}")
    return "<br>".join(parts) or "–"
