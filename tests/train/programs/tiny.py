"""Plain PyTorch as anybody writes it: dropout, shuffled data, a schedule, noise from a generator of its own."""

import random

import torch
from torch import nn

import lorry
from lorry.train import rng


def train(folder, *, epochs=3, samples=80, every=8, workers=0, wait=False, restore_rng=True, rng_mode="state"):
    if not restore_rng:
        rng.restore = lambda state: None  # the control: this must show
    torch.manual_seed(7)
    random.seed(7)
    inputs = torch.randn(samples, 32)
    model = nn.Sequential(nn.Linear(32, 600), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(600), nn.Linear(600, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    noise = torch.Generator().manual_seed(3)
    state = {"seen": 0, "best": float("inf")}

    run = lorry.run(folder, every=every, rng=rng_mode)
    data = run.data(range(samples), batch=4, epochs=epochs, collate=lambda rows: torch.tensor(rows))
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
        state["best"] = min(state["best"], loss.item())
        run.step(loss=loss)
        if wait:  # so that every checkpoint that is due is saved, and the n-th is always the same
            run._saver.wait()
    assert state["seen"] == epochs * samples, state
    run.export(model)
