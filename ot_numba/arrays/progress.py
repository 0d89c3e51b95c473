"""Progress bars."""

from __future__ import annotations

from typing import Any


def progress_bar(total: int, name: str) -> Any:
    """A bar for so many iterations."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=name, unit="it")
