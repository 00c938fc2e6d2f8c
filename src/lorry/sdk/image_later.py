"""Image methods of Modal programs that Lorry does not have yet: each says what works now."""

from __future__ import annotations

from typing import Any, NoReturn

from lorry.errors import InvalidError

_FETCH = (
    "`docker pull NAME && docker save -o image.tar NAME`, or `skopeo copy docker://NAME oci-archive:image.tar`, then "
    "Image.from_oci_archive('image.tar')"
)
_DEBIAN = "Image.debian_slim().apt_install(...).run_commands(...) does what most Dockerfiles do"
_PACKAGES = "Image.debian_slim().uv_pip_install(...) gives Python packages"


class LaterImageMethods:
    __slots__ = ()

    @staticmethod
    def from_registry(*args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        _later("from_registry", "comes in a later version", _FETCH)

    @staticmethod
    def from_dockerfile(*args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        _later("from_dockerfile", "comes in a later version", _DEBIAN + ", and `docker build` with " + _FETCH)

    @staticmethod
    def micromamba(*args: Any, **kwargs: Any) -> NoReturn:
        """Not yet."""
        _later("micromamba", "comes in a later version", _PACKAGES)


def _later(method: str, why: str, works: str) -> NoReturn:
    raise InvalidError(f"Image.{method} {why}; what works now: {works}.")
