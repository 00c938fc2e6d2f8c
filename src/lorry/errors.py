"""Every error that Lorry raises on purpose, drawn once.

Error
├── InvalidError              a parameter, decorator or command that cannot work
│   └── SliceTooShortError    one step and one save do not fit into a slice of a run
├── ExecutionError            right words, wrong moment (e.g. `.remote` outside a running app)
│   ├── SerializationError    a value that cannot travel, or cannot be rebuilt here
│   └── StaleAttemptError     a newer attempt of the same training run has begun; this one may not save any more
├── NotFoundError             no such app, function, volume, secret or call
├── AlreadyExistsError
├── ConnectionError           the server cannot be reached or was lost for too long
│   └── VersionError          client and server do not speak the same protocol
├── ResourceError             a limit of the machine or of the user's own settings
│   ├── CapacityError         no such GPU, not enough memory: will never fit here
│   ├── StorageFullError      the state directory's disk is full; nothing acknowledged is lost
│   └── OutOfMemoryError      a container passed its memory limit
├── CorruptCheckpointError    a file of a checkpoint is damaged or missing; the message names it
├── ImageBuildError           carries the tail of the build log
├── TimeoutError
│   ├── FunctionTimeoutError
│   ├── SandboxTimeoutError
│   └── OutputExpiredError    the result was there and its seven days are over
├── RemoteError               the remote exception itself could not be sent
│   ├── ContainerLostError    the container died under the input every time it was tried
│   ├── SandboxTerminatedError  a sandbox was stopped before its program had ended
│   └── CallCancelledError    somebody cancelled the call, or its app was stopped
└── InternalError             Lorry's own fault: please report

InputCancellation(BaseException)   raised *inside* user code whose call was cancelled
"""

from __future__ import annotations

import builtins


class Error(Exception):
    """Base of every error that Lorry raises on purpose."""


class InvalidError(Error):
    """A parameter, decorator or command that cannot work; the message says what would."""


class ExecutionError(Error):
    """Something valid done at the wrong moment, such as `.remote()` outside a running app."""


class SerializationError(ExecutionError):
    """A value that cannot be pickled, or cannot be rebuilt on this side."""


class StaleAttemptError(ExecutionError):
    """A newer attempt of this training run has begun, so this one can save nothing any more: end it."""


class NotFoundError(Error):
    """No app, function, volume, secret or call of that name."""


class AlreadyExistsError(Error):
    """An object of that name exists already."""


class ConnectionError(Error):
    """The server cannot be reached, or the connection was lost for longer than clients wait."""


class VersionError(ConnectionError):
    """Client and server speak different protocol versions."""


class ResourceError(Error):
    """A limit of the machine, or one that the user set, stands in the way; the message names it."""


class CapacityError(ResourceError):
    """The request can never be met on this machine (no such GPU, more memory than installed)."""


class StorageFullError(ResourceError):
    """The disk of the state directory is full. Nothing that was acknowledged is lost."""


class OutOfMemoryError(ResourceError):
    """A container passed its memory limit and was killed by the kernel."""


class CorruptCheckpointError(Error):
    """A file of a checkpoint is damaged or missing; the message names it, and where it was moved to."""


class SliceTooShortError(InvalidError):
    """One step of training and one save do not fit into a slice (`timeout`); the message has the arithmetic."""


class ImageBuildError(Error):
    """An image could not be built; the message ends with the tail of the build log."""


class TimeoutError(Error, builtins.TimeoutError):
    """Also a builtin TimeoutError, so that `except TimeoutError` catches it."""


class FunctionTimeoutError(TimeoutError):
    """An input ran longer than its function's `timeout`."""


class SandboxTimeoutError(TimeoutError):
    """A sandbox ran longer than its `timeout`."""


class OutputExpiredError(TimeoutError):
    """The result was ready once, and its retention (7 days) is over."""


class RemoteError(Error):
    """The remote code failed with something that could not be sent as itself; the text is here."""


class ContainerLostError(RemoteError):
    """The container died under this input each time it was tried."""


class SandboxTerminatedError(RemoteError):
    """A sandbox was stopped before its program had ended."""


class CallCancelledError(RemoteError):
    """The call was cancelled, or its app was stopped, before it had a result."""


class InternalError(Error):
    """Lorry broke one of its own rules. Please report it with the message."""


class InputCancellation(BaseException):
    """Raised inside user code when its input is cancelled. Catch it only to clean up, then re-raise."""


class YieldSlice(BaseException):
    """Raised by `run.step()` once everything is saved, when the attempt has to end. Like SystemExit: let it pass."""

    def __init__(self, reason: str) -> None:
        """`reason`: "slice" (its time is over), "drain" (the platform wants the container) or "cancel"."""
        super().__init__(reason)
        self.reason = reason


BY_NAME: dict[str, type[Error]] = {
    cls.__name__: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, Error)
}
"""Wire name → class; an RPC error travels as (name, message)."""
