"""The life of one container.

    STARTING ─spawned→ BOOTING ─booted→ READY ─drain→ DRAINING ─stop→ STOPPING ─exited→ DEAD
                 (every living state) ─contact_lost→ LOST_CONTACT ─adopted_*→ where it was

Two sources report on a container, its socket and its pidfd, and neither waits for the other. So news of
the socket that comes after the exit, or while a container is already told to go, is legal and changes
nothing. A *decision* about a dead container is a bug and raises.
"""

from __future__ import annotations

from enum import StrEnum

from lorry.lifecycle.machine import Machine


class ContainerState(StrEnum):
    STARTING = "starting"
    """A sandbox was asked for and its resources are reserved; no process is known yet."""
    BOOTING = "booting"
    """The process is up: it imports the user's module and runs the `enter` hooks."""
    READY = "ready"
    """It takes inputs. Whether it is busy or idle is the dispatcher's count, not a state."""
    DRAINING = "draining"
    """It gets no new input and finishes those it has."""
    STOPPING = "stopping"
    """Told to go: `exit` hooks run, or a kill is on its way. Resources stay reserved until the exit."""
    DEAD = "dead"
    """The process is gone, or there never was one. Its reservation is released."""
    LOST_CONTACT = "lost_contact"
    """No connection, and not known to be dead: the server restarted, or the socket closed. It may still work
    on its inputs, so these are re-queued only at `exited` or `given_up`."""


class ContainerEvent(StrEnum):
    SPAWNED = "spawned"
    """The launcher reported the process of the sandbox (or the fork of the template)."""
    START_FAILED = "start_failed"
    """There is no process and there will be none: the launcher failed."""
    BOOTED = "booted"
    """The container said that imports and `enter` hooks are done."""
    BOOT_FAILED = "boot_failed"
    """Import or `enter` raised, or `startup_timeout` is over. The process is told to go."""
    DRAIN = "drain"
    """Decided: no new inputs (redeploy, `max_inputs`, single use). One that has none yet stops at once."""
    STOP = "stop"
    """Decided: go now (idle too long, app stopped, drained, a person's `container stop`)."""
    EXITED = "exited"
    """The pidfd said that the process has ended, for whatever reason."""
    CONTACT_LOST = "contact_lost"
    """Its connection ended, or this server has just read it from the store and has no connection to it."""
    ADOPTED_BOOTING = "adopted_booting"
    """It reconnected with its id and token, still importing."""
    ADOPTED_READY = "adopted_ready"
    """It reconnected and takes inputs (again)."""
    ADOPTED_DRAINING = "adopted_draining"
    """It reconnected, and the store says that it had been draining."""
    GIVEN_UP = "given_up"
    """It did not reconnect in time. Its inputs are re-queued, and it is killed: it may still be there."""


_S = ContainerState
_E = ContainerEvent

MOVES: dict[tuple[ContainerState, ContainerEvent], ContainerState] = {
    (_S.STARTING, _E.SPAWNED): _S.BOOTING,
    (_S.STARTING, _E.START_FAILED): _S.DEAD,
    (_S.STARTING, _E.DRAIN): _S.STOPPING,
    (_S.STARTING, _E.STOP): _S.STOPPING,
    (_S.STARTING, _E.CONTACT_LOST): _S.LOST_CONTACT,
    (_S.BOOTING, _E.BOOTED): _S.READY,
    (_S.BOOTING, _E.BOOT_FAILED): _S.STOPPING,
    (_S.BOOTING, _E.DRAIN): _S.STOPPING,
    (_S.BOOTING, _E.STOP): _S.STOPPING,
    (_S.BOOTING, _E.EXITED): _S.DEAD,
    (_S.BOOTING, _E.CONTACT_LOST): _S.LOST_CONTACT,
    (_S.READY, _E.DRAIN): _S.DRAINING,
    (_S.READY, _E.STOP): _S.STOPPING,
    (_S.READY, _E.EXITED): _S.DEAD,
    (_S.READY, _E.CONTACT_LOST): _S.LOST_CONTACT,
    # Two who do not know of each other may want the same: a redeploy and `max_inputs`.
    (_S.DRAINING, _E.DRAIN): _S.DRAINING,
    (_S.DRAINING, _E.STOP): _S.STOPPING,
    (_S.DRAINING, _E.EXITED): _S.DEAD,
    (_S.DRAINING, _E.CONTACT_LOST): _S.LOST_CONTACT,
    # The launcher and the booting process do not know that they are no longer wanted.
    (_S.STOPPING, _E.SPAWNED): _S.STOPPING,
    (_S.STOPPING, _E.START_FAILED): _S.DEAD,
    (_S.STOPPING, _E.BOOTED): _S.STOPPING,
    (_S.STOPPING, _E.BOOT_FAILED): _S.STOPPING,
    (_S.STOPPING, _E.DRAIN): _S.STOPPING,
    (_S.STOPPING, _E.STOP): _S.STOPPING,
    (_S.STOPPING, _E.EXITED): _S.DEAD,
    # It closes its socket on the way out; waiting for it to reconnect would be waiting for nothing.
    (_S.STOPPING, _E.CONTACT_LOST): _S.STOPPING,
    (_S.LOST_CONTACT, _E.ADOPTED_BOOTING): _S.BOOTING,
    (_S.LOST_CONTACT, _E.ADOPTED_READY): _S.READY,
    (_S.LOST_CONTACT, _E.ADOPTED_DRAINING): _S.DRAINING,
    (_S.LOST_CONTACT, _E.GIVEN_UP): _S.STOPPING,
    (_S.LOST_CONTACT, _E.STOP): _S.STOPPING,
    (_S.LOST_CONTACT, _E.EXITED): _S.DEAD,
    # Its last words may be read from the socket after its pidfd fired.
    (_S.DEAD, _E.BOOTED): _S.DEAD,
    (_S.DEAD, _E.BOOT_FAILED): _S.DEAD,
    (_S.DEAD, _E.CONTACT_LOST): _S.DEAD,
}


def container_machine(
    container_id: str, state: ContainerState = ContainerState.STARTING
) -> Machine[ContainerState, ContainerEvent]:
    """A new container, or one read back from the store in `state`."""
    return Machine(f"container {container_id}", MOVES, state)
