"""A cold start by stage, and what would make it shorter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

STAGES = {
    "queue": "from the first waiting input to the decision to start a container",
    "image": "image, source, Volumes and secrets made ready",
    "template": "the wait for a template of which no fork came, for the reason given",
    "sandbox": "namespaces, mounts and limits; with a template, the fork",
    "process": "the interpreter's start and its connection; nothing with a template",
    "import": "the user's module, where this container had to wait for it",
    "enter": "@enter hooks",
    "first input": "from ready to the first result",
}
"""In their order, in seconds."""


@dataclass(slots=True)
class Clockwork:
    """Takes the stages of one container; `now` is monotonic seconds."""

    mark: float
    """When the stage before ended."""
    seconds: dict[str, float] = field(default_factory=dict)

    def end(self, stage: str, now: float) -> None:
        self.add(stage, now - self.mark)

    def add(self, stage: str, seconds: float) -> None:
        """A stage whose length was measured elsewhere."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + max(0.0, seconds)
        self.mark += seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    function: str
    started_at: float
    seconds: dict[str, float]
    cold: str = ""
    """Why it was no fork of a template; empty if it was."""
    imports: tuple[tuple[str, float], ...] = ()
    """The packages whose import took longest, where this container had to wait for it."""

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def to_json(self) -> str:
        return json.dumps({"seconds": self.seconds, "cold": self.cold, "imports": self.imports})


def from_json(function: str, started_at: float, text: str) -> ColdStart:
    plain = json.loads(text)
    imports = tuple((name, seconds) for name, seconds in plain["imports"])
    return ColdStart(
        function=function, started_at=started_at, seconds=plain["seconds"], cold=plain["cold"], imports=imports
    )


NOTABLE, LONG = 0.3, 1.0
"""Seconds of a stage, and of a whole start, that are worth a sentence."""


def advice(starts: Sequence[ColdStart]) -> list[str]:
    """Sentences for the starts of one function, the most useful first."""
    if not starts:
        return []
    typical = {stage: median(start.seconds.get(stage, 0.0) for start in starts) for stage in STAGES}
    found = []
    reasons = [start.cold for start in starts if start.cold]
    if reasons:
        found.append(f"Not forked from a template: {len(reasons)} of {len(starts)}. The reason: {reasons[0]}.")
    slowest = max(starts, key=lambda start: start.seconds.get("import", 0.0))
    imports = slowest.seconds.get("import", 0.0)
    if imports >= NOTABLE:
        own = imports - sum(seconds for _, seconds in slowest.imports)
        parts = [*slowest.imports, *([("the module's own code", own)] if own >= NOTABLE else [])]
        listed = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in parts)
        again = "each start that is not forked pays for it" if reasons else "the template pays for it once"
        found.append(f"The import took up to {imports:.2g} s ({listed}); {again}.")
    if typical["enter"] >= NOTABLE:
        forked = len(reasons) < len(starts)
        found.append(
            f"@enter takes {typical['enter']:.2g} s in each container: what needs no GPU and no connection, such as "
            "loading a model into memory, can move into @enter(snap=True), which a template does once"
            f"{'.' if forked else ', where there is one.'}"
        )
    if typical["first input"] >= NOTABLE:
        found.append(
            f"The first input takes {typical['first input']:.2g} s: if later ones are faster, something is loaded or "
            "compiled at first use, such as an import inside the function; do that at the top of the module or in "
            "@enter(snap=True)."
        )
    if typical["image"] >= NOTABLE:
        found.append(f"Making the image ready took {typical['image']:.2g} s: is it built at each start?")
    if typical["queue"] >= NOTABLE:
        found.append(
            f"Inputs waited {typical['queue']:.2g} s until a container could be started: `lorry why APP` says for what."
        )
    total = median(start.total for start in starts)
    if total >= LONG:
        found.append(
            f"A start takes {total:.2g} s in all: min_containers=1 keeps one container ready while the app lives, "
            "buffer_containers=1 one more than the load needs."
        )
    return found
