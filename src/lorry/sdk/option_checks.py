"""The parameters of decorators, checked where they are written: names, types, units, ranges."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from lorry.errors import InvalidError
from lorry.sdk import options as opt
from lorry.sdk.decorators import check_flag
from lorry.sdk.image import Image
from lorry.sdk.resumable import resume_policy
from lorry.sdk.secret import Secret
from lorry.sdk.volume import Volume

_FLAGS = (
    "serialized",
    "is_generator",
    "nonpreemptible",
    "enable_memory_snapshot",
    "block_network",
    "single_use_containers",
    "include_source",
    "restrict_modal_access",
    "restrict_access",
)
_NAME = re.compile(r"\w[\w.-]{0,63}")
_OF_THE_SYSTEM = ("/tmp", "/root", "/proc", "/dev", "/usr", "/etc")  # noqa: S108


def accepted(given: Mapping[str, Any], where: str, excluded: Collection[str] = ()) -> dict[str, Any]:
    """What was given, checked; None is the same as not given. InvalidError says what would be right.

    `schedule`, `budget`, `limits` and `proxy` are not looked into: what they take is not there yet."""
    opt.check_names(given, where, excluded)
    options = given_values(given)
    check_values(options)
    opt.check_memory_backoff(options)
    opt.warn_later(options, where)
    return options


def given_values(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def check_values(given: dict[str, Any]) -> None:
    opt.resources(given)
    opt.scaling(given)
    opt.retry_policy(given.get("retries"))
    resume_policy(given.get("resumable"))
    opt.count(given, "max_inputs", 1)
    check_image(given.get("image"))
    check_secrets(given.get("secrets", ()))
    check_volumes(given.get("volumes", {}))
    for name in given.keys() & {"timeout", "startup_timeout"}:
        opt.seconds(given[name], name)
    for name in given.keys() & {"env", "tags"}:
        opt.texts(given[name], name)
    for name in given.keys() & set(_FLAGS):
        check_flag(given[name], name)
    for name in given.keys() & _OTHERS.keys():
        kinds, words = _OTHERS[name]
        if not isinstance(given[name], kinds) or isinstance(given[name], bool):
            raise InvalidError(f"{name} must be {words}, not {given[name]!r}")
    check_name(given.get("name"))


_OTHERS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "region": ((str, list, tuple), "a text or a list of texts"),
    "cloud": (str, "a text"),
    "priority": (int, "a whole number"),
    "experimental_options": (Mapping, "a dict"),
}


def check_name(name: Any) -> None:
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InvalidError(f"name={name!r}: a function's name has 1 to 64 letters, digits, '.', '_' or '-'")


def check_image(image: Any) -> None:
    if image is not None and not isinstance(image, Image):
        raise InvalidError(f"image= takes a lorry.Image, not {image!r}; begin with lorry.Image.debian_slim()")


def check_secrets(secrets: Any) -> None:
    for secret in opt.sequence(secrets, "secrets"):
        if not isinstance(secret, Secret):
            way = f"lorry.Secret.from_name({secret!r})" if isinstance(secret, str) else "Secret.from_name, from_dict"
            raise InvalidError(f"secrets= takes lorry.Secret objects, not {secret!r}; see {way}")


def check_volumes(volumes: Any) -> None:
    """Paths absolute, none twice, no volume twice."""
    if not isinstance(volumes, Mapping):
        raise InvalidError(
            f'volumes= takes a dict such as {{"/data": lorry.Volume.from_name("data")}}, not {volumes!r}'
        )
    places: dict[object, str] = {}
    for path, volume in volumes.items():
        place = mount_path(path)
        if not isinstance(volume, Volume):
            way = f"; see lorry.Volume.from_name({volume!r})" if isinstance(volume, str) else ""
            raise InvalidError(f"volumes= takes {{path: lorry.Volume}}; {place!r} has {volume!r}{way}")
        which = volume.name or volume.object_id or id(volume)
        if which in places:
            raise InvalidError(f"the same volume is mounted at {places[which]} and {place}; mount it once")
        if place in places.values():
            raise InvalidError(f"two volumes are mounted at {place}")
        places[which] = place


def mount_path(path: Any) -> str:
    """A volume's place in the container, in the one spelling that is compared: no trailing or double slash."""
    name = str(path)
    place = posixpath.normpath("/" + name.lstrip("/"))
    absolute = isinstance(path, (str, PurePath)) and name.startswith("/") and ".." not in name.split("/")
    if not absolute or place == "/":
        raise InvalidError(f"a volume's path must be absolute and not / itself, such as /data; {path!r} is not")
    if place in _OF_THE_SYSTEM:
        raise InvalidError(f"a volume cannot take the place of {place}; use a folder such as /data")
    return place
