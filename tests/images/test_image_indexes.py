from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from lorry.images import client_config
from lorry.images.indexes import IndexSettings, client_index_settings, local_path, with_variables
from lorry.model.image import ImageSpec, PipInstall


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and a machine whose own pip.conf and uv.toml do not exist."""
    real = client_config._pip_files

    def without_machine_files(*args: object) -> object:
        return (path for path in real(*args) if not str(path).startswith("/etc/"))  # type: ignore[arg-type]

    monkeypatch.setattr(client_config, "_pip_files", without_machine_files)
    (tmp_path / "prefix").mkdir()
    return tmp_path


def settings(home: Path, environ: Mapping[str, str] | None = None) -> IndexSettings:
    return client_index_settings(environ or {}, home, home / "prefix")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_nothing_configured_is_nothing_handed_over(home: Path) -> None:
    assert settings(home, {"HOME": "/x", "SECRET": "y"}) == IndexSettings()


def test_pip_files_are_read_in_pip_s_order(home: Path) -> None:
    write(home / ".pip/pip.conf", "[global]\nindex-url = http://legacy/\ntimeout = 1\n")
    write(home / ".config/pip/pip.conf", "[global]\nindex-url = http://user/\ntrusted-host = a b\n")
    write(home / "prefix/pip.conf", "[global]\nindex-url = http://site/\n")
    assert settings(home).env["UV_INDEX_URL"] == "http://site/"
    assert settings(home).env["UV_INSECURE_HOST"] == "a b"
    assert settings(home).env["UV_HTTP_TIMEOUT"] == "1"
    chosen = write(home / "chosen.conf", "[global]\nindex_url = http://chosen/\n")
    environ = {"PIP_CONFIG_FILE": str(chosen)}
    assert settings(home, environ).env["UV_INDEX_URL"] == "http://chosen/"
    assert settings(home, {**environ, "PIP_INDEX_URL": "http://env/"}).env["UV_INDEX_URL"] == "http://env/"
    assert settings(home, {"PIP_CONFIG_FILE": os.devnull}) == IndexSettings()


def test_the_install_section_beats_global_of_every_file(home: Path) -> None:
    write(home / ".config/pip/pip.conf", "[install]\nindex-url = http://install/\n")
    write(home / "prefix/pip.conf", "[global]\nindex-url = http://global/\n")
    assert settings(home).env["UV_INDEX_URL"] == "http://install/"


def test_several_indexes_from_pip_are_compared_as_pip_does(home: Path) -> None:
    write(home / "prefix/pip.conf", "[global]\nextra-index-url =\n  http://one/\n  http://two/\n")
    env = settings(home).env
    assert env["UV_EXTRA_INDEX_URL"] == "http://one/ http://two/"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"


def test_uv_s_own_settings_win_option_by_option(home: Path) -> None:
    environ = {
        "PIP_INDEX_URL": "http://pip/",
        "PIP_EXTRA_INDEX_URL": "http://pip-extra/",
        "UV_DEFAULT_INDEX": "http://uv/",
        "UV_INDEX_STRATEGY": "first-index",
    }
    env = settings(home, environ).env
    assert "UV_INDEX_URL" not in env
    assert env["UV_DEFAULT_INDEX"] == "http://uv/"
    assert env["UV_EXTRA_INDEX_URL"] == "http://pip-extra/"
    assert env["UV_INDEX_STRATEGY"] == "first-index"


def test_uv_alone_keeps_uv_s_own_strategy(home: Path) -> None:
    env = settings(home, {"UV_INDEX": "http://one/", "UV_CACHE_DIR": "/mine"}).env
    assert env == {"UV_INDEX": "http://one/"}


def test_uv_toml_is_read_and_its_variables_beat_it(home: Path) -> None:
    text = (
        'index-strategy = "unsafe-first-match"\nfind-links = ["/a", "/b"]\nnative-tls = true\n'
        '[[index]]\nname = "corp"\nurl = "http://corp/"\n'
        '[[index]]\nurl = "http://main/"\ndefault = true\n'
        '[[index]]\nname = "hidden"\nurl = "http://hidden/"\nexplicit = true\n'
    )
    write(home / ".config/uv/uv.toml", text)
    env = settings(home, {"UV_FIND_LINKS": "/c"}).env
    assert env == {
        "UV_INDEX": "corp=http://corp/",
        "UV_DEFAULT_INDEX": "http://main/",
        "UV_FIND_LINKS": "/c",
        "UV_NATIVE_TLS": "1",
        "UV_INDEX_STRATEGY": "unsafe-first-match",
    }
    assert settings(home, {"UV_NO_CONFIG": "1"}) == IndexSettings()


def test_files_that_nobody_can_read_say_nothing(home: Path) -> None:
    write(home / "prefix/pip.conf", "this is no ini file")
    write(home / ".config/uv/uv.toml", "this is no toml")
    (home / ".pip").mkdir()
    (home / ".pip/pip.conf").write_bytes(b"\xff\xfe")
    assert settings(home) == IndexSettings()


def test_certificates_proxies_and_no_index(home: Path) -> None:
    bundle = write(home / "ca.pem", "")
    environ = {
        "PIP_CERT": str(bundle),
        "https_proxy": "http://me:pr0xypass@proxy:3128",
        "HTTP_PROXY": "me:pr0xypass@proxy:3128",
        "NO_PROXY": "localhost",
        "PIP_NO_INDEX": "1",
    }
    found = settings(home, environ)
    assert found.env["SSL_CERT_FILE"] == str(bundle)
    assert found.env["HTTPS_PROXY"] == environ["https_proxy"]
    assert found.env["HTTP_PROXY"] == "http://me:pr0xypass@proxy:3128"
    assert found.env["NO_PROXY"] == "localhost"
    assert found.env["UV_NO_INDEX"] == "1"
    assert str(bundle) in found.readable
    assert "pr0xypass" in found.secrets
    assert settings(home, {"PIP_NO_INDEX": "0"}) == IndexSettings()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SSL_CERT_FILE": "/a", "PIP_CERT": "/b", "REQUESTS_CA_BUNDLE": "/c"}, "/a"),
        ({"PIP_CERT": "/b", "REQUESTS_CA_BUNDLE": "/c"}, "/b"),
        ({"REQUESTS_CA_BUNDLE": "/c"}, "/c"),
    ],
)
def test_the_nearest_certificate_bundle_is_taken(home: Path, environ: Mapping[str, str], expected: str) -> None:
    assert settings(home, environ).env["SSL_CERT_FILE"] == expected


def test_wheel_folders_that_are_missing_are_left_out_as_pip_does(home: Path) -> None:
    here, odd = home / "wheels", home / "a,b"
    here.mkdir()
    odd.mkdir()
    found = settings(home, {"PIP_FIND_LINKS": f"~/wheels {odd} /missing http://far/away"})
    assert found.env["UV_FIND_LINKS"] == f"{here},file://{home}/a%2Cb,http://far/away"
    assert set(found.readable) >= {str(here), str(odd)}


def test_local_indexes_are_readable_with_the_files_beside_them_and_behind_links(home: Path) -> None:
    (home / "real" / "simple").mkdir(parents=True)
    (home / "link").symlink_to(home / "real")
    found = settings(home, {"UV_INDEX": f"corp=file://{home}/link/simple"})
    assert set(found.readable) == {str(home / "link"), str(home / "real")}
    assert local_path("http://host/simple") is None


def test_netrc_logins_go_where_the_build_can_see_them(home: Path) -> None:
    netrc = write(home / ".netrc", "machine corp.invalid login me password pass/word1\n")
    netrc.chmod(0o600)
    environ = {"UV_INDEX": "a-b=https://corp.invalid/simple https://u:own1@corp.invalid/x https://other/"}
    found = settings(home, environ)
    assert found.env["UV_INDEX"] == (
        "a-b=https://me:pass%2Fword1@corp.invalid/simple https://u:own1@corp.invalid/x https://other/"
    )
    assert {"pass/word1", "pass%2Fword1", "own1"} <= set(found.secrets)


def test_named_passwords_are_secrets_and_no_repr_shows_any(home: Path) -> None:
    environ = {"UV_INDEX_CORP_PASSWORD": "canary-1", "PIP_INDEX_URL": "https://me:canary-2@corp.invalid/"}
    found = settings(home, environ)
    assert found.env["UV_INDEX_CORP_PASSWORD"] == "canary-1"
    assert "canary" not in repr(found)
    text = found.redact("got https://me:canary-2@corp.invalid/x and canary-1 and canary-2")
    assert text == "got https://****@corp.invalid/x and **** and ****"


def test_variables_named_in_the_image_travel_beside_it() -> None:
    spec = ImageSpec(
        installs=(
            PipInstall(requirements="x @ https://${TOKEN}@host/x.whl\n${lower}"),
            PipInstall(packages=("y",), index_url="https://${USER_1}:${TOKEN}@host/${UNSET}"),
        )
    )
    environ = {"TOKEN": "canary", "USER_1": "someone", "lower": "no", "OTHER": "no"}
    found = with_variables(IndexSettings(env={"A": "b"}), spec, environ)
    assert found.env == {"A": "b", "TOKEN": "canary", "USER_1": "someone"}
    assert "canary" in found.secrets
