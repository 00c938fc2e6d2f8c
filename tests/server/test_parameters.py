"""What each method of the API takes: the table is complete, and what passes it is what methods rely on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lorry.server
from lorry.errors import InvalidError
from lorry.model.function import FunctionSpec, Resources
from lorry.server.parameters import KINDS, TAKES, checked, fitted

SOURCES = sorted(Path(lorry.server.__file__).parent.glob("api*.py"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def methods() -> dict[str, str]:
    """Method → its source."""
    found: dict[str, str] = {}
    for path in SOURCES:
        pieces = re.split(r"\n    async def ([a-z]\w+)\(self, _?session: Session, ", path.read_text())
        found |= dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return found


def parameters(method: str) -> tuple[set[str], set[str]]:
    """Those that are always there, and those that may be."""
    always, perhaps = set(), set()
    for word in TAKES[method].split():
        names, _, kind = word.partition(":")
        assert kind.rstrip("?") in KINDS
        (perhaps if kind.endswith("?") or "|" in names else always).update(names.split("|"))
    return always, perhaps


def test_the_table_has_every_method_and_nothing_else() -> None:
    assert {name for name in TAKES if "'" not in name} == methods().keys()


@pytest.mark.parametrize("method", sorted(methods()))
def test_a_method_reads_only_what_the_table_gives_it(method: str) -> None:
    always, perhaps = parameters(method)
    code = methods()[method]
    asked = set(re.findall(r'params\.get\("(\w+)"', code))
    assert asked <= perhaps
    assert set(re.findall(r'params\["(\w+)"\]', code)) <= always | asked | {"app_name"}, "there where app_id is not"


@given(st.sampled_from(sorted(TAKES)), st.data())
def test_a_request_is_taken_whole_or_refused_in_words(method: str, data: st.DataObject) -> None:
    always, perhaps = parameters(method)
    sent = data.draw(st.dictionaries(st.sampled_from([*always, *perhaps, "newer"]), json_values) | json_values)
    try:
        taken = checked(method, sent)
    except InvalidError as refused:
        assert str(refused).startswith(method)
    else:
        assert always <= taken.keys()
        assert None not in taken.values()


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("text", ["", "ä"], [5, None, ["x"], "\ud800"]),
        ("path", ["a", "\udcff"], [5, "\ud800", "a\0"]),
        ("id", ["", "ap-0f"], [5, "../x", "a\n", "a" * 65, "ä"]),
        ("count", [0, 2**63 - 1], [-1, 2**63, True, 1.0, "1"]),
        ("seconds", [0, 1.5, -1], [float("nan"), float("inf"), True, "1"]),
        ("flag", [True, False], [0, 1, "true"]),
        ("texts", [[], ["x"]], ["x", [1], {"x": "y"}]),
        ("map", [{}, {"a": "b"}], [[], {"a": 1}, {"a": None}]),
        ("size", [[24, 80]], [[24], [24, 80, 1], ["a", "b"], [-1, 5]]),
    ],
)
def test_each_kind(kind: str, right: list[Any], wrong: list[Any]) -> None:
    _, convert = KINDS[kind]
    assert [convert(value) for value in right] == right
    for value in wrong:
        with pytest.raises((TypeError, ValueError)):
            convert(value)


def test_one_of_two_is_enough_and_none_is_not() -> None:
    assert checked("volume_lookup", {"name": None, "volume_id": "v"}) == {"volume_id": "v"}
    with pytest.raises(InvalidError, match="volume_lookup needs the parameter 'name' or 'volume_id'"):
        checked("volume_lookup", {"name": "", "volume_id": None})


@given(json_values)
def test_a_spec_of_any_kind_is_built_or_refused(plain: Any) -> None:
    good = {"tag": "f", "kind": "function", "code": {"module": "m", "qualname": "f"}}
    for sent in (plain, {**good, "resources": plain}, {**good, "resources": {"memory": plain}}, {**good, "env": plain}):
        try:
            spec = fitted(FunctionSpec, sent)
        except InvalidError:
            continue
        assert spec.resources.memory >= 0


@pytest.mark.parametrize("wrong", [{"cpu": -1.0}, {"memory": -1}, {"cpu": float("nan")}, {"memory_limit": -5}])
def test_less_than_nothing_is_not_reserved(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Resources(**wrong)
