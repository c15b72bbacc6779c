"""Searches over whole numbers, made of yes and no."""

from collections.abc import Callable, Sequence

Passes = Callable[[int], bool]


def largest(passes: Passes, hint: int, most: int | None = None) -> int:
    """The largest n, up to `most`, for which `passes` holds, if it holds up to there and no further. 0 always passes.

    Steps away from `hint` double until the answer lies between two of them, which then close in on it.
    """
    hint = max(hint, 1)
    low, high = _bracket(passes, hint if most is None else min(hint, most), most)
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def _bracket(passes: Passes, start: int, most: int | None) -> tuple[int, int]:
    """A number that passes, and one that does not or is past `most`."""
    step = max(start // 8, 1)
    if not passes(start):
        while start > step and not passes(start - step):
            start, step = start - step, 2 * step
        return max(start - step, 0), start
    beyond = None if most is None else most + 1
    while True:
        upper = start + step if beyond is None else min(start + step, beyond)
        if upper == beyond or not passes(upper):
            return start, upper
        start, step = upper, 2 * step


def best_largest(contenders: Sequence[Passes], hint: int) -> tuple[int, int]:
    """The place of the contender that reaches furthest, and how far. One that cannot do one better is out at once."""
    winner, best = 0, largest(contenders[0], hint)
    for place, passes in enumerate(contenders[1:], 1):
        if passes(best + 1):
            winner, best = place, largest(passes, best + 1)
    return winner, best


def smallest(enough: Passes, hint: int, most: int) -> int | None:
    """The smallest n from 1 to `most` which is enough, if all above it are too; None if none is."""
    short = largest(lambda size: not enough(size), hint, most)
    return None if short == most else short + 1


def best_smallest(contenders: Sequence[Passes], hint: int, most: int) -> tuple[int, int | None]:
    """The place of the contender that needs least, and how much. One that cannot do with one less is out at once."""
    winner, best = 0, smallest(contenders[0], hint, most)
    for place, enough in enumerate(contenders[1:], 1):
        limit = most if best is None else best - 1
        if limit and enough(limit):
            winner, best = place, smallest(enough, limit, limit)
    return winner, best
