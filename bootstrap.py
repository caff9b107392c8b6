"""Make the course's environment: .venv beside this file, with the locked packages and the project.

    python bootstrap.py            what `make lab` and `make test` run first
    python bootstrap.py --check    only say whether Python is one that the course supports

Standard library only, and syntax that an old Python can still parse, so that a wrong Python gets
one clear line instead of a traceback. Nothing is installed twice: a stamp in .venv records which
lock file and which project definition are in place.
"""

import hashlib
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
OLDEST, NEWEST = (3, 11), (3, 13)


def refusal(version):
    """One line saying why this Python will not do, or None when it will."""
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return None
    return (
        "The course needs Python 3.11, 3.12 or 3.13 and got %d.%d%s. Install one of them, then run "
        "`make lab PYTHON=python3.13` (or that Python's `bootstrap.py`)."
        % (
            version[0],
            version[1],
            ", for which PyTorch and numba have no wheels yet" if version[:2] > NEWEST else "",
        )
    )


def digest(*names):
    """A hash of the named files, of where the course lies, and of the Python that runs this."""
    seen = hashlib.sha256(("%s %s" % (ROOT, sys.version)).encode())
    for name in names:
        with open(os.path.join(ROOT, name), "rb") as file:
            seen.update(file.read())
    return seen.hexdigest()


def venv_folder():
    return os.path.abspath(os.environ.get("VENV") or os.path.join(ROOT, ".venv"))


def venv_python(venv):
    return (
        os.path.join(venv, "Scripts", "python.exe")
        if os.name == "nt"
        else os.path.join(venv, "bin", "python")
    )


def pip(venv, what, *args):
    """Run pip quietly; its output goes to a log, of which a failure shows the end."""
    log = os.path.join(venv, "install.log")
    command = [venv_python(venv), "-m", "pip", "--disable-pip-version-check", "install"] + list(args)
    with open(log, "ab") as file:
        code = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    if code:
        with open(log, errors="replace") as file:
            tail = [line.rstrip() for line in file if line.strip()][-6:]
        sys.stderr.write("\n".join(tail) + "\n")
        sys.exit(
            "setup: could not install %s; the lines above are pip's, all of them are in %s. "
            "Mend the cause (network? disk?) and run the same command again." % (what, log)
        )


def whole(venv):
    """Whether an environment is there, for this version of Python, made at this place, with pip."""
    probe = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    try:
        found = subprocess.check_output([venv_python(venv), "-c", probe], stderr=subprocess.DEVNULL)
        activate = os.path.join(os.path.dirname(venv_python(venv)), "activate")
        with open(activate, errors="replace") as file:
            here = venv in file.read()
    except (OSError, subprocess.CalledProcessError):
        return False
    return here and found.decode().strip() == "%d.%d" % sys.version_info[:2]


def make(venv):
    """A new environment, in place of one that is broken, moved or of another Python."""
    if os.path.isdir(venv) and os.listdir(venv) and not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
        sys.exit(
            "setup: %s is not an environment, and nothing in it was touched. Set VENV to another folder."
            % venv
        )
    print("setup: making %s with Python %d.%d" % (venv, sys.version_info[0], sys.version_info[1]))
    import venv as venv_module

    venv_module.create(venv, with_pip=True, clear=True, symlinks=os.name != "nt")


def install(venv):
    """Bring the environment up to date; do nothing when it is."""
    wanted = {"lock": digest("requirements.lock"), "project": digest("pyproject.toml")}
    stamp = os.path.join(venv, "course-stamp.json")
    try:
        with open(stamp) as file:
            have = json.load(file)
    except (OSError, ValueError):
        have = {}
    if have == wanted and os.path.exists(venv_python(venv)):
        print("setup: the environment is up to date")
        return
    if not whole(venv):
        make(venv)
        have = {}
    if have.get("lock") != wanted["lock"]:
        log = os.path.join(venv, "install.log")
        print("setup: installing the locked packages (minutes the first time; log: %s)" % log)
        sys.stdout.flush()
        pip(venv, "the locked packages", "-r", "requirements.lock")
    print("setup: installing the course itself")
    sys.stdout.flush()
    pip(venv, "the course itself", "--no-deps", "--no-build-isolation", "--editable", ".")
    with open(stamp + ".new", "w") as file:
        json.dump(wanted, file)
    os.replace(stamp + ".new", stamp)


def main(args):
    reason = refusal(sys.version_info)
    if reason:
        sys.exit(reason)
    if "--check" not in args:
        install(venv_folder())


if __name__ == "__main__":
    main(sys.argv[1:])
