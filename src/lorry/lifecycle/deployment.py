"""The life of one app: a run that ends with its client, one that outlives it, or a deployment.

EPHEMERAL ─detach→ DETACHED, EPHEMERAL ─deploy→ DEPLOYED ─replaced→ DETACHED, and every one of them ends in STOPPED,
for good: a stopped app is never started again, a new deployment is a new app. The states are `model.records.AppState`.
"""

from __future__ import annotations

from enum import StrEnum

from lorry.lifecycle.machine import Machine
from lorry.model.records import AppState


class AppEvent(StrEnum):
    DETACH = "detach"
    """The client asked that the app goes on without it."""
    DEPLOY = "deploy"
    """Everything that the deployment needs is here: it takes over its name. Until then it is its client's."""
    CLIENT_LEFT = "client_left"
    """`app.run()` ended, or the client process died. News, not a wish: who is detached or deployed stays."""
    CALLS_DONE = "calls_done"
    """The last call of a detached app has its last result."""
    REPLACED = "replaced"
    """A newer version of the deployment took over the name, for good: what it has begun it completes without one."""
    STOP = "stop"
    """A person's `lorry app stop`; stopping what is stopped is no error."""


_S = AppState
_E = AppEvent

MOVES: dict[tuple[AppState, AppEvent], AppState] = {
    (_S.EPHEMERAL, _E.DETACH): _S.DETACHED,
    (_S.EPHEMERAL, _E.DEPLOY): _S.DEPLOYED,
    (_S.EPHEMERAL, _E.CLIENT_LEFT): _S.STOPPED,
    (_S.EPHEMERAL, _E.STOP): _S.STOPPED,
    # `run --detach` asks at the start, Ctrl-C may ask again.
    (_S.DETACHED, _E.DETACH): _S.DETACHED,
    (_S.DETACHED, _E.CLIENT_LEFT): _S.DETACHED,
    (_S.DETACHED, _E.CALLS_DONE): _S.STOPPED,
    (_S.DETACHED, _E.STOP): _S.STOPPED,
    # Asked again by a client that lost the server before it had the answer.
    (_S.DEPLOYED, _E.DEPLOY): _S.DEPLOYED,
    (_S.DEPLOYED, _E.CLIENT_LEFT): _S.DEPLOYED,
    (_S.DEPLOYED, _E.REPLACED): _S.DETACHED,
    (_S.DEPLOYED, _E.STOP): _S.STOPPED,
    (_S.STOPPED, _E.CLIENT_LEFT): _S.STOPPED,
    (_S.STOPPED, _E.STOP): _S.STOPPED,
}


def app_machine(app_id: str, state: AppState = AppState.EPHEMERAL) -> Machine[AppState, AppEvent]:
    """A new app, or one read back from the store in `state`."""
    return Machine(f"app {app_id}", MOVES, state)
