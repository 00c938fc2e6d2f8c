"""Credentials inside urls: found, removed and blacked out.

Index urls, requirements and proxies carry `user:password@`. They reach uv through the environment of one
process and nothing else: not the digest, not a file under the image root, not a log, not an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

MASK = "****"
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<userinfo>[^/?#\s'\"`<>]*)@")
_SHORTEST_SECRET = 4
"""Blacking out shorter words would eat the log; urls are masked whatever their length."""
HIDDEN_LENGTH = 6
"""Lines of secrets at least this long are blacked out in logs; shorter ones would black out half of the words."""
_PLACEHOLDER_PASSWORDS = frozenset({"", "x-oauth-basic", "x-token-auth"})


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with the user part of every url, and every one of `secrets`, replaced by `****`."""
    text = _USERINFO.sub(rf"\g<scheme>://{MASK}@", text)
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    return text


def lines_to_hide(values: Iterable[str]) -> tuple[str, ...]:
    """What of these secrets must not stand in a log, which comes line by line; longest first, since a secret may be
    the beginning of another."""
    lines = {line.strip() for value in values for line in value.splitlines()}
    return tuple(sorted((line for line in lines if len(line) >= HIDDEN_LENGTH), key=lambda line: (-len(line), line)))


def without_credentials(text: str) -> str:
    """`text` as it goes into a digest: without the user part of urls, so that passwords can be rotated."""
    return _USERINFO.sub(r"\g<scheme>://", text)


def secrets_in(text: str) -> tuple[str, ...]:
    """What must never be shown of the urls in `text`: passwords and tokens, as written and decoded."""
    found: set[str] = set()
    for match in _USERINFO.finditer(text):
        if match["scheme"].endswith("ssh"):  # `git+ssh://git@host`: a login name, never a password
            continue
        user, _, password = match["userinfo"].partition(":")
        secret = user if password in _PLACEHOLDER_PASSWORDS else password
        if not secret.startswith("${"):
            found |= {secret, unquote(secret)}
    return tuple(sorted(found - {""}))


def as_variables(text: str, variables: dict[str, str]) -> str:
    """`text` with each user part moved into `variables`, as `${LORRY_CREDENTIAL_0}`, which uv expands."""

    def move(match: re.Match[str]) -> str:
        userinfo = match["userinfo"]
        if match["scheme"].endswith("ssh") or userinfo.startswith("${"):
            return match[0]
        name = f"LORRY_CREDENTIAL_{len(variables)}"
        variables[name] = userinfo
        return f"{match['scheme']}://${{{name}}}@"

    return _USERINFO.sub(move, text)
