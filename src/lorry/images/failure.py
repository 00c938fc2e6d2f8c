"""A failed build as a sentence: which step, the end of its log, and what to do about it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from lorry.errors import ImageBuildError

TAIL_LINES = 40

DISK_FULL = "The disk of the state directory is full. `lorry df` shows what uses it, `lorry prune` frees it."

_HINTS: tuple[tuple[str, str], ...] = (
    (r"No space left on device|os error 28|Disk quota exceeded", DISK_FULL),
    (
        r"[EW]: Failed to fetch|E: The repository .* does not have|Temporary failure resolving",
        "The Debian mirror could not be reached or has not that release. It is the one of this machine's own "
        "/etc/apt/sources.list, else deb.debian.org; HTTP_PROXY where you run the program is taken over.",
    ),
    (
        r"E: Unable to locate package|has no installation candidate|E: Version .* was not found",
        "The release has no package of that name or version: packages.debian.org lists them, and the names of other "
        "distributions may differ.",
    ),
    (
        r"In `--require-hashes` mode",
        "require_hashes=True takes each package, also those that others need, as name==version with its --hash=…: "
        "`uv pip compile --generate-hashes` writes such a file, for requirements=[…].",
    ),
    (
        r"/uv: (?:error while loading shared libraries|not found|cannot execute)",
        "uv, which installs packages and Pythons, does not run in this image: it needs glibc and libgcc_s, which "
        "images of Debian, Ubuntu and Fedora have, and Alpine's have not.",
    ),
    (
        r"UnknownIssuer|invalid peer certificate|CERTIFICATE_VERIFY_FAILED",
        "The index's TLS certificate is not trusted here. Behind a company proxy, set SSL_CERT_FILE (or "
        "PIP_CERT) to its CA bundle where you run the program; the build takes it over.",
    ),
    (
        r"\b401 Unauthorized|\b403 Forbidden|\b407 Proxy|status code 40[137]|credentials",
        "The index or proxy refused the login. Put it into PIP_INDEX_URL, UV_INDEX_URL or ~/.netrc where "
        "you run the program; credentials are not stored with the image.",
    ),
    (
        r"dns error|Connection refused|timed out|error sending request|Network is unreachable|Failed to fetch"
        r"|Could not connect|connection (?:reset|closed)|Request failed after",
        "The package index could not be reached from the machine that builds. Check the network, "
        "PIP_INDEX_URL and HTTPS_PROXY; settings of pip and uv where you run the program are taken over.",
    ),
    (
        r"no (?:usable |compatible )?wheels|no wheels with a matching|Python ABI tag|platform tag"
        r"|does not satisfy Python|Requires-Python|not compatible with",
        "No wheel of that version fits this Python and system. Choose another version of the package, or run "
        "the program with a Python that it supports.",
    ),
    (
        r"was not found in the (?:package registry|provided package locations)",
        "No index has a package of that name. Check the spelling (the name to install may differ from the "
        "name to import), or name the index: uv_pip_install(..., extra_index_url=...).",
    ),
    (
        r"there (?:is|are) no versions? of|only (?:the following versions|\S+ is available|\S+<)",
        "The index has no such version of the package. Loosen the version, or name another index.",
    ),
    (
        r"Failed to build|Build backend failed|command '\S*(?:cc|g\+\+|clang|cmake|cargo|rustc)\S*' failed",
        "The package has no wheel and building it from source failed. Choose a version that has a wheel, or "
        "install the compiler or headers that the log asks for on the machine that builds.",
    ),
    (
        r"(?i)git (?:executable|command|operation) (?:not found|failed)",
        "A requirement comes from git: git must be installed and reach the repository without asking for a password.",
    ),
    (
        r"No solution found|unsatisfiable|conflict",
        "The requirements contradict each other; the log names the pair. Loosen one of them.",
    ),
    (
        r"Failed to parse|Couldn't parse requirement|Expected (?:one of|package name)",
        'A requirement is not written as pip and uv expect it, for example torch==2.13.0 or "numpy>=2,<3".',
    ),
)


class LogTail:
    """The end of a log that may have no end. Lines must be redacted already."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)
        self.left_out = 0

    def add(self, line: str) -> None:
        self.left_out += len(self.lines) == TAIL_LINES
        self.lines.append(line)


def build_error(step: str, status: int, tail: LogTail, program: str = "uv") -> ImageBuildError:
    """The hint comes last, where a terminal shows it."""
    ended = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
    parts = [f"Building the image failed in {step}: {program} {ended}."]
    if tail.lines:
        skipped = f" ({tail.left_out} earlier lines left out)" if tail.left_out else ""
        parts += [f"Build log{skipped}:", *("  " + line for line in tail.lines)]
    if advice := hint(tail.lines):
        parts.append(f"Hint: {advice}")
    return ImageBuildError("\n".join(parts))


def hint(lines: Iterable[str]) -> str | None:
    """The first that applies, most particular first; None when the log must speak for itself."""
    text = "\n".join(lines)
    return next((advice for pattern, advice in _HINTS if re.search(pattern, text)), None)
