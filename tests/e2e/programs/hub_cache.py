"""A model of the Hugging Face hub that several containers want at the same moment, for test_hub_cache.py."""

import lorry

app = lorry.App("hub-cache")
image = lorry.Image.debian_slim().uv_pip_install("huggingface_hub==2.4.0").env({"HF_HUB_DISABLE_XET": "1"})


@app.function(image=image)
def download(repository: str) -> tuple[str, bytes]:
    """Where it lies, and what it says."""
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(repository, "model.safetensors")
    with open(path, "rb") as file:
        return path, file.read()
