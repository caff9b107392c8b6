"""What the compiler made of every Triton kernel, for GPUs that are not here (`make kernels`).

Without arguments all of them, stored in results/kernels.json; with the beginnings of names only those, printed.
Exits 1 when a kernel spills registers, wants too much shared memory, or does not become tensor-core code.
"""

from __future__ import annotations

import sys
from importlib import metadata

import record

from ssmcourse.kernels import compiling


def main(names: list[str]) -> int:
    results = compiling.compile_all(names)
    if not results:
        print(f"no kernel's name begins with {' or '.join(names)}")
        return 2
    print(compiling.table(results))
    if not names:
        record.store(
            "kernels", quiet=True, triton=metadata.version("triton"), compiled=[r._asdict() for r in results]
        )
    return int(any(r.problems for r in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
