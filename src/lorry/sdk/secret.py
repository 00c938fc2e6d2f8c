"""`Secret`: environment variables that are encrypted at rest and seen only by functions that name them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorry.errors import InvalidError, NotFoundError
from lorry.sdk.steps import Ask, Steps, twin


class Secret:
    """Made by `from_name`, `from_dict`, `from_dotenv` or `from_local_environ`; used with `secrets=[…]`."""

    __lorry_handle__ = True

    def __init__(
        self,
        name: str | None,
        values: dict[str, str] | None = None,
        required: Sequence[str] = (),
        secret_id: str | None = None,
    ) -> None:
        self._name = name
        self._values = values
        self._required = list(required)
        self._secret_id = secret_id

    @staticmethod
    def from_name(name: str, *, environment_name: str | None = None, required_keys: Sequence[str] = ()) -> Secret:
        """One made with `lorry secret create`. NotFoundError at first use if it, or a required key, is missing."""
        return Secret(name, required=required_keys)

    @staticmethod
    def from_dict(env_dict: Mapping[str, str | None] | None = None) -> Secret:
        """Values from this program; None values are left out."""
        values = {key: value for key, value in (env_dict or {}).items() if value is not None}
        for key, value in values.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise InvalidError(f"a secret has text keys and values; {key!r} has a {type(value).__name__}")
        return Secret(None, values)

    @staticmethod
    def from_local_environ(env_keys: Sequence[str]) -> Secret:
        """Variables of this process's environment."""
        missing = [key for key in env_keys if key not in os.environ]
        if missing:
            raise InvalidError(f"the environment has no variable {missing[0]}")
        return Secret(None, {key: os.environ[key] for key in env_keys})

    @staticmethod
    def from_dotenv(path: str | os.PathLike[str] | None = None, *, filename: str = ".env") -> Secret:
        """KEY=value lines of a .env file: beside or above `path` (a file or folder; by default here)."""
        start = Path(path) if path is not None else Path.cwd()
        folder = start if start.is_dir() else start.parent
        for candidate in (folder, *folder.resolve().parents):
            if (candidate / filename).is_file():
                return Secret(None, parse_dotenv((candidate / filename).read_text()))
        raise InvalidError(f"no {filename} in {folder.resolve()} or above it")

    @property
    def name(self) -> str | None:
        return self._name

    @property
    def object_id(self) -> str | None:
        return self._secret_id

    def __repr__(self) -> str:
        return f"<lorry.Secret {self._name or 'from values'}>"

    def __reduce__(self) -> Any:
        """Travels by name or id, never with its values."""
        return Secret, (self._name, None, self._required, self._secret_id)

    def _hydrated(self, *, afresh: bool = False) -> Steps[str]:
        """Its id. `afresh`: for an app that starts; the secret may have been changed since."""
        if self._secret_id is None or (afresh and (self._name or self._values) is not None):
            if self._values is not None:
                reply = yield Ask("secret_put", {"name": None, "values": self._values})
            else:
                reply = yield from self._looked_up()
            self._secret_id = str(reply["secret_id"])
        return self._secret_id

    def _looked_up(self) -> Steps[Any]:
        try:
            return (yield Ask("secret_lookup", {"name": self._name, "required_keys": self._required}))
        except NotFoundError as missing:
            force = " --force" if self._required and "There is no" not in str(missing) else ""
            raise NotFoundError(f"{missing} `lorry secret create{force} {self._name} KEY=VALUE` makes it") from None

    def _hydrate(self) -> Steps[Secret]:
        yield from self._hydrated()
        return self

    hydrate = twin(_hydrate)


def parse_dotenv(text: str) -> dict[str, str]:
    """KEY=value lines; `export`, quotes and # comments as shells know them. Between double quotes \\n is a newline."""
    values: dict[str, str] = {}
    for line in text.removeprefix("\ufeff").splitlines():
        found = _ASSIGNMENT.fullmatch(line)
        if found is None:
            continue
        key, single, double, plain = found.groups()
        if double is not None:
            values[key] = _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), double)
        else:
            values[key] = single if single is not None else _COMMENT.sub("", plain).strip()
    return values


_ASSIGNMENT = re.compile(
    r"""\s*(?:export\s+)?([^\s=#'"]+)\s*=\s*(?:'([^']*)'\s*(?:\#.*)?|"((?:[^"\\]|\\.)*)"\s*(?:\#.*)?|(.*))"""
)
_COMMENT = re.compile(r"(?:^|\s)#.*")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
