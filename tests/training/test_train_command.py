"""`ssmcourse train`: what it says and its exit codes, and several processes under torchrun."""

import functools
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from trainings import figures, small, write_words

from ssmcourse.training import Terminal, TrainingConfig, command
from ssmcourse.training.records import Row, read_rows

FILE = """
[model]
pattern = "-*"
d_model = 8
options."*" = { num_heads = 2 }

[data]
path = "words.txt"

[training]
steps = 12
batch_size = 4
length = 24
learning_rate = 1e-2
warmup = 2
eval_every = 6
checkpoint_every = 5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_words(tmp_path)
    (tmp_path / "c.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(run):
    """`ssmcourse train` in this process."""
    return functools.partial(run, "train")


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "ssmcourse train" in out
    assert "tables model, data and training" in " ".join(out.replace("│", " ").split())
    assert "--out" in out


def test_it_trains_and_says_where_it_put_things(folder, run):
    code, out, err = run("c.toml")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("step 6: loss ")
    assert lines[1].startswith("step 12: loss ")
    assert lines[2] == "12 steps done. runs/c holds model/, loss.csv and checkpoint.pt."
    assert (folder / "runs" / "c" / "model" / "config.json").exists()
    rows = read_rows(folder / "runs" / "c" / "loss.csv", 12)
    assert figures(rows) == figures(command.train(small(folder / "words.txt")).history)


def test_a_folder_of_ones_own(folder, run):
    assert run("c.toml", "--out", "mine")[0] == 0
    assert (folder / "mine" / "loss.csv").exists()
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps", "stpes", "c.toml: training.stpes: no such key, the nearest is steps\n"),
        ("words.txt", "wrods.txt", "c.toml: path: wrods.txt does not exist\n"),
        ("length = 24", "length = 9999", "c.toml: training.length: got 9999 with a text of"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(folder, run, old, new, message):
    (folder / "c.toml").write_text(FILE.replace(old, new))
    code, _, err = run("c.toml")
    assert code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_no_such_file(folder, run):
    assert run("none.toml") == (2, "", "none.toml: cannot be read: No such file or directory\n")


def test_a_training_that_fails_is_one_line_and_code_1(folder, run):
    run("c.toml")
    (folder / "c.toml").write_text(FILE.replace("warmup = 2", "warmup = 3"))
    code, _, err = run("c.toml")
    assert code == 1
    assert (
        "c.toml: runs/c/checkpoint.pt: was made with training.warmup = 2, not 3. Name another folder" in err
    )
    assert err.count("\n") == 1


def test_files_left_out_are_one_line(folder, run):
    (folder / "texts").mkdir()
    (folder / "words.txt").rename(folder / "texts" / "words.txt")
    (folder / "texts" / "picture.png").write_bytes(b"\0")
    (folder / "c.toml").write_text(FILE.replace("words.txt", "texts"))
    code, _, err = run("c.toml")
    assert (code, err) == (0, "texts: not UTF-8 text, left out: picture.png\n")


def test_ctrl_c_says_how_to_go_on(folder, run, monkeypatch):
    train = command.train

    def interrupted(config, callbacks):
        return train(
            config, callbacks=[*callbacks, lambda run: run.step == 3 and signal.raise_signal(signal.SIGINT)]
        )

    monkeypatch.setattr(command, "train", interrupted)
    code, _, err = run("c.toml", "--out", "my run")
    assert (code, err) == (
        1,
        "training stopped at step 4 of 12; a checkpoint is in my run\n"
        "Go on with: ssmcourse train c.toml --out 'my run'\n",
    )
    monkeypatch.undo()
    os.chdir(folder)
    assert run("c.toml", "--out", "my run")[0] == 0
    assert len(read_rows(folder / "my run" / "loss.csv", 12)) == 12


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Terminal() as terminal:
        assert not terminal.bar.disable
        with terminal.console.capture():
            row = Row(3, 1.5, 1e-3, 1234.5)
            terminal(
                SimpleNamespace(history=[row], config=SimpleNamespace(training=TrainingConfig(steps=10)))
            )
        task = terminal.bar.tasks[0]
    assert (task.completed, task.total) == (3, 10)
    assert task.description == "loss 1.5000, 1,234 tokens/s"


def torchrun(*arguments, **options):
    """Two processes of `ssmcourse train`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    several = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    several += ["--rdzv-endpoint=localhost:0"]
    whole = [sys.executable, *several, "-m", "ssmcourse.cli", "train", *arguments]
    return subprocess.run(whole, env=environment, capture_output=True, text=True, check=False, **options)


def test_two_processes_have_the_losses_of_one(folder):
    done = torchrun("c.toml", "--out", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 12:") == 1  # only one of them speaks
    two = figures(read_rows(folder / "two" / "loss.csv", 12))
    one = figures(command.train(small(folder / "words.txt")).history)
    for mine, theirs in zip(two, one, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None and b is None) or a == pytest.approx(b, rel=1e-5)


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (folder / "c.toml").write_text(FILE.replace("steps = 12", "steps = 400"))
    several = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    whole = [
        sys.executable,
        *several,
        "--rdzv-endpoint=localhost:0",
        "-m",
        "ssmcourse.cli",
        "train",
        "c.toml",
    ]
    first = subprocess.Popen(whole, env=environment, start_new_session=True)
    while not (folder / "runs" / "c" / "checkpoint.pt").exists():
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert torchrun("c.toml").returncode == 0
    assert torchrun("c.toml", "--out", "whole").returncode == 0
    killed, undisturbed = (figures(read_rows(folder / p / "loss.csv", 400)) for p in ("runs/c", "whole"))
    assert killed == undisturbed
