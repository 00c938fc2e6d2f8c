from __future__ import annotations

import pytest

from lorry.images.advice import distribution_of, missing_module_advice
from lorry.model.image import ImageBase, ImageSpec, PipInstall


def test_the_line_to_add_is_given_and_the_client_s_version_named() -> None:
    text = missing_module_advice("numpy.linalg", ImageSpec(), True, "2.4.6")
    assert '.uv_pip_install("numpy")' in text
    assert '"numpy==2.4.6"' in text


def test_a_package_that_the_client_lacks_too() -> None:
    text = missing_module_advice("pandas", ImageSpec(), False, None)
    assert '.uv_pip_install("pandas")' in text
    assert "nor do you have it" in text


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("cv2", "opencv-python-headless"),
        ("PIL.Image", "pillow"),
        ("sklearn.svm", "scikit-learn"),
        ("yaml", "pyyaml"),
        ("bs4", "beautifulsoup4"),
        ("google.protobuf.message", "protobuf"),
        ("_pytest", "pytest"),  # found in what is installed here
        ("torch", "torch"),
    ],
)
def test_import_names_are_translated(module: str, package: str) -> None:
    assert distribution_of(module) == package


def test_a_file_of_the_project_is_shipped_not_installed() -> None:
    text = missing_module_advice("mylib.models", ImageSpec(), True, None)
    assert '.add_local_python_source("mylib")' in text


def test_in_the_host_image_the_user_installs() -> None:
    text = missing_module_advice("cv2", ImageSpec(base=ImageBase.HOST), False, None)
    assert "pip install opencv-python-headless" in text


@pytest.mark.parametrize(
    "install", [PipInstall(packages=("Scikit_Learn>=1",)), PipInstall(requirements="# ml\nscikit-learn[x]\n")]
)
def test_a_package_that_is_in_the_image_is_not_asked_for_again(install: PipInstall) -> None:
    text = missing_module_advice("sklearn", ImageSpec(installs=(install,)), False, None)
    assert "although the image installs" in text
