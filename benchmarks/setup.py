"""Makes an environment per peer under benchmarks/venvs: `python benchmarks/setup.py [NAME...]`.

ProcessPoolExecutor, multiprocessing and the bare two-hop prototype need none: they run on Lorry's own Python.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENVS = HERE / "venvs"
NUMPY = "numpy==2.4.6"
ENVIRONMENTS = {
    "ray": ("ray==2.60.0", NUMPY),
    "dask": ("distributed==2026.8.0", "dask==2026.8.0", NUMPY),
    "joblib": ("joblib==1.5.*", NUMPY),
    "data": ("torch==2.13.0", "datasets==5.2.0", NUMPY),
    "coldstart": ("ray==2.60.0", "torch==2.13.0", "safetensors==0.8.0", NUMPY),
}


def lorry_python() -> str:
    """The interpreter that has Lorry: this one, or that of the repository's .venv."""
    if importlib.util.find_spec("lorry") is not None:
        return sys.executable
    return str(HERE.parent / ".venv" / "bin" / "python")


def python_of(environment: str) -> str | None:
    """The interpreter of an environment; None if setup.py has not made it."""
    if environment == "lorry":
        return lorry_python()
    python = VENVS / environment / "bin" / "python"
    return str(python) if python.exists() else None


def make(name: str, packages: tuple[str, ...]) -> None:
    """A virtual environment with these packages, of the same Python as Lorry's: the pickles must compare."""
    folder = VENVS / name
    own_uv = Path(lorry_python()).parent / "uv"
    uv = str(own_uv) if own_uv.exists() else shutil.which("uv")
    environ = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    if "PIP_FIND_LINKS" in environ:  # uv does not read pip's settings
        environ.setdefault("UV_FIND_LINKS", environ["PIP_FIND_LINKS"])
    if uv is None:
        subprocess.run([lorry_python(), "-m", "venv", folder], check=True)
        install = [folder / "bin" / "pip", "install", "-q"]
    else:
        subprocess.run([uv, "venv", "-q", "--allow-existing", "--python", lorry_python(), folder], check=True)
        install = [uv, "pip", "install", "-q", "--python", folder / "bin" / "python"]
    subprocess.run([*install, *packages], check=True, env=environ)
    print(f"{name}: {', '.join(packages)}")


if __name__ == "__main__":
    VENVS.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or ENVIRONMENTS:
        make(chosen, ENVIRONMENTS[chosen])
