"""What people write wrong, and machines that are not as they should be: each ends in a sentence that helps."""

from __future__ import annotations

import builtins
import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import journal
import limits
import pytest
from server_home import PROGRAMS, ServerHome, entered, wait_until

import lorry
from lorry import config, exception
from lorry.sdk.channel import Channel
from lorry.store.filesystem import refuse_network_filesystem
from lorry.wire import frames

# Words


def plain() -> None:
    """Something to decorate."""


VOLUME = lorry.Volume.from_name("data")
WRONG: list[tuple[str, Callable[[lorry.App], Any], str]] = [
    ("no parentheses", lambda app: app.function(plain), r"needs its parentheses: @app\.function\(\)"),
    ("no parentheses on a class", lambda app: app.cls(dict), r"needs its parentheses: @app\.cls\(\)"),
    ("no parentheses inside", lambda app: lorry.enter(plain), r"@lorry\.enter needs its parentheses"),
    ("concurrent outside", lambda app: lorry.concurrent(max_inputs=2)(app.function()(plain)), "must stand below"),
    ("method outside a class", lambda app: app.function()(lorry.method()(plain)), "belong to classes"),
    ("twice", lambda app: app.function()(app.function()(plain)), "decorated already"),
    ("a class as a function", lambda app: app.function()(type("C", (), {})), r"@app\.cls\(\)"),
    ("a function as a class", lambda app: app.cls()(plain), "decorates classes"),  # type: ignore[arg-type]
    ("min over max", lambda app: app.function(min_containers=3, max_containers=2), "min_containers=3 is more than max"),
    ("limit under request", lambda app: app.function(memory=(512, 256)), "the limit is below the request"),
    ("a typo", lambda app: app.function(memmory=1), r"no parameter memmory=; did you mean memory=\?"),
    ("another typo", lambda app: app.function(time_out=1), r"did you mean timeout=\?"),
    ("nonsense", lambda app: app.function(xyzzy=1), "no parameter xyzzy="),
    ("an old name", lambda app: app.function(keep_warm=1), "keep_warm= is called min_containers now"),
    ("an old decorator's name", lambda app: app.function(allow_concurrent_inputs=2), r"@lorry\.concurrent"),
    ("a unit of no kind", lambda app: app.function(memory="8 bananas"), r'"8GB"'),
    ("no memory", lambda app: app.function(memory=0), "at least 1"),
    ("a negative timeout", lambda app: app.function(timeout=-1), "more than 0 seconds"),
    ("a timeout of words", lambda app: app.function(timeout="soon"), '"90s"'),
    ("no cores", lambda app: app.function(cpu=0), "above 0"),
    ("retries of words", lambda app: app.function(retries="3"), r"lorry\.Retries"),
    ("a bare secret", lambda app: app.function(secrets=lorry.Secret.from_name("s")), "secrets must be a list"),
    ("a card of no kind", lambda app: app.function(gpu="L4:none"), "gpu"),
    ("a relative path", lambda app: app.function(volumes={"data": VOLUME}), "must be absolute"),
    ("the root", lambda app: app.function(volumes={"/": VOLUME}), "must be absolute and not /"),
    ("the same volume twice", lambda app: app.function(volumes={"/a": VOLUME, "/b": VOLUME}), "mount it once"),
    (
        "the same volume by two handles",
        lambda app: app.function(volumes={"/a": VOLUME, "/b": lorry.Volume.from_name("data")}),
        "mount it once",
    ),
    ("an image of words", lambda app: app.function(image="python:3.12"), r"takes a lorry\.Image"),
    ("a name of no kind", lambda app: lorry.App("my app!"), "1 to 64 letters"),
]


@pytest.mark.parametrize(("act", "sentence"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_word_is_refused_at_the_line_that_has_it(act: Callable[[lorry.App], Any], sentence: str) -> None:
    with pytest.raises(exception.InvalidError, match=sentence):
        act(lorry.App("wrong"))


def test_a_unit_is_accepted_and_shown_in_mib() -> None:
    from lorry.sdk.options import resources

    assert resources({"memory": "8GB"}).memory == 8192
    assert resources({"memory": ("512MiB", "1.5 GiB")}).memory_limit == 1536


def test_two_functions_of_one_name_are_refused() -> None:
    app = lorry.App("twice")
    app.function()(plain)
    with pytest.raises(exception.InvalidError, match="two functions called 'plain'"):
        app.function()(plain)


def test_a_call_outside_a_running_app_says_how_to_run_it() -> None:
    with pytest.raises(exception.ExecutionError, match=r"lorry run.*app\.run\(\)"):
        journal.mark.remote(1)


def test_a_function_in_a_function_is_refused_or_serialized(server: ServerHome) -> None:
    app = lorry.App("inner")

    @app.function()
    def inner() -> int:
        return 1

    with pytest.raises(exception.InvalidError, match=r"top of its file, or use serialized=True"), app.run():
        pass


def test_a_missing_volume_secret_and_app_are_named(server: ServerHome) -> None:
    with pytest.raises(exception.NotFoundError, match="no-volume"):
        lorry.Volume.from_name("no-volume").hydrate()
    with pytest.raises(exception.NotFoundError, match="no-secret"):
        lorry.Secret.from_name("no-secret").hydrate()
    with pytest.raises(exception.NotFoundError, match="no-app"):
        lorry.Function.from_name("no-app", "f").remote()


# The machine


def test_a_state_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORRY_STATE_DIR", str(tmp_path / "file" / "state"))
    monkeypatch.setenv("LORRY_RUNTIME_DIR", str(tmp_path / "run"))
    channel = Channel()
    with pytest.raises(exception.ConnectionError, match=r"state directory .* cannot be written: .*LORRY_STATE_DIR"):
        channel.open()


def test_a_state_directory_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", "1m", "ro"):
        monkeypatch.setenv("LORRY_STATE_DIR", str(tmp_path / "disk" / "state"))
        with pytest.raises(exception.ConnectionError, match="Read-only file system"):
            Channel().open()


def test_a_runtime_directory_that_cannot_be_made(own_server: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_server.root / "file").write_text("")
    monkeypatch.setenv("LORRY_RUNTIME_DIR", str(own_server.root / "file" / "run"))
    with pytest.raises(exception.ConnectionError, match=r"LORRY_RUNTIME_DIR") as caught:
        Channel().open()
    assert "Traceback" not in str(caught.value)


def test_a_runtime_directory_with_too_long_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORRY_RUNTIME_DIR", "/tmp/" + "x" * 120)
    with pytest.raises(exception.InvalidError, match=r"107.*LORRY_RUNTIME_DIR"):
        config.resolve()


@pytest.mark.parametrize("kind", [0x6969, 0xFF534D42, 0x65735546])
def test_state_on_a_network_file_system_is_refused(tmp_path: Path, kind: int) -> None:
    with pytest.raises(exception.InvalidError, match=r"(nfs|cifs|fuse) file system.*LORRY_STATE_DIR"):
        refuse_network_filesystem(tmp_path / "lorry.db", lambda _folder: kind)


def test_wrong_settings_name_their_source() -> None:
    with pytest.raises(exception.InvalidError, match="LORRY_IDLE_EXIT: idle_exit must be a number"):
        config.resolve({"LORRY_IDLE_EXIT": "soon"})


# Disks that are full


@contextlib.contextmanager
def small_disk(folder: Path, size: str, *options: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def server_on_small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHome]:
    root = tmp_path_factory.mktemp("full", numbered=True)
    home = ServerHome(root)
    home.environ["LORRY_RUNTIME_DIR"] = f"/tmp/lorry-full-{os.getpid()}"
    with small_disk(home.state, "48m"):
        with entered(home):
            yield home
        home.stop()
    shutil.rmtree(home.environ["LORRY_RUNTIME_DIR"], ignore_errors=True)


def fill(home: ServerHome) -> Path:
    """Not a byte is left."""
    ballast = home.state / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_full_disk_refuses_clearly_and_loses_nothing(server_on_small_disk: ServerHome) -> None:
    home = server_on_small_disk
    with journal.app.run():
        accepted = [journal.mark.spawn(i) for i in range(20)]
        assert [call.get(timeout=30) for call in accepted] == list(range(20))
        waiting = journal.wait_for.spawn("go")
        folder = next((home.state / "volumes").glob("vo-*"))
        wait_until(lambda: (folder / "waiting").exists())
        (folder / "go").write_text("")  # a name needs a page of its own, so before the disk is full
        ballast = fill(home)
        refused = []
        for i in range(100, 400):
            try:
                accepted.append(journal.mark.spawn(i, "x" * 4000))
            except exception.StorageFullError as full:
                refused.append(full)
                if len(refused) == 5:
                    break
        assert refused, "the disk was not full"
        assert re.search(r"full or refuses.*Nothing that was acknowledged", str(refused[0]))
        with pytest.raises(exception.StorageFullError, match="LORRY_STATE_DIR"):
            journal.mark.spawn(0, "y" * 1_000_000)
        assert Channel().ask("server_status", {})["pid"] == home.worker_pid()
        ballast.unlink()
        assert waiting.get(timeout=30) == "go"
        assert [call.get(timeout=30) for call in accepted[:20]] == list(range(20))
        for call in accepted[20:]:  # their file names are too long: each has its error, none is lost
            with pytest.raises(OSError):
                call.get(timeout=30)
        assert journal.mark.spawn(7).get(timeout=30) == 7


def test_a_result_that_finds_the_disk_full_waits_for_space(server_on_small_disk: ServerHome) -> None:
    home = server_on_small_disk
    with limits.app.run():
        call = limits.large_after.spawn("go", 3_000_000)
        folder = next((home.state / "volumes").glob("vo-*"))
        channel = Channel()
        container = lambda: channel.ask("container_list", {})["containers"]  # noqa: E731
        wait_until(lambda: (folder / "go.waits").exists())
        ballast = fill(home)
        (folder / "go").touch()  # a tmpfs keeps names elsewhere: this works on a full one
        wait_until(lambda: container()[0]["running"] == 0)
        with pytest.raises(builtins.TimeoutError):
            call.get(timeout=0)
        ballast.unlink()
        assert len(call.get(timeout=30)) == 3_000_000
        channel.close()


# Versions


def test_a_client_of_another_protocol_is_told_what_to_do(server: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorry.sdk import channel as module

    Channel().open()  # the server is there
    monkeypatch.setattr(module, "PROTOCOL_VERSION", frames.PROTOCOL_VERSION + 1)
    stranger = Channel()
    for _ in range(2):  # the second try says the same
        with pytest.raises(exception.VersionError, match=r"speaks protocol 1 .*the client 2.*lorry server restart"):
            stranger.ask("server_status", {})


def test_older_code_refuses_newer_state(own_server: ServerHome) -> None:
    Channel().open()
    own_server.stop()
    database = sqlite3.connect(own_server.state / "lorry.db")
    database.execute("PRAGMA user_version = 999")
    database.close()
    with pytest.raises(exception.ConnectionError, match=r"did not start[\s\S]*newer"):
        Channel().open()
    assert "starting it again" not in own_server.log


# Clients that die


def test_a_client_killed_in_a_map_leaves_no_containers(own_server: ServerHome) -> None:
    program = (
        "import journal\nwith journal.app.run():\n"
        " for _ in journal.slow_mark.map(range(10**6), kwargs={'seconds': 0.02, 'name': 'log'}): pass"
    )
    client = subprocess.Popen([sys.executable, "-c", program], cwd=PROGRAMS)
    folder = own_server.state / "volumes"
    wait_until(lambda: folder.exists() and any(folder.glob("vo-*/log")), 30)
    client.send_signal(signal.SIGKILL)
    client.wait()
    channel = Channel()
    wait_until(lambda: not channel.ask("container_list", {})["containers"])
    wait_until(lambda: not channel.ask("server_status", {})["apps"])
    channel.close()


def test_a_client_killed_in_an_image_build_stops_it(own_server: ServerHome, tmp_path: Path) -> None:
    """An index that accepts and never answers stands for a slow download."""
    import socket

    index = socket.create_server(("127.0.0.1", 0))
    arrived = threading.Event()
    kept: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                kept.append(index.accept()[0])
                arrived.set()

    threading.Thread(target=accept, daemon=True).start()
    program = tmp_path / "build.py"
    program.write_text(
        "import lorry\napp = lorry.App('build')\n"
        "@app.function(image=lorry.Image.debian_slim().uv_pip_install('not-there-at-all==1.0'))\n"
        "def f(): return 1\n"
        "with app.run(): print(f.remote())\n"
    )
    url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
    environ = {**os.environ, "UV_INDEX_URL": url, "UV_DEFAULT_INDEX": url, "PIP_INDEX_URL": url}
    command = [sys.executable, str(program)]
    client = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert arrived.wait(30), own_server.log
        assert builders(url)
        client.send_signal(signal.SIGKILL)
        client.wait()
        wait_until(lambda: not builders(url))
        # The same image again is built again: what was left half-made is not taken for it.
        arrived.clear()
        second = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert arrived.wait(30), own_server.log
        second.send_signal(signal.SIGKILL)
        second.wait()
        wait_until(lambda: not builders(url))
    finally:
        client.kill()
        client.wait()
        index.close()
        for sock in kept:
            sock.close()
    with journal.app.run():  # and the server is well
        assert journal.mark.remote(1) == 1


def builders(url: str) -> list[int]:
    """Processes of a build from this index."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            if b"/uv\0" in command and url.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                found.append(int(entry))
    return found


# The clock


STEPPED_WORKER = """
import os, sys, time
real, flag = time.time, sys.argv.pop()
time.time = lambda: real() - (10 * 86400 if os.path.exists(flag) else 0)
from lorry.server.worker import main
sys.exit(main())
"""


@pytest.fixture
def server_with_a_clock(own_server: ServerHome) -> Iterator[Path]:
    """A server whose wall clock is ten days behind as long as a file exists."""
    from lorry.sdk import start_server

    flag = own_server.root / "back"
    settings = config.resolve()
    command = start_server.command(settings)
    command[command.index("-m") :] = ["-c", STEPPED_WORKER, str(flag)]
    settings.state_dir.mkdir(parents=True)
    with (settings.state_dir / "server.log").open("ab") as log:
        keeper = subprocess.Popen(command, env=start_server.environment(settings), stdout=log, stderr=log, cwd="/")
    try:
        yield flag
    finally:
        keeper.terminate()
        keeper.wait(30)


def test_a_clock_that_is_set_back_disturbs_nothing(server_with_a_clock: Path) -> None:
    back = server_with_a_clock
    wait_until(lambda: Path(os.environ["LORRY_RUNTIME_DIR"], "s").exists())
    with journal.app.run():
        assert journal.mark.remote(1) == 1
        overdue = journal.wait_for.with_options(timeout=1).spawn("never")
        kept = journal.mark.spawn(2)
        back.touch()
        began = time.monotonic()
        with pytest.raises(exception.FunctionTimeoutError):
            overdue.get(timeout=30)
        assert time.monotonic() - began < 20
        assert list(journal.mark.map(range(50))) == list(range(50))
        assert kept.get(timeout=10) == 2
        retried = journal.slow_mark.with_options(retries=1)
        assert retried.remote(3, 0.0, "log") == 3
        back.unlink()
        assert kept.get(timeout=10) == 2
        Channel().ask("prune", {})  # now the rows of before are ten days "old" or new, as may be
        assert journal.mark.remote(4) == 4


def test_the_server_reads_the_wall_clock_through_its_clock_only() -> None:
    """Nothing in memory may expire by a clock that can jump; see clock.Clock."""
    source = Path(lorry.__file__).parent
    for layer in ("server", "scheduler", "lifecycle", "store", "runtime"):
        for file in (source / layer).rglob("*.py"):
            assert "time.time()" not in file.read_text(), file
