"""Huge pages on request: what is asked for, and what the kernel makes of it."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from lorry.runtime.huge_pages import SIZE, candidates

MAPS = """\
555500000000-555500a00000 rw-p 00000000 00:00 0                          [heap]
7f0000100000-7f0000700000 rw-p 00000000 00:00 0
7f0001000000-7f0001400000 r--p 00000000 00:00 0
7f0002000000-7f0002400000 rw-s 00000000 00:05 12                         /dev/zero (deleted)
7f0003000000-7f0003400000 rw-p 00000000 08:01 99                         /usr/lib/x.so
7f0004000000-7f00041ff000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00400000 rw-p 00000000 00:00 0                          [stack]
"""


@pytest.mark.skipif(mmap.PAGESIZE != 4096, reason="huge pages have another size here")
def test_whole_pieces_of_private_memory_are_candidates(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text(MAPS)
    heap = [0x555500000000 + i * SIZE for i in range(5)]
    assert list(candidates(str(tmp_path / "maps"))) == [*heap, 0x7F0000200000, 0x7F0000400000]


PROGRAM = """
import sys
from lorry.runtime.huge_pages import candidates, collapse
data = bytearray(b"x" * (64 << 20))
def huge():
    (line,) = [line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
    return int(line.split()[1])
before = huge()
if not any(list(map(collapse, list(candidates())))):
    sys.exit(3)
print(huge() - before, len(data), data.count(b"x"))
"""


def test_the_kernel_makes_them_and_the_data_stay() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 3:
        pytest.skip("this kernel makes no huge pages on request")
    more, *data = map(int, done.stdout.split())
    assert data == [64 << 20, 64 << 20]
    assert more >= 32 << 10, done
