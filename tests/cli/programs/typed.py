import datetime
from pathlib import Path
from typing import Literal, Optional

import lorry

app = lorry.App("typed")


@app.function()
def unused(): ...


@app.local_entrypoint()
def main(
    learning_rate: float,
    epochs: int = 1,
    name: str = "x",
    shuffle: bool = True,
    mode: Literal["fast", "slow"] = "fast",
    since: Optional[datetime.datetime] = None,  # noqa: UP045 - what users write
    limit: int | None = None,
    folder: Path = Path("."),
):
    return repr((learning_rate, epochs, name, shuffle, mode, since, limit, folder))


@app.local_entrypoint()
def raw(*words):
    return " ".join(words)


@app.local_entrypoint()
async def later(x: int = 1):
    return x + 1
