"""The selective scan in Triton: discretise, scan, read out, skip and gate in one kernel.

triton_steps.py      one step of the scan: the arithmetic
triton_arguments.py  what the kernels are given, and what they refuse
triton_forward.py    y, final states, and the states kept for the gradient
triton_backward.py   all gradients, in one kernel that recomputes the states chunk by chunk
"""

from __future__ import annotations

from ssmcourse.kernels.registration import register
from ssmcourse.kernels.selective_scan.operator import SCHEMA
from ssmcourse.kernels.selective_scan.triton_arguments import empty
from ssmcourse.kernels.selective_scan.triton_backward import gradient
from ssmcourse.kernels.selective_scan.triton_forward import scan

selective_scan = register("selective_scan_triton", SCHEMA, scan, gradient, empty, results=2, kept=1)
