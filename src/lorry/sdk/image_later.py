"""Image methods of Modal programs that Lorry does not have yet: each says what works now."""

from __future__ import annotations

from typing import Any, NoReturn

from lorry.errors import InvalidError

_ROOT_IMAGE = "needs a root file system of its own, which comes in a later version"
_PACKAGES = "Image.debian_slim().uv_pip_install(...) gives Python packages above this machine's own /usr"


class LaterImageMethods:
    __slots__ = ()

    @staticmethod
    def from_registry(*args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        _later("from_registry", _ROOT_IMAGE, _PACKAGES)

    @staticmethod
    def from_dockerfile(*args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        _later("from_dockerfile", _ROOT_IMAGE, _PACKAGES)

    @staticmethod
    def micromamba(*args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        _later("micromamba", "comes in a later version", _PACKAGES)

    def apt_install(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        works = "programs and libraries that are installed on this machine under /usr can be used in containers"
        _later("apt_install", _ROOT_IMAGE, works)

    def run_commands(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        works = "uv_pip_install(...), env(...) and add_local_file(...) cover most of what commands are used for"
        _later("run_commands", "comes in a later version", works)

    def run_function(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        works = "let the function itself write to a Volume, once, for example to download a model"
        _later("run_function", "comes in a later version", works)

    def uv_sync(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        works = "`uv export > requirements.txt` and pip_install_from_requirements('requirements.txt')"
        _later("uv_sync", "comes in a later version", works)


def _later(method: str, why: str, works: str) -> NoReturn:
    raise InvalidError(f"Image.{method} {why}; what works now: {works}.")
