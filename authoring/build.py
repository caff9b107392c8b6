"""Build notebooks/, exercises/ and solutions/ from the text in authoring/ (`make build`).

    python authoring/build.py              every chapter
    python authoring/build.py 01           one chapter
    python authoring/build.py --check      run nothing; say which notebooks differ from their source

A source is a Python file in jupytext's percent format. A lesson becomes one executed notebook. An
exercise becomes two: the stub that a learner fills in, and the solution, executed. nbgrader's
markers divide them: what stands between `### BEGIN SOLUTION` and `### END SOLUTION` is left out
of the stub, `### BEGIN HIDDEN TESTS` to `### END HIDDEN TESTS` too, and the marker lines
themselves are in neither.

Two builds on one machine give the same bytes: cell ids come from the content, nothing random or
timed is stored, and the floats of figures are rounded. A cell tagged `timing` is run and its
output is not stored.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
AUTHORING = ROOT / "authoring"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
TIMEOUT = 300  # seconds for one cell

BLOCK = r"^[ \t]*### BEGIN {0}[^\n]*\n(?:.*?\n)??[ \t]*### END {0}[^\n]*(?:\n|\Z)"
SOLUTION = re.compile(
    r"^([ \t]*)### BEGIN SOLUTION[^\n]*\n(?:.*?\n)??[ \t]*### END SOLUTION[^\n]*(\n|\Z)", re.M | re.S
)
HIDDEN = re.compile(BLOCK.format("HIDDEN TESTS"), re.M | re.S)
MARKER = re.compile(r"^[ \t]*### (?:BEGIN|END) (?:SOLUTION|HIDDEN TESTS)[^\n]*(?:\n|\Z)", re.M)
STUB = r'\1raise NotImplementedError("your turn")\2'
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{32}\b")
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"


def stub_source(source: str) -> str:
    """What the learner gets: solutions replaced by a line that says whose turn it is."""
    return HIDDEN.sub("", SOLUTION.sub(STUB, source)).rstrip("\n")


def solved_source(source: str) -> str:
    """What the worked answer holds: everything but the marker lines."""
    return MARKER.sub("", source).rstrip("\n")


def notebook(source: Path, *, stub: bool = False) -> NotebookNode:
    """The notebook that `source` describes, not yet executed."""
    nb = jupytext.read(source)
    rewrite = stub_source if stub else solved_source
    seen: dict[str, int] = {}
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.source = rewrite(cell.source)
            cell.outputs, cell.execution_count = [], None
        tags = list(cell.metadata.get("tags", []))
        if "timing" in tags:
            tags.append("nbval-ignore-output")
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    nb.metadata = NotebookNode({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    nb.nbformat, nb.nbformat_minor = 4, 5
    return nb


def execute(nb: NotebookNode, folder: Path) -> None:
    """Run every cell from `folder`, then make the outputs reproducible. Progress goes to a scratch file."""
    with tempfile.TemporaryDirectory() as scratch:
        progress = str(Path(scratch) / "progress.json")
        NotebookClient(
            nb,
            timeout=TIMEOUT,
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        ).execute(env=os.environ | {"SSMCOURSE_PROGRESS": progress, "OMP_NUM_THREADS": "1"})
    nb.metadata.pop("widgets", None)
    nb.metadata["language_info"] = NotebookNode({"name": "python"})
    count = 0
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        timed = "timing" in cell.metadata.get("tags", [])
        cell.outputs = [] if timed else [o for o in map(clean_output, cell.outputs) if o]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def clean_output(output: NotebookNode) -> NotebookNode | None:
    """An output without what differs from run to run; None when nothing worth storing is left."""
    if output.output_type == "stream":
        return None if output.name == "stderr" else _masked(output)
    data = output.get("data")
    if data is None:
        return _masked(output)
    data.pop(WIDGET_VIEW, None)
    for mime in list(data):
        if mime == PLOTLY:
            data[mime] = _rounded(data[mime])
        elif not mime.startswith("image/"):
            data[mime] = _masked(data[mime])
    output.metadata = NotebookNode({})
    return output if data else None


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return NotebookNode({k: _masked(v) for k, v in value.items()})
    if isinstance(value, list):
        return [_masked(v) for v in value]
    if isinstance(value, str):
        return ADDRESS.sub("0x0", UUID.sub("0" * 8, value))
    return value


def _rounded(value: Any) -> Any:
    """A plotly figure with its floats to five significant digits and its random ids dropped."""
    if isinstance(value, dict):
        if set(value) >= {"dtype", "bdata"} and value["dtype"] in ("f4", "f8"):
            array = np.frombuffer(base64.b64decode(value["bdata"]), dtype="<" + value["dtype"])
            short = np.array([float(f"{v:.5g}") for v in array], dtype="<f4")
            return NotebookNode(value | {"dtype": "f4", "bdata": base64.b64encode(short.tobytes()).decode()})
        return NotebookNode({k: _rounded(v) for k, v in value.items() if k != "uid"})
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return value


def products() -> list[tuple[Path, Path, bool]]:
    """(source, notebook, is a stub) for everything that is built, in the order of the chapters."""
    out = []
    for source in sorted((AUTHORING / "lessons").glob("[0-9][0-9]_*.py")):
        out.append((source, ROOT / "notebooks" / f"{source.stem}.ipynb", False))
    for source in sorted((AUTHORING / "exercises").glob("[0-9][0-9]_*.py")):
        out.append((source, ROOT / "exercises" / f"{source.stem}.ipynb", True))
        out.append((source, ROOT / "solutions" / f"{source.stem}.ipynb", False))
    return sorted(out, key=lambda row: row[0].stem)


def build(source: Path, target: Path, stub: bool) -> None:
    """Write one notebook, whole or not at all."""
    nb = notebook(source, stub=stub)
    target.parent.mkdir(exist_ok=True)
    if not stub:
        execute(nb, target.parent)
    nbformat.validate(nb)
    text = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    scratch = target.with_suffix(".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(target)


def differences(source: Path, target: Path, stub: bool) -> str | None:
    """How a built notebook disagrees with its source, or None. Outputs are nbval's business."""
    if not target.exists():
        return "is missing"
    want, have = notebook(source, stub=stub), nbformat.read(target, as_version=4)
    if [c.id for c in want.cells] != [c.id for c in have.cells]:
        return "has other cells than its source"
    for w, h in zip(want.cells, have.cells, strict=True):
        if (w.cell_type, w.source, w.metadata) != (h.cell_type, h.source, h.metadata):
            return f"differs in cell {w.id}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the notebooks from authoring/.")
    parser.add_argument("chapters", nargs="*", help="two digits each; none means all")
    parser.add_argument("--check", action="store_true", help="build nothing, report what is out of date")
    args = parser.parse_args()
    rows = [row for row in products() if not args.chapters or row[0].stem[:2] in args.chapters]
    if set(args.chapters) - {row[0].stem[:2] for row in rows}:
        print(
            f"No chapter {' '.join(args.chapters)} in authoring/lessons or authoring/exercises.",
            file=sys.stderr,
        )
        return 2
    stale = 0
    for source, target, stub in rows:
        name = target.relative_to(ROOT)
        if args.check:
            problem = differences(source, target, stub)
            if problem:
                stale += 1
                print(f"{name} {problem}: run `make build ARGS={source.stem[:2]}`")
        else:
            build(source, target, stub)
            print(f"built {name} ({target.stat().st_size / 1024:.0f} KB)")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
