"""Where packed sequences start and end, whatever their marks are."""

import pytest
import torch

from ssmcourse import packing

MARKS = torch.tensor([[3, 3, 3, 5, 5, 3], [7, 7, 7, 7, 7, 7], [0, 1, 0, -1, -1, 9]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_three_rows_by_hand(dtype):
    marks = MARKS.to(dtype)
    assert packing.changes(marks).int().tolist() == [[0, 0, 0, 1, 0, 1], [0] * 6, [0, 1, 1, 1, 0, 1]]
    assert packing.ends(marks).int().tolist() == [[0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 0, 1, 1]]
    assert packing.number(marks).tolist() == [[0, 0, 0, 1, 1, 2], [0] * 6, [0, 1, 2, 3, 3, 4]]
    wanted = [[0, 0, 0, 1, 1, 2], [3] * 6, [4, 5, 6, 7, 7, 8]]
    assert packing.number_over_all_rows(marks).tolist() == wanted
    assert packing.places(marks).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 0]]
    assert packing.count(marks) == 9


@pytest.mark.parametrize("shape", [(2, 0), (0, 4), (0, 0)])
def test_empty(shape):
    marks = torch.zeros(shape, dtype=torch.int64)
    for of_every_step in (packing.changes, packing.ends, packing.number, packing.number_over_all_rows):
        assert of_every_step(marks).shape == shape
    assert packing.places(marks).shape == shape
    assert packing.count(marks) == shape[0]
