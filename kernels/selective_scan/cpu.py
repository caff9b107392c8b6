"""The selective scan on the CPU, compiled by Numba.

Discretise, scan, read out, skip and gate are one pass that writes nothing of the size (b, l, d, n):

    cpu_steps.py     one step of the scan and of its gradient, for a block of channels: the arithmetic
    cpu_jobs.py      what the kernels are given, and how rows, channels and pieces of l are shared out
    cpu_forward.py   y, final states, and the states kept for the gradient
    cpu_backward.py  all gradients, in one pass that recomputes the states chunk by chunk
"""

from __future__ import annotations

from ssmcourse.kernels.selective_scan import operator
from ssmcourse.kernels.selective_scan.cpu_backward import gradient
from ssmcourse.kernels.selective_scan.cpu_forward import scan

selective_scan = operator.register("cpu", scan, gradient)
