"""Lorry beside its peers: `python benchmarks/run.py [SECTION...] [--rounds N] [--quick] [--write-docs]`.

Sections: calls, map, payload, import, hello, memory; all of them if none is named. `docs/benchmarks.md` says how to
read what comes out.
"""

from __future__ import annotations

import argparse
import sys
import time
from types import ModuleType

import report
from rounds import Results, say
from sections import calls, hello, imports, map, memory, payload
from sections.options import Options

Sections = dict[str, ModuleType]
SECTIONS: Sections = {
    "calls": calls,
    "map": map,
    "payload": payload,
    "import": imports,
    "hello": hello,
    "memory": memory,
}
QUIET = 0.1
"""Share of the CPU that others may use before a warning says so."""


def arguments(sections: Sections, text: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(sections))
    parser.add_argument("--rounds", type=int, help="rounds of every measure (7)")
    parser.add_argument("--quick", action="store_true", help="a smoke test; its figures mean nothing")
    parser.add_argument("--write-docs", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--docs-only", action="store_true", help="measure nothing, put the last results there")
    chosen = parser.parse_args()
    unknown = set(chosen.sections) - sections.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    chosen.sections = chosen.sections or list(sections)
    return chosen


def main(sections: Sections, text: str | None) -> int:
    chosen = arguments(sections, text)
    missed = 0
    if not chosen.docs_only:
        options = Options(rounds=chosen.rounds or (1 if chosen.quick else 7), quick=chosen.quick)
        about = report.machine() | {"rounds": options.rounds, "quick": options.quick}
        for name in chosen.sections:
            missed += _section(name, sections[name], options, about)
    if chosen.write_docs or chosen.docs_only:
        print(f"{report.DOCUMENT}: filled {', '.join(report.write_documents(chosen.sections)) or 'nothing'}")
    return 1 if missed else 0


def _section(name: str, section: ModuleType, options: Options, about: dict[str, object]) -> int:
    """Run and print one section; how many of its budgets are missed."""
    others = report.busy()
    say(f"{section.TITLE}" + (f" (others use {others:.0%} of the CPU: not a quiet machine)" if others > QUIET else ""))
    results = Results()
    began = time.monotonic()
    section.run(options, results)
    print(
        report.save(name, section.TITLE, section.BUDGETS, results, about | {"busy before": others}),
        flush=True,
    )
    say(f"  {time.monotonic() - began:.0f} s")
    return sum(not verdict.met for verdict in report.judged(section.BUDGETS, results)[1])


if __name__ == "__main__":
    sys.exit(main(SECTIONS, __doc__))
