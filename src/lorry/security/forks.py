"""What a template does, for attacks of one of its containers on another and on the template itself.

Runs in a template's sandbox. Its arguments: the ids of the victim and of the attacker, the attack's code, and facts.
The victim reads a secret that nobody else has had in memory; then the attacker runs. Both are forks, with the walls
that every container has.
"""

import os
import signal
import sys
from pathlib import Path

from lorry.sandbox.fork import ForkConfig, become_container


def hold(tell: int) -> None:
    secret = Path("/root/secret").read_text()
    os.write(tell, b"r")
    signal.pause()
    print(secret)


def container(container_id: str) -> None:
    """The standard library may lie in what was the home."""
    keep = () if sys.base_prefix.startswith("/usr") else (sys.base_prefix,)
    become_container(ForkConfig(container_id=container_id, keep=keep, shm_mib=16, rlimits=(), cwd="/"), ())


def main(victim: str, attacker: str, code: str, facts: str) -> None:
    ready, tell = os.pipe()
    if os.fork() == 0:
        container(victim)
        hold(tell)
    os.read(ready, 1)
    if os.fork() == 0:
        container(attacker)
        sys.argv[1:] = [facts]
        exec(compile(code, "attack", "exec"), {"__name__": "__main__"})  # noqa: S102
        sys.stdout.flush()
        os._exit(0)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:5])
