"""Plain PyTorch in a resumable function: dropout, shuffled data, a schedule, noise from a generator of its own. Trains
once per line of stdin, and says the call and then the digest of the final weights."""

import hashlib
import json
import random
import sys
import time

import torch
from torch import nn

import lorry

app = lorry.App("torch-in-slices", image=lorry.Image.host())
out = lorry.Volume.from_name("faults", create_if_missing=True)
policy = lorry.Resumable(every=8, grace=10, keep_every=None)


@app.function(timeout=6, resumable=policy, volumes={"/out": out})
def train(workers, pause):
    torch.set_num_threads(1)
    torch.manual_seed(7)
    random.seed(7)
    inputs = torch.randn(160, 32)
    model = nn.Sequential(nn.Linear(32, 600), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(600), nn.Linear(600, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    noise = torch.Generator().manual_seed(3)
    state = {"seen": 0}

    run = lorry.run()
    data = run.data(range(160), batch=4, epochs=3, collate=torch.tensor)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, data=data, state=state, noise=noise)
    run.restore()
    for rows in data.loader(workers) if workers else data:
        batch = inputs[rows]
        noisy = batch + 0.01 * torch.randn(batch.shape, generator=noise) + 0.001 * random.random()
        loss = nn.functional.mse_loss(model(noisy), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        state["seen"] += len(rows)
        run.step(loss=loss)
        time.sleep(pause)
    assert state["seen"] == 3 * 160, state
    return hashlib.sha256(run.export(model).read_bytes()).hexdigest()


if __name__ == "__main__":
    with app.run():
        for line in sys.stdin:
            order = json.loads(line)
            call = train.with_options(**order["options"]).spawn(order["workers"], order["pause"])
            print(json.dumps({"call": call.object_id}), flush=True)
            print(json.dumps({"digest": call.get()}), flush=True)
