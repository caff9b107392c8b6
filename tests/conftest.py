"""What tests of several rooms use."""

import sys

import pytest

from ssmcourse import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Calls `ssmcourse` in this process: its exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ssmcourse", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return end.value.code or 0, out, err

    return call
