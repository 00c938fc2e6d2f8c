"""The documentation, held to the code: links resolve, programs run and print what is shown, nothing is left out."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lorry import config, errors
from lorry.sdk import options

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
LORRY = Path(sys.executable).parent / "lorry"

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PYTHON = re.compile(r"(?:<!-- run(?:: (?P<how>\w+))? -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
_SHOWN = re.compile(r"```text\n(.*?)```", re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Links and words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_resolves(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(page.read_text())}
        folders = [target for target in targets if target.is_dir()]
        targets |= {found for folder in folders for found in folder.glob("*.md")}
        new = {target for target in targets if target.suffix == ".md"} - reached
        reached |= new
        waiting += new
    sections = ("tasks", "reference", "discussions", "decisions")
    assert not {page for section in sections for page in (DOCS / section).glob("*.md")} - reached


def test_tests_that_the_pages_name_exist() -> None:
    written = {name for page in PAGES for name in re.findall(r"\btest_\w+(?!\w*\.py)\b", page.read_text())}
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert not {name for name in written - files if f"def {name}(" not in code}


def test_pages_name_no_folder_of_the_machine_they_were_written_on() -> None:
    for page in PAGES:
        assert "/work/" not in page.read_text(), name_of(page)


# Programs


class Program(NamedTuple):
    page: str
    how: str
    code: str
    shown: str


def programs(page: Path) -> Iterator[Program]:
    """Blocks below `<!-- run -->` with the `text` block that follows them."""
    text = page.read_text()
    for found in _PYTHON.finditer(text):
        if found.group(0).startswith("<!-- run"):
            shown = _SHOWN.search(text, found.end())
            assert shown, f"{name_of(page)}: a program without its output"
            yield Program(name_of(page), found["how"] or "lorry", found["code"], shown[1])


def test_every_python_block_compiles() -> None:
    for page in PAGES:
        for found in _PYTHON.finditer(page.read_text()):
            line = page.read_text().count("\n", 0, found.start("code")) + 1
            compile(found["code"], f"{name_of(page)}:{line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "program", [p for page in PAGES for p in programs(page)], ids=lambda program: program.page.replace("/", "-")
)
def test_a_program_prints_what_is_shown(program: Program, tmp_path: Path) -> None:
    """Lines of containers and of the program itself come in any order among each other."""
    file = tmp_path / "first.py"
    file.write_text(program.code)
    command = [str(LORRY), "run", "-q", file.name] if program.how == "lorry" else [sys.executable, file.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(program.shown.splitlines())


# Reference


@pytest.mark.parametrize("name", sorted(options.KNOWN))
def test_every_function_parameter_is_in_the_reference(name: str) -> None:
    assert f"| `{name}` |" in (REFERENCE / "function.md").read_text()


@pytest.mark.parametrize("name", sorted(options.LATER))
def test_the_reference_says_which_parameters_only_warn(name: str) -> None:
    row = re.search(rf"^\| `{name}` \|.*$", (REFERENCE / "function.md").read_text(), re.MULTILINE)
    assert row
    assert "warns" in row[0]


def test_the_reference_names_the_replacements_of_old_parameters() -> None:
    text = (REFERENCE / "function.md").read_text()
    assert not {old for old in options.RENAMED if f"`{old}`" not in text}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(config.Settings)])
def test_every_setting_is_in_the_reference(field: str) -> None:
    text = (REFERENCE / "settings.md").read_text()
    assert f"`LORRY_{field.upper()}`" in text
    assert f"`{field}`" in text


def test_every_error_is_in_the_reference() -> None:
    text = (REFERENCE / "errors.md").read_text()
    assert not {name for name in [*errors.BY_NAME, "InputCancellation"] if f"`{name}`" not in text}


def commands() -> Iterator[tuple[str, Any]]:
    """`app list` and the like, with typer's own objects."""
    import typer.main

    from lorry.cli import main

    root = typer.main.get_command(main._root())
    for name in root.list_commands(None):  # type: ignore[attr-defined]
        command = root.get_command(None, name)  # type: ignore[attr-defined]
        parts = getattr(command, "commands", None)
        yield from ((f"{name} {part}", parts[part]) for part in parts) if parts else [(name, command)]


def test_every_command_and_its_options_are_in_the_reference() -> None:
    text = (REFERENCE / "cli.md").read_text()
    missing = []
    for name, command in commands():
        row = re.search(rf"^\| `lorry {name}\b.*$", text, re.MULTILINE)
        options_of = [opt for parameter in command.params for opt in parameter.opts if opt.startswith("--")]
        missing += [f"lorry {name}"] if row is None else [f"lorry {name} {o}" for o in options_of if o not in row[0]]
    assert not [entry for entry in missing if not entry.endswith(("--help", "-completion"))]


def test_every_api_method_is_in_the_reference() -> None:
    text = (REFERENCE / "wire.md").read_text()
    server = ROOT / "src" / "lorry" / "server"
    names = {
        word
        for path in server.glob("api*.py")
        for block in re.findall(r"names = \(?\s*((?:\"[^\"]*\"\s*)+)", path.read_text())
        for word in re.findall(r"\b[a-z][a-z_]+\b", block)
    }
    assert len(names) > 30
    assert not {name for name in names if f"`{name}`" not in text}
