"""Tables, JSON and the fragments of docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Budget, Series, Verdict, judge, ratio
from rounds import LORRY, Results
from server import base_folder, file_system
from setup import ENVIRONMENTS, HERE, python_of

RESULTS = HERE / "results"
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
Cells = list[list[str]]


def number(value: float) -> str:
    """Three digits are more than the machine gives."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def measured(series: Mapping[str, Mapping[str, Series]]) -> Cells:
    """Every figure, beside Lorry's: the ratio is Lorry's ÷ the peer's, of the same rounds."""
    rows = [["measure", "contestant", "median", "min-max", "p99", "first", "Lorry", "Lorry ÷ it"]]
    for measure, by_name in series.items():
        ours = by_name.get(LORRY.name)
        for name, found in by_name.items():
            low, high = found.spread
            p99 = "" if found.p99 is None else number(found.p99)
            first = "" if found.first is None else number(found.first)
            row = [
                measure,
                name,
                f"{number(found.median)} {found.unit}",
                f"{number(low)}-{number(high)}",
                p99,
                first,
            ]
            if ours is None or ours is found:
                rows.append([*row, "", ""])
            else:
                rows.append([*row, f"{number(ours.median)} {ours.unit}", f"{ratio(ours, found):.3g} x"])
    return rows


def judged(budgets: Sequence[Budget], results: Results) -> tuple[Cells, list[Verdict]]:
    """The design's budgets, each with both figures, the ratio and the verdict."""
    rows = [["measure", "budget", "Lorry", "beside", "ratio", "verdict"]]
    verdicts = []
    for budget in budgets:
        verdict = judge(budget, results.series)
        who = "" if budget.name == LORRY.name else f" ({budget.name})"
        if verdict is None:
            rows.append([budget.measure + who, budget.text, "", "", "", "not measured"])
            continue
        verdicts.append(verdict)
        ours = f"{number(verdict.ours)} {verdict.unit}"
        if verdict.theirs is None:
            rows.append([budget.measure + who, budget.text, ours, "", "", verdict.words])
        else:
            theirs = f"{number(verdict.theirs)} {verdict.unit}"
            rows.append([budget.measure + who, budget.text, ours, theirs, f"{verdict.found:.3g} x", verdict.words])
    return rows, verdicts


def aligned(rows: Cells) -> str:
    """For a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown(rows: Cells) -> str:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    total = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": f"{os.cpu_count()} x {model.group(1) if model else platform.processor()}",
        "memory": f"{int(total.group(1)) / (1 << 20):.0f} GiB" if total else "?",
        "kernel": platform.release(),
        "state on": file_system(base_folder()),
        "versions": versions(),
        "load before": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


_VERSIONS = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    print(name, importlib.metadata.version(name))
print("Python", sys.version.split()[0])
"""


def versions() -> dict[str, str]:
    """Of every package that takes part, asked of its own environment."""
    asked = {name: tuple(p.split("=")[0] for p in packages) for name, packages in ENVIRONMENTS.items()}
    asked["lorry"] = ("lorry", "numpy", "uvloop")
    found: dict[str, str] = {}
    for environment, packages in asked.items():
        python = python_of(environment)
        if python is not None:
            command = [python, "-c", _VERSIONS, *packages]
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            found |= dict(line.split() for line in said.stdout.splitlines())
    return found


def busy() -> float:
    """Share of the machine that others use now, 0 to 1, over half a second."""

    def jiffies() -> tuple[int, int]:
        times = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return sum(times[:8]), times[3] + times[4]

    all_before, idle_before = jiffies()
    time.sleep(0.5)
    all_after, idle_after = jiffies()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


def save(name: str, title: str, budgets: Sequence[Budget], results: Results, about: dict[str, Any]) -> str:
    """JSON and the markdown fragment of one section; returns the text for the terminal."""
    rows, verdicts = judged(budgets, results)
    plain = {
        "section": name,
        "about": about,
        "series": {m: {n: s.plain() for n, s in by.items()} for m, by in results.series.items()},
        "budgets": [
            {"measure": v.budget.measure, "budget": v.budget.text, "found": v.found, "met": v.met} for v in verdicts
        ],
        "out": results.out,
    }
    RESULTS.mkdir(exist_ok=True)
    name = f"quick-{name}" if about["quick"] else name
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    (RESULTS / f"{name}-{stamp}.json").write_text(json.dumps(plain, indent=1))
    notes = "".join(f"\n- {line}" for line in results.out)
    fragment = f"{_about(about)}\n\n{markdown(rows)}\n\n{markdown(measured(results.series))}\n{notes}\n"
    (RESULTS / f"{name}.md").write_text(fragment)
    return f"\n{title}\n\n{aligned(rows)}\n\n{aligned(measured(results.series))}\n" + "".join(
        f"  ! {line}\n" for line in results.out
    )


def _about(about: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = f"{about['date']}, {about['cpu']}, {about['memory']}, kernel {about['kernel']}"
    how = f"{about['rounds']} rounds, commit {about['commit']}, state on {about['state on']}"
    return f"{where}; {how}; others used {about['busy before']:.0%} of the CPU before. {packages}."


def write_documents(names: Iterable[str]) -> list[str]:
    """Put the last fragments into docs/benchmarks.md between their markers; the names that were filled."""
    text = DOCUMENT.read_text()
    filled = []
    for name in names:
        fragment = RESULTS / f"{name}.md"
        pattern = re.compile(rf"(<!-- results: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if fragment.exists() and pattern.search(text):
            body = fragment.read_text()
            text = pattern.sub(lambda found, body=body: f"{found[1]}{body}{found[2]}", text)
            filled.append(name)
    DOCUMENT.write_text(text)
    return filled
