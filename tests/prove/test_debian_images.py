"""Real Debian roots, from a real mirror: minutes, so only when asked for (`-m prove`)."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from server_home import ServerHome, kill_and_wait, wait_until

from lorry.images.debian import machine_mirror
from lorry.sandbox.build_ids import no_ids
from lorry.sandbox.namespaces import sandbox_owner

pytestmark = pytest.mark.prove

PROGRAM = """
import lorry
image = lorry.Image.debian_slim({arguments}).apt_install("cowsay").uv_pip_install("six")
app = lorry.App("debian", image=image)

@app.function()
def look():
    import subprocess, sys, six
    said = subprocess.run(["/usr/games/cowsay", "moo"], capture_output=True, text=True, check=True).stdout
    return sys.version_info[:2], "moo" in said, six.__name__, open("/etc/os-release").read()

if __name__ == "__main__":
    with lorry.enable_output(), app.run():
        version, said, six, system = look.remote()
        print("seen:", version, said, six, "bookworm" in system, "trixie" in system)
"""


@pytest.fixture(autouse=True)
def _what_it_needs() -> None:
    if reason := no_ids(sandbox_owner()):
        pytest.skip(reason)
    if not Path("/usr/bin/mmdebstrap").exists():
        pytest.skip("mmdebstrap is not installed")
    url = f"{machine_mirror().main}/dists/trixie/InRelease"
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except (urllib.error.URLError, OSError) as problem:
        pytest.skip(f"the Debian mirror cannot be reached: {url}: {problem}")


def run(folder: Path, arguments: str = "") -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(PROGRAM.format(arguments=arguments))
    return subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300)


def test_apt_packages_and_another_python_on_a_debian_root(own_server: ServerHome, tmp_path: Path) -> None:
    other = "3.13" if sys.version_info[:2] != (3, 13) else "3.11"
    done = run(tmp_path, f"python_version={other!r}")
    assert done.returncode == 0, done.stderr
    minor = int(other.split(".")[1])
    assert f"seen: (3, {minor}) True six {other == '3.11'} {other == '3.13'}" in done.stdout
    started = time.perf_counter()
    again = run(tmp_path, f"python_version={other!r}")
    print(f"again, whole program: {time.perf_counter() - started:.3f} s")
    assert "Built image" not in again.stdout + again.stderr
    assert again.returncode == 0, again.stderr


def test_a_server_killed_while_it_builds_leaves_nothing_that_is_used(own_server: ServerHome, tmp_path: Path) -> None:
    """Three times at different moments; then the build runs to its end."""
    layers = own_server.state / "images/layers"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(arguments=""))
    for seconds in (0.5, 3.0, 6.0):
        build = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: layers.is_dir() and any("." in p.name for p in layers.iterdir()), 30)
        time.sleep(seconds)
        build.kill()
        build.wait()
        kill_and_wait(own_server.worker_pid())
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "True six" in done.stdout
    names = {path.name.removesuffix(".json") for path in layers.iterdir()}
    assert all(len(name) == 32 for name in names)
    assert len(names) == 3
