"""`lorry doctor --security`: the attacks, run here, and what each tier did to them."""

from __future__ import annotations

import sys

from lorry.cli import tables

LEGEND = """
stopped      a wall of the kernel holds it
soft         it gets something: a limit per process, or a watch that acts within seconds
not stopped  it gets what it came for; (suite): not run here, proven by the project's tests"""


def security(as_json: bool) -> bool:
    """Prints the table. False if an attack got further than its tier promises."""
    from lorry.sandbox import detect
    from lorry.sandbox.limits import find_limits
    from lorry.security import attacks, measure

    print(f"{len(attacks.ATTACKS)} attacks in each tier that works here: some seconds …", file=sys.stderr)
    measured = {tier.tier: measure.measure(tier.tier) for tier in detect.report() if tier.works}
    rows = measure.table(measured)
    wrong = [f"{attack.name}: {title}" for attack, cells in rows for title, cell in cells.items() if cell.wrong]
    if as_json:
        tables.show_json(
            [
                {
                    "attack": attack.name,
                    "tiers": {
                        title: {"verdict": cell.verdict.value, "measured": cell.measured}
                        for title, cell in cells.items()
                    },
                    "note": attack.note or attack.cannot,
                }
                for attack, cells in rows
            ]
        )
        return not wrong
    lines = [["attack", *attacks.COLUMNS]]
    for attack, cells in rows:
        lines.append(
            [attack.name, *(f"{cell.verdict}{'' if cell.measured else ' (suite)'}" for cell in cells.values())]
        )
    print("\n".join(tables.aligned(lines)))
    print(LEGEND)
    found = find_limits().name
    other = "" if found.endswith("v2") else "; limits by cgroup v2 cannot be measured here"
    print(f"\nLimits by {found}{other}.")
    print("By the server itself, in every tier that isolates (suite): " + "; ".join(attacks.SERVER_ATTACKS) + ".")
    for attack, _ in rows:
        if attack.note or attack.cannot:
            print(f"{attack.name}: {attack.note or attack.cannot}.")
    for line in wrong:
        print(f"WORSE THAN PROMISED: {line}")
    return not wrong
