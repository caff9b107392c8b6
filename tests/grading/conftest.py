"""Progress goes to a scratch file in every test here."""

import pytest
import torch


@pytest.fixture(autouse=True)
def progress_file(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    monkeypatch.setenv("SSMCOURSE_PROGRESS", str(file))
    return file


@pytest.fixture
def right():
    """A right answer to start.run_memory."""

    def run_memory(a, x):
        h, out = torch.zeros((), dtype=x.dtype), []
        for value in x:
            h = a * h + value
            out.append(h)
        return torch.stack(out)

    return run_memory
