"""Image archives written by hand: OCI layouts and the form of `docker save`, with any entries in their layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from lorry.images.archive import MACHINES

MACHINE = MACHINES.get(os.uname().machine, os.uname().machine)


def entry(name: str, content: bytes | None = None, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer: a file if it has content, else what `type=` says."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644 if content is not None else 0o755
    info.size = len(content or b"")
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content or b""


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def layer(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_oci(path: Path, layers: Sequence[bytes], *, packed: bool = False, tags: int = 1, **config: object) -> Path:
    """`packed`: layers are compressed with gzip. `config`: what the image says about itself, as `Env=["A=b"]`."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{name}"] = data
        return {"digest": f"sha256:{name}", "size": len(data)}

    config = {"architecture": MACHINE, "os": "linux", "config": config}
    manifest = {
        "config": blob(json.dumps(config).encode()),
        "layers": [blob(gzip.compress(data, 1) if packed else data) for data in layers],
    }
    index = {"manifests": [blob(json.dumps(manifest).encode())] * tags}
    path.write_bytes(
        layer(entry(name, data) for name, data in {"index.json": json.dumps(index).encode(), **blobs}.items())
    )
    return path


def write_docker(path: Path, layers: Sequence[bytes]) -> Path:
    diffs = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = json.dumps({"architecture": MACHINE, "os": "linux", "rootfs": {"diff_ids": diffs}}).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": name, "Layers": names}]).encode()
    members = {"manifest.json": manifest, name: config, **dict(zip(names, layers, strict=True))}
    path.write_bytes(layer(entry(member, data) for member, data in members.items()))
    return path


def small_root(target: Path, python: str = "/usr/bin/python3") -> bytes:
    """A layer with a shell and this machine's own Python, its libraries included; some 60 MB."""
    shutil.rmtree(target, ignore_errors=True)
    real = os.path.realpath(python)
    version = Path(real).name
    (target / "usr/bin").mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (target / "usr" / name).mkdir(exist_ok=True)
        (target / name).symlink_to(f"usr/{name}")
    shutil.copy(real, target / "usr/bin/python3")
    shutil.copy(os.path.realpath("/bin/sh"), target / "usr/bin/sh")
    left_out = shutil.ignore_patterns(
        "test", "tests", "dist-packages", "idlelib", "lib2to3", "ensurepip", "tkinter", "config-*"
    )
    shutil.copytree(f"/usr/lib/{version}", target / f"usr/lib/{version}", ignore=left_out)
    shutil.copytree(f"/usr/lib/{version}/lib-dynload", target / f"usr/lib/{version}/lib-dynload", dirs_exist_ok=True)
    modules = map(str, (target / f"usr/lib/{version}/lib-dynload").glob("*.so"))
    found = subprocess.run(["ldd", real, "/bin/sh", *modules], capture_output=True, text=True).stdout
    for library in set(re.findall(r"(/\S+\.so\S*) \(", found)):
        place = (
            target / "usr/lib64"
            if library.startswith("/lib64")
            else target / "usr" / os.path.relpath(library, "/").removeprefix("usr/")
        )
        destination = place / Path(library).name if library.startswith("/lib64") else place
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(library), destination)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(target, ".", filter=_owned_by_root)
    return buffer.getvalue()


def _owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    return info
