"""The grader where triton, numba_cuda, fcntl and SIGALRM are missing, as on Windows and macOS.

They are taken away by a sitecustomize.py, so that the processes which the grader starts lack them too.
"""

import os
import subprocess
import sys

TAKE_AWAY = """
import signal, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "numba_cuda", "fcntl"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.modules.pop("fcntl", None)
for gone in ("SIGALRM", "ITIMER_REAL", "setitimer"):
    delattr(signal, gone)
"""

NOTEBOOK = """
import signal, torch
from ssmcourse import check, hint, predict, progress
from ssmcourse.grading import registry, store

def run_memory(a, x):
    h, out = torch.zeros((), dtype=x.dtype), []
    for value in x:
        h = a * h + value
        out.append(h)
    return torch.stack(out)

def endless(a, x):
    while True:
        pass

assert store.fcntl is None
assert not hasattr(signal, "SIGALRM")
object.__setattr__(registry.find("start.run_memory"), "time_limit", 1.0)
print(check(run_memory))
print(check("start.run_memory", lambda a, x: x.clone()))
print(check("start.run_memory", endless))
print(hint("start.run_memory"))
predict("start.life", 7)
print(predict.show("start.life", 7))
print(progress().summary)
"""


def test_a_notebook_without_alarm_and_fcntl(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(TAKE_AWAY)
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK], env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Run the memory (start.run_memory): passed" in done.stdout
    assert "nothing is remembered: this is x itself" in done.stdout
    assert "its time limit of 1 s ran out" in done.stdout
    assert "a loop that does not end" in done.stdout
    assert "Hint 1 of 3" in done.stdout
    assert "Your prediction: 7" in done.stdout
    assert "1 of " in done.stdout
