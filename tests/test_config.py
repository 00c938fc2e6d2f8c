"""Settings: argument over environment over file over default, and messages that name the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorry import config
from lorry.errors import InvalidError


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}


def write(environ: dict[str, str], text: str) -> None:
    path = config.config_file(environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_defaults(environ: dict[str, str]) -> None:
    settings = config.resolve(environ)
    assert settings.state_dir == Path("/s/lorry")
    assert settings.runtime_dir.parent == Path("/r/lorry")
    assert settings.client_socket == settings.runtime_dir / "s"
    assert settings.inner_socket == settings.runtime_dir / "inner" / "s"
    assert (settings.sandbox, settings.log_limit) == ("auto", 256)


def test_argument_over_environment_over_file_over_default(environ: dict[str, str]) -> None:
    write(environ, "log_limit = 1\nidle_exit = 5\n")
    assert config.resolve(environ).log_limit == 1
    environ["LORRY_LOG_LIMIT"] = "2"
    assert config.resolve(environ).log_limit == 2
    assert config.resolve(environ, log_limit=3).log_limit == 3
    assert config.resolve(environ, log_limit=None).log_limit == 2
    assert config.resolve(environ).idle_exit == 5.0
    environ["LORRY_LOG_LIMIT"] = ""
    assert config.resolve(environ).log_limit == 1


def test_each_state_directory_has_sockets_of_its_own(environ: dict[str, str]) -> None:
    one = config.resolve(environ, state_dir=Path("/one"))
    assert one.runtime_dir != config.resolve(environ, state_dir=Path("/two")).runtime_dir
    assert one.runtime_dir == config.resolve(environ, state_dir=Path("/one")).runtime_dir


def test_home_is_expanded(environ: dict[str, str]) -> None:
    write(environ, 'state_dir = "~/a"\nruntime_dir = "~/b"\n')
    settings = config.resolve(environ)
    assert (settings.state_dir, settings.runtime_dir) == (Path.home() / "a", Path.home() / "b")


def test_an_unknown_setting_is_named_with_its_file(environ: dict[str, str]) -> None:
    write(environ, "log_limitt = 1\n")
    with pytest.raises(InvalidError, match=r"config\.toml: unknown setting 'log_limitt'.*log_limit"):
        config.resolve(environ)


@pytest.mark.parametrize("text", ["log_limit = ", "\x00"])
def test_a_broken_file_is_named(environ: dict[str, str], text: str) -> None:
    write(environ, text)
    with pytest.raises(InvalidError, match="not valid TOML"):
        config.resolve(environ)


def test_a_file_that_is_no_text_is_named(environ: dict[str, str]) -> None:
    write(environ, "")
    config.config_file(environ).write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidError, match="not valid TOML"):
        config.resolve(environ)


def test_a_bad_number_is_named_with_its_source(environ: dict[str, str]) -> None:
    write(environ, 'idle_exit = "soon"\n')
    with pytest.raises(InvalidError, match=r"config\.toml: idle_exit must be a number, not 'soon'"):
        config.resolve(environ)
    environ["LORRY_IDLE_EXIT"] = "later"
    write(environ, "")
    with pytest.raises(InvalidError, match="LORRY_IDLE_EXIT: idle_exit must be a number"):
        config.resolve(environ)


def test_another_file_may_be_named(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("log_limit = 7\n")
    environ["LORRY_CONFIG"] = str(tmp_path / "other.toml")
    assert config.resolve(environ).log_limit == 7


def test_a_socket_path_that_unix_refuses_is_refused_first(environ: dict[str, str]) -> None:
    fits = "/" + "x" * (config.MAX_SOCKET_PATH - len("/" + "/inner/s"))
    assert len(str(config.resolve(environ, runtime_dir=Path(fits)).inner_socket)) == config.MAX_SOCKET_PATH
    with pytest.raises(InvalidError, match="Unix allows 107.*LORRY_RUNTIME_DIR"):
        config.resolve(environ, runtime_dir=Path(fits + "x"))
