"""What the compilers made of every GPU kernel, for GPUs that are not here (`make kernels`).

Without arguments all of them, stored in results/kernels.json; with the beginnings of names only those, printed.
Exits 1 when a kernel spills registers, wants too much shared memory, or does not become tensor-core code. Kernels in
Numba CUDA need a compiler that the extra [gpu] brings; where it is not there, a line says that they are left out.
"""

from __future__ import annotations

import sys
from importlib import metadata

import record

from ssmcourse.kernels import compiling


def main(names: list[str]) -> int:
    results, left_out = compiling.compile_all(names)
    if not results and not left_out:
        print(f"no kernel's name begins with {' or '.join(names)}")
        return 2
    print(compiling.table(results, left_out))
    if not names:
        versions = {name: metadata.version(name) for name in ("triton", "numba-cuda")}
        record.store(
            "kernels",
            quiet=True,
            versions=versions,
            left_out=left_out,
            compiled=[r._asdict() for r in results],
        )
    return int(any(r.problems for r in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
