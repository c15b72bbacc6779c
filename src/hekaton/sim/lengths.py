"""How long requests and answers are, in tokens."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from hekaton.errors import InvalidArgument

HEADER = ["input_tokens", "output_tokens"]
LONGEST_TOKENS = 4096


class Lengths(Protocol):
    def draw(self, count: int, random: np.random.Generator) -> list[tuple[int, int]]:
        """`count` pairs of input and output tokens, each at least 1."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Pairs drawn, with replacement, from pairs that were seen."""

    pairs: Sequence[tuple[int, int]]

    def draw(self, count: int, random: np.random.Generator) -> list[tuple[int, int]]:
        return [self.pairs[index] for index in random.integers(len(self.pairs), size=count)]


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Medians in tokens and one spread (of the logarithm) for inputs and outputs, cut at LONGEST_TOKENS."""

    input_median: float = 550.0
    output_median: float = 260.0
    sigma: float = 0.7

    def draw(self, count: int, random: np.random.Generator) -> list[tuple[int, int]]:
        def tokens(median: float) -> list[int]:
            drawn = random.lognormal(math.log(median), self.sigma, count)
            return [int(value) for value in np.clip(drawn, 1, LONGEST_TOKENS)]

        return list(zip(tokens(self.input_median), tokens(self.output_median), strict=True))


def read(path: Path) -> Sampled:
    """A CSV of `input_tokens,output_tokens`. Raises InvalidArgument with the line number."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if next(rows, None) != HEADER:
            raise InvalidArgument(f"{path}, line 1: the header must be {','.join(HEADER)}")
        pairs = [_pair(path, rows.line_num, row) for row in rows]
    if not pairs:
        raise InvalidArgument(f"{path} holds no lengths")
    return Sampled(pairs)


def _pair(path: Path, line: int, row: list[str]) -> tuple[int, int]:
    try:
        inputs, outputs = (int(value) for value in row)
    except ValueError:
        raise InvalidArgument(f"{path}, line {line}: {','.join(row)!r} is not {','.join(HEADER)}") from None
    if inputs < 1 or outputs < 1:
        raise InvalidArgument(f"{path}, line {line}: lengths are at least 1")
    return inputs, outputs
