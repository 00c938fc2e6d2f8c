"""Where am I? For code that runs both here and in containers."""

from __future__ import annotations

from lorry.ids import call_name
from lorry.wire import identity


def is_local() -> bool:
    """True outside containers."""
    return identity.container is None


def current_function_call_id() -> str | None:
    """The id of the call that this code works on; None outside a container."""
    if identity.container is None:
        return None
    from lorry.runtime.output import current_call

    return call_name(call) if (call := current_call.get()) else None


def current_input_id() -> str | None:
    """The id of the input that this code works on, another one for each input of a map; None outside a container."""
    call = current_function_call_id()
    if call is None:
        return None
    from lorry.runtime.output import current_input

    chunk, index, *_ = current_input.get()
    return f"in-{call[3:]}-{chunk}-{index}"
