"""An image from a local archive, end to end: built in throw-away sandboxes, run from its layers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_home import ServerHome

from lorry.sandbox.build_ids import no_ids
from lorry.sandbox.namespaces import sandbox_owner

sys.path.append(str(Path(__file__).parents[1] / "images"))
from archive_factory import entry, layer, small_root, write_oci

PYTHON = "/usr/bin/python3"
PROGRAM = """
import os, subprocess, sys, time
import lorry

def fill(text):
    os.makedirs("/models", exist_ok=True)
    open("/models/w", "w").write(text + os.environ["TOKEN"][:2])

image = lorry.Image.from_oci_archive({archive!r})
image = image.env({{"MOOD": "calm"}}).add_local_file({file!r}, "/opt/in.txt", copy=True)
image = image.run_commands("echo $MOOD $FROM > /opt/mark", "read line < /opt/in.txt; echo $line >> /opt/mark")
image = image.run_function(fill, args=("weights ",), secrets=[lorry.Secret.from_dict({{"TOKEN": "tok-123456"}})])
image = image.add_local_file({file!r}, "/etc/shown.txt")
app = lorry.App("rooted", image=image)

def attempt(action):
    try:
        return str(action())
    except OSError as refused:
        return type(refused).__name__ + str(refused.errno)

@app.function(volumes={{"/srv/data": lorry.Volume.from_name("rooted-data", create_if_missing=True)}})
def look():
    open("/srv/data/x", "w").close()
    return dict(
        python=sys.executable,
        mark=open("/opt/mark").read(),
        weights=open("/models/w").read(),
        lower=open("/opt/deep/lower").read(),
        gone=os.path.exists("/opt/gone"),
        shown=open("/etc/shown.txt").read(),
        hosts=open("/etc/hosts").read(),
        cwd=os.getcwd(),
        uids=open("/proc/self/uid_map").read().split()[0:3:2],
        write=attempt(lambda: open("/opt/mark", "w")),
        make=attempt(lambda: os.mkdir("/new")),
        mount=attempt(lambda: os.chroot("/opt")),
        host=os.path.exists("/usr/share/doc") or os.path.exists("/work"),
    )

if __name__ == "__main__":
    with app.run():
        for key, value in look.remote().items():
            print(key, repr(value))
"""


def why_not() -> str:
    if reason := no_ids(sandbox_owner()):
        return reason
    version = subprocess.run([PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "" if version.stdout.decode().strip() == here else f"{PYTHON} is not there or not Python {here}"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it runs")


@pytest.fixture(scope="module")
def archive() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lorry-archive-") as name:
        folder = Path(name)
        root = small_root(folder / "root")
        own = layer([entry("opt/deep/lower", b"below"), entry("opt/gone", b"x")])
        above = layer([entry("opt/.wh.gone", b"")])
        folder.chmod(0o755)
        yield write_oci(
            folder / "image.tar", [root, own, above], Env=["FROM=archive", "PATH=/usr/bin:/bin"], WorkingDir="/opt"
        )


def run(program: Path) -> dict[str, object]:
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {key: eval(value) for key, value in (line.split(" ", 1) for line in done.stdout.splitlines())}


def lorry(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "lorry.cli.main", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_archive_with_steps_runs_from_its_layers_and_is_built_once(
    own_server: ServerHome, archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("a line\n")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(archive=str(archive), file=str(tmp_path / "in.txt")))
    seen = run(program)
    assert seen["python"] == "/usr/bin/python3"
    assert seen["mark"] == "calm archive\na line\n"
    assert seen["weights"] == "weights to"
    assert (seen["lower"], seen["gone"], seen["shown"]) == ("below", False, "a line\n")
    assert "localhost" in str(seen["hosts"])
    assert seen["cwd"] == "/opt"
    assert seen["uids"] == ["0", "1"], "a container has one id, whatever its build had"
    assert (seen["write"], seen["make"]) == ("OSError30", "OSError30"), "read-only"
    assert seen["mount"].startswith("PermissionError")  # type: ignore[attr-defined]
    assert seen["host"] is False

    layers = own_server.state / "images/layers"
    built = {path.name: path.stat().st_mtime_ns for path in layers.iterdir()}
    assert len(built) == 2 * 4
    started = time.perf_counter()
    assert run(program) == seen
    print(f"second run, whole command: {time.perf_counter() - started:.3f} s")
    assert {path.name: path.stat().st_mtime_ns for path in layers.iterdir()} == built

    assert "the layers of" in lorry("image", "list")
    log = "".join(path.read_text() for path in (own_server.state / "images/logs").iterdir())
    assert "tok-123456" not in log
    prune_leaves_only_what_is_used(own_server, layers)


def prune_leaves_only_what_is_used(home: ServerHome, layers: Path) -> None:
    """A warm template of an app that is over is no reason to keep them."""
    lorry("image", "prune", "--yes")
    assert list(layers.iterdir()) == []
    assert "No images" in lorry("image", "list")


def test_a_step_that_fails_shows_its_output_and_leaves_no_image(
    server: ServerHome, archive: Path, tmp_path: Path
) -> None:
    program = tmp_path / "fails.py"
    program.write_text(
        "import lorry\n"
        f"image = lorry.Image.from_oci_archive({str(archive)!r}).run_commands('echo before; nonsense --now')\n"
        "app = lorry.App('fails', image=image)\n@app.function()\ndef f(): ...\n"
        "if __name__ == '__main__':\n    with app.run(): f.remote()\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ImageBuildError" in done.stderr
    assert "nonsense: not found" in done.stderr
    assert "ended with exit status 127" in done.stderr
    leftovers = [path.name for path in (server.state / "images/layers").iterdir() if len(path.stem) != 32]
    assert leftovers == []


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's build is that user outside its namespace")
def test_a_build_is_nobody_on_the_host_and_sees_nothing_of_it(
    server: ServerHome, archive: Path, tmp_path: Path
) -> None:
    canary = Path.home() / f".lorry-canary-{os.getpid()}"
    canary.write_text("secret of root")
    code = (
        "import os; print('map', open('/proc/self/uid_map').read().split()[1]);"
        f"print('canary', os.path.exists({str(canary)!r}), os.path.exists({str(server.state)!r}));"
        "print('seccomp', [l for l in open('/proc/self/status') if l.startswith('Seccomp:')][0].split()[1]);"
        "print('processes', len([n for n in os.listdir('/proc') if n.isdigit()]))"
    )
    command = f'python3 -c "{code}"'
    program = tmp_path / "nosy.py"
    program.write_text(
        "import lorry\n"
        f"image = lorry.Image.from_oci_archive({str(archive)!r}).run_commands({command!r})\n"
        "app = lorry.App('nosy', image=image)\n@app.function()\ndef f(): ...\n"
        "if __name__ == '__main__':\n    with lorry.enable_output(), app.run(): f.remote()\n"
    )
    try:
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    finally:
        canary.unlink()
    assert done.returncode == 0, done.stderr
    words = dict(line.strip().split(" ", 1) for line in (done.stdout + done.stderr).splitlines() if " " in line.strip())
    assert words["map"] not in ("0", str(os.getuid()))
    assert words["canary"] == "False False"
    assert words["seccomp"] == "2"
    assert int(words["processes"]) < 6
