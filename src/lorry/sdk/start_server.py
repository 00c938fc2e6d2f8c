"""Starting the embedded server: once per user and state directory, inheriting nothing from this process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

from lorry.config import Settings
from lorry.errors import ConnectionError
from lorry.sdk.python_path import executable

ALLOWED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "XDG_CONFIG_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
"""Environment that the server keeps. Everything else of the first client's, secrets included, it never sees."""
PREFIX = "LORRY_"
LOG_NAME = "server.log"


class _Keeper(subprocess.Popen[bytes]):
    def __del__(self) -> None:
        """It outlives this process on purpose: no ResourceWarning."""


_started: list[_Keeper] = []
"""The last one of this process."""


def has_failed() -> bool:
    """Whether the server that this process started last has just ended because it cannot work as it is set up."""
    if not _started:
        return False
    try:
        return _started[0].wait(timeout=0.2) > 0  # its sockets close a moment before it is gone
    except subprocess.TimeoutExpired:
        return False


def start(settings: Settings) -> subprocess.Popen[bytes]:
    """Start the keeper. If another client was faster, it finds the lock taken and ends at once."""
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(settings.state_dir / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as refused:
        raise ConnectionError(
            f"the state directory {settings.state_dir} cannot be written: {refused.strerror}. "
            "Set LORRY_STATE_DIR to a folder that you own"
        ) from refused
    try:
        keeper = _Keeper(
            command(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(settings),
            cwd="/",
            start_new_session=True,
            close_fds=True,
        )
        _started[:] = [keeper]
        return keeper
    finally:
        os.close(log)


def command(settings: Settings) -> list[str]:
    """The keeper runs isolated (-I) and without site-packages (-S): it needs only the standard library."""
    return [
        executable(),
        "-I",
        "-S",
        str(_keeper()),
        str(settings.state_dir),
        str(settings.runtime_dir),
        executable(),
        "-m",
        "lorry.server.worker",
    ]


def _keeper() -> Path:
    package = importlib.util.find_spec("lorry")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "server" / "keeper.py"


def environment(settings: Settings) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key in ALLOWED or key.startswith(PREFIX)}
    kept.pop("LORRY_TOKEN", None)
    return {**kept, "LORRY_STATE_DIR": str(settings.state_dir), "LORRY_RUNTIME_DIR": str(settings.runtime_dir)}


def log_tail(settings: Settings, lines: int = 8) -> str:
    """The end of the server's log, for the error that says that it did not start."""
    try:
        text = (settings.state_dir / LOG_NAME).read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
