"""Clients and containers that send anything. The server answers honest ones as before, from the same process."""

from __future__ import annotations

import array
import contextlib
import json
import os
import random
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest
from server_asking import ask
from server_home import ServerHome, entered, wait_until

import lorry
from lorry import config, exception
from lorry.sdk.channel import Channel, greeting
from lorry.server.frontend import MAX_CONNECTIONS, MAX_STRANGERS
from lorry.server.parameters import TAKES
from lorry.server.parcels import Broker, Spool
from lorry.wire.control import encode
from lorry.wire.endpoint import ATTACHED
from lorry.wire.frames import HEADER, HEADER_SIZE, MAX_FRAME, Flag, Kind, pack, pack_reference

ALL_KINDS = [*range(24), 99, 255]


@pytest.fixture(scope="module")
def running(shared_home: ServerHome) -> Iterator[lorry.App]:
    with entered(shared_home), hostile.app.run():
        hostile.honest.remote(0)
        yield hostile.app


pytestmark = pytest.mark.usefixtures("running", "server")


@pytest.fixture(autouse=True)
def unharmed(running: lorry.App, server: ServerHome) -> Iterator[None]:
    """The same worker afterwards, with as many descriptors, and honest calls work."""
    worker = server.worker_pid()
    assert hostile.honest.remote(1) == 2
    before = unaccounted(worker, server)
    yield
    assert server.worker_pid() == worker
    assert hostile.honest.remote(41) == 42
    wait_until(lambda: unaccounted(worker, server) <= before + 8)


OF_A_TEMPLATE, OF_A_CONTAINER = 4, 6
"""Descriptors that the worker holds for one: connection, pidfd, two outputs; namespace and a connection as client."""


def unaccounted(worker: int, server: ServerHome) -> int:
    """Descriptors that belong to no template and no container. Those that are being started have not got theirs."""
    wait_until(lambda: all(row["state"] == "ready" for row in ask("container_list")["containers"]))
    kept = {name: len(os.listdir(server.state / name)) for name in ("templates", "containers")}
    return descriptors(worker) - OF_A_TEMPLATE * kept["templates"] - OF_A_CONTAINER * kept["containers"]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def connect(path: Path | None = None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    sock.connect(str(path or config.resolve().client_socket))
    return sock


def greeted() -> socket.socket:
    sock = connect()
    for frame in encode(Kind.REQUEST, 1, {"method": "hello", "params": greeting()}):
        sock.send(frame)
    assert sock.recv(MAX_FRAME)[2] == 0
    return sock


def ended(sock: socket.socket) -> bool:
    """Whether the server closed it; reads whatever was said before."""
    try:
        while sock.recv(MAX_FRAME):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def attempt(sock: socket.socket, data: bytes, fds: list[int] | None = None) -> bool:
    """False when the server has hung up."""
    try:
        if fds:
            sock.send(ATTACHED)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([data], ancillary)
        return True
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        return False


def random_frame(rng: random.Random) -> bytes:
    """Near enough to an honest one to get past the first checks."""
    kind = rng.choice(ALL_KINDS)
    flags = rng.getrandbits(8)
    number = rng.choice([0, 1, 2, 2**32 - 1, rng.getrandbits(32)])
    count = rng.choice([0, 1, 7, 2**32 - 1])
    header = HEADER.pack(
        kind, flags, rng.getrandbits(8), 0, number, rng.getrandbits(64), rng.randbytes(16), rng.getrandbits(32), count
    )
    body = rng.choice(
        [
            b"",
            rng.randbytes(rng.choice([1, 2, 8, 100, 60_000])),
            json.dumps(rng.choice([[], {}, 1, "x", {"method": 1}, {"method": ["x"]}, {"method": "df"}])).encode(),
            json.dumps({"method": "call_result", "params": rng.choice([[], None, {}, {"call": "fc-x"}])}).encode(),
            struct.pack("<H2I", 1, 5, 2),
            struct.pack("<H", 65535),
            pack_reference(rng.getrandbits(32), [rng.getrandbits(60) for _ in range(rng.choice([0, 1, 5]))]),
            struct.pack("<IIQ", 1, 2**32 - 1, 0),
        ]
    )
    return header + body


@pytest.mark.parametrize("seed", range(4))
def test_random_frames_before_and_after_hello(seed: int) -> None:
    rng = random.Random(seed)
    for round_ in range(150):
        with connect() if round_ % 3 == 0 else greeted() as sock:
            for _ in range(rng.randrange(1, 8)):
                if not attempt(sock, random_frame(rng)):
                    break


def test_every_method_with_parameters_of_every_wrong_kind() -> None:
    """Each is answered, nearly always with an error that is the client's; the connection lives. Not asked for: what
    ends the server, and what would read all of it."""
    rng = random.Random(5)
    channel = Channel()
    first = channel.open()
    for name in [*(TAKES.keys() - {"server_stop", "df", "prune", "image_prune"}), "no_such_method", "", None, 5, []]:
        for params in [None, [], 1, "x", {}, *(random_parameters(rng, name) for _ in range(20))]:
            try:
                channel.ask(name, params)  # type: ignore[arg-type]
            except exception.InternalError as fault:
                pytest.fail(f"{name}({params}): {fault}")
            except exception.Error:
                pass
    assert channel.sock is first, "the server hung up"
    channel.close()


NONSENSE: list[object] = [
    "",
    "x",
    "../../x",
    "\ud800",
    "\0",
    -1,
    0,
    1,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    True,
    None,
]
NONSENSE += [[], ["x"], ["{}"], [1, 2], [1, "x", None], {}, {"x": 1}, {"x": "y"}, "fc-" + "0" * 32, "0" * 64, "/x/../y"]


def random_parameters(rng: random.Random, method: object) -> dict[str, object]:
    words = TAKES.get(method, "").split() if isinstance(method, str) else []
    names = [name for word in words for name in word.partition(":")[0].split("|")]
    return {name: rng.choice(NONSENSE) for name in names}


def test_what_is_missing_or_wrong_is_named() -> None:
    channel = Channel()
    for method, params, sentence in (
        ("call_info", {}, "call_info needs the parameter 'call': the id of a call"),
        (
            "volume_read",
            {"volume_id": "v", "path": 5, "offset": 0},
            "volume_read: 'path' is a text without zero bytes, not 5",
        ),
        ("bind", {"number": True, "changes": {}}, "bind: 'number' is a whole number from 0 on, not True"),
        ("function_lookup", {"tag": "f"}, "function_lookup needs the parameter 'app_id' or 'app_name'"),
        ("app_functions", [], "app_functions: parameters are an object by name"),
    ):
        with pytest.raises(exception.InvalidError, match=re.escape(sentence)):
            channel.ask(method, params)  # type: ignore[arg-type]
    channel.close()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_descriptors_are_closed_wherever_they_come(kind: int, server: ServerHome) -> None:
    with connect() as stranger, greeted() as known, open("/dev/null") as file:
        for _ in range(20):
            for sock in (stranger, known):
                attempt(sock, pack(kind) + b"{}", [file.fileno()] * 4)
                attempt(sock, pack(kind, flags=Flag.SEGMENT) + b"x", [file.fileno()])


def test_a_socket_as_segment_does_not_keep_its_own_connection_open(server: ServerHome) -> None:
    ours = greeted()
    reference = pack_reference(1, [])
    header = pack(Kind.CALL, flags=Flag.SEGMENT, number=1, call=os.urandom(16), count=1)
    attempt(ours, header + reference, [ours.fileno()])
    assert ended(ours)
    ours.close()


def test_a_segment_that_is_cut_short_while_it_is_kept_is_an_error(tmp_path: Path) -> None:
    """Its owner has not sealed it and shrinks it after it was looked at: no endless copy, no row without a file."""
    broker = Broker()
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, 1 << 20)
    owner: Any = object()
    parcel = broker.receive(owner, Flag.SEGMENT, pack_reference(1, [1 << 20]), [os.dup(fd)])
    os.ftruncate(fd, 4096)
    with pytest.raises(OSError, match="cut its payload short"):
        Spool(tmp_path / "spool", broker).write(bytes(16), parcel)
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    broker.peer_gone(owner)
    os.close(fd)


def test_messages_that_nest_or_never_end_are_cut_off(server: ServerHome) -> None:
    worker = server.worker_pid()
    before = rss_of(worker)
    bomb = b"[" * (MAX_FRAME - HEADER_SIZE)
    with connect() as stranger:
        attempt(stranger, pack(Kind.REQUEST) + bomb)
        assert ended(stranger)
    with greeted() as known:
        attempt(known, pack(Kind.REQUEST, number=5) + bomb)
        assert ended(known)
    strangers = [connect() for _ in range(20)]
    for number in range(100):
        for sock in strangers:
            attempt(sock, pack(Kind.REQUEST, flags=Flag.MORE, number=number) + bomb)
    for sock in strangers:
        assert ended(sock)
        sock.close()
    assert rss_of(worker) - before < 64 << 20


def test_uploads_that_are_broken_off_leave_nothing(server: ServerHome) -> None:
    incoming = server.state / "blobs" / "incoming"
    for i in range(20):
        with greeted() as sock:
            params = {"digest": f"{i:064x}", "offset": 0, "data": "aGVsbG8=", "last": False}
            for frame in encode(Kind.REQUEST, 2, {"method": "blob_put", "params": params}):
                sock.send(frame)
            assert sock.recv(MAX_FRAME)[2] == 0
    wait_until(lambda: not list(incoming.iterdir()))


def test_10_000_connections_opened_and_dropped(server: ServerHome) -> None:
    path = config.resolve().client_socket
    inner = config.resolve().inner_socket
    before = rss_of(server.worker_pid())
    for i in range(10_000):
        connect(inner if i % 2 else path).close()
    assert rss_of(server.worker_pid()) - before < 32 << 20


class Owner:
    """A connection that remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def send(self, frame: bytes, _descriptors: object = ()) -> None:
        self.sent.append(frame[0])


def test_a_release_by_somebody_else_frees_nothing() -> None:
    """Segment numbers can be guessed: an owner would write its next payload over one that is being read."""
    broker = Broker()
    owner: Any = Owner()
    thief: Any = Owner()
    fd = os.memfd_create("owned")
    os.ftruncate(fd, 4096)
    parcel = broker.receive(owner, Flag.SEGMENT, pack_reference(1, [4096]), [fd])
    assert parcel.segment is not None
    broker.released(thief, parcel.segment.number)  # before anybody uses it: the frame is just being read
    broker.hold(parcel, "reader")
    broker.released(thief, parcel.segment.number)
    assert owner.sent == []
    broker.let_go(parcel, "reader")
    assert owner.sent == [Kind.RELEASE]
    broker.peer_gone(owner)


# Containers


def test_a_wrong_token_is_refused_and_makes_nobody() -> None:
    for role in ("container", "client"):
        assert "no such container, or a wrong token" in hostile.wrong_token.remote(role)


def test_connections_of_a_container_are_bounded(server: ServerHome) -> None:
    worker = server.worker_pid()
    before = unaccounted(worker, server)
    alive, _ = hostile.many_connections.remote(3000, MAX_STRANGERS, hello=False)
    assert alive <= MAX_STRANGERS
    most = MAX_CONNECTIONS + MAX_STRANGERS
    alive, said = hostile.many_connections.remote(3000, most, hello=True)
    assert alive <= most
    assert f"{MAX_CONNECTIONS:,} connections" in said
    wait_until(lambda: unaccounted(worker, server) <= before + 8)
    assert hostile.many_connections.remote(100, 100, hello=True)[0] == 100  # those that are closed do not count


def test_garbage_from_a_container() -> None:
    assert hostile.storm.remote(1, 300) > 0


def test_a_container_that_lies_about_results_costs_only_itself() -> None:
    with contextlib.suppress(exception.Error):
        assert hostile.lie_about_results.remote(3) == 3


ADMINISTRATIVE = "app_create app_stop app_list app_logs app_detach secret_put secret_list secret_lookup secret_delete"
ADMINISTRATIVE += " volume_list volume_delete volume_put volume_copy container_list container_stop server_stop df usage"
ADMINISTRATIVE += " server_status prune blob_put image_ensure"


@pytest.mark.parametrize("method", ADMINISTRATIVE.split())
def test_code_in_a_container_may_not_administer(method: str) -> None:
    assert f"may not ask for '{method}'" in hostile.ask_for.remote(method, {})


def test_code_in_a_container_reaches_its_own_volumes_only() -> None:
    mine, theirs = hostile.mine.hydrate().object_id, hostile.theirs.hydrate().object_id
    assert hostile.ask_for.remote("volume_listdir", {"volume_id": mine, "path": "/"}).startswith("given")
    for method in ("volume_listdir", "volume_read", "volume_remove"):
        said = hostile.ask_for.remote(method, {"volume_id": theirs, "path": "/", "offset": 0})
        assert "does not mount that volume" in said
    assert "does not mount" in hostile.ask_for.remote("volume_lookup", {"name": "hostile-theirs"})


def test_code_in_a_container_cannot_bind_itself_more_than_it_has() -> None:
    """A variant of a function that has a secret, with code of the attacker's own."""
    number = int(str(hostile.keeper_of_secrets.object_id).removeprefix("fu-"))
    own = int(str(hostile.environment.object_id).removeprefix("fu-"))
    spec = hostile.keeper_of_secrets.info
    assert spec is not None
    for target, changes in (
        (number, {"code": {"module": "hostile", "qualname": "environment"}}),
        (own, {"secret_ids": list(spec.secret_ids)}),
        (own, {"volumes": [{"path": "/x", "volume_id": spec.volumes[0].volume_id, "read_only": False}]}),
        (number, {"source": "0" * 64}),
    ):
        assert "may not change" in hostile.ask_for.remote("bind", {"number": target, "changes": changes})
    assert hostile.ask_for.remote("bind", {"number": own, "changes": {"timeout": 60.0}}).startswith("given")


SENSELESS: list[dict[str, object]] = [
    {"scaling": {"min_containers": "x"}},
    {"scaling": {"max_containers": -1}},
    {"scaling": {"scaledown_window": float("nan")}},
    {"resources": {"cpu": -1000.0, "memory": -10_000_000}},
    {"resources": {"memory": None}},
    {"resources": {"gpus": [{"model": "any", "count": -3}]}},
    {"resources": 5},
    {"retries": {"backoff_coefficient": "x"}},
    {"timeout": float("inf")},
    {"parameters": 5},
    {"env": [["A", 5]]},
    {"secret_ids": 5},
]


@pytest.mark.parametrize("changes", SENSELESS, ids=str)
def test_code_in_a_container_cannot_give_the_scheduler_numbers_without_sense(changes: dict[str, object]) -> None:
    """What is no number would end every round of the autoscaler, for all functions; less than nothing is room that the
    machine does not have."""
    own = int(str(hostile.environment.object_id).removeprefix("fu-"))
    said = hostile.ask_for.remote("bind", {"number": own, "changes": changes})
    assert said.startswith("InvalidError: this is no FunctionSpec"), said


def test_code_in_a_container_that_asks_wrongly_is_told_so() -> None:
    assert "call_result needs the parameter 'call'" in hostile.ask_for.remote("call_result", {})
    assert "'path' is a text" in hostile.ask_for.remote("volume_read", {"volume_id": "", "path": [], "offset": 0})


# Secrets


def test_a_secret_is_seen_by_its_function_only_and_lies_nowhere_in_clear(server: ServerHome) -> None:
    assert hostile.keeper_of_secrets.remote() == hostile.CANARY
    assert "HOSTILE_CANARY" not in hostile.environment.remote()
    needle = hostile.CANARY.encode()
    found = []
    for folder, _folders, files in os.walk(server.state):
        for name in files:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and needle in path.read_bytes():
                found.append(path)
    assert found == []
