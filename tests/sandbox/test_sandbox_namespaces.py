"""What only the namespaces tier promises: what the program sees, and what it cannot reach."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import pytest
from sandbox_box import LIMITS, PYTHON, Box, next_line, run_forbidding

from lorry.errors import InvalidError
from lorry.sandbox.interface import Mount
from lorry.sandbox.namespaces import SANDBOX_UID
from lorry.sandbox.procfs import family

NEWUSER_NEWNS = 0x10020000
REMOUNT_BIND = 0x1020
LIBC = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"
WRITES = """
import os
def writes(path):
    try: open(path, 'w').close()
    except OSError as e: return os.strerror(e.errno)
    return 'written'
"""


def test_the_image_and_every_system_folder_is_read_only(isolated: Box) -> None:
    code = WRITES + "print({writes(d + '/x') for d in ('/usr', '/usr/lib', '/etc', '/dev', '/run', '/var', '')})"
    assert isolated.prints(code) in (
        "{'Read-only file system'}",
        "{'Read-only file system', 'Permission denied'}",
        "{'Permission denied', 'Read-only file system'}",
    )


def test_nothing_can_be_remounted_writable_not_even_in_a_nested_user_namespace(isolated: Box) -> None:
    code = f"""{LIBC}
flags = ctypes.c_ulong({REMOUNT_BIND})
print(libc.mount(None, b'/usr', None, flags, None), os.strerror(ctypes.get_errno()))
assert libc.unshare({NEWUSER_NEWNS}) == 0, os.strerror(ctypes.get_errno())
print(libc.mount(None, b'/usr', None, flags, None), os.strerror(ctypes.get_errno()))
print(libc.umount2(b'/usr', 2), libc.umount2(b'/', 2))
"""
    # A template may make namespaces; a container's filter of system calls stops it before.
    lines = isolated.prints(code, argv=(PYTHON, "-I", "-c", code), template=True).splitlines()
    assert lines[0] == lines[1] == "-1 Operation not permitted"
    assert lines[2] == "-1 -1"


def test_files_of_the_host_cannot_be_seen(isolated: Box) -> None:
    name = "lorry-canary"
    (isolated.base / name).write_text("state of the server")
    with tempfile.NamedTemporaryFile(prefix=name, dir=Path.home()) as at_home:
        code = f"""
import os
for path in {[str(isolated.base / name), at_home.name, "/etc/shadow", "/etc/machine-id"]!r}:
    assert not os.path.exists(path), path
assert not os.path.exists('/proc/1/root/root/.profile')
for folder, names, files in os.walk('/'):
    names[:] = [] if folder in ('/proc', '/usr') else names
    found = [f for f in names + files if {name!r} in f]
    assert not found, (folder, found)
print(sorted(os.listdir('/')), os.listdir('/root'), os.listdir('/tmp'))
"""
        out = isolated.prints(code)
    assert out.endswith("[] []")
    assert "work" not in out


def test_it_sees_only_its_own_processes_and_cannot_look_into_the_first_one(isolated: Box) -> None:
    code = """
import os
def tries(path):
    try: return os.listdir(path) if path.endswith('fd') else open(path, 'rb').read()
    except OSError as e: return type(e).__name__
print(sorted(p for p in os.listdir('/proc') if p.isdigit()), tries('/proc/1/fd'), tries('/proc/1/environ'))
"""
    assert isolated.prints(code) == "['1', '2'] PermissionError PermissionError"


def test_it_is_uid_0_inside_and_never_on_the_host(isolated: Box) -> None:
    code = "import os, signal\nif os.fork() == 0: signal.pause()\nos.write(1, b'%d\\n' % os.getuid()); signal.pause()"

    async def go() -> None:
        process = await isolated.start(code)
        assert await next_line(process.outputs[0]) == "0"
        expected = SANDBOX_UID if os.geteuid() == 0 else os.geteuid()
        members = family(process.pid)
        assert len(members) == 3
        for member in members:
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{member.pid}/status").read_text().splitlines())
            assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(expected)}
            if os.geteuid() == 0:
                assert status["Groups"].split() == []
        process.kill()
        await process.wait()
        process.close()

    asyncio.run(go())


def test_it_has_no_capabilities_and_can_gain_none(isolated: Box) -> None:
    shell = "grep -E '^Cap|NoNewPrivs' /proc/self/status"
    values = {line.split(":\t")[0]: line.split(":\t")[1] for line in lines(isolated, shell)}
    assert values.pop("NoNewPrivs") == "1"
    assert {int(value, 16) for value in values.values()} == {0}


def lines(box: Box, shell: str, **changes: object) -> list[str]:
    return box.prints("", argv=("sh", "-c", shell), **changes).splitlines()


def test_mount_points_show_no_folder_of_another_container(isolated: Box) -> None:
    assert lines(isolated, "ls /tmp; touch /tmp/mine; ls /tmp") == ["mine"]
    assert lines(isolated, "ls /tmp") == []


def test_dev_shm_has_the_size_of_the_memory_limit(isolated: Box) -> None:
    code = "import os; s = os.statvfs('/dev/shm'); print(s.f_blocks * s.f_frsize >> 20)"
    assert isolated.prints(code, memory_limit=96) == "96"


def test_devices_work(isolated: Box) -> None:
    code = """
import os, pty
assert os.read(os.open('/dev/urandom', os.O_RDONLY), 4)
assert os.write(os.open('/dev/null', os.O_WRONLY), b'x') == 1
assert os.read(os.open('/dev/zero', os.O_RDONLY), 1) == bytes(1)
a, b = pty.openpty()
os.write(b, b'hello'); assert os.read(a, 5) == b'hello'
open('/dev/stdout', 'w').write('out')
open('/dev/stderr', 'w').write('err')
"""
    end, out, err = isolated.run(code)
    assert (end.code, out, err) == (0, "out", "err")


def test_names_users_and_certificates_are_there(isolated: Box) -> None:
    code = "import os, pwd, socket\nprint(pwd.getpwuid(0).pw_dir, socket.gethostname(), os.path.isdir('/etc/ssl'))"
    home, host, ssl = isolated.prints(code, argv=(PYTHON, "-I", "-c", code)).split()
    assert home == "/root"
    assert host.startswith("ct-")
    assert ssl == str(os.path.isdir("/etc/ssl"))


def test_a_blocked_network_has_only_its_own_loopback(isolated: Box) -> None:
    code = """
import socket
print([name for _, name in socket.if_nameindex()])
server = socket.create_server(('127.0.0.1', 0))
socket.create_connection(server.getsockname()).close()
try: socket.create_connection(('192.0.2.1', 80))
except OSError as e: print(e.strerror)
"""
    argv = (PYTHON, "-I", "-c", code)
    assert isolated.prints(code, argv=argv, block_network=True).splitlines() == [
        "['lo']",
        "Network is unreachable",
    ]


def test_an_open_network_is_the_hosts(isolated: Box) -> None:
    code = "import os; print(os.readlink('/proc/self/ns/net'))"
    assert isolated.prints(code) == os.readlink("/proc/self/ns/net")
    assert isolated.prints(code, block_network=True) != os.readlink("/proc/self/ns/net")


def test_volumes_are_writable_and_read_only_ones_are_not(isolated: Box) -> None:
    data = isolated.volume("data", seen="yes")
    mounts = (
        Mount(source=str(data), target="/data", read_only=False),
        Mount(source=str(data), target="/mnt/frozen"),
    )
    code = WRITES + "print(open('/mnt/frozen/seen').read(), writes('/data/new'), writes('/mnt/frozen/new2'))"
    assert isolated.prints(code, mounts=mounts) == "yes written Read-only file system"
    assert (data / "new").exists()


def test_mounts_nest_below_home_tmp_and_each_other(isolated: Box) -> None:
    outer, inner, deep = (isolated.volume(name, mark=name) for name in ("outer", "inner", "deep"))
    mounts = (
        Mount(source=str(outer), target="/a", read_only=False),
        Mount(source=str(inner), target="/a/b/c"),
        Mount(source=str(deep), target="/root/.cache/models"),
        Mount(source=str(deep), target="/tmp/deep"),
        Mount(source=str(deep), target="/var/tmp/a/deep"),
    )
    code = WRITES + (
        "for d in ('/a', '/a/b/c', '/root/.cache/models', '/tmp/deep', '/var/tmp/a/deep'):\n"
        "    print(open(d + '/mark').read())\n"
        "print(writes('/a/b/new'), writes('/a/b/c/new'), writes('/root/.cache/other'))"
    )
    assert isolated.prints(code, mounts=mounts).splitlines() == [
        *("outer", "inner", "deep", "deep", "deep"),
        "written Read-only file system written",
    ]


def test_a_single_file_can_be_mounted(isolated: Box) -> None:
    source = isolated.base / "settings.json"
    source.write_text("{}")
    source.chmod(0o644)
    mounts = (Mount(source=str(source), target="/opt/app/settings.json"),)
    code = WRITES + "print(open('/opt/app/settings.json').read(), writes('/opt/app/settings.json'))"
    assert isolated.prints(code, mounts=mounts) == "{} Read-only file system"


def test_read_only_holds_for_mounts_inside_the_mounted_folder(isolated: Box) -> None:
    # A tmpfs below the source: made in a mount namespace of its own, where the whole check then runs.
    if os.geteuid() != 0:
        pytest.skip("only root can mount on the host")
    source = isolated.base / "with-submount"
    (source / "sub").mkdir(parents=True)
    out = run_forbidding({}, nested_mount(isolated, source))
    assert out.split("\n")[0] == "Read-only file system"


def test_read_only_holds_on_kernels_without_mount_setattr(isolated: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount on the host")
    source = isolated.base / "with-submount"
    (source / "sub").mkdir(parents=True)
    no_such_call = 38
    out = run_forbidding({442: no_such_call}, nested_mount(isolated, source))
    assert out.split("\n")[0] == "Read-only file system"


def nested_mount(box: Box, source: Path) -> str:
    return f"""
import ctypes
from pathlib import Path
from sandbox_box import Box
from lorry.sandbox.interface import Mount
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b'/', None, ctypes.c_ulong(0x44000), None) == 0
assert libc.mount(b'x', {str(source / "sub").encode()!r}, b'tmpfs', 0, b'mode=777') == 0
box = Box('namespaces', Path({str(box.base)!r}))
mounts = (Mount(source={str(source)!r}, target='/data'),)
print(box.prints({WRITES + "print(writes('/data/sub/x'))"!r}, mounts=mounts))
"""


def test_the_interpreters_own_folder_can_be_mounted_at_its_path(isolated: Box) -> None:
    if sys.base_prefix == "/usr":
        pytest.skip("this interpreter lies in /usr, which is there anyway")
    mounts = (Mount(source=sys.base_prefix, target=sys.base_prefix),)
    argv = (os.path.realpath(sys.executable), "-I", "-c", "import sys, json, ctypes; print(sys.base_prefix)")
    assert isolated.prints("", argv=argv, mounts=mounts) == sys.base_prefix


def test_a_symbolic_link_in_a_volume_leads_no_mount_astray(isolated: Box) -> None:
    outside = isolated.base / "outside"
    outside.mkdir()
    data = isolated.volume("data")
    (data / "trap").symlink_to(outside)
    for target in ("/data/trap", "/data/trap/below"):
        mounts = (
            Mount(source=str(data), target="/data", read_only=False),
            Mount(source="/usr/share", target=target),
        )
        with pytest.raises(InvalidError, match=r"mount.*symbolic link"):
            isolated.run("", mounts=mounts)
    assert list(outside.iterdir()) == []


def test_a_mount_point_that_cannot_be_made_is_the_users_error(isolated: Box) -> None:
    with pytest.raises(InvalidError, match="must exist there already"):
        isolated.run("", mounts=(Mount(source="/usr/share", target="/usr/no-such-folder"),))


def test_a_failed_start_leaves_no_control_group(isolated: Box) -> None:
    spec = isolated.spec("", argv=("/no/such/program",))
    with pytest.raises(InvalidError):
        asyncio.run(isolated.sandbox.start(spec))
    for base in getattr(LIMITS, "bases", {}).values():
        assert not (base / spec.container_id).exists()
