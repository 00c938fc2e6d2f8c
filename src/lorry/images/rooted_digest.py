"""Names of images and layers that have a root file system of their own: what went into them decides, nothing else.

Neither mirrors and indexes nor values of secrets are part of a name. The host is not either: such an image takes
nothing of it but the kind of its processor.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from lorry.images.debian import PACKAGES, release_for
from lorry.images.digest import DIGITS, install_content
from lorry.model.image import BuildStep, ImageBase, ImageSpec, StepKind

FORMAT = 1
"""Raised when the way layers are built changes, so that old ones are built anew."""


def rooted_digest(spec: ImageSpec) -> str:
    """Of the whole image."""
    content = [base_content(spec), spec.python_version, *(step_content(spec, step) for step in spec.steps)]
    return _hash(["image", *content])


def layer_digest(parent: str, content: object) -> str:
    """`parent`: the layer below, empty for the root file system itself."""
    return _hash(["layer", parent, content])


def base_content(spec: ImageSpec) -> dict[str, Any]:
    machine = os.uname().machine
    if spec.base is ImageBase.DEBIAN_ROOT:
        return {"debian": release_for(spec.python_version), "packages": PACKAGES, "machine": machine}
    return {"archive": spec.archive_digest, "machine": machine}


def step_content(spec: ImageSpec, step: BuildStep) -> dict[str, Any]:
    if step.kind is StepKind.PIP:
        return {"pip": install_content(spec.installs[step.install])}
    if step.kind is StepKind.FILES:
        return {"files": [(file.path, file.digest, file.mode) for file in step.files]}
    if step.kind is StepKind.APT:
        return {"apt": step.words}
    return {
        step.kind.value: step.words or step.key,
        "env": sorted(step.env),
        "workdir": step.workdir,
        "secrets": step.secret_ids,
    }


def _hash(content: object) -> str:
    text = json.dumps([FORMAT, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
