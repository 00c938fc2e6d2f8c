"""Torch's own state through a checkpoint and back, as assertions: run by test_run_torch.py in a Python with torch."""

import collections
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import lorry
from lorry.errors import InvalidError
from lorry.train.capture import Staging


def through(folder, make, change=lambda state: None):
    """A dict made, changed, saved, and restored into one that was made anew."""
    state = make()
    with lorry.run(folder) as run:
        run.track(state=state)
        run.restore()
        change(state)
        run.step()
    again = make()
    with lorry.run(folder) as run:
        run.track(state=again)
        assert run.restore()
    return state, again


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def every_dtype(folder):
    names = (
        "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 complex64 complex128 int64 int8 uint8 uint16 bool"
    )
    source = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.5, -1.0]])

    def make():
        return {name: torch.zeros(2, 3).to(getattr(torch, name)) for name in names.split()}

    def change(state):
        for name, tensor in state.items():
            tensor.copy_(source.abs().to(tensor.dtype) if name.startswith("uint") else source.to(tensor.dtype))

    state, again = through(folder, make, change)
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert bits(again[name]) == bits(tensor), name


def odd_shapes(folder):
    base = torch.arange(200_000.0).reshape(400, 500)
    made = [
        {
            "scalar": torch.tensor(7.0),
            "empty": torch.empty(0, 3),
            "transposed": base.t(),
            "every other": base[::2, ::3],
            "expanded": torch.ones(1).expand(50_000),
            "conjugate": torch.complex(base, -base).conj(),
            "channels last": torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last),
        },
        {},
    ]
    state, again = through(folder, lambda: made.pop(0))
    for name, tensor in state.items():
        assert torch.equal(again[name], tensor), name


def ties(folder):
    one = torch.randn(300, 300)
    made = [{"a": one, "b": [one], "view": one.t()}, {}]
    _, again = through(folder, lambda: made.pop(0))
    assert again["a"] is again["b"][0]
    assert torch.equal(again["view"], one.t())


def in_place(folder):
    kept = torch.zeros(4, requires_grad=True)
    fresh = [{"w": torch.ones(4)}, {"w": kept}]
    _, again = through(folder, lambda: fresh.pop(0))
    assert again["w"] is kept
    assert kept.tolist() == [1, 1, 1, 1]
    assert kept.requires_grad


def what_is_refused(folder):
    refused = {
        "sparse": (torch.eye(3).to_sparse(), r"state/x is a sparse tensor"),
        "quantised": (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"state/x is a quantised tensor"),
        "meta": (torch.empty(2, device="meta"), r"state/x is a tensor without data"),
        "nested": (torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), r"state/x is a torch\.nested"),
    }
    for name, (tensor, message) in refused.items():
        run = lorry.run(folder / name)
        run.track(state={"x": tensor})
        try:
            run.restore()
        except InvalidError as error:
            assert re.match(message, str(error)), error
        else:
            raise AssertionError(f"{name} was not refused")


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 32), nn.BatchNorm1d(32), nn.Dropout(0.1), nn.Linear(32, 50, bias=False))
    model[3].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedulers = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step),
    ]
    return model, optimizer, schedulers


def train(folder, steps):
    model, optimizer, (multi, plateau, by_lambda) = build()
    scaler = torch.amp.GradScaler("cpu")
    run = lorry.run(folder, every=1)
    run.track(model=model, optimizer=optimizer, multi=multi, plateau=plateau, by_lambda=by_lambda, scaler=scaler)
    run.restore()
    while run.step_number < steps:
        loss = model(torch.randint(50, (16,))).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        multi.step()
        plateau.step(loss.item())
        run.step(loss=loss)
    run.finish()
    return model, optimizer, (multi, plateau, by_lambda)


def models_optimizers_and_schedulers(folder):
    calm, optimizer, schedulers = train(folder / "calm", 6)
    train(folder / "rough", 3)
    again, optimizer2, schedulers2 = train(folder / "rough", 6)
    assert again[3].weight is again[0].weight
    for (name, a), b in zip(calm.state_dict().items(), again.state_dict().values(), strict=True):
        assert bits(a) == bits(b), name
    states, states2 = optimizer.state_dict(), optimizer2.state_dict()
    assert states["param_groups"] == states2["param_groups"]
    assert states["state"].keys() == states2["state"].keys()
    for number, row in states["state"].items():
        for name, value in row.items():
            assert bits(value) == bits(states2["state"][number][name]), name
    assert [s.state_dict() for s in schedulers] == [s.state_dict() for s in schedulers2]
    assert type(schedulers2[0].milestones) is collections.Counter


def the_end_between_two_steps(folder):
    model, optimizer, _ = build()
    run = lorry.run(folder, every=100)
    run.track(model=model, optimizer=optimizer)
    run.restore()
    run.step()
    model(torch.randint(50, (16,))).sum().backward()
    optimizer.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.finish()
    assert "between two steps" in str(caught[0].message)
    assert not (folder / "HEAD").exists()


def what_did_not_change_is_known(folder):
    state = {"frozen": torch.arange(200_000.0).reshape(400, 500).t(), "trained": torch.zeros(100_000)}
    state["frozen"][0, 0] = torch.nan
    staging = Staging()

    def contents():
        pieces = {piece.name: piece for piece in staging.take(state).pieces}
        for name, tensor in state.items():
            assert list(pieces[name].data) == bits(tensor), name
        return {name: piece.content for name, piece in pieces.items()}

    first = contents()
    state["trained"][-1] = -0.0
    second = contents()
    assert second["frozen"] == first["frozen"]
    assert second["trained"] != first["trained"]

    copy, staging._copy = staging._copy, None
    state["trained"][-1] = 1.0
    try:
        contents()
    except TypeError:
        staging._copy = copy
    assert set(contents().values()).isdisjoint(second.values())  # that copy was not completed

    third = contents()
    state = {"before": torch.ones(100_000), **state}
    fourth = contents()
    assert set(third.values()).isdisjoint(fourth.values())  # at other places


def frozen_weights_are_neither_hashed_nor_written_again(folder):
    state = {"frozen": torch.ones(100_000), "trained": torch.zeros(100_000), "place": 0}
    digests = []
    with lorry.run(folder, every=1) as run:
        run.track(state=state)
        run.restore()
        put = run._store.put
        run._store.put = lambda data, sha256=None: digests.append(sha256) or put(data, sha256)
        for step in range(1, 4):
            state["trained"] += 1
            state["place"] = step
            run.step()
            run._saver.wait()
    given = [digest for digest in digests if digest]
    assert len(given) == 2, digests
    assert len(set(given)) == 1
    assert run.last_checkpoint.new_bytes < 2 * 400_000
    again = {"frozen": torch.zeros(100_000), "trained": torch.zeros(100_000), "place": 0}
    with lorry.run(folder) as run:
        run.track(state=again)
        assert run.restore()
    assert again["place"] == 3
    assert torch.equal(again["frozen"], state["frozen"])
    assert torch.equal(again["trained"], state["trained"])


def exported_files_are_safetensors(folder):
    model, _, _ = build()
    with lorry.run(folder) as run:
        path = run.export(model.to(torch.bfloat16), "final")
        run.restore()
    assert path == folder / "final.safetensors"
    found = lorry.weights.load(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), name


def main():
    for case in (
        every_dtype,
        odd_shapes,
        ties,
        in_place,
        what_is_refused,
        models_optimizers_and_schedulers,
        the_end_between_two_steps,
        what_did_not_change_is_known,
        frozen_weights_are_neither_hashed_nor_written_again,
        exported_files_are_safetensors,
    ):
        if sys.argv[1] in ("all", case.__name__):
            with tempfile.TemporaryDirectory() as folder:
                case(Path(folder) / "run")
            print(case.__name__, f"{time.process_time():.1f} s", flush=True)


main()
