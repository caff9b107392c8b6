"""Puts one widget's JavaScript together: the palette, the shared drawing code, its own file."""

from __future__ import annotations

import json
from importlib import resources

from .palette import DIVERGING, INK


def esm(name: str) -> str:
    """The ES module of the widget `name` ("matrix_view" or "curve_view") as one string."""
    folder = resources.files("ssmcourse.explore")
    palette = json.dumps({"diverging": DIVERGING, "ink": INK})
    parts = [(folder / part).read_text(encoding="utf-8") for part in ("canvas.js", f"{name}.js")]
    return f"const PALETTE = {palette};\n" + "\n".join(parts)


def css() -> str:
    """The style sheet that both widgets share."""
    return (resources.files("ssmcourse.explore") / "view.css").read_text(encoding="utf-8")


def with_still(bundle: object, png: str, text: str) -> dict[str, object]:
    """A widget's display bundle with a picture and a line of text for where widgets cannot run.

    Args:
        bundle: what ipywidgets or anywidget made: a dict, or (dict, metadata).
        png: base64 of the still image.
        text: the one-line alternative.
    """
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    return {**(data if isinstance(data, dict) else {}), "image/png": png, "text/plain": text}
