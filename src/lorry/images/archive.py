"""An image archive as data: which blobs make up the root file system, and what the image says about itself.

Two formats, both plain tar files: an OCI layout (`index.json`, blobs by digest) and the older one of `docker save`
(`manifest.json`; the configuration is named by its digest and holds those of the unpacked layers). Standard library
only: it runs in the client, in the server and in the sandbox that unpacks.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lorry.errors import ImageBuildError

MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}
MOST_METADATA = 4 << 20
"""Bytes of an index, manifest or configuration: a bound for what is read into memory."""
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLayer:
    member: str
    """Name in the archive."""
    digest: str
    """`sha256:…`"""
    unpacked: bool
    """The digest is that of the uncompressed tar, not of the blob as it lies there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveImage:
    digest: str
    layers: tuple[ArchiveLayer, ...]
    """Lowest first."""
    env: tuple[tuple[str, str], ...]
    workdir: str


def read_archive(path: str) -> ArchiveImage:
    """Reads metadata only; their digests are checked. Raises ImageBuildError for what is not such an archive."""
    try:
        with tarfile.open(path, "r:") as archive:
            return _Reader(path, archive).image()
    except (tarfile.TarError, EOFError) as error:
        raise ImageBuildError(
            f"{path} is not an image archive: {error}. Expected is an uncompressed tar file as `docker save -o x.tar "
            "NAME`, `podman save` or `skopeo copy docker://NAME oci-archive:x.tar` write it; unpack .gz first."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageBuildError(f"the image archive {path} cannot be read: {type(error).__name__}: {error}") from None


class _Reader:
    def __init__(self, path: str, archive: tarfile.TarFile) -> None:
        self._path = path
        self._archive = archive
        self._members = {os.path.normpath(member.name): member for member in archive}

    def image(self) -> ArchiveImage:
        if "index.json" in self._members:
            return self._oci(json.loads(self._bytes("index.json")))
        if "manifest.json" in self._members:
            return self._docker(json.loads(self._bytes("manifest.json")))
        raise self._error("it has neither index.json (OCI) nor manifest.json (docker save)")

    def _oci(self, index: Any) -> ArchiveImage:
        entry = self._chosen(index["manifests"])
        manifest = json.loads(self._blob(entry["digest"]))
        if entry.get("mediaType") in INDEXES or "manifests" in manifest:
            entry = self._chosen(manifest["manifests"])
            manifest = json.loads(self._blob(entry["digest"]))
        config = json.loads(self._blob(manifest["config"]["digest"]))
        layers = [
            ArchiveLayer(member=self._blob_name(layer["digest"]), digest=layer["digest"], unpacked=False)
            for layer in manifest["layers"]
        ]
        return self._described(entry["digest"], layers, config)

    def _docker(self, manifest: Any) -> ArchiveImage:
        if len(manifest) != 1:
            raise self._error(f"it holds {len(manifest)} images: save one")
        (entry,) = manifest
        content = self._bytes(entry["Config"])
        digest = hashlib.sha256(content).hexdigest()
        if digest not in entry["Config"]:
            raise self._error(f"the content of {entry['Config']} has another digest than its name says")
        config = json.loads(content)
        diffs = config["rootfs"]["diff_ids"]
        if len(diffs) != len(entry["Layers"]):
            raise self._error("it names another number of layers than its configuration")
        layers = [
            ArchiveLayer(member=os.path.normpath(name), digest=diff, unpacked=True)
            for name, diff in zip(entry["Layers"], diffs, strict=True)
        ]
        return self._described(f"sha256:{digest}", layers, config)

    def _described(self, digest: str, layers: list[ArchiveLayer], config: Any) -> ArchiveImage:
        for layer in layers:
            if layer.member not in self._members:
                raise self._error(f"the layer {layer.member} is missing")
        machine = MACHINES.get(os.uname().machine, os.uname().machine)
        made_for = config.get("architecture", machine)
        if made_for != machine or config.get("os", "linux") != "linux":
            raise self._error(f"it is made for {config.get('os', 'linux')}/{made_for}, this machine is linux/{machine}")
        own = config.get("config") or {}
        pairs = [self._text(word).partition("=") for word in own.get("Env") or ()]
        return ArchiveImage(
            digest=digest,
            layers=tuple(layers),
            env=tuple((name, value) for name, _, value in pairs if name),
            workdir=_absolute(self._text(own.get("WorkingDir") or "")),
        )

    def _text(self, value: Any) -> str:
        """What a program can be handed."""
        with suppress(UnicodeEncodeError):
            if isinstance(value, str) and b"\0" not in value.encode():
                return value
        raise self._error(f"its configuration has {value!r:.80} where a text belongs")

    def _chosen(self, manifests: Any) -> Any:
        """The image of this machine's architecture; attestations and other architectures are passed over."""
        machine = MACHINES.get(os.uname().machine, os.uname().machine)
        fitting = [
            entry
            for entry in manifests
            if (entry.get("platform") or {}).get("architecture", machine) == machine
            and (entry.get("platform") or {}).get("os", "linux") == "linux"
        ]
        if len({entry["digest"] for entry in fitting}) != 1:  # one image with two tags is named twice
            raise self._error(f"it holds {len(fitting)} images for linux/{machine}: one is needed")
        return fitting[0]

    def _blob_name(self, digest: str) -> str:
        kind, _, value = digest.partition(":")
        if kind != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise self._error(f"{digest!r} is no sha256 digest")
        return f"blobs/sha256/{value}"

    def _blob(self, digest: str) -> bytes:
        content = self._bytes(self._blob_name(digest))
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise self._error(f"the content of {digest} has another digest")
        return content

    def _bytes(self, name: str) -> bytes:
        member = self._members.get(os.path.normpath(name))
        file = self._archive.extractfile(member) if member is not None and member.isfile() else None
        if member is None or file is None:
            raise self._error(f"{name} is missing in it")
        if member.size > MOST_METADATA:
            raise self._error(f"{name} has {member.size} bytes, at most {MOST_METADATA} are read")
        return file.read()

    def _error(self, text: str) -> ImageBuildError:
        return ImageBuildError(f"the image archive {self._path} cannot be used: {text}")


def _absolute(workdir: str) -> str:
    return workdir and os.path.normpath(f"/{workdir.lstrip('/')}")
