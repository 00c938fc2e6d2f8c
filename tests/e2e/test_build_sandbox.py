"""A source distribution runs its own code while it is built: in a sandbox, not as the server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from server_home import ServerHome

BACKEND = """
import json, os, zipfile

def attempt(path):
    try:
        return open(path).read()
    except OSError as refused:
        return type(refused).__name__

def build_wheel(folder, config_settings=None, metadata_directory=None):
    report = {
        "host uid": open("/proc/self/uid_map").read().split()[1],
        "canary": attempt(CANARY),
        "database": attempt(DATABASE),
        "environment": dict(os.environ),
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
    }
    name = "nosy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("nosy.py", "REPORT = " + repr(json.dumps(report)))
        wheel.writestr("nosy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: nosy\\nVersion: 1.0\\n")
        wheel.writestr("nosy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("nosy-1.0.dist-info/RECORD", "")
    return name
"""

PROGRAM = """
import lorry
app = lorry.App("nosy")

@app.function(image=lorry.Image.debian_slim().uv_pip_install("nosy @ {url}"))
def report():
    import nosy
    return nosy.REPORT

if __name__ == "__main__":
    with app.run():
        print(report.remote())
"""


def source_distribution(folder: Path, canary: Path, home: ServerHome) -> Path:
    names = {
        "nosy-1.0/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "nosy"\nversion = "1.0"\n',
        "nosy-1.0/backend.py": f"CANARY = {str(canary)!r}\nDATABASE = {str(home.state / 'lorry.db')!r}\n{BACKEND}",
        "nosy-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: nosy\nVersion: 1.0\n",
    }
    path = folder / "nosy-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in names.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user the build runs as that user, inside the sandbox")
def test_build_code_is_nobody_and_sees_nothing_of_the_server(
    own_server: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = Path.home() / f".lorry-canary-{os.getpid()}"
    canary.write_text("secret of root")
    monkeypatch.setenv("LORRY_TEST_CANARY", "secret of the client")
    try:
        package = source_distribution(tmp_path, canary, own_server)
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.replace("{url}", package.as_uri()))
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
    finally:
        canary.unlink()
    assert report["host uid"] not in ("0", str(os.getuid()))
    assert report["canary"] == "FileNotFoundError"
    assert report["database"] == "FileNotFoundError"
    assert "secret" not in json.dumps(report["environment"])
    assert report["processes"] < 10
