"""What an engine and a builder do on a tmpfs that is full: `python -m fakes.full_tmpfs TMPFS`, a small one.

A process of its own, since only one in a mount namespace of its own may mount one.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fakes.tinymodels import Driver, TinyModel, image_of, prepare, prompt_of
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.errors import ResourceExhausted
from hekaton.facts import Sampling

STREAMS = ("a", "b", "c")
ROOM_BYTES = 1 << 20
GREEDY = Sampling(max_tokens=24, seed=1)


@contextmanager
def filled(tmpfs: Path) -> Iterator[None]:
    """Not a page is left until the end of the block."""
    filler = tmpfs / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    try:
        yield
    finally:
        filler.unlink()


def image(checkpoint: Path, tmpfs: Path) -> None:
    """It is refused, and made as soon as there is room."""
    with filled(tmpfs), pytest.raises(ResourceExhausted, match="no room for an image of"):
        image_of(checkpoint, tmpfs)
    assert os.listdir(tmpfs) == []
    for path in Path(image_of(checkpoint, tmpfs).image.path).parent.iterdir():
        path.unlink()


def drivers(model: TinyModel, tmpfs: Path) -> tuple[Driver, Driver]:
    """Two engines with host KV and parcels there, the first with some tokens of every stream."""
    pair = []
    for _ in range(2):
        engine = TransformersEngine("cpu", model.image.nbytes + (2 << 20), 1, ROOM_BYTES, tmpfs)
        engine.add_model("m", model.prepared.spec, str(model.checkpoint))
        engine.provide_image("m", model.image)
        engine.export_to(tmpfs)
        pair.append(Driver(engine))
    for index, stream in enumerate(STREAMS):
        pair[0].submit(stream, "m", prompt_of(40, index), GREEDY)
    for _ in range(6):
        pair[0].step("m", STREAMS)
    return pair[0], pair[1]


def end(*both: Driver) -> list[list[int]]:
    """What all streams have in the end; nothing is left on either device."""
    for driver in both:
        driver.finish(["m"])
    tokens = [next(one.tokens(stream) for one in both if stream in one.requests) for stream in STREAMS]
    for driver in both:
        driver.close()
    return tokens


def host_kv(model: TinyModel, tmpfs: Path, expected: list[list[int]]) -> None:
    """KV stays on the device, and what is dropped is computed again."""
    giver, taker = drivers(model, tmpfs)
    with filled(tmpfs):
        assert not any(giver.swap_out(stream) for stream in STREAMS)
        giver.drop_kv("a")
        giver.step("m", STREAMS)
    assert all(giver.swap_out(stream) for stream in STREAMS), "there is room again"
    assert end(giver, taker) == expected
    assert os.listdir(tmpfs) == []


def parcels(model: TinyModel, tmpfs: Path, expected: list[list[int]]) -> None:
    """A request goes on without its KV."""
    giver, taker = drivers(model, tmpfs)
    with filled(tmpfs):
        assert giver.hand_over("a", taker) == 0
    assert os.listdir(tmpfs) == []
    assert giver.hand_over("b", taker) > 0, "there is room again"
    assert end(giver, taker) == expected
    assert os.listdir(tmpfs) == []


def main(tmpfs: Path) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        model = prepare(Path(elsewhere), "llama")
        image(model.checkpoint, tmpfs)
        expected = end(*drivers(model, tmpfs))
        host_kv(model, tmpfs, expected)
        parcels(model, tmpfs, expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
