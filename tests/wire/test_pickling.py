"""Values as bytes: large buffers out of band, and errors that name the culprit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lorry.errors import SerializationError
from lorry.wire import pickling


def there_and_back(value: Any) -> Any:
    first, buffers = pickling.dumps(value)
    return pickling.loads([first, *buffers])


def test_small_values_have_no_buffers() -> None:
    assert pickling.dumps([1, "a", np.zeros(10)])[1] == []


@pytest.mark.parametrize("size", [pickling.LARGE - 1, pickling.LARGE, 1_000_000])
def test_arrays_from_the_limit_on_travel_out_of_band(size: int) -> None:
    array = np.arange(size, dtype=np.uint8)
    first, buffers = pickling.dumps({"a": array})
    assert len(buffers) == (size >= pickling.LARGE)
    assert len(first) < pickling.LARGE + 500
    assert np.array_equal(pickling.loads([first, *buffers])["a"], array)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a[::2],
        lambda a: a.T,
        lambda a: np.asfortranarray(a),
        lambda a: a[:, ::-1],
        lambda a: np.broadcast_to(a[0], (400, 400)),
        lambda a: a[:0],
    ],
)
def test_arrays_of_every_layout_arrive(make: Any) -> None:
    array = make(np.arange(160_000.0).reshape(400, 400))
    assert np.array_equal(there_and_back([array, 1])[0], array)


def test_lambdas_and_local_classes_travel_and_keep_their_arrays_out_of_band() -> None:
    array = np.zeros(100_000)
    first, buffers = pickling.dumps((lambda x: x + 1, array))
    assert len(buffers) == 1
    assert pickling.loads([first, *buffers])[0](1) == 2


def test_a_failed_first_try_leaves_no_buffers_behind() -> None:
    array = np.zeros(100_000)
    assert len(pickling.dumps((array, lambda: 0))[1]) == 1


@pytest.fixture
def by_value() -> Iterator[None]:
    pickling.by_value = True
    yield
    pickling.by_value = False


@pytest.mark.usefixtures("by_value")
def test_where_main_is_no_file_values_still_travel() -> None:
    assert there_and_back({"x": [1, 2]}) == {"x": [1, 2]}


def test_the_culprit_is_named_by_its_place() -> None:
    with pytest.raises(SerializationError, match="element 1 → 'k' → element 0 → a _thread.lock"):
        pickling.dumps((1, {"k": [threading.Lock()]}))


def test_a_list_that_contains_itself_and_a_culprit_ends_all_the_same() -> None:
    value: list[Any] = []
    value += [value, threading.Lock()]
    with pytest.raises(SerializationError):
        pickling.dumps(value)


def test_a_coroutine_as_a_result_is_explained() -> None:
    async def work() -> None: ...

    coroutine = work()
    with pytest.raises(SerializationError, match="await it"):
        pickling.dumps(coroutine)
    coroutine.close()


def test_functions_travel_with_what_they_close_over() -> None:
    offset = 5
    assert pickling.loads([pickling.dump_function(lambda x: x + offset)])(1) == 6
    with pytest.raises(SerializationError, match="cannot be serialized"):
        lock = threading.Lock()
        pickling.dump_function(lambda: lock)
