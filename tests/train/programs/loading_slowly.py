"""A training that waits for its data, which workers read: python loading_slowly.py FOLDER."""

from __future__ import annotations

import sys
import threading
import time

import lorry
from lorry.train.batches import Batches


class Slow:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: int) -> int:
        time.sleep(0.0 if number == 0 else 1.0)
        return number


data = Batches(Slow(), batch=1, shuffle=False)
run = lorry.run(sys.argv[1], every=1000)
run.track(data=data)
run.restore()
for _batch in data.loader(2):
    if not run.step_number:
        threading.Timer(0.3, print, ("waits for the second batch",), {"flush": True}).start()
    run.step()
