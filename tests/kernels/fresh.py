"""Fresh Python processes that have imported torch and nothing else.

Importing torch takes more than a second, and forking a process that has done so takes none. Where there is no
fork, every program gets a process of its own.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

OPTIONS = ("-W", "error::UserWarning")

# Reads requests line by line, and forks a child for each, whose output goes to a file.
SERVER = """
import json, os, signal, sys, tempfile, traceback
import torch
for line in sys.stdin:
    program, environment, folder = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(120)  # ends it if it hangs
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.environ.clear()
                os.environ.update(environment)
                os.chdir(folder)
                sys.path[0] = folder
                exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        out.seek(0), err.seek(0)
        print(json.dumps([status, out.read().decode(), err.read().decode()]), flush=True)
"""


class Done(NamedTuple):
    status: int  # 0 if all went well
    out: str
    err: str


def run(program: str, environment: dict[str, str], folder: Path | None = None) -> Done:
    """The program in a fresh process with these variables, in that folder (else this one)."""
    where = str(folder or Path.cwd())
    if not hasattr(os, "fork"):
        command = [sys.executable, *OPTIONS, "-c", program]
        done = subprocess.run(
            command, env=environment, cwd=where, capture_output=True, text=True, timeout=120, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)
    server = _server()
    assert server.stdin
    assert server.stdout
    print(json.dumps([program, environment, where]), file=server.stdin, flush=True)
    return Done(*json.loads(server.stdout.readline()))


@functools.cache
def _server() -> subprocess.Popen[str]:
    """It ends when this process does, and with it its standard input."""
    command = [sys.executable, *OPTIONS, "-c", SERVER]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
