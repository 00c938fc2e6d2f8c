"""A function whose image has a package of an index that the test runs."""

import lorry

app = lorry.App("packaged")


@app.function(image=lorry.Image.debian_slim().uv_pip_install("gated"))
def where() -> str:
    import gated

    return str(gated.__file__)


plain = lorry.App("plain")


@plain.function()
def one() -> int:
    return 1
