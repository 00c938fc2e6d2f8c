"""What the server needs before an app's first call: its source, files, images, secrets, volumes and functions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorry.model.function import FunctionKind, FunctionSpec
from lorry.model.image import ImageSpec
from lorry.model.records import AppState
from lorry.sdk import display, source
from lorry.sdk.build_spec import Files, function_spec, secret_ids, volume_mounts
from lorry.sdk.cls import Cls
from lorry.sdk.function import Function
from lorry.sdk.image import Image
from lorry.sdk.image_steps import remove_temporary
from lorry.sdk.steps import Ask, Steps
from lorry.sdk.upload import upload_bytes, upload_missing
from lorry.wire.codec import to_json, to_plain

if TYPE_CHECKING:
    from lorry.sdk.app import App


class Launched(NamedTuple):
    app_id: str
    numbers: dict[str, int]
    """The server's number of each function, by tag."""
    specs: dict[str, FunctionSpec]


def launch(app: App, state: AppState) -> Steps[Launched]:
    """Everything is sent and built before the app exists: what is missing or wrong leaves nothing behind."""
    specs = yield from prepare(app)
    texts = [to_json(spec) for spec in specs]
    yield Ask("function_check", {"specs": texts})
    reply = yield Ask("app_create", {"name": app.name or "unnamed", "state": state.value})
    added = yield Ask("app_functions", {"app_id": reply["app_id"], "specs": texts})
    if state is AppState.DEPLOYED:
        yield Ask("app_ready", {"app_id": reply["app_id"]})
    return Launched(reply["app_id"], added["numbers"], {spec.tag: spec for spec in specs})


def prepare(app: App) -> Steps[list[FunctionSpec]]:
    """Everything of the app's functions sent and built."""
    files = Files()
    manifest = yield from _ship(app, files)
    images = yield from _images(app, files)
    yield from upload_missing(files.paths)
    remove_temporary()
    yield from _build(list(images.values()))
    return (yield from _specs(app, images, manifest))


def prepare_image(image: Image | None) -> Steps[ImageSpec]:
    """One image sent and built; None: the default one."""
    files = Files()
    spec = (image or _default_image()).spec(files.digest)
    yield from upload_missing(files.paths)
    yield from _build([spec])
    return spec


def _ship(app: App, files: Files) -> Steps[str]:
    """The source snapshot; its manifest's digest."""
    if not app._include_source or app._module is None:
        return ""
    snapshot = source.take(app._module)
    manifest = snapshot.manifest()
    for name, digest, _mode in manifest:
        files.paths[digest] = snapshot.files[name]
    return (yield from upload_bytes(json.dumps(manifest).encode()))


# Images


def _image_of(app: App, options: dict[str, Any]) -> Image:
    return options.get("image") or app._image or _default_image()


_default: list[Image] = []


def _default_image() -> Image:
    if not _default:
        _default.append(Image.debian_slim())
    return _default[0]


def _images(app: App, files: Files) -> Steps[dict[int, ImageSpec]]:
    """By identity of the Image object, each resolved once."""
    found: dict[int, ImageSpec] = {}
    handles: list[Function | Cls] = [*app._functions.values(), *app._classes.values()]
    for handle in handles:
        image = _image_of(app, handle.options)
        if id(image) not in found:
            yield from secret_ids(image.build_secrets)
            found[id(image)] = image.spec(files.digest)
    return found


def _build(images: list[ImageSpec]) -> Steps[None]:
    from lorry.images.indexes import client_index_settings, with_variables

    settings = client_index_settings(os.environ, Path.home(), Path(sys.prefix))
    for image in images:
        shown = display.current()

        def show(event: dict[str, Any], shown: display.Display | None = shown) -> None:
            if shown:
                shown.build(event["line"])

        own = with_variables(settings, image, os.environ)
        params = {"spec": to_plain(image), "settings": to_plain(own)}
        built = yield Ask("image_ensure", params, on_event=show)
        if not built["cached"] and (image.installs or image.rooted):
            display.note(f"Built image {built['digest'][:12]} in {built['seconds']:.1f} s")


# Functions


def _specs(app: App, images: dict[int, ImageSpec], manifest: str) -> Steps[list[FunctionSpec]]:
    specs = []
    app_secrets = yield from secret_ids(app._secrets)
    for tag, function in app._functions.items():
        specs.append((yield from _spec(app, tag, function, {}, images, manifest, app_secrets)))
    for tag, cls in app._classes.items():
        specs.append((yield from _spec(app, tag, cls, cls.methods(), images, manifest, app_secrets)))
    return specs


def _spec(
    app: App,
    tag: str,
    handle: Function | Cls,
    methods: dict[str, Callable[..., Any]],
    images: dict[int, ImageSpec],
    manifest: str,
    app_secrets: tuple[str, ...],
) -> Steps[FunctionSpec]:
    given = {**handle.options, "tags": {**app._tags, **handle.options.get("tags", {})}}
    mounts = yield from volume_mounts({**app._volumes, **given.get("volumes", {})})
    own_secrets = yield from secret_ids(given.get("secrets", ()))
    return function_spec(
        tag=tag,
        kind=FunctionKind.CLASS if isinstance(handle, Cls) else FunctionKind.FUNCTION,
        raw=handle._raw,
        given=given,
        marks=handle.marks,
        methods=methods,
        image=images[id(_image_of(app, given))],
        mounts=mounts,
        secrets=(*app_secrets, *own_secrets),
        source=manifest if given.get("include_source", True) else "",
    )
