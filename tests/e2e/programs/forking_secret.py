"""A secret that the import reads."""

import os

import lorry

app = lorry.App("forking-secret")
PASSWORD = os.environ.get("PASSWORD", "")
print("the import has", PASSWORD)


@app.function(secrets=[lorry.Secret.from_name("forking")], scaledown_window=2)
def password() -> str:
    return PASSWORD
