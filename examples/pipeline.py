"""Prepare on many CPU containers, train in one that cannot be killed, evaluate on many again.

    lorry run examples/pipeline.py
    lorry run examples/pipeline.py --folder ~/notes --suffix .md --steps 5000

Each part gets what suits it. Preparing and evaluating are short and need no state: a container per file, as many as
the machine has room for. Training is long and is all state: one container (put gpu="any" there), in slices that
continue each other. They meet on a Volume.
"""

import json
import sysconfig
from pathlib import Path

import lorry

app = lorry.App("pipeline")
image = lorry.Image.debian_slim().uv_pip_install(  # the same as in finetune.py: built once
    "torch==2.13.0", "transformers==5.23.0", "tokenizers==0.23.3", "safetensors==0.8.0", "numpy==2.4.6", "peft==0.21.2"
)
volume = lorry.Volume.from_name("pipeline", create_if_missing=True)
WORK = Path("/work")

with image.imports():
    import torch
    from torch import nn

CONTEXT = 32


def new_model() -> "nn.Module":
    """Guesses the next byte from the CONTEXT bytes before it."""
    return nn.Sequential(
        nn.Embedding(256, 32),
        nn.Flatten(),
        nn.Linear(32 * CONTEXT, 256),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(256, 256),
    )


# 1. Prepare: an input per file.


@app.function(image=image, volumes={WORK: volume})
def prepare(name: str, text: str) -> dict:
    """Clean one file and keep its bytes as a tensor."""
    lines = (line.rstrip() for line in text.expandtabs(4).splitlines())
    clean = "\n".join(line for line in lines if line).encode()
    if len(clean) <= 2 * CONTEXT:
        return {"name": name, "bytes": 0}
    torch.save(torch.frombuffer(bytearray(clean), dtype=torch.uint8), WORK / f"{name}.pt")
    return {"name": name, "bytes": len(clean)}


# 2. Train: one run, in slices of a minute.


@app.function(image=image, volumes={WORK: volume}, timeout=60, resumable=True)
def train(names: list[str], steps: int) -> str:
    torch.manual_seed(1)
    text = torch.cat([torch.load(WORK / f"{name}.pt") for name in names]).long()
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    run = lorry.run()
    run.track(model=model, optimizer=optimizer)
    run.total_steps = steps
    run.restore()
    while run.step_number < steps:
        starts = torch.randint(len(text) - CONTEXT, (64,))  # where the generator stands is part of a checkpoint
        windows = text[starts[:, None] + torch.arange(CONTEXT + 1)]
        loss = nn.functional.cross_entropy(model(windows[:, :-1]), windows[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
    torch.save(model.state_dict(), WORK / "model.pt")
    return run.run_id


# 3. Evaluate: an input per file that training has not seen.


@app.function(image=image, volumes={WORK: volume})
def evaluate(name: str) -> float:
    """Bits per byte."""
    model = new_model().eval()
    model.load_state_dict(torch.load(WORK / "model.pt"))
    windows = torch.load(WORK / f"{name}.pt").long().unfold(0, CONTEXT + 1, 7)[:2000]
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(windows[:, :-1]), windows[:, -1])
    return round(loss.item() / 0.6931, 3)


@app.local_entrypoint()
def main(folder: str = "", suffix: str = ".py", steps: int = 2000, files: int = 40):
    """Without a folder: modules of Python itself."""
    sources = sorted(Path(folder or sysconfig.get_paths()["stdlib"]).expanduser().glob(f"*{suffix}"))[:files]
    inputs = [(f"{number:03}-{path.stem}", path.read_text("utf-8", "replace")) for number, path in enumerate(sources)]
    prepared = [row for row in prepare.starmap(inputs) if row["bytes"]]
    if len(prepared) < 2:
        raise SystemExit(f"{len(prepared)} of {len(sources)} files have enough text; this takes two at least")
    print(f"prepared {len(prepared)} files, {sum(row['bytes'] for row in prepared):,} bytes")

    names = [row["name"] for row in prepared]
    held_out = names[::10]
    run_id = train.remote([name for name in names if name not in held_out], steps)
    print(f"trained {steps:,} steps: lorry runs show {run_id}")

    bits = dict(zip(held_out, evaluate.map(held_out), strict=True))
    print(json.dumps(bits))
    print(f"{sum(bits.values()) / len(bits):.2f} bits per byte on files it has not seen; 8 is knowing nothing")
