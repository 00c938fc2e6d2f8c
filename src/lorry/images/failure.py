"""A failed build as a sentence: which step, the end of its log, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorry.errors import ImageBuildError

TAIL_LINES = 40

_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|os error 28|Disk quota exceeded",
        "The disk of the state directory is full. `lorry df` shows what uses it, `lorry prune` frees it.",
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
        r"E: Unable to locate package|has no installation candidate",
        "The release has no package of that name: packages.debian.org lists them, and the names of other "
        "distributions may differ.",
    ),
    (
        r"Temporary failure resolving|Could not resolve|E: Failed to fetch|E: The repository .* does not have",
        "The Debian mirror could not be reached or has not that release. It is the one of this machine's own "
        "/etc/apt/sources.list, else deb.debian.org; HTTP_PROXY where you run the program is taken over.",
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


def build_error(step: str, status: int, lines: Sequence[str], program: str = "uv") -> ImageBuildError:
    """`lines` must be redacted already. The hint comes last, where a terminal shows it."""
    tail = list(lines[-TAIL_LINES:])
    ended = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
    parts = [f"Building the image failed in {step}: {program} {ended}."]
    if tail:
        skipped = f" ({len(lines) - len(tail)} earlier lines left out)" if len(lines) > len(tail) else ""
        parts += [f"Build log{skipped}:", *("  " + line for line in tail)]
    if advice := hint(tail):
        parts.append(f"Hint: {advice}")
    return ImageBuildError("\n".join(parts))


def hint(lines: Sequence[str]) -> str | None:
    """The first that applies, most particular first; None when the log must speak for itself."""
    text = "\n".join(lines)
    return next((advice for pattern, advice in _HINTS if re.search(pattern, text)), None)
