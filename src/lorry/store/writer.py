"""The one thread that writes: verbs that wait together share a transaction and its fsync (group commit)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import apsw

from lorry.errors import Error, InternalError, ResourceError, StorageFullError

T = TypeVar("T")
Verb = Callable[[apsw.Connection], T]

MAX_BATCH = 512
"""Verbs in one transaction: 32 MiB of full payloads, some tens of ms until they are acknowledged."""
CHECKPOINT_PAGES = 4000
"""Size of the write-ahead log, in pages (16 MiB), from which it is copied back into the database."""

BEGIN, COMMIT, ROLLBACK = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
SAVE, RELEASE, UNDO = "SAVEPOINT verb", "RELEASE verb", "ROLLBACK TO verb"

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A verb and its future. `value` or `error` is what it came to; neither counts before the commit."""

    verb: Verb[Any]
    future: asyncio.Future[Any]
    value: Any = None
    error: Error | None = None


class Writer:
    """Owns the writing connection from construction until `close` has returned.

    If its thread ends by an error that no verb and no full disk explains, every write that waits and every
    later one fails with InternalError: nothing is ever acknowledged that is not on disk.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # orders `submit` against the moment at which the thread gives up
        self._closed = False
        self._failure: BaseException | None = None
        self._wal_pages = 0
        connection.set_wal_hook(self._note_wal)
        self._thread = threading.Thread(target=self._run, name="lorry-store-writer", daemon=True)
        self._thread.start()

    def submit(self, verb: Verb[T]) -> asyncio.Future[T]:
        """Queue `verb`; the future resolves on the running loop after the commit that holds it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the store is closed")
            if self._failure is None:
                self._queue.put(_Pending(verb=verb, future=future))
                return future
        future.set_exception(InternalError(gave_up_sentence(self._failure)))
        return future

    def close(self) -> None:
        """Write what is queued, then end the thread and close the connection."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        batch: list[_Pending] = []
        try:
            while batch := self._next_batch():
                self._commit(batch)
                _resolve(batch)
                self._checkpoint()
        except BaseException as error:
            # Also KeyboardInterrupt and SystemExit: this thread has nobody to raise them to.
            logger.exception("the store's writer thread failed")
            self._give_up(batch, error)

    def _next_batch(self) -> list[_Pending]:
        """All that waits, at least one. Empty: the store is closed and everything is written."""
        batch: list[_Pending] = []
        with contextlib.suppress(queue.Empty):
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                if len(batch) == MAX_BATCH:
                    return batch
                item = self._queue.get_nowait()
            if batch:
                self._queue.put(None)  # nothing follows the end mark, so that it is found again
        return batch

    def _commit(self, batch: list[_Pending]) -> None:
        """One transaction. When the disk refuses it, all of the batch fails with the same sentence."""
        try:
            self._connection.execute(BEGIN)
            for pending in batch:
                self._apply(pending)
            self._connection.execute(COMMIT)
        except (apsw.FullError, apsw.IOError, apsw.CantOpenError) as error:
            _fail(batch, StorageFullError, storage_sentence(error))
        except apsw.BusyError:
            _fail(batch, ResourceError, "Another process keeps the state database locked; close it.")
        finally:
            # SQLite has rolled back by itself after some failures, not after all.
            if self._connection.in_transaction:
                self._connection.execute(ROLLBACK)

    def _apply(self, pending: _Pending) -> None:
        """Run one verb in a savepoint: what it raises undoes it alone."""
        execute = self._connection.execute
        execute(SAVE)
        try:
            pending.value = pending.verb(self._connection)
        except (apsw.FullError, apsw.IOError, apsw.CantOpenError):
            raise
        except Exception as error:
            execute(UNDO)
            pending.error = error if isinstance(error, Error) else _broken(error)
        execute(RELEASE)

    def _note_wal(self, connection: apsw.Connection, database: str, pages: int) -> int:
        self._wal_pages = pages
        return 0

    def _checkpoint(self) -> None:
        """After the acknowledgements: no write waits for it. A full disk only leaves the log longer."""
        if self._wal_pages >= CHECKPOINT_PAGES:
            self._wal_pages = 0
            with contextlib.suppress(apsw.FullError, apsw.IOError, apsw.BusyError):
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _give_up(self, batch: list[_Pending], error: BaseException) -> None:
        with self._lock:
            self._failure = error
            while not self._queue.empty():
                item = self._queue.get_nowait()
                batch += [item] if item else []
        _fail(batch, InternalError, gave_up_sentence(error))
        _resolve(batch)


def storage_sentence(error: Exception) -> str:
    return (
        f"The disk of the state folder is full or refuses to write ({error}). Nothing that was acknowledged "
        f"is lost; free space (`lorry prune`) and try again."
    )


def gave_up_sentence(cause: BaseException) -> str:
    return (
        f"The store can no longer write ({type(cause).__name__}: {cause}). Restart the server; what was "
        f"acknowledged is on disk."
    )


def _broken(error: Exception) -> InternalError:
    failure = InternalError(f"A write was refused by the store: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _fail(batch: list[_Pending], kind: type[Error], sentence: str) -> None:
    """An error object each: a traceback is written into it where it is raised."""
    for pending in batch:
        pending.error = kind(sentence)


def _resolve(batch: list[_Pending]) -> None:
    """Hand the outcomes to the loops that wait: one wake-up a loop, usually one in all."""
    loops = {pending.future.get_loop() for pending in batch}
    for loop in loops:
        ours = [pending for pending in batch if pending.future.get_loop() is loop]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, ours)


def _settle(batch: list[_Pending]) -> None:
    for pending in batch:
        if pending.future.done():  # its awaiter was cancelled
            continue
        if pending.error is None:
            pending.future.set_result(pending.value)
        else:
            pending.future.set_exception(pending.error)
