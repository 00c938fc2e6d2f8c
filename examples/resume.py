"""Training that survives `kill -9`: start it, kill it at any moment, start it again.

    python examples/resume.py

However often it was killed, it ends with the same weights, to the last bit. It needs torch, and no server.
"""

import hashlib

import torch
from torch import nn

import lorry

torch.manual_seed(0)
points = torch.rand(4096, 2) * 2 - 1
labels = (points.square().sum(1) < 0.5).long()  # inside a circle, or not
model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

run = lorry.run(every="1s")  # keeps everything in ./lorry-runs/resume
data = run.data(range(len(points)), batch=32, epochs=50, collate=torch.tensor)
run.track(model=model, optimizer=optimizer, data=data)
run.restore()
print(f"{run.step_number:,} of {len(data):,} steps are done", flush=True)

for rows in data:
    loss = nn.functional.cross_entropy(model(points[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.step(loss=loss)  # the one safe point
    if run.step_number % 640 == 0:
        print(f"step {run.step_number:,}  loss {loss.item():.3f}", flush=True)

print("weights", hashlib.sha256(run.export(model).read_bytes()).hexdigest())
