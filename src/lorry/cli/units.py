"""Sizes, durations and times for people."""

from __future__ import annotations

import time


def size(count: float) -> str:
    """Bytes as `3.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def mebibytes(count: float) -> str:
    return size(count * 1024 * 1024)


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4 min 5 s`, `3 h 12 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, step in (("min", "s", 60), ("h", "min", 60), ("d", "h", 24)):
        whole, rest = divmod(whole, step)
        if large == "d" or whole < (60 if large == "min" else 24):
            return f"{whole} {large} {rest} {small}"
    raise AssertionError("unreachable")


def about(seconds: float) -> str:
    """What nobody knows exactly: `45 s`, `20 min`, `3 h 12 min`, `2 d 4 h`."""
    if seconds < 59.5:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3570 else duration(round(seconds / 60) * 60)


def short_duration(seconds: float) -> str:
    """`0.4 ms`, `12 ms`, `1.52 s`."""
    if seconds >= 1:
        return duration(seconds)
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def clock(seconds: float) -> str:
    """`0:05`, `12:34`, `3:04:05`."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ago(moment: float | None, now: float | None = None) -> str:
    """A Unix time as `4 min 5 s ago`; empty for None."""
    if moment is None:
        return ""
    passed = max(0.0, (time.time() if now is None else now) - moment)
    return "now" if passed < 1 else f"{duration(round(passed)).replace('.00', '').replace('.0', '')} ago"


def moment(unix: float | None) -> str:
    """A Unix time as local date and time."""
    return "" if unix is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))
