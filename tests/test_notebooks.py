"""What the built notebooks, lessons and README must hold, read as files; nbval runs them."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "authoring"))

import build  # noqa: E402

BUILT = sorted(p for f in ("notebooks", "exercises", "solutions") for p in (ROOT / f).glob("*.ipynb"))
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BEATS = ["Predict", "Derive", "Implement", "See", "Measure", "Break it", "Remember"]
MEGABYTE = 1024 * 1024


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tracked() -> list[Path]:
    """Files under version control; in a copy without git, everything but what is ignored there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: which files are tracked is not known")
    return [ROOT / f for f in listed.stdout.split("\0") if f and (ROOT / f).exists()]


def test_there_are_lessons_to_test():
    assert [p.stem[:2] for p in LESSONS][:2] == ["00", "01"]


@pytest.mark.parametrize(
    ("source", "target", "stub"), build.products(), ids=lambda v: name(v) if isinstance(v, Path) else ""
)
def test_a_built_notebook_is_what_its_source_says(source, target, stub):
    problem = build.differences(source, target, stub)
    assert problem is None, f"{name(target)} {problem}: run `make build ARGS={source.stem[:2]}`"


def test_no_built_notebook_is_without_a_source():
    assert {target for _, target, _ in build.products()} == set(BUILT)


@pytest.mark.parametrize("path", BUILT, ids=name)
def test_a_notebook_is_small_and_stores_no_widget_state(path):
    assert path.stat().st_size < 1.5 * MEGABYTE
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert "widgets" not in nb.metadata
    assert build.WIDGET_VIEW not in path.read_text()


def test_all_tracked_files_together_are_small():
    total = sum(p.stat().st_size for p in tracked())
    assert total < 40 * MEGABYTE, f"{total / MEGABYTE:.1f} MB are tracked, 40 are allowed"


def cells(path: Path, kind: str) -> list[str]:
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_a_lesson_has_the_seven_beats_in_order(path):
    headings = [h for c in cells(path, "markdown") for h in re.findall(r"^## (.+)$", c, re.M)]
    assert headings == BEATS


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_a_lesson_is_of_a_length_to_read_in_one_sitting(path):
    words = sum(len(c.split()) for c in cells(path, "markdown"))
    assert 1500 <= words <= 3500, words


@pytest.mark.parametrize("path", BUILT, ids=name)
def test_a_cell_is_short_and_installs_or_downloads_nothing(path):
    for source in cells(path, "code"):
        assert len(source.splitlines()) <= 30, source
        assert not re.search(r"^\s*[!%].*\b(pip|conda|wget|curl|apt)\b", source, re.M), source
    for source in cells(path, "markdown"):
        assert "base64," not in source


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_every_picture_of_a_lesson_is_stored_with_words_for_it(path):
    nb = nbformat.read(path, as_version=4)
    pictures = [
        o.data
        for c in nb.cells
        if c.cell_type == "code"
        for o in c.outputs
        if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= 4
    for data in pictures:
        text = data["text/plain"]
        assert len(text) > 20, text
        assert not re.search(r"\bobject at|Figure\(|VBox\(", text), text


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_every_explorable_of_a_lesson_has_its_static_figure(path):
    nb = nbformat.read(path, as_version=4)
    calls = [c for c in nb.cells if c.cell_type == "code" and re.match(r"explore\.\w+\(", c.source)]
    assert calls
    for cell in calls:
        assert any("image/png" in o.get("data", {}) for o in cell.outputs), cell.source


def anchors(path: Path) -> set[str]:
    text = "\n".join(cells(path, "markdown")) if path.suffix == ".ipynb" else path.read_text()
    return {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-")
        for h in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("path", [*BUILT, *sorted(ROOT.glob("*.md"))], ids=name)
def test_links_resolve(path):
    texts = cells(path, "markdown") if path.suffix == ".ipynb" else [path.read_text()]
    for target in [
        t
        for text in texts
        for t in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    ]:
        if re.match(r"https?:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name(path)} links to {target}, which is not there"
        if anchor:
            assert anchor.lower() in {a.lower() for a in anchors(there)}, f"{name(path)}: no heading {target}"


@pytest.mark.parametrize("path", BUILT, ids=name)
def test_cross_references_to_exercises_exist(path):
    from ssmcourse.grading.registry import find

    for identifier in {
        i for c in cells(path, "markdown") for i in re.findall(r"(?:hint|solution)\(\"([\w.]+)\"", c)
    }:
        assert find(identifier).id == identifier


def test_no_tracked_text_holds_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.~-])/(home|root|work|farm)/\w")
    for path in tracked():
        if (
            path.suffix in {".py", ".md", ".toml", ".yml", ".ipynb", ".cfg", ".js", ".css", ".json"}
            and "tests" not in path.parts
        ):
            found = [
                m.group(0) for m in pattern.finditer(path.read_text()) if not m.group(0).startswith("/work/n")
            ]
            assert not found, f"{name(path)} holds {found}"
