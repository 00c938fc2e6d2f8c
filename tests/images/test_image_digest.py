from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lorry.images.digest import environment_digest
from lorry.images.interpreter import Interpreter
from lorry.model.image import ImageBase, ImageFile, ImageSpec, PipInstall

PYTHON = Interpreter(
    implementation="cpython",
    version="3.11.7",
    abi="cpython-311-x86_64-linux-gnu",
    platform="linux-x86_64",
    libc="glibc 2.36",
    system="debian 12",
    base_executable="/usr/bin/python3.11",
    prefix="/home/me/venv",
    base_prefix="/usr",
    site_packages=("/nowhere/site-packages",),
)
names = st.from_regex(r"[a-z][a-z0-9-]{0,8}(==[0-9]\.[0-9])?", fullmatch=True)
installs = st.one_of(
    st.builds(PipInstall, packages=st.lists(names, min_size=1, max_size=3).map(tuple), pre=st.booleans()),
    st.builds(PipInstall, requirements=st.lists(names, min_size=1).map("\n".join)),
)
specs = st.builds(ImageSpec, python=st.just("/p"), installs=st.lists(installs, max_size=4).map(tuple))


def digest(spec: ImageSpec, python: Interpreter = PYTHON) -> str:
    return environment_digest(spec, python)


@given(specs, specs)
def test_equal_installs_and_only_they_have_equal_digests(one: ImageSpec, other: ImageSpec) -> None:
    assert (digest(one) == digest(other)) == (one.installs == other.installs)


@given(specs.flatmap(lambda spec: st.tuples(st.just(spec), st.permutations(spec.installs))))
def test_the_order_of_layers_counts(case: tuple[ImageSpec, list[PipInstall]]) -> None:
    spec, shuffled = case
    other = replace(spec, installs=tuple(shuffled))
    assert (digest(spec) == digest(other)) == (spec.installs == other.installs)


@given(specs, st.dictionaries(st.text(), st.text()), st.text(), st.text())
def test_what_is_applied_at_container_start_does_not_count(
    spec: ImageSpec, env: dict[str, str], workdir: str, python: str
) -> None:
    file = ImageFile(path="/x", digest="d")
    other = replace(spec, env=tuple(env.items()), workdir=workdir, files=(file,), python=python)
    assert digest(spec) == digest(other)


password = st.from_regex(r"[A-Za-z0-9%._~-]{1,20}", fullmatch=True)


@given(password, password)
def test_credentials_do_not_count_wherever_they_are_written(one: str, other: str) -> None:
    def spec(secret: str) -> ImageSpec:
        url = f"https://me:{secret}@host/simple"
        return ImageSpec(
            installs=(
                PipInstall(packages=(f"x @ {url}/x.whl",), index_url=url, extra_index_urls=(url,)),
                PipInstall(requirements=f"--index-url {url}\ny", find_links=(url,)),
            )
        )

    assert digest(spec(one)) == digest(spec(other))
    assert digest(spec(one)) != digest(ImageSpec(installs=(PipInstall(packages=("x",)),)))


def test_every_fact_of_the_interpreter_counts_but_not_which_venv_it_was() -> None:
    spec = ImageSpec()
    for name in ("implementation", "version", "abi", "platform", "libc", "system", "base_prefix"):
        assert digest(spec) != digest(spec, replace(PYTHON, **{name: "other"})), name
    assert digest(spec) == digest(spec, replace(PYTHON, prefix="/other", site_packages=("/other",)))


def test_the_host_image_is_another_after_an_install_into_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    host = ImageSpec(base=ImageBase.HOST)
    python = replace(PYTHON, site_packages=(str(tmp_path),))
    before = digest(host, python)
    assert digest(host, python) == before
    (tmp_path / "new-1.0.dist-info").mkdir()
    assert digest(host, python) != before
