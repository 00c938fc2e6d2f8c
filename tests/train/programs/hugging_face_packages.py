"""Whether everything is installed that hugging_face.py imports."""

import importlib.util


def train(folder):
    for name in ("transformers", "datasets", "trl", "peft", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r} beside torch")
