"""Where am I? For code that runs both here and in containers."""

from __future__ import annotations

from lorry.wire import identity


def is_local() -> bool:
    """True outside containers."""
    return identity.container is None


def current_function_call_id() -> str | None:
    """The id of the call that this code works on; None outside a container."""
    if identity.container is None:
        return None
    from lorry.runtime.output import current_call

    return current_call.get() or None


def current_input_id() -> str | None:
    """As `current_function_call_id`, and which input of the call."""
    if identity.container is None:
        return None
    from lorry.runtime.output import current_call, current_input

    return current_input.get() or current_call.get() or None
