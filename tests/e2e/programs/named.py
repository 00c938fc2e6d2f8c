"""A named secret, and a line that gives it away."""

import os

import lorry

app = lorry.App("named")


@app.function(secrets=[lorry.Secret.from_name("hub")])
def token() -> str:
    print("the token is", os.environ["HUB_TOKEN"])
    return os.environ["HUB_TOKEN"]
