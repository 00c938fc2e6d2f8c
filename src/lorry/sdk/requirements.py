"""Requirements as the builder needs them: checked, complete, the same from whatever folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from lorry.errors import InvalidError

_VERSION = (
    r"v?\d+(?:!\d+)?(?:\.\d+)*(?:\.\*)?(?:[-._]?(?:a|b|c|rc|alpha|beta|pre|preview|post|rev|r|dev)[-._]?\d*)*"
    r"(?:-\d+)?(?:\+[a-z0-9._-]+)?"
)
_CLAUSE = rf"(?:(?:~=|==|!=|<=|>=|<|>)\s*{_VERSION}|===\s*\S+)"
_REQUIREMENT = re.compile(
    rf"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\s*(?:\[[^\]]*\])?\s*"
    rf"\(?(?:{_CLAUSE}(?:\s*,\s*{_CLAUSE})*,?)?\)?\s*(?:;.*)?",
    re.IGNORECASE,
)
_INCLUDE = re.compile(r"(?:-r|--requirement)[\s=]*(?P<path>\S.*)")
_CONSTRAINT = re.compile(r"(?:-c|--constraint)[\s=]")
_EDITABLE = re.compile(r"(?:-e|--editable)[\s=]*(?P<path>.*)")
_FIND_LINKS = re.compile(r"(?:-f|--find-links)[\s=]*(?P<place>\S+)")
_COMMENT = re.compile(r"(?:^|\s+)#.*$")
_ARCHIVES = (".whl", ".tar.gz", ".zip", ".tar.bz2")


def check_package(method: str, package: str) -> None:
    """Raises InvalidError, at definition, for what cannot be one requirement."""
    text = package.strip()
    if not text or text.startswith("#"):
        raise InvalidError(f"Image.{method}: {package!r} names no package.")
    if text.startswith("-"):
        raise InvalidError(f'Image.{method}: {text!r} is an option, not a package. Pass it as extra_options="{text}".')
    if "\n" in text:
        raise InvalidError(f"Image.{method}: one string holds several lines. Pass a list of packages.")
    if "://" in text or " @ " in text or _is_path(text) or "${" in text:
        return
    if not _REQUIREMENT.fullmatch(text):
        raise InvalidError(
            f"Image.{method}: {text!r} is not one requirement such as 'numpy' or 'torch==2.13.0'. Is a comma "
            "missing between two strings, or are there several packages in one?"
        )


def resolved_package(package: str) -> str:
    """`package`, a path to a wheel made absolute and bound to the file's content."""
    return _resolve_line(package.strip(), Path.cwd(), "pip_install")


def requirements_text(path: str | Path) -> str:
    """A requirements file with the files that it includes put in place."""
    lines: list[str] = []
    _collect(Path(path).expanduser(), lines, ())
    return "\n".join(lines)


def locked_text(text: str, folder: Path, origin: str) -> str:
    """What `uv export` wrote for the project in `folder`."""
    return "\n".join(_resolve_line(line, folder, origin) for line in _logical_lines(text))


def _collect(path: Path, lines: list[str], including: tuple[Path, ...]) -> None:
    path = path.absolute()
    if path in including:
        raise InvalidError(f"The requirements file {path} includes itself.")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidError(f"The requirements file {path} cannot be read: {error.strerror}.") from error
    for line in _logical_lines(text):
        if include := _INCLUDE.fullmatch(line):
            _collect(path.parent / include["path"], lines, (*including, path))
        else:
            lines.append(_resolve_line(line, path.parent, str(path)))


def _logical_lines(text: str) -> Iterator[str]:
    for line in text.replace("\\\n", " ").splitlines():
        if line := _COMMENT.sub("", line).strip():
            yield line


def _resolve_line(line: str, folder: Path, origin: str) -> str:
    if _CONSTRAINT.match(line):
        raise InvalidError(f"{origin}: {line!r}: constraint files cannot be used; put the versions in the file.")
    if editable := _EDITABLE.fullmatch(line):
        if "://" in editable["path"]:
            return editable["path"]
        raise InvalidError(_local_project(origin, line))
    if (links := _FIND_LINKS.fullmatch(line)) and "://" not in links["place"]:
        return f"--find-links {(folder / links['place']).resolve()}"
    if line.startswith("-") or not _is_path(line):
        return line
    archive = (folder / Path(line).expanduser()).resolve()
    if archive.is_dir():
        raise InvalidError(_local_project(origin, line))
    if not archive.is_file():
        raise InvalidError(f"{origin}: there is no file {archive}.")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # As a comment the content still decides the image's digest; uv takes a hash only after a package name.
    return f"file://{quote(str(archive))}  # sha256:{digest}"


def _is_path(text: str) -> bool:
    if "://" in text or " @ " in text:
        return False
    return text.startswith(("./", "../", "/", "~/")) or text == "." or text.endswith(_ARCHIVES)


def _local_project(origin: str, line: str) -> str:
    return (
        f"{origin}: {line!r} is a project folder, which is not shipped. Use add_local_python_source() for "
        "its modules, or build a wheel and name that file."
    )
