"""`lorry.data.text` and `lorry.data.jsonl`: lines of local files as a dataset with `len`, `[i]` and `.batches(…)`.

Standard library only; NumPy makes it quicker where it is installed.
"""

from lorry.train.data import Dataset, jsonl, text

__all__ = ["Dataset", "jsonl", "text"]
