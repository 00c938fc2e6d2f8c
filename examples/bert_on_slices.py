"""BERT in slices of sixty seconds, and what that costs.

    lorry run examples/bert_on_slices.py                      # three slices of a minute, then the same without slices
    lorry run examples/bert_on_slices.py --slice 900 --steps 100000 --data shakespeare.txt

The case study that general serverless fails: a function may run for a while and keeps nothing, training takes
longer and needs all of its state. Here each slice is a container of its own. It ends with a checkpoint before its
time is over, and the next one goes on from there, so that the weights are those of a training without slices, to
the last bit.
"""

import hashlib
import itertools
import json
import sysconfig
import tempfile
import time
from pathlib import Path

import lorry

app = lorry.App("bert-on-slices")
image = lorry.Image.debian_slim().uv_pip_install(
    "torch==2.13.0", "transformers==5.23.0", "tokenizers==0.23.3", "safetensors==0.8.0", "numpy==2.4.6", "peft==0.21.2"
)
data_volume = lorry.Volume.from_name("bert-data", create_if_missing=True)

with image.imports():
    import torch
    from transformers import BertConfig, BertForMaskedLM

LENGTH, PAD, MASK, BYTES = 128, 256, 257, 258
"""Tokens are bytes, and two more."""


def masked(line: str, rng) -> tuple:
    """A line as BERT learns it: 15 % of its tokens are to be guessed, 80 % of those hidden, 10 % replaced."""
    tokens = list(line.encode()[:LENGTH])
    shown, wanted = tokens[:], [-100] * len(tokens)
    for place, token in enumerate(tokens):
        if rng.random() < 0.15:
            wanted[place] = token
            chance = rng.random()
            shown[place] = MASK if chance < 0.8 else rng.randrange(256) if chance < 0.9 else token
    missing = LENGTH - len(tokens)
    return shown + [PAD] * missing, wanted + [-100] * missing


def together(samples: list) -> tuple:
    shown, wanted = (torch.tensor(column) for column in zip(*samples, strict=True))
    return shown, wanted


@app.function(image=image, volumes={"/data": data_volume}, timeout=60, resumable=lorry.Resumable(every="20s"))
def train(path: str, steps: int) -> dict:
    torch.manual_seed(1)
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    model = BertForMaskedLM(BertConfig(vocab_size=BYTES, max_position_embeddings=LENGTH, pad_token_id=PAD, **size))
    model.train()  # with BERT's dropout of 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)

    run = lorry.run()
    data = run.data(path, batch=16, epochs=1_000_000, map=masked, collate=together)
    run.track(model=model, optimizer=optimizer, data=data)
    run.total_steps = steps
    run.restore()
    if run.step_number < steps:
        for shown, wanted in data:
            loss = model(input_ids=shown, attention_mask=shown != PAD, labels=wanted).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss=loss, attempt=run.attempt)
            if run.step_number == steps:
                break

    run.finish()  # its last checkpoint is saved, its log is written
    weights = hashlib.sha256(run.export(model).read_bytes()).hexdigest()
    return {"weights": weights, **account(run)}


def account(run: lorry.Run) -> dict:
    """What the run's own log says of its slices: the first step of one comes so long after the last of another."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    saves = [row["checkpoint"] for row in rows if "checkpoint" in row]
    pairs = list(itertools.pairwise(steps))
    usual = sorted(after["time"] - before["time"] for before, after in pairs)[len(pairs) // 2]
    gaps = [after["time"] - before["time"] - usual for before, after in pairs if before["attempt"] != after["attempt"]]
    return {
        "slices": steps[-1]["attempt"],
        "loss": [round(sum(row["loss"] for row in part) / len(part), 3) for part in (steps[:50], steps[-50:])],
        "seconds_per_step": round(usual, 4),
        "seconds_between_slices": [round(gap, 2) for gap in gaps],
        "bytes_written": sum(row["new_bytes"] for row in saves),
        "bytes_per_checkpoint": saves[-1]["bytes"],
    }


@app.local_entrypoint()
def main(data: str = "", slice: int = 60, steps: int = 0):
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(data or Path(scratch, "stdlib.txt"))
        if not data:  # text that every machine has: Python's own modules
            sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
            local.write_text("".join(source.read_text("utf-8", "replace") for source in sources), "utf-8")
        with data_volume.batch_upload(force=True) as batch:
            batch.put_file(local, f"/{local.name}")
    path = f"/data/{local.name}"

    if not steps:  # three slices' worth
        trial = train.with_options(timeout=3600).remote(path, 100)
        steps = int(2.5 * slice / trial["seconds_per_step"])
    results, took = {}, {}
    for name, limit in ("sliced", slice), ("unsliced", 24 * 3600):
        began = time.monotonic()
        results[name] = train.with_options(timeout=limit).remote(path, steps)
        took[name] = time.monotonic() - began
        print(f"{name}: {steps:,} steps in {took[name]:.1f} s, {json.dumps(results[name])}", flush=True)

    sliced, whole = results["sliced"], results["unsliced"]
    gaps = sliced["seconds_between_slices"]
    mean = sum(gaps) / max(1, len(gaps))
    print(f"slices of {slice} s: {sliced['slices']}; between two of them {mean:.2f} s pass")
    print(f"slower than without slices: {took['sliced'] / took['unsliced'] - 1:.1%}")
    print(f"bytes moved: {sliced['bytes_written']:,}, a checkpoint has {sliced['bytes_per_checkpoint']:,}")
    same = sliced["weights"] == whole["weights"]
    print(f"weights: {sliced['weights'][:16]}… and {whole['weights'][:16]}…, {'equal' if same else 'DIFFERENT'}")
    if not same:
        raise SystemExit(1)
