"""`ModuleNotFoundError` in a container, turned into the line that fixes it.

Standard library only: it runs in the client and could run in a container.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata

from lorry.model.image import ImageBase, ImageSpec

DISTRIBUTIONS: Mapping[str, str] = {
    "Bio": "biopython",
    "Crypto": "pycryptodome",
    "OpenSSL": "pyOpenSSL",
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "git": "GitPython",
    "github": "PyGithub",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "kafka": "kafka-python",
    "llama_cpp": "llama-cpp-python",
    "magic": "python-magic",
    "multipart": "python-multipart",
    "mysqldb": "mysqlclient",
    "open_clip": "open-clip-torch",
    "osgeo": "gdal",
    "pkg_resources": "setuptools",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "talib": "TA-Lib",
    "usb": "pyusb",
    "whisper": "openai-whisper",
    "wx": "wxPython",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
"""Import names whose package is called something else."""

_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def missing_module_advice(module: str, image: ImageSpec, client_has: bool, client_version: str | None) -> str:
    """What to do about `import module` failing in `image`.

    `client_has`: the module can be imported where the program was started; `client_version`: of the installed
    package that it belongs to there, None when it belongs to none (a file of the project).
    """
    top = module.partition(".")[0]
    if client_has and client_version is None:
        return _own_module(module, top)
    package = distribution_of(module)
    if image.base is ImageBase.HOST:
        return (
            f"No module named {module!r} in Image.host(), the Python that started the program. "
            f"Install it there (pip install {package}), or give the function an environment of its own: "
            f'lorry.Image.debian_slim().uv_pip_install("{package}").'
        )
    if _normal(package) in _named_in(image):
        return (
            f"No module named {module!r}, although the image installs {package!r}. That package may not "
            "provide this module, or not in that version; add the one that does."
        )
    return (
        f"No module named {module!r}: the function's image does not have the package {package!r} "
        f"({_whereabouts(package, client_version)}). Add it to the image:\n"
        f'    .uv_pip_install("{package}")'
    )


def distribution_of(module: str) -> str:
    """The name to install for an import name: well-known, or as installed here, or the same name."""
    top = module.partition(".")[0]
    known = DISTRIBUTIONS.get(".".join(module.split(".")[:2])) or DISTRIBUTIONS.get(top)
    if known:
        return known
    installed = metadata.packages_distributions().get(top)
    return installed[0] if installed else top


def _own_module(module: str, top: str) -> str:
    return (
        f"No module named {module!r} in the container. It is a file of your own, not an installed "
        f'package, and it was not shipped. Add it to the image:\n    .add_local_python_source("{top}")'
    )


def _whereabouts(package: str, client_version: str | None) -> str:
    if client_version is None:
        return "nor do you have it installed"
    return f'you have {client_version} installed; "{package}=={client_version}" would pin the same'


def _named_in(image: ImageSpec) -> set[str]:
    lines = [
        line for install in image.installs for line in (*install.packages, *(install.requirements or "").split("\n"))
    ]
    return {_normal(match[1]) for line in lines if (match := _NAME.match(line))}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
