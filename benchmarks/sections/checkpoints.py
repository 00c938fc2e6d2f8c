"""What a checkpoint costs the training that it interrupts, beside torch.save, safetensors and torch's DCP."""

from __future__ import annotations

import dataclasses

from figures import Budget
from rounds import LORRY, Contest, Entry, Results, alternate, say
from server import base_folder

from sections.options import Options

TITLE = "Checkpoints of AdamW training"
COPY = "one copy"
PEERS = (COPY, "torch.save", "torch.save, no fsync", "safetensors", "DCP save", "DCP async_save")
WHO = Entry(LORRY.name, "checkpoint_costs", "coldstart")
CASES = {
    "10 M": ("10 M", 0, 10),
    "10 M, a core free": ("10 M", 1, 10),
    "125 M": ("125 M", 0, 2),
    "125 M, a core free": ("125 M", 1, 2),
}
"""Size, cores that training leaves free (beside a GPU most are), quiet steps before each save and after it."""
COST = "{}: stall + slow-down"
BUDGETS = tuple(
    budget
    for size in CASES
    for budget in (
        Budget("≤ 1.5 x one copy into kept buffers", COST.format(size), 1.5, COPY),
        Budget("≤ 15 % of torch.save", COST.format(size), 0.15, "torch.save"),
    )
)
LIMIT = 300.0


def run(options: Options, results: Results) -> None:
    base_folder().mkdir(parents=True, exist_ok=True)
    folder = str(base_folder())
    with Contest([WHO], results) as contest:
        cases = {"tiny": ("tiny", 0, 1)} if options.quick else CASES
        for case, (size, free, quiet) in cases.items():
            contest.ask("", "", WHO, "begin", {"size": size, "folder": folder, "free": free}, LIMIT)
            for who in (LORRY.name, *PEERS):  # the first save of each makes its memory
                contest.ask("", "", WHO, "saved", {"who": who, "quiet": 1}, LIMIT)
            alternate(options.rounds, lambda c=case, q=quiet: _round(contest, results, c, q), f"{case} parameters")
            for _ in range(0 if free else options.count(3, 1)):
                peers = [who for who in PEERS if who not in (COPY, "torch.save, no fsync")]
                asked = [(_named(who), "restored", {"who": who}) for who in (LORRY.name, *peers)]
                contest.round(f"{case}: restore", "ms", asked, LIMIT)
            contest.ask("", "", WHO, "end", {}, LIMIT)
        _bytes(contest, results, "tiny" if options.quick else "10 M", folder)


def _named(who: str) -> Entry:
    return dataclasses.replace(WHO, name=who)


def _round(contest: Contest, results: Results, case: str, quiet: int) -> None:
    asked = [(_named(who), "saved", {"who": who, "quiet": quiet}) for who in (LORRY.name, *PEERS)]
    contest._turn += 1
    shift = contest.turn % len(asked)
    for entry, verb, parameters in (*asked[shift:], *asked[:shift]):
        answer = contest.ask("", "", entry, verb, parameters, LIMIT)
        for part, name in (("both", COST), ("stall", "{}: stall"), ("durable", "{}: until durable")):
            if answer is not None and not (part == "durable" and entry.name in (COPY, "torch.save, no fsync")):
                series = results.of(name.format(case), entry.name, "ms")
                series.add(contest.turn, {"value": answer["ms"][part]})


def _bytes(contest: Contest, results: Results, size: str, folder: str) -> None:
    for kind, adapted in (("all weights", False), ("LoRA", True)):
        asked = {"size": size, "folder": folder, "adapted": adapted, "saves": 10}
        answer = contest.ask("", "", WHO, "bytes", asked, LIMIT)
        for number in (1, 2, 10) if answer else ():
            total, new = answer["rows"][number - 1]
            say(f"  {kind}, checkpoint {number}: {total / 2**20:.1f} MiB, new {new / 2**20:.1f}")
            for what, count in (("all", total), ("new", new)):
                series = results.of(f"{size}, {kind}: {what} bytes of checkpoint {number}", LORRY.name, "MiB")
                series.add(0, {"value": count / 2**20})
