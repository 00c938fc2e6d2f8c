"""Fixtures that all tests of training share."""

from attempts import attempts as attempts
from attempts import torch_python as torch_python
