"""A Debian root file system: which release has which Python, where its packages come from, how it is made."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

RELEASES = {"3.11": "bookworm", "3.13": "trixie"}
"""Python → the release that has it as its own."""
NEWEST = "trixie"
"""For a Python that no release has: uv puts it on top of this one."""
PACKAGES = ("ca-certificates", "python3", "python3-pip", "python-is-python3")
MIRROR, SECURITY = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = Path("/etc/apt")
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    main: str
    security: str
    keyring: str


def release_for(python_version: str) -> str:
    return RELEASES.get(python_version, NEWEST)


def machine_mirror(folder: Path = SOURCES) -> Mirror:
    """Where this machine's own apt gets Debian from; Debian's own servers where it is no Debian.

    Others name their suites after Debian's releases too: what has `-updates` beside them comes first, then a folder
    called `debian`.
    """
    entries = list(_entries(folder))
    security = [uri for uri, suite, _ in entries if suite.endswith(("-security", "/updates")) and "security" in uri]
    updated = {uri for uri, suite, _ in entries if suite.endswith("-updates")}
    mains = [entry for entry in entries if entry[1] in RELEASES.values() or entry[0].endswith("/debian")]
    mains.sort(key=lambda entry: (entry[0] not in updated, not entry[0].endswith("/debian")))
    main, _, keyring = mains[0] if mains else (MIRROR, "", "")
    return Mirror(
        main=main,
        security=security[0] if security else SECURITY,
        keyring=keyring if keyring.startswith("/") and os.path.exists(keyring) else KEYRING,
    )


def _entries(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(uri, suite, keyring) of one-line and deb822 files, where they have the component `main`."""
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if path.suffix == ".sources":
            yield from _stanzas(text)
        elif path.suffix == ".list":
            for line in text.splitlines():
                if entry := re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s.*\bmain\b", line):
                    signed = re.search(r"signed-by=(\S+)", entry[1] or "")
                    yield entry[2].rstrip("/"), entry[3], signed[1] if signed else ""


def _stanzas(text: str) -> Iterator[tuple[str, str, str]]:
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        if "main" not in fields.get("components", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri.rstrip("/"), suite, fields.get("signed-by", "")


def bootstrap_command(release: str, mirror: Mirror, target: str) -> tuple[str, ...]:
    """Makes the root at `target`, by uid 0 of a namespace whose /sys and /dev are not its own to mount."""
    signed = f"[signed-by={mirror.keyring}]"
    lines = [
        f"deb {signed} {mirror.main} {release} main",
        f"deb {signed} {mirror.main} {release}-updates main",
        f"deb {signed} {mirror.security} {release}-security main",
    ]
    options = ['--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io"]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    return (
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        f"--include={','.join(PACKAGES)}",
        "--skip=chroot/mount/sys,chroot/mount/dev,output/dev,check/empty",
        *options,
        release,
        target,
        *lines,
    )


def apt_script(packages: tuple[str, ...]) -> str:
    """Lists are fetched and dropped again in the same layer. By itself apt only warns when it cannot fetch them, and
    then knows no package."""
    words = " ".join(map(shlex.quote, packages))
    return (
        "set -e\n"
        "command -v apt-get >/dev/null || { echo 'this image has no apt-get: it is no Debian or Ubuntu'; exit 1; }\n"
        "apt-get -q update -o APT::Update::Error-Mode=any\n"
        "apt-get -q install -y --no-install-recommends -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-unsafe-io "
        f"{words}\n"
        "apt-get clean\n"
        "rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log\n"
    )


def proxies(env: Mapping[str, str]) -> dict[str, str]:
    """The client's, in the spelling that apt, curl and pip share."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    return {spelled: env[name] for name in names if env.get(name) for spelled in (name, name.lower())}
