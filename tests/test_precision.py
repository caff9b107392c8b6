"""Float32 at least, and the same under autocast as without it."""

import torch

from ssmcourse.precision import without_autocast, working_dtype


def test_half_types_are_computed_in_float32():
    half, bf = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.bfloat16)
    assert working_dtype(half, bf, None) == torch.float32
    assert working_dtype(half, half.double()) == torch.float64
    assert working_dtype(half, half.to(torch.complex64)) == torch.complex64


def test_autocast_is_off_inside_and_on_again_after():
    seen = []

    @without_autocast
    def product(a, *, b):
        seen.append(torch.is_autocast_enabled("cpu"))
        return a @ b

    a = torch.rand(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        assert torch.equal(product(a, b=a), product(a=a, b=a))
        assert product(a, b=a).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False] * 3
    assert product.__name__ == "product"
