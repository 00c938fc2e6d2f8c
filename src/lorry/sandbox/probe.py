"""Whether a tier works here, by trying it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from lorry.sandbox.interface import SandboxSpec
from lorry.sandbox.limits import Limits
from lorry.sandbox.spawn import LaunchError
from lorry.sandbox.starting import Isolation, start_blocking


def probe(
    isolate: Callable[[SandboxSpec], Isolation], limits: Limits, explain: Callable[[LaunchError], tuple[str, ...]]
) -> tuple[str, ...]:
    """One sentence per problem; empty if a sandbox could be made. It ends where its program would be executed."""
    with tempfile.TemporaryDirectory(prefix="lorry-probe-") as folder:
        name = f"probe-{os.path.basename(folder)}"
        spec = SandboxSpec(container_id=name, argv=(), env=(), folder=folder, block_network=True)
        try:
            start_blocking(spec, isolate, limits).end_blocking()
        except LaunchError as e:
            return explain(e)
        except OSError as e:
            return (f"a sandbox could not be prepared: {e}",)
    return ()
