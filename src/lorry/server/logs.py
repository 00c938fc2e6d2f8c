"""Output of containers: one file per app, whole lines, each with its container, call, stream and time.

A line of the file is JSON: `{"t": unix seconds, "c": container, "k": call or "", "s": 1 or 2, "x": text}`. A file
that passes half of the limit moves to `.old`, so at most the limit is kept and the newest output always is.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lorry.clock import Clock
from lorry.server.peers import Peer
from lorry.timeouts import LOG_DRAIN

MAX_LINE = 16 * 1024
"""Characters of output without a newline that are shown as one line. A longer one is folded: into parts of so many, and
a shorter one at last, which may be empty."""
READ_SIZE = 64 * 1024
READ_BUDGET = 16 * READ_SIZE
"""Bytes of one stream per PERIOD. A container that prints without end is slowed to 20 MiB/s by its own pipe and
leaves the loop to the others."""
PERIOD = 0.05
MAX_BEHIND = 256
"""Frames of 64 KiB that may wait for a follower."""
MAX_OPEN = 64
"""Log files held open; of more apps than that the one opened first is opened again."""
PAGE = 256 * 1024
"""Bytes of a log that one look goes through: some milliseconds of the loop."""
HEAD = 40
"""Bytes that tell log files apart: no line is shorter, and its time is in them."""
BEGINNING = (0, 0)
MARK = "\x1e"


class LogStore:
    def __init__(self, root: Path, clock: Clock, limit_mib: int) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._clock = clock
        self._limit = limit_mib << 20
        self._files: dict[str, Any] = {}
        self._subscribers: dict[str, list[tuple[Peer, int]]] = {}
        self._skipped: dict[Peer, int] = {}
        """Lines that a follower was not sent."""
        self._lost = False
        self._dropped: dict[str, float] = {}
        """App → Unix time of the newest line that has made way."""

    def append(self, app_id: str, container: str, call: str, stream: int, lines: list[str]) -> None:
        """Keep lines and pass them to who follows the app. A full disk loses log lines, never results."""
        now = round(self._clock.wall(), 3)
        rows = [{"t": now, "c": container, "k": call, "s": stream, "x": line} for line in lines]
        try:
            self._write(app_id, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        except OSError:
            self._lost = True
        for peer, number in self._subscribers.get(app_id, ()):
            self._show(peer, number, rows)

    def _show(self, peer: Peer, number: int, rows: list[dict[str, Any]]) -> None:
        """A follower that does not keep up skips lines and is told how many; the file has them."""
        skipped = self._skipped.get(peer, 0)
        if peer.backlog > MAX_BEHIND:
            self._skipped[peer] = skipped + len(rows)
            return
        if skipped:
            del self._skipped[peer]
            text = f"[lorry: {skipped} lines were not shown here, because they came faster than they were read]"
            rows = [{**rows[0], "k": "", "s": 2, "x": text}, *rows]
        peer.event(number, {"lines": rows})

    def _write(self, app_id: str, text: str) -> None:
        file = self._files.get(app_id)
        if file is None:
            if len(self._files) >= MAX_OPEN:
                self._files.pop(next(iter(self._files))).close()
            file = self._files[app_id] = (self._root / f"{app_id}.jsonl").open("a", encoding="utf-8")
        file.write(text)
        file.flush()
        if file.tell() > self._limit // 2:
            file.close()
            del self._files[app_id]
            path = self._root / f"{app_id}.jsonl"
            old = path.with_suffix(".old")
            if old.exists():
                self._dropped[app_id] = old.stat().st_mtime
            path.replace(old)

    def read(self, app_id: str, keep: Callable[[dict[str, Any]], bool] = lambda _row: True, tail: int = 0) -> list[Any]:
        """Kept lines, oldest first; the last `tail` of them if given."""
        rows: deque[Any] = deque(maxlen=tail or None)
        for suffix in (".old", ".jsonl"):
            rows.extend(row for row in _rows(self._root / f"{app_id}{suffix}") if keep(row))
        return list(rows)

    def page(
        self, app_id: str, container: str, stream: int, place: tuple[int, int]
    ) -> tuple[list[str], tuple[int, int], bool]:
        """What a container has printed in the next PAGE bytes from a place on, the place behind them, and whether
        nothing more is there by now. A place is a file, known by its first bytes, and an offset; after one in a file
        that is gone it goes on with the oldest line that is kept."""
        heads = self._heads(app_id)
        names = list(heads)
        name, offset = place
        if name in heads:
            del names[: names.index(name)]
        else:
            offset = 0
        for name in names:
            with heads[name].open("rb") as file:
                file.seek(offset)
                data = file.read(PAGE)
            whole = data[: data.rfind(b"\n") + 1]
            if whole:
                ours = [line for line in whole.splitlines() if container.encode() in line]
                rows = [row for row in map(_row, ours) if row and row["c"] == container and row["s"] == stream]
                return _joined(row["x"] for row in rows), (name, offset + len(whole)), False
            place, offset = (name, offset), 0
        return [], place, True

    def has_lost(self, app_id: str, place: tuple[int, int], since: float) -> bool:
        """Whether lines behind this place, written `since` then, have made way for newer ones. Of an earlier life of
        the server only a reader who was behind the beginning learns it."""
        if place == BEGINNING:
            return self._dropped.get(app_id, since) > since
        return place[0] not in self._heads(app_id)

    def _heads(self, app_id: str) -> dict[int, Path]:
        """Its files by their first bytes, the older one first."""
        heads: dict[int, Path] = {}
        for path in (self._root / f"{app_id}.old", self._root / f"{app_id}.jsonl"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                if len(head := file.read(HEAD)) == HEAD:
                    heads[zlib.crc32(head)] = path
        return heads

    def follow(self, app_id: str, peer: Peer, number: int) -> None:
        self._subscribers.setdefault(app_id, []).append((peer, number))

    def unfollow(self, peer: Peer) -> None:
        self._skipped.pop(peer, None)
        for app_id, followers in list(self._subscribers.items()):
            left = [follower for follower in followers if follower[0] is not peer]
            if left:
                self._subscribers[app_id] = left
            else:
                del self._subscribers[app_id]

    def close_app(self, app_id: str, notice: Any) -> None:
        """No more output will come: tell followers, free the file."""
        for peer, number in self._subscribers.pop(app_id, ()):
            peer.event(number, {"end": notice})
        file = self._files.pop(app_id, None)
        if file is not None:
            file.close()

    def announce(self, app_id: str, value: dict[str, Any]) -> None:
        """Something other than output that followers want to know: containers, image builds."""
        for peer, number in self._subscribers.get(app_id, ()):
            peer.event(number, value)

    def delete(self, app_id: str) -> None:
        self._dropped.pop(app_id, None)
        for suffix in (".old", ".jsonl"):
            (self._root / f"{app_id}{suffix}").unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for file in self._root.iterdir():
            found[file.stem] = found.get(file.stem, 0) + file.stat().st_size
        return found


def _rows(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from filter(None, map(_row, file))
    except FileNotFoundError:
        return


def _joined(lines: Iterable[str]) -> list[str]:
    """As they were printed: parts of a folded line end without a line feed, and drawings of a bar do not count."""
    return [line if len(line) == MAX_LINE else f"{line}\n" for line in lines if not line.endswith("\r")]


def _row(line: str | bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # torn by a crash
        return None


class LineAssembler:
    """Bytes of one stream → whole lines. `\\r` progress bars come as they are drawn, at most one a period."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._rest = ""

    def feed(self, data: bytes, final: bool = False) -> list[str]:
        text = self._rest + self._decoder.decode(data, final)
        *whole, self._rest = text.split("\n")
        lines = [line.removesuffix("\r") for line in whole]  # a final \r marks a bar that is being drawn
        if final and self._rest:
            lines.append(self._rest.removesuffix("\r"))
            self._rest = ""
        elif len(self._rest) >= MAX_LINE:
            *parts, self._rest = _fold(self._rest)
            return [part for line in lines for part in _fold(line)] + parts
        elif "\r" in self._rest:  # a progress bar: pass on what it shows now
            drawn, _, rest = self._rest.rpartition("\r")
            shown = drawn.rpartition("\r")[2]
            if shown:
                lines.append(shown + "\r")
            self._rest = rest or f"{shown}\r"  # what is shown stays until it is overwritten, or becomes the line
        return [part for line in lines for part in _fold(line)]


def _fold(line: str) -> list[str]:
    line = line.removesuffix("\r") if line.endswith("\r") and "\r" not in line[:-1] and len(line) < 2 else line
    return [line[i : i + MAX_LINE] for i in range(0, len(line) + 1, MAX_LINE)]


class OutputPump:
    """Reads stdout and stderr of one container for as long as any process in it holds them open."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outputs: tuple[int, int],
        sink: Callable[[int, str | None, list[str]], None],
    ) -> None:
        """`sink(stream, call, lines)`: `call` is given by the line's mark, or None."""
        self._loop = loop
        self._outputs = {outputs[0]: 1, outputs[1]: 2}
        self._assemblers = {1: LineAssembler(), 2: LineAssembler()}
        self._sink = sink
        self._budget = {1: READ_BUDGET, 2: READ_BUDGET}
        self.ended = loop.create_future()
        for fd in self._outputs:
            loop.add_reader(fd, self._readable, fd)

    def drain(self) -> None:
        """Read what is there now: called before a result is delivered, so that its output comes first."""
        for fd in list(self._outputs):
            self._read(fd)

    async def finish(self) -> None:
        """Read the last output. A process that left its sandbox's life may hold a pipe open: not for ever."""
        await asyncio.wait([self.ended], timeout=LOG_DRAIN)
        if not self.ended.done():
            self.stop()

    def _readable(self, fd: int) -> None:
        stream = self._outputs[fd]
        self._budget[stream] -= READ_SIZE
        if self._budget[stream] <= 0:
            self._loop.remove_reader(fd)
            self._loop.call_later(PERIOD, self._again, fd)
            return
        self._read(fd)

    def _again(self, fd: int) -> None:
        if fd in self._outputs:
            self._budget[self._outputs[fd]] = READ_BUDGET
            self._loop.add_reader(fd, self._readable, fd)

    def _read(self, fd: int) -> None:
        stream = self._outputs[fd]
        try:
            data = os.read(fd, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        lines = self._assemblers[stream].feed(data, final=not data)
        if lines:
            self._pass_on(stream, lines)
        if not data:
            self._end(fd)

    def _pass_on(self, stream: int, lines: list[str]) -> None:
        """Consecutive lines of one call go together."""
        group: list[str] = []
        owner: str | None = None
        for line in lines:
            call, text = _unmark(line)
            if call != owner and group:
                self._sink(stream, owner, group)
                group = []
            owner = call
            group.append(text)
        self._sink(stream, owner, group)

    def _end(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._outputs[fd]
        if not self._outputs and not self.ended.done():
            self.ended.set_result(None)

    def stop(self) -> None:
        """Give up on output that nobody ends; what is there is read first."""
        self.drain()
        for fd in list(self._outputs):
            for lines in [self._assemblers[self._outputs[fd]].feed(b"", final=True)]:
                if lines:
                    self._pass_on(self._outputs[fd], lines)
            self._end(fd)


def _unmark(line: str) -> tuple[str | None, str]:
    if not line.startswith(MARK):
        return None, line
    call, found, text = line[1:].partition(MARK)
    return (call, text) if found else (None, line)
