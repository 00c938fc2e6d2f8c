"""Archives that were made to break out, and what the two formats say."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archive_factory import entry, folder, hard_link, layer, link, write_docker, write_oci
from hypothesis import given, settings
from hypothesis import strategies as st

from lorry.errors import ImageBuildError
from lorry.images import unpack as unpacker
from lorry.images.archive import read_archive
from lorry.images.beneath import Beneath, UnsafePath, parts_of
from lorry.images.unpack import main, prepare, unpack


@pytest.fixture(autouse=True)
def owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the sandbox it is uid 0; an ordinary user's test cannot give files away."""
    if os.geteuid() != 0:
        monkeypatch.setattr(os, "fchown", lambda *_: None)
        monkeypatch.setattr(os, "chown", lambda *_, **__: None)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the root, with a file that must stay alone and unseen."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret").write_text("untouched")
    yield place
    assert {path.name: path.read_text() for path in place.iterdir()} == {"secret": "untouched"}
    assert os.stat(place / "secret").st_nlink == 1


Unpack = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Unpack:
    def put(*layers: list[tuple[tarfile.TarInfo, bytes]], **options: bool) -> Path:
        archive = write_oci(tmp_path / "image.tar", [layer(entries) for entries in layers], **options)
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        unpack(str(archive), read_archive(str(archive)).digest, str(root))
        return root

    return put


@pytest.mark.parametrize("name", ["../outside/x", "a/../../outside/x", "/../outside/x", "./../outside/x", ".."])
def test_a_name_that_leads_out_is_refused(name: str, put: Unpack, outside: Path) -> None:
    with pytest.raises(UnsafePath, match="leads out"):
        put([entry(name, b"owned")])


def test_an_absolute_name_is_one_in_the_image(put: Unpack, outside: Path) -> None:
    root = put([entry(f"{outside}/x", b"mine")])
    assert (root / str(outside).lstrip("/") / "x").read_bytes() == b"mine"


@pytest.mark.parametrize("target", ["{outside}", "../outside", "../../../../../../..{outside}", "a/../../outside"])
def test_a_symbolic_link_leads_nowhere_but_into_the_image(target: str, put: Unpack, outside: Path) -> None:
    way = target.format(outside=outside)
    root = put([folder("a"), link("out", way), entry("out/x", b"mine"), folder("out/sub"), entry("out/sub/y", b"")])
    assert os.readlink(root / "out") == way
    found = [path for path in root.rglob("x") if path.is_file() and not path.is_symlink()]
    assert [path.read_bytes() for path in found] == [b"mine"]


def test_a_file_is_never_written_through_a_link_in_its_own_place(put: Unpack, outside: Path) -> None:
    root = put(
        [link("file", str(outside / "secret")), entry("file", b"mine")], [link("other", str(outside / "secret"))]
    )
    assert (root / "file").read_bytes() == b"mine"
    assert not (root / "file").is_symlink()


def test_a_hard_link_cannot_reach_out(put: Unpack, outside: Path) -> None:
    with pytest.raises(UnsafePath, match="no file of the image"):
        put([link("out", str(outside)), hard_link("stolen", "out/secret")])


@pytest.mark.parametrize("target", ["../outside/secret", "/../outside/secret"])
def test_a_hard_link_with_dots_is_refused(target: str, put: Unpack, outside: Path) -> None:
    with pytest.raises(UnsafePath, match="leads out"):
        put([hard_link("stolen", target)])


def test_a_chain_of_links_longer_than_any_path_stays_inside(put: Unpack, outside: Path) -> None:
    """CVE-2025-4517: realpath gives up on a path longer than PATH_MAX, and what it returned was trusted."""
    entries: list[tuple[tarfile.TarInfo, bytes]] = []
    here = ""
    name = "d" * 247
    for step in "abcdefghijklmnop":
        entries += [folder(f"{here}{name}"), link(f"{here}{step}", name)]
        here += f"{name}/"
    way = "/".join("abcdefghijklmnop")
    entries += [link(f"{way}/{'l' * 254}", "../" * 16), link("escape", f"{way}/{'l' * 254}/../outside")]
    entries += [entry("escape/x", b"owned"), hard_link("stolen", "escape/secret")]
    with pytest.raises((UnsafePath, OSError)):
        put(entries)


def test_links_in_a_circle_end(put: Unpack) -> None:
    with pytest.raises(UnsafePath, match="too many"):
        put([link("a", "b"), link("b", "a"), entry("a/x", b"")])


def test_links_inside_the_image_are_followed_inside(put: Unpack) -> None:
    root = put(
        [folder("usr/lib"), link("lib", "usr/lib"), link("usr/up", "../usr/lib")],
        [entry("lib/x", b"1"), entry("usr/up/y", b"2")],
    )
    assert (root / "usr/lib/x").read_bytes() == b"1"
    assert (root / "usr/lib/y").read_bytes() == b"2"
    assert (root / "lib").is_symlink()


def test_devices_fifos_and_privileged_bits_are_left_out(put: Unpack) -> None:
    root = put(
        [
            entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("pipe", type=tarfile.FIFOTYPE),
            entry("su", b"#!", mode=0o6755),
            entry("shared", mode=0o3777, type=tarfile.DIRTYPE),
        ]
    )
    assert not {"null", "disk", "pipe"} & set(os.listdir(root))
    assert stat.S_IMODE(os.stat(root / "su").st_mode) == 0o755
    assert stat.S_IMODE(os.stat(root / "shared").st_mode) == 0o1777


def test_whiteouts_delete_what_lower_layers_have(put: Unpack) -> None:
    lower = [folder("d/e"), entry("d/e/f", b"1"), entry("gone", b"1"), entry("kept", b"1"), link("ln", "kept")]
    root = put(lower, [entry(".wh.gone", b""), entry("d/.wh.e", b""), entry(".wh.ln", b""), entry(".wh.never", b"")])
    assert (root / "kept").exists()
    assert not any(os.path.lexists(root / name) for name in ("gone", "d/e", "ln"))
    assert not list(root.rglob(".wh.*"))


def test_an_opaque_folder_hides_the_lower_one_and_keeps_its_own_files(put: Unpack) -> None:
    """Wherever the mark stands among them."""
    root = put(
        [folder("d/sub"), entry("d/old", b"1"), entry("d/sub/old", b"1")],
        [entry("d/new", b"2"), entry("d/.wh..wh..opq", b"")],
    )
    assert sorted(os.listdir(root / "d")) == ["new"]


def test_a_whiteout_behind_a_link_deletes_nothing_outside(put: Unpack, outside: Path) -> None:
    put([link("out", str(outside))], [entry("out/.wh.secret", b""), entry("out/.wh..wh..opq", b"")])


def test_files_folders_and_links_take_each_other_s_place(put: Unpack) -> None:
    root = put(
        [entry("a", b"1"), folder("b/c"), entry("b/c/x", b"1"), link("c", "a")],
        [folder("a"), entry("a/x", b"2"), entry("b", b"2"), folder("c"), entry("c/x", b"3")],
    )
    assert (root / "a/x").read_bytes() == b"2"
    assert (root / "b").read_bytes() == b"2"
    assert (root / "c/x").read_bytes() == b"3"


def test_hard_links_stay_hard_links(put: Unpack) -> None:
    root = put([entry("one", b"same"), hard_link("d/two", "one"), link("soft", "one"), hard_link("soft2", "soft")])
    assert os.stat(root / "one").st_ino == os.stat(root / "d/two").st_ino
    assert os.readlink(root / "soft2") == "one"


def test_a_damaged_layer_is_noticed_before_any_of_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = layer([entry("x", b"good content")])
    archive = write_oci(tmp_path / "image.tar", [good])
    digest = read_archive(str(archive)).digest
    archive.write_bytes(archive.read_bytes().replace(b"good content", b"evil content"))
    (tmp_path / "root").mkdir()
    assert main(["unpack", str(archive), digest, str(tmp_path / "root")]) == 1
    assert "it is damaged" in capsys.readouterr().out
    assert os.listdir(tmp_path / "root") == []


def test_another_archive_in_the_same_place_is_noticed(tmp_path: Path) -> None:
    archive = write_oci(tmp_path / "image.tar", [layer([entry("x", b"1")])])
    with pytest.raises(ImageBuildError, match="was replaced"):
        unpack(str(archive), "sha256:" + 64 * "0", str(tmp_path))


@pytest.mark.parametrize("packed", [False, True])
def test_both_formats_and_compressed_layers_give_the_same(packed: bool, put: Unpack, tmp_path: Path) -> None:
    layers = [[folder("a"), entry("a/x", b"x" * 300_000)], [entry("y", b"2")]]
    root = put(*layers, packed=packed)
    docker = write_docker(tmp_path / "docker.tar", [layer(entries) for entries in layers])
    (tmp_path / "second").mkdir()
    unpack(str(docker), read_archive(str(docker)).digest, str(tmp_path / "second"))
    for place in (root, tmp_path / "second"):
        assert (place / "a/x").stat().st_size == 300_000
        assert (place / "y").read_bytes() == b"2"


def test_zstd_is_named_with_the_way_out(put: Unpack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacker, "ZSTD", layer([entry("x", b"1")])[:4])
    with pytest.raises(ImageBuildError, match="--dest-compress-format gzip"):
        put([entry("x", b"1")])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no tar at all" * 100, "is not an image archive"),
        (layer([entry("hello", b"")]), "neither index.json"),
        (layer([entry("index.json", b'{"manifests": []}')]), "0 images"),
        (layer([entry("index.json", b'{"manifests": [{"digest": "sha256:../../etc/passwd"}]}')]), "no sha256 digest"),
        (layer([entry("index.json", b"[]")]), "cannot be read"),
        (
            layer([entry("manifest.json", b'[{"Config": "x.json", "Layers": []}]'), entry("x.json", b"{}")]),
            "another digest",
        ),
    ],
)
def test_what_is_no_archive_is_a_sentence(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ImageBuildError, match=words):
        read_archive(str(tmp_path / "x.tar"))


def test_mount_points_are_real_folders_and_files_afterwards(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/resolv.conf").symlink_to(outside / "secret")
    (root / "proc").symlink_to(outside)
    (root / "etc/hosts").write_text("mine")
    prepare(str(root))
    assert not (root / "etc/resolv.conf").is_symlink()
    assert (root / "proc").is_dir()
    assert not (root / "proc").is_symlink()
    assert (root / "etc/hosts").read_text() == "mine"
    assert (root / "opt/lorry/lorry").is_dir()


def test_parts_of_a_name() -> None:
    assert parts_of("./a//b/.") == ("a", "b")
    assert parts_of("/") == ()
    with pytest.raises(UnsafePath):
        parts_of("a/..")


def test_the_root_itself_is_not_replaced(tmp_path: Path) -> None:
    root = Beneath(str(tmp_path))
    with pytest.raises(UnsafePath):
        root.remove(())
    root.close()


@pytest.mark.parametrize("name", [".wh...", "a/.wh...", ".wh..", "a/.wh..", ".wh.", "a/.wh."])
def test_a_whiteout_deletes_neither_the_folder_it_lies_in_nor_the_one_above(
    name: str, put: Unpack, outside: Path
) -> None:
    with pytest.raises(UnsafePath, match="deletes no file"):
        put([folder("a"), entry("a/x", b"1")], [entry(name, b"")])


@pytest.mark.parametrize(
    "fields",
    [
        {"uid": -7, "gid": -7},
        {"uid": 1 << 60, "gid": 1 << 60},
        {"pax_headers": {"mtime": "nan"}},
        {"pax_headers": {"mtime": "-1e300"}},
        {"pax_headers": {"mtime": "1e300"}},
    ],
)
def test_impossible_numbers_are_made_possible(fields: dict[str, object], put: Unpack) -> None:
    root = put([entry("x", b"1", **fields)])
    assert (root / "x").read_bytes() == b"1"


def test_an_archive_that_is_written_to_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the reading for the digest and the one that unpacks."""
    archive = write_oci(tmp_path / "image.tar", [layer([entry("x", b"good content")])])
    whole = unpacker._entries

    def entries(blob: unpacker.Stream) -> Iterator[tuple[tarfile.TarInfo, object]]:
        archive.write_bytes(archive.read_bytes().replace(b"good content", b"evil content"))
        return whole(blob)

    monkeypatch.setattr(unpacker, "_entries", entries)
    (tmp_path / "root").mkdir()
    with pytest.raises(ImageBuildError, match="written to while"):
        unpack(str(archive), read_archive(str(archive)).digest, str(tmp_path / "root"))


def test_whatever_is_wrong_with_an_archive_is_a_line_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_oci(tmp_path / "image.tar", [layer([link("x", "é\0b")])])
    (tmp_path / "root").mkdir()
    assert main(["unpack", str(archive), read_archive(str(archive)).digest, str(tmp_path / "root")]) == 1
    assert "embedded null" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    "config", [{"Env": ["A=\0"]}, {"Env": ["A=\ud800"]}, {"Env": [5]}, {"WorkingDir": ["/"]}, {"WorkingDir": "/a\0"}]
)
def test_what_an_image_says_about_itself_must_be_text(config: dict[str, object], tmp_path: Path) -> None:
    archive = write_oci(tmp_path / "image.tar", [], **config)  # type: ignore[arg-type]
    with pytest.raises(ImageBuildError, match="where a text belongs"):
        read_archive(str(archive))


@pytest.mark.parametrize("workdir", ["/opt/app", "opt/app", "//opt/../opt/app"])
def test_the_image_s_working_folder_is_made_where_no_layer_has_it(workdir: str, tmp_path: Path) -> None:
    archive = write_oci(tmp_path / "image.tar", [layer([link("opt", "srv")])], WorkingDir=workdir)
    image = read_archive(str(archive))
    assert image.workdir == "/opt/app"
    (tmp_path / "root").mkdir()
    unpack(str(archive), image.digest, str(tmp_path / "root"))
    assert (tmp_path / "root/srv/app").is_dir()


def test_one_image_with_two_tags_is_one(tmp_path: Path) -> None:
    archive = write_oci(tmp_path / "image.tar", [layer([entry("x", b"1")])], tags=2)
    assert len(read_archive(str(archive)).layers) == 1


NAMES = ["a", "b", "c", "..", ".", "", "/", "usr", ".wh.a", ".wh..", ".wh...", ".wh..wh..opq"]
PATHS = st.lists(st.sampled_from(NAMES)).map("/".join)
MEMBERS = st.tuples(st.sampled_from(["file", "folder", "link", "hard"]), PATHS, PATHS)


@settings(max_examples=300, deadline=None)
@given(st.lists(MEMBERS, max_size=12), st.integers(1, 3))
def test_no_archive_whatever_changes_or_links_anything_outside(
    members: list[tuple[str, str, str]], layers: int
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        if os.geteuid() != 0:
            patch.setattr(os, "fchown", lambda *_: None)
            patch.setattr(os, "chown", lambda *_, **__: None)
        place = Path(name, "above")
        (place / "root").mkdir(parents=True)
        for secret in (place / "a", place / "usr/secret"):
            secret.parent.mkdir(exist_ok=True)
            secret.write_text("untouched")
        before = _seen(place)
        make = {"file": lambda n, t: entry(n, t.encode()), "folder": lambda n, t: folder(n), "link": link}
        entries = [make.get(kind, hard_link)(path, target) for kind, path, target in members]
        archive = write_oci(place.parent / "image.tar", [layer(entries[n::layers]) for n in range(layers)])
        with contextlib.suppress(UnsafePath, OSError, tarfile.TarError):
            unpack(str(archive), read_archive(str(archive)).digest, str(place / "root"))
        assert _seen(place) == before


def _seen(place: Path) -> dict[str, tuple[object, ...]]:
    """Everything but what is in `root`: content, mode, number of links."""
    found = [path for path in place.rglob("*") if not path.is_relative_to(place / "root")]
    return {
        str(path): (path.stat().st_mode, path.is_file() and (path.read_bytes(), path.stat().st_nlink)) for path in found
    }
