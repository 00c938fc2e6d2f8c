from __future__ import annotations

import pytest

from lorry.images.failure import TAIL_LINES, LogTail, build_error, hint


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("cause: failed to write to file `/x`: No space left on device (os error 28)", "lorry prune"),
        ("cause: invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("HTTP status client error (401 Unauthorized) for url (http://h/)", "login"),
        ("cause: dns error", "HTTPS_PROXY"),
        ("cause: Connection refused (os error 111)", "HTTPS_PROXY"),
        ("Because numpy==1.16.0 has no usable wheels and you require numpy==1.16.0", "No wheel"),
        ("Because nope was not found in the package registry and you require nope", "spelling"),
        ("Because there is no version of six==99 and you require six==99", "no such version"),
        ("error: command '/usr/bin/gcc' failed: No such file or directory", "compiler"),
        ("error: No solution found when resolving dependencies", "contradict"),
        ("error: Failed to parse: `alpha=2`", "written"),
        ("E: Unable to locate package ffmpegg", "packages.debian.org"),
        ("E: Failed to fetch http://deb/dists/x/InRelease  Could not connect to h:9 (127.0.0.1).", "mirror"),
        ("error: In `--require-hashes` mode, all requirements must have a hash, but none", "--generate-hashes"),
        ("/run/build/uv: error while loading shared libraries: libgcc_s.so.1: cannot open", "Alpine"),
    ],
)
def test_known_failures_come_with_what_to_do(line: str, word: str) -> None:
    assert word in (hint([line]) or "")


def test_an_unknown_failure_has_no_invented_hint() -> None:
    assert hint(["something else"]) is None
    tail = LogTail()
    tail.add("something else")
    assert "Hint" not in str(build_error("layer 1 of 1 (x)", 2, tail))


def test_only_the_tail_is_shown_and_says_so() -> None:
    tail = LogTail()
    for number in range(100):
        tail.add(f"line {number}")
    assert len(tail.lines) == TAIL_LINES, "a log without end fills the memory of the server"
    text = str(build_error("layer 1 of 1 (x)", -9, tail))
    assert "failed in layer 1 of 1 (x): uv was killed by signal 9" in text
    assert "line 99" in text
    assert f"line {100 - TAIL_LINES}" in text
    assert f"line {99 - TAIL_LINES}\n" not in text
    assert "60 earlier lines left out" in text
