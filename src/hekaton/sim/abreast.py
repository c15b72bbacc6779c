"""Several searches at once."""

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


def abreast(searches: Mapping[Key, Callable[[], Result]]) -> dict[Key, Result]:
    """Runs each search in a thread of its own: they wait for what they have measured elsewhere.

    If one fails its error is raised at once. The others end when the executor that they measure with does.
    """
    threads = ThreadPoolExecutor(max(len(searches), 1))
    try:
        running = {key: threads.submit(search) for key, search in searches.items()}
        done, _ = wait(running.values(), return_when=FIRST_EXCEPTION)
        for one in done:
            one.result()
        return {key: one.result() for key, one in running.items()}
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
