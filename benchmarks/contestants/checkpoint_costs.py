"""A small language model in training, and every way to save it, in one process: what a save costs depends on what else
the process has been doing, so all of them take turns in the same one."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
import turns
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
import lorry

now = time.perf_counter
EVERY = 1000
"""Of Lorry's run; steps between are counted without training."""
SIZES = {
    "tiny": (64, 2, 256, (1, 16)),
    "10 M": (320, 6, 4096, (2, 128)),
    "125 M": (768, 12, 25000, (1, 64)),
}
"""Width, layers, words; sequences and their length."""
Waiting = Callable[[], bool]
"""Asked after each step: whether the save is still being written."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, width = x.shape
        parts = self.mixed(self.before(x)).view(count, length, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(count, length, width))
        return x + self.wide(self.after(x))


class Adapted(nn.Module):
    """A frozen layer and a product of two thin matrices beside it, as peft's LoRA has it."""

    def __init__(self, layer: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


class Training:
    def __init__(self, size: str, adapted: bool = False) -> None:
        torch.manual_seed(0)
        width, layers, self.words, self.shape = SIZES[size]
        blocks = [Block(width) for _ in range(layers)]
        ends = nn.Embedding(self.words, width), nn.Linear(width, self.words, bias=False)
        self.model = nn.Sequential(ends[0], *blocks, ends[1])
        if adapted:
            self.model.requires_grad_(False)
            for block in blocks:
                block.mixed = Adapted(block.mixed)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)

    def step(self) -> float:
        """Its seconds."""
        began = now()
        words = torch.randint(self.words, self.shape)
        nn.functional.cross_entropy(self.model(words).flatten(0, 1), words.flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now() - began

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The same as `state`, in one dict."""
        state = self.optimizer.state_dict()["state"]
        moments = {f"optimizer.{n}.{key}": value for n, values in state.items() for key, value in values.items()}
        return {**self.model.state_dict(), **moments}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def synced(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


class Lorry:
    def __init__(self, training: Training, folder: Path) -> None:
        self._training, self._folder = training, folder / "lorry"
        self._begin()

    def _begin(self) -> None:
        self.run = lorry.run(self._folder, every=EVERY)
        self.run.track(model=self._training.model, optimizer=self._training.optimizer)

    def ready(self) -> None:
        if not self.run.step_number:
            self.run.restore()
        while (self.run.step_number + 1) % EVERY:
            self.run.step()

    def save(self) -> Waiting:
        self.run.step()
        step = self.run.step_number

        def waiting() -> bool:
            self.run.step()
            return self.run.last_checkpoint is None or self.run.last_checkpoint.step < step

        return waiting

    def restore(self) -> float:
        self.run.finish()
        self._begin()
        began = now()
        assert self.run.restore()
        return now() - began


class Peer:
    """One of the others: `write` takes a path, `read` brings it back. All write a new file, then replace the old."""

    def __init__(self, training: Training, folder: Path, name: str, sync: bool) -> None:
        self._training, self._path, self._sync = training, folder / name.replace(" ", "-"), sync
        self._write, self._read = WAYS[name]

    def ready(self) -> None: ...

    def save(self) -> Waiting:
        fresh = self._path.with_suffix(".new")
        pending = self._write(self._training, fresh)

        def waiting() -> bool:
            if pending is not None and not pending.done():
                return True
            if fresh.exists():
                self._finish(fresh)
            return False

        if pending is None:
            self._finish(fresh)
        return waiting

    def _finish(self, fresh: Path) -> None:
        if self._sync:
            synced(fresh)
        if self._path.is_dir():
            shutil.rmtree(self._path)
        fresh.rename(self._path)

    def restore(self) -> float:
        began = now()
        self._read(self._training, self._path)
        return now() - began


class Copy:
    """The unit of the budget: every tensor into memory that is kept."""

    def __init__(self, training: Training, folder: Path) -> None:
        self._training = training
        self._kept: dict[str, torch.Tensor] = {}

    def ready(self) -> None:
        if not self._kept:
            self._kept = {name: tensor.clone() for name, tensor in self._training.tensors().items()}

    def save(self) -> Waiting:
        for name, tensor in self._training.tensors().items():
            self._kept[name].copy_(tensor)
        return lambda: False


def load_tensors(training: Training, path: Path) -> None:
    mine = training.tensors()
    for name, tensor in safetensors.torch.load_file(path).items():
        mine[name].detach().copy_(tensor)


def load_distributed(training: Training, path: Path) -> None:
    state = training.state()
    dcp.load(state, checkpoint_id=path)
    training.load(state)


WAYS: dict[str, tuple[Callable[[Training, Path], Any], Callable[[Training, Path], None]]] = {
    "torch.save": (lambda t, path: torch.save(t.state(), path), lambda t, path: t.load(torch.load(path))),
    "safetensors": (lambda t, path: safetensors.torch.save_file(t.tensors(), path), load_tensors),
    "DCP save": (lambda t, path: dcp.save(t.state(), checkpoint_id=path) and None, load_distributed),
    "DCP async_save": (lambda t, path: dcp.async_save(t.state(), checkpoint_id=path), load_distributed),
}


class Stage:
    """The training and its savers, from `begin` on."""

    def __init__(self, size: str, folder: str, free: int) -> None:
        """`free`: cores that training leaves alone."""
        warnings.filterwarnings("ignore")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - free))
        self._folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=folder))
        self._training = Training(size)
        for _ in range(3):
            self._training.step()
        self._savers: dict[str, Any] = {"one copy": Copy(self._training, self._folder)}
        self._savers["Lorry"] = Lorry(self._training, self._folder)
        self._savers["torch.save, no fsync"] = Peer(self._training, self._folder, "torch.save", sync=False)
        for name in WAYS:
            self._savers[name] = Peer(self._training, self._folder, name, sync=True)

    def saved(self, who: str, quiet: int) -> dict[str, Any]:
        """One save amid `quiet` undisturbed steps, half before and half after it. At least two steps follow it: a
        save leaves cold caches behind. Milliseconds."""
        saver = self._savers[who]
        saver.ready()
        usual = [self._training.step() for _ in range(quiet)]
        began = now()
        waiting = saver.save()
        stall = now() - began
        slow = [self._training.step()]
        persist = stall
        while waiting():
            slow.append(self._training.step())
            persist = now() - began
        while len(slow) < 2:
            slow.append(self._training.step())
        usual += [self._training.step() for _ in range(quiet)]
        extra = sum(slow) - len(slow) * statistics.fmean(usual)
        times = {"stall": stall, "slow-down": extra, "both": stall + extra, "durable": persist}
        return {"ms": {name: seconds * 1e3 for name, seconds in times.items()}, "steps": len(slow)}

    def restored(self, who: str) -> dict[str, Any]:
        return {"value": self._savers[who].restore() * 1e3}

    def end(self) -> None:
        self._savers["Lorry"].run.finish()
        shutil.rmtree(self._folder)


def bytes_of(size: str, folder: str, adapted: bool, saves: int) -> dict[str, Any]:
    """(all, new) bytes of each of so many checkpoints, with training between them."""
    training = Training(size, adapted)
    where = tempfile.mkdtemp(prefix="checkpoint-", dir=folder)
    run = lorry.run(where, every=1)
    run.track(model=training.model, optimizer=training.optimizer)
    run.restore()
    rows = []
    for _ in range(saves):
        training.step()
        run.step()
        while run.last_checkpoint is None or run.last_checkpoint.step < run.step_number:
            time.sleep(0.01)
            run._checkpoints.hear(run.step_number)
        rows.append((run.last_checkpoint.total_bytes, run.last_checkpoint.new_bytes))
    run.finish()
    shutil.rmtree(where)
    return {"rows": rows}


def serve() -> None:
    stages: list[Stage] = []
    turns.serve(
        {
            "begin": lambda **asked: stages.append(Stage(**asked)) or {},
            "saved": lambda **asked: stages[-1].saved(**asked),
            "restored": lambda **asked: stages[-1].restored(**asked),
            "end": lambda: stages.pop().end() or {},
            "bytes": bytes_of,
        }
    )


if __name__ == "__main__":
    serve()
