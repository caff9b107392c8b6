"""The README's Python runs as printed, one block after another, and does what it says."""

import re
from pathlib import Path

import torch

import ssmcourse
from ssmcourse.tolerance import mismatch

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_code_runs_and_the_matrix_is_the_operator():
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S):
        exec(block, names)
    by_matrix = torch.einsum("bij,bj->bi", names["M"][:, 0].double(), names["x"][..., 0].double())
    problem = mismatch(names["y"][..., 0], by_matrix, terms=512 * 16)
    assert problem is None, str(problem)


def test_every_operator_it_names_is_there():
    section = README.read_text(encoding="utf-8").split("## The library")[1].split("## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    named = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[2])}
    assert named, "no table"
    assert named <= set(ssmcourse._HOME)
