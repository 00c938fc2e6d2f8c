"""The server's interpreter is out of reach of what it starts: see also the attacks in tests/security."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sandbox_box import PYTHON, Box
from test_sandbox_enter import Place, inside

from lorry.sandbox import sealed

SCRIPT = """#!/proc/self/exe
import os
print("it runs")
handle = os.open("/proc/self/exe", os.O_RDONLY)
try:
    os.chmod(handle, 0o777)
except OSError:
    pass
"""


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interpreter of this process, as a file that may be spoilt and belongs to the server's user."""
    real = Path(os.path.realpath(PYTHON))
    copy = tmp_path / "python/bin/python3"
    copy.parent.mkdir(parents=True)
    shutil.copy(real, copy)
    (tmp_path / "python/pyvenv.cfg").write_text(f"home = {real.parent}\n")
    copy.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(copy))
    return copy


def test_a_script_that_names_the_joiners_interpreter_cannot_change_it(isolated: Box, copied: Path) -> None:
    def use(place: Place) -> None:
        script = Path(place.spec.folder, "tmp/script")
        script.write_text(SCRIPT)
        script.chmod(0o755)
        assert place.run("/tmp/script")[1] == "it runs\n"

    inside(isolated, use)
    assert copied.stat().st_mode & 0o777 == 0o755


def test_the_copy_runs_as_the_interpreter_and_nobody_can_write_it(copied: Path) -> None:
    path = sealed.interpreter(True)
    code = "import sys; print(sys.executable, sys.base_prefix)"
    said = [
        subprocess.check_output([sys.executable, "-I", "-S", "-c", code], executable=one, env=sealed.environment(True))
        for one in (path, sys.executable)
    ]
    assert said[0] == said[1]
    copy = int(path.rpartition("/")[2])
    with pytest.raises(OSError, match="not permitted") as refused:
        os.pwrite(copy, b"x", 0)
    assert refused.value.errno == errno.EPERM
    assert fcntl.fcntl(copy, fcntl.F_GET_SEALS) == sealed.SEALS


def test_without_walls_or_where_another_owns_it_the_file_itself_is_executed(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sealed.interpreter(False) == str(copied)
    monkeypatch.setattr(os, "geteuid", lambda: copied.stat().st_uid + 1)
    sealed._sealed.cache_clear()
    assert sealed.interpreter(True) == str(copied)
    sealed._sealed.cache_clear()
