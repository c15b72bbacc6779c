from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest


@pytest.fixture
def executor() -> Iterator[Executor]:
    """What searches run on: this process, one run at a time."""
    with ThreadPoolExecutor(1) as threads:
        yield threads
