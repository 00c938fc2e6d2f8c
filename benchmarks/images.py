"""Starting a container of a large image beside one of a small image: `python benchmarks/images.py`.

The large one has 5 GB in 60,000 files, in three layers above the small one's. Both are built by Lorry itself, from an
archive with this machine's own Python. Rounds alternate; the time is from the call of the sandbox to the end of a
program that imports a little. Needs root or subordinate ids, and 6 GB of disk. With `--cold` (root) the page cache is
dropped before each start of a second series.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/images"))

LAYERS, FILES, BYTES = 3, 20_000, 83_000
PROGRAM = """
import sys
import lorry

def fill(number, files, size):
    import os
    data = os.urandom(size)
    for file in range(files):
        folder = f"/opt/data/{number}/{file // 200}"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{file}", "wb") as out:
            out.write(data)

small = lorry.Image.from_oci_archive("image.tar")
large = small
for number in range(LAYERS):
    large = large.run_function(fill, args=(number, FILES, BYTES))
app = lorry.App("images")

@app.function(image=small)
def one(): return 1

@app.function(image=large)
def two(): return 2

if __name__ == "__main__":
    with lorry.enable_output(), app.run():
        print(one.remote(), two.remote())
"""
STARTED = "import json, re, sys; sys.stdout.write(str(len(json.dumps(sys.version))))"


def build(folder: Path) -> dict[str, tuple[str, ...]]:
    """Layers of both images, topmost first."""
    from archive_factory import small_root, write_oci

    write_oci(folder / "image.tar", [small_root(folder / "root")])
    text = PROGRAM.replace("LAYERS", str(LAYERS)).replace("FILES", str(FILES)).replace("BYTES", str(BYTES))
    (folder / "program.py").write_text(text)
    environ = {**os.environ, "LORRY_STATE_DIR": str(folder / "state"), "LORRY_RUNTIME_DIR": str(folder / "run")}
    for title in ("built", "again, all cached"):
        started = time.perf_counter()
        subprocess.run([sys.executable, "program.py"], cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL)
        print(f"both images {title}: {time.perf_counter() - started:.2f} s for the whole program")
    subprocess.run([sys.executable, "-m", "lorry.cli.main", "server", "stop", "--force"], env=environ, check=True)
    found = {}
    for path in (folder / "state/images/images").glob("*.json"):
        layers = json.loads(path.read_text())["layers"]
        found["small" if len(layers) == 1 else "large"] = tuple(
            str(folder / "state/images/layers" / digest) for digest in reversed(layers)
        )
    return found


async def start(folder: Path, layers: tuple[str, ...], name: str) -> float:
    """Seconds of one container."""
    from lorry.sandbox.interface import RootLayers, SandboxSpec
    from lorry.sandbox.namespaces import NamespaceSandbox

    place = folder / "containers" / name
    place.mkdir(parents=True)
    spec = SandboxSpec(
        container_id=name,
        argv=("/usr/bin/python3", "-I", "-c", STARTED),
        env=(("PATH", "/usr/bin"),),
        folder=str(place),
        root=RootLayers(lower=layers),
    )
    sandbox = NamespaceSandbox()
    started = time.perf_counter()
    process = await sandbox.start(spec)
    ended = await process.wait()
    seconds = time.perf_counter() - started
    process.close()
    shutil.rmtree(place)
    assert ended.code == 0, ended.describe()
    return seconds


def series(folder: Path, images: dict[str, tuple[str, ...]], rounds: int, *, cold: bool) -> None:
    times: dict[str, list[float]] = {name: [] for name in sorted(images)}
    for number in range(rounds):
        for name in sorted(images, reverse=number % 2 == 1):
            if cold:
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            times[name].append(asyncio.run(start(folder, images[name], f"ct-{name}-{number}-{cold}")))
    middle = {name: statistics.median(values) * 1000 for name, values in times.items()}
    title = "page cache dropped" if cold else "page cache warm"
    print(
        f"{title}, {rounds} rounds, median: small {middle['small']:.1f} ms, large {middle['large']:.1f} ms "
        f"(min {min(times['small']) * 1000:.1f} and {min(times['large']) * 1000:.1f}), "
        f"ratio {middle['large'] / middle['small']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cold", action="store_true", help="Also with the page cache dropped before each start.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorry-images-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        images = build(folder)
        files = sum(len(names) for layer in images["large"] for _, _, names in os.walk(layer))
        size = sum(
            os.lstat(os.path.join(where, n)).st_size
            for layer in images["large"]
            for where, _, names in os.walk(layer)
            for n in names
        )
        print(f"large image: {len(images['large'])} layers, {files} files, {size / 1e9:.2f} GB")
        series(folder, images, 3, cold=False)
        series(folder, images, arguments.rounds, cold=False)
        if arguments.cold:
            series(folder, images, 5, cold=True)


if __name__ == "__main__":
    main()
