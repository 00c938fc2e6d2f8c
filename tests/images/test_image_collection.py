"""What nothing needs is removed, and nothing else, whatever is built or started meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from root_workshop import Site, steps

from lorry.clock import ManualClock
from lorry.images.lock import if_free
from lorry.images.shelf import Shelf, StoredImage


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_a_killed_builder_left_is_swept_and_never_used(site: Site) -> None:
    async def sweep() -> None:
        spec = site.spec(*steps("a"))
        built = await site.ensure(site.builder(), spec)
        top = Path(built.layers[0])
        (top.parent / f"{top.name}.12345678/upper").mkdir(parents=True)  # an attempt
        (top.parent / f"{top.name}.json").unlink()  # renamed, and killed before the json was written
        (site.folder / "images/images" / f"{built.digest}.json").unlink()
        builder = site.builder()
        await builder.sweep()
        assert len(site.folders()) == 1
        again = await site.ensure(builder, spec)
        assert not again.cached
        assert Path(again.layers[0], "made").exists()

    asyncio.run(sweep())


def test_pruning_takes_layers_that_no_image_needs_and_no_others(site: Site) -> None:
    async def prune() -> None:
        clock = ManualClock()
        builder = site.builder(clock)
        kept = await site.ensure(builder, site.spec(*steps("a", "b")))
        gone = await site.ensure(builder, site.spec(*steps("a", "c")))
        clock.advance(10)
        before = (await builder.sizes()).total
        removed = await builder.prune({kept.digest}, 5)
        assert [image.digest for image in removed] == [gone.digest]
        assert site.folders() == {Path(path).name for path in kept.layers}
        assert (await builder.sizes()).total < before
        assert (await site.ensure(builder, site.spec(*steps("a", "b")))).cached

    asyncio.run(prune())


def test_nothing_is_collected_while_anybody_builds(site: Site) -> None:
    async def race() -> None:
        clock = ManualClock()
        other = site.builder(clock)
        stale = await site.ensure(other, site.spec(*steps("old")))
        clock.advance(100)
        started, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            started.set()
            await go_on.wait()

        site.runner.before = lambda command: wait() if command.argv[-1].endswith("-c new") else None
        building = asyncio.create_task(site.ensure(site.builder(clock), site.spec(*steps("new"))))
        await started.wait()
        await other.prune(set(), 0)
        assert Path(stale.layers[-1]).exists(), "the layer that the build under way stands on"
        go_on.set()
        built = await building
        assert all(Path(path).is_dir() for path in built.layers)

    asyncio.run(race())


def test_a_build_that_begins_while_layers_are_removed_waits_for_that_and_the_server_goes_on(site: Site) -> None:
    """One process, one event loop: a lock that blocks would wait for what it holds up."""

    async def race() -> None:
        clock = ManualClock()
        builder = site.builder(clock)
        await site.ensure(builder, site.spec(*steps("old")))
        clock.advance(10)
        removing, go_on = asyncio.Event(), asyncio.Event()
        remove = builder._layers._remove

        async def slowly(folder: Path) -> None:
            removing.set()
            await go_on.wait()
            await remove(folder)

        builder._layers._remove = slowly
        pruning = asyncio.create_task(builder.prune(set(), 5))
        await removing.wait()
        building = asyncio.create_task(site.ensure(builder, site.spec(*steps("new"))))
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        await pruning
        built = await building
        assert all(Path(path).is_dir() for path in built.layers)

    asyncio.run(race())


def test_an_image_that_is_finished_while_others_are_pruned_keeps_its_layers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers are there, and no image names them yet."""
    clock = ManualClock()
    publish = Shelf.publish

    def late(shelf: Shelf, image: StoredImage) -> None:
        clock.advance(100)
        asyncio.run(site.builder(clock).prune(set(), 0))
        publish(shelf, image)

    monkeypatch.setattr(Shelf, "publish", late)
    built = asyncio.run(site.ensure(site.builder(clock), site.spec(*steps("a"))))
    assert [Path(path).is_dir() for path in built.layers] == [True, True]


def test_what_is_needed_is_asked_when_nobody_can_finish_an_image_any_more(site: Site) -> None:
    builder = site.builder()
    asyncio.run(site.ensure(builder, site.spec()))
    free_when_asked = []

    def needed() -> set[str]:
        with if_free(site.folder / "images/locks/collect") as free:
            free_when_asked.append(free)
        return set()

    asyncio.run(builder._layers.collect(needed, 0))
    assert free_when_asked == [False]


def test_whoever_asks_for_an_image_that_is_being_removed_waits_and_gets_a_whole_one(site: Site) -> None:
    async def race() -> None:
        spec = site.spec(*steps("a"))
        builder = site.builder()
        built = await site.ensure(builder, spec)
        shelf = Shelf(site.folder / "images")
        with if_free(shelf.lock(built.digest)) as free:
            assert free
            stored = shelf.find(built.digest)
            assert stored is not None
            asked = asyncio.create_task(site.ensure(builder, spec))
            while "waiting for another process that builds the same image" not in site.log:
                assert not asked.done(), "it was taken, and is removed below"
                await asyncio.sleep(0.01)
            shelf.drop_image(stored)
        assert not (await asked).cached

    asyncio.run(race())


def test_what_was_downloaded_for_roots_goes_with_their_layers(site: Site) -> None:
    async def prune() -> None:
        clock = ManualClock()
        builder = site.builder(clock)
        await site.ensure(builder, site.spec(*steps("a")))
        wheel = site.folder / "images/uv/roots/wheel"
        wheel.write_bytes(bytes(100_000))
        clock.advance(10)
        await builder.prune(set(), 20)
        assert wheel.exists(), "nothing was removed"
        await builder.prune(set(), 5)
        assert not wheel.exists()
        await site.ensure(builder, site.spec(*steps("a")))
        assert wheel.parent.is_dir()

    asyncio.run(prune())
