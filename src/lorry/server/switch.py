"""The dispatcher's hands: frames become events, effects become frames.

Synchronous calls (`.remote`) pass through memory only: their client is there to ask again. Everything else is
journaled before it is submitted here and recorded before it is delivered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from lorry import faults
from lorry.clock import Clock
from lorry.errors import NotFoundError
from lorry.model import selection as sel
from lorry.model.function import FunctionSpec
from lorry.model.records import CallKind, CallRecord, Selection, Status
from lorry.scheduler.dispatch import (
    Dispatcher,
    Drained,
    Effect,
    Finish,
    Key,
    Kill,
    Remember,
    Send,
    Stop,
    Work,
)
from lorry.server.journal import Journal, Outcome, new_call
from lorry.server.parcels import Broker, Parcel
from lorry.server.peers import Peer
from lorry.store.interface import Store
from lorry.timeouts import UNCLAIMED
from lorry.wire.frames import HEADER, Flag, Header, Kind, pack, pack_selection, unpack_selection

LAST_INPUT = "it has had its last input"
SHARE_SECONDS = 0.1
"""Work that a container gets at once out of a journaled chunk."""
KEPT_PAYLOADS = 64
"""Chunks of one function whose inputs wait in memory: 4 MiB at most."""
_YIELD, _CONTINUE = Status.YIELD, Status.CONTINUE
"""Looked up once: a member of an enum costs 0.05 µs each time."""
_STREAMED = (Status.YIELD, Status.DONE)
_UNUSUAL = (*_STREAMED, _CONTINUE)
_STATUSES = tuple(Status)
"""By value; a call of the enum costs 0.25 µs, its length 0.15."""
_COUNT = len(_STATUSES)
_ERRORS = {
    Status.TIMEOUT: "FunctionTimeoutError",
    Status.CANCELLED: "CallCancelledError",
    Status.LOST: "ContainerLostError",
    Status.PLATFORM: "ResourceError",
}


class Containers(Protocol):
    """What the switch needs of the fleet."""

    def peer_of(self, container: str) -> Peer | None: ...

    def working_on(self, container: str, call: bytes) -> Peer | None:
        """Its connection; from now on its output belongs to this call."""
        ...

    def nudge(self, container: str) -> None:
        """SIGUSR1: look at your socket."""
        ...

    def kill(self, container: str, reason: str) -> None: ...

    def retire(self, container: str, reason: str) -> None: ...

    changed: Callable[[int], None]
    """The load of a function changed: reconsider how many containers it has."""


class Switch:
    def __init__(self, clock: Clock, store: Store, broker: Broker, journal: Journal) -> None:
        self._clock = clock
        self._store = store
        self._broker = broker
        self._journal = journal
        self.dispatcher = Dispatcher(store.epoch)
        self._parcels: dict[Key, Parcel] = {}
        self._origins: dict[bytes, Peer] = {}
        self._unclaimed: dict[bytes, tuple[float, tuple[Any, ...], Parcel]] = {}
        self._specs: dict[int, FunctionSpec] = {}
        self.containers: Containers
        self.spec_of: Callable[[int], FunctionSpec]
        self.open_calls: dict[bytes, CallRecord] = {}
        """Calls of maps that still take chunks."""
        self.openers: dict[bytes, Peer] = {}
        """The connection that such a call's client uses now."""
        self.arriving: dict[bytes, set[asyncio.Task[None]]] = {}
        """Chunks that came and are not yet journaled. A large one is overtaken by the end of its map otherwise."""
        self.served = 0
        """Inputs finished since this worker started."""
        self.mean_seconds: dict[int, float] = {}
        self.attempt_over: Callable[[str, Status, Parcel], None] = lambda _container, _status, _payload: None
        """A container has answered for the last time about a journaled input, whatever becomes of that."""

    # Functions

    def spec(self, target: int) -> FunctionSpec:
        """The function's spec; opens its queue. NotFoundError if it does not exist or its app is stopped."""
        spec = self._specs.get(target)
        if spec is None:
            spec = self._specs[target] = self.spec_of(target)
            self.dispatcher.open(target, spec.retries, spec.timeout, spec.resumable)
        return spec

    def stop_function(self, target: int, text: str) -> None:
        """Its app is stopped: everything under way is cancelled, calls to it are refused from now on."""
        self._specs.pop(target, None)
        if target not in self.dispatcher.queues:
            return
        for call in self.dispatcher.calls_of(target):
            self.perform(self.dispatcher.cancel(call, text, self._clock.monotonic()))

    def forget_function(self, target: int) -> None:
        """Its app is stopped and its containers are gone: nothing of it stays in memory."""
        queue = self.dispatcher.queues.get(target)
        if queue is not None and not (queue.slots or queue.missing or queue.pending or queue.held):
            del self.dispatcher.queues[target]
        self.mean_seconds.pop(target, None)
        for call in [call for call, record in self.open_calls.items() if record.function == target]:
            del self.open_calls[call]
            self.openers.pop(call, None)

    # From clients

    def call(self, peer: Peer, header: Header, body: bytes, descriptors: Any) -> None:
        """A synchronous call, maybe asked a second time."""
        if not header[1] & Flag.SEGMENT and not descriptors:  # the usual case: nothing to hold
            self._call(peer, header, Parcel(body))
            return
        parcel = self._broker.receive(peer, header[1], body, descriptors)
        self._broker.hold(parcel, header)
        try:
            self._call(peer, header, parcel)
        finally:  # whoever keeps the payload holds it too by now; otherwise its owner gets it back
            self._broker.let_go(parcel, header)

    def _call(self, peer: Peer, header: Header, parcel: Parcel) -> None:
        _, flags, _, _, target, _, call, _, _ = header
        again = bool(flags & Flag.AGAIN)
        if again and call in self._unclaimed:
            _, fields, result = self._unclaimed.pop(call)
            self._broker.send(peer, fields, result)
            self._broker.let_go(result, call)
            return
        try:
            spec = self.spec(target)
        except NotFoundError as stopped:
            self._refuse(peer, call, Status.PLATFORM, "NotFoundError", str(stopped))
            return
        if spec.resumable is not None:
            refusal = "a run outlives its client, so calls of resumable functions go through the journal: spawn it"
            self._refuse(peer, call, Status.PLATFORM, "InvalidError", refusal)
            return
        if faults.armed:
            faults.point("worker.call_received")
        self._origins[call] = peer
        self.submit(Work(call=call, target=target, stream=bool(flags & Flag.STREAM), again=again), parcel)

    def submit(self, work: Work, parcel: Parcel | None) -> None:
        """Queue a work. `parcel` None: its payload is in the journal."""
        key = (work.call, work.chunk)
        effects = self.dispatcher.submit(work, self._clock.monotonic())
        if effects is None:
            if parcel is not None and not work.journaled and key not in self._parcels:
                # A container that outlived the server works on it; should it die, this is what it needs.
                self._parcels[key] = parcel
                self._broker.hold(parcel, key)
            return
        if parcel is not None:
            self._parcels[key] = parcel
            self._broker.hold(parcel, key)
        if effects:
            self.perform(effects)
        else:
            self.containers.changed(work.target)

    def new_call(self, target: int, call: bytes, parent: bytes | None) -> CallRecord:
        """The row of a spawned call. NotFoundError if the function's app is stopped."""
        self.spec(target)
        app_id = self._store.function(target).app_id
        return new_call(call, app_id, target, CallKind.SPAWN, self._clock.wall(), parent, True)

    def takes(self, work: Work) -> bool:
        """Whether an input that was journaled may run: its app may have been stopped, or its call cancelled, while it
        was written."""
        return work.target in self._specs and (not work.batch or work.call in self.open_calls)

    async def arrived(self, call: bytes) -> None:
        """Every chunk of it that came before this moment is journaled, or was refused."""
        while tasks := self.arriving.get(call):
            await asyncio.wait(tasks)

    def queue_is_short(self, target: int) -> bool:
        """Whether a payload may stay in memory until it is dispatched; otherwise it is read back from the journal."""
        return len(self.dispatcher.queues[target].pending) < KEPT_PAYLOADS

    def progress(self, container: str, lease: int, elapsed: float) -> None:
        self.dispatcher.progress(container, lease, elapsed, self._clock.monotonic())

    def credit(self, header: Header) -> None:
        """The client of a generator has read some values."""
        for work in self.dispatcher.works_of(header[6]):
            peer = self.containers.peer_of(work.lease.container) if work.lease else None
            if work.lease is not None and peer is not None:
                peer.send(pack(Kind.CREDIT, lease=work.lease.number, call=header[6], count=header[8]))

    def cancel(
        self, call: bytes, target: int, text: str, *, status: Status = Status.CANCELLED, chunk: int | None = None
    ) -> None:
        """End what is left of a call, or of one chunk of it; what runs is asked to stop."""
        now = self._clock.monotonic()
        self.perform(self.dispatcher.cancel(call, text, now, status=status, chunk=chunk))
        self.containers.changed(target)

    def committed(self, container: str, call: bytes, chunk: int) -> None:
        """A run has a new checkpoint from this container, on disk."""
        self.perform(self.dispatcher.committed(container, call, chunk))

    def client_gone(self, peer: Peer) -> None:
        """Its synchronous calls go on: it may come back. Generators are stopped, nobody can resume them."""
        for call in [call for call, origin in self._origins.items() if origin is peer]:
            lost = self.dispatcher.works_of(call)
            if any(work.stream for work in lost):
                self.cancel(call, lost[0].target, "its reader is gone")
                self._origins.pop(call, None)

    # From containers

    def result(self, container: str, peer: Peer, header: Header, body: bytes, descriptors: Any) -> None:
        """A RESULT frame of a container; ValueError if it is malformed. The caller has read the container's output
        before, if it was flagged."""
        _, flags, status, _, _chunk, lease, _call, micros, count = header
        if status >= _COUNT:
            raise ValueError(f"no status {status}")
        indices: Selection | None = None
        if flags & Flag.SELECT:
            indices, rest = unpack_selection(memoryview(body))
            body = bytes(rest)
        elif count == 0:
            indices = ()
        plain = not flags & Flag.SEGMENT and not descriptors
        parcel = Parcel(body) if plain else self._broker.receive(peer, flags, body, descriptors)
        ended = _STATUSES[status]
        if ended in _UNUSUAL and (known := self.dispatcher.leases.get(lease)):
            self._check_unusual(known.work, ended)
        verdict = self.dispatcher.result(
            container, lease, indices, ended, bool(flags & Flag.LAST), self._clock.monotonic()
        )
        if parcel.segment is not None:
            self._broker.hold(parcel, header)
        if verdict.work is not None:
            work = verdict.work
            if verdict.deliver:
                if faults.armed:
                    faults.point("worker.result_received")
                self._measure(work, micros, count)
                self._deliver(work, verdict.deliver, ended, parcel, micros, bool(flags & Flag.BATCH))
            if not self.dispatcher.knows(work.call, work.chunk):
                self._drop_parcel(work)
            if verdict.effects:
                self.perform(verdict.effects)
            if flags & Flag.LAST and (ended is _CONTINUE or not verdict.effects):
                self.containers.changed(work.target)
            if flags & Flag.LAST and work.journaled:
                self.attempt_over(container, ended, parcel)
        if parcel.segment is not None:
            self._broker.let_go(parcel, header)

    def _check_unusual(self, work: Work, status: Status) -> None:
        if status is _CONTINUE:
            if self.dispatcher.queues[work.target].resumable is None:
                raise ValueError("a container wants to go on with an input that is no run")
        elif not work.stream:
            raise ValueError("a container sent a generator's value for an input that is none")

    def _measure(self, work: Work, micros: int, count: int) -> None:
        seconds = micros / 1e6 / (count or 1)
        before = self.mean_seconds.get(work.target)
        mean = self.mean_seconds[work.target] = seconds if before is None else before + 0.2 * (seconds - before)
        if work.batch:
            self.dispatcher.queues[work.target].share = max(1, int(SHARE_SECONDS / max(mean, 1e-6)))

    def _deliver(
        self, work: Work, indices: Selection, status: Status, parcel: Parcel, micros: int, batch: bool
    ) -> None:
        if work.journaled:
            self.served += sel.count(indices)
            self._journal.record(Outcome(work.call, work.chunk, indices, status, parcel, micros, batch))
            return
        self.served += 1
        stream = work.stream and status in _STREAMED
        fields = (Kind.RESULT, Flag.STREAM if stream else 0, status, 0, 0, 0, work.call, micros, 1)
        origin = self._origins.get(work.call) if status is _YIELD else self._origins.pop(work.call, None)
        if origin is not None and not origin.closed:
            self._broker.send(origin, fields, parcel)
        elif status is not _YIELD:
            self._broker.hold(parcel, work.call)
            self._unclaimed[work.call] = (self._clock.monotonic() + UNCLAIMED, fields, parcel)

    def _drop_parcel(self, work: Work) -> None:
        key = (work.call, work.chunk)
        parcel = self._parcels.pop(key, None)
        if parcel is not None:
            self._broker.let_go(parcel, key)

    # Effects

    def perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect)
                case Finish():
                    self._finish(effect)
                case Stop():
                    self._stop(effect)
                case Kill():
                    self.containers.kill(effect.container, effect.reason)
                case Drained():
                    self.containers.retire(effect.container, LAST_INPUT)
                case Remember():
                    # Not awaited: a restart that forgets it gives an input one attempt more, never one less.
                    self._store.note_attempts(effect.call, effect.chunk, effect.attempts)

    def _send(self, effect: Send) -> None:
        work = effect.work
        peer = self.containers.working_on(effect.container, work.call)
        if peer is None:
            return  # it died a moment ago; `lost` follows and queues the work again
        parcel = self._parcels.get((work.call, work.chunk))
        if parcel is None:
            try:
                parcel = self._journal.payload(work.call, work.chunk)
            except NotFoundError:
                return  # cancelled between commit and dispatch; the cancellation ends the lease
        flags = Flag.STREAM if work.stream else 0
        selection = b""
        if work.count != work.total:
            selection = pack_selection(work.indices)
            flags |= Flag.SELECT
        if work.batch:
            flags |= Flag.BATCH
        if parcel.segment is None:
            header = HEADER.pack(Kind.INPUT, flags, 0, 0, work.chunk, effect.lease, work.call, 0, work.total)
            peer.send(header + selection + parcel.body)
        else:
            fields = (Kind.INPUT, flags, 0, 0, work.chunk, effect.lease, work.call, 0, work.total)
            self._broker.hold(parcel, effect.lease)  # one from the journal has no other user yet
            self._broker.send(peer, fields, parcel, selection)
            self._broker.let_go(parcel, effect.lease)
        if faults.armed:
            faults.point("worker.after_dispatch")

    def _finish(self, effect: Finish) -> None:
        work, status = effect.work, effect.status
        text = effect.text if status is Status.ERROR else _platform_failure(status, effect.text)
        self._deliver(work, effect.indices, status, Parcel(text.encode()), 0, False)
        if not self.dispatcher.knows(work.call, work.chunk):
            self._drop_parcel(work)

    def _stop(self, effect: Stop) -> None:
        peer = self.containers.peer_of(effect.container)
        if peer is None:
            return
        lease = self.dispatcher.leases[effect.lease]
        if effect.cancel:
            peer.send(pack(Kind.CANCEL, lease=effect.lease, call=lease.work.call))
        else:
            limit = self.dispatcher.queues[lease.work.target].timeout
            micros = min(int(limit * 1e6), 2**32 - 1)
            peer.send(pack(Kind.TIMEOUT, lease=effect.lease, call=lease.work.call, micros=micros))
        self.containers.nudge(effect.container)

    def _refuse(self, peer: Peer, call: bytes, status: Status, error: str, message: str) -> None:
        body = json.dumps({"error": error, "message": message}).encode()
        peer.send(pack(Kind.RESULT, status=status, call=call, count=1) + body)

    def tick(self) -> None:
        """Ten times a second."""
        now = self._clock.monotonic()
        effects = self.dispatcher.tick(now)
        if effects:
            self.perform(effects)
        for call in [call for call, entry in self._unclaimed.items() if entry[0] < now]:
            self._broker.let_go(self._unclaimed.pop(call)[2], call)


def _platform_failure(status: Status, text: str) -> str:
    """`text` may name its own class: `Class: message`."""
    name, _, message = text.partition(": ")
    if name.endswith("Error") and name.isidentifier():
        return json.dumps({"error": name, "message": message})
    return json.dumps({"error": _ERRORS[status], "message": text})
