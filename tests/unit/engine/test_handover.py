"""KV that travels between two real engines: under any schedule the tokens are those of transformers."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fakes.tinymodels import Driver, TinyModel, engine_for, prompt_of
from hekaton.engine.parcel import ParcelReader, parcel_name
from hekaton.engine.reference import Comparison
from hekaton.facts import Parcel, Sampling

SPARE_BYTES = 600_000
HOST_BYTES = 2_000_000
PROMPTS = (3, 20, 61)
NEW_TOKENS = 24
GREEDY = Sampling(max_tokens=NEW_TOKENS, seed=1)
PAIRS = (("llama", "qwen2"), ("gpt2", "mistral"), ("gemma2", "phi"), ("mixtral", "gpt_neox"))
Oracle = Callable[[str, list[int], list[int]], Comparison]


def flip_block(path: Path) -> None:
    """One bit of the last block."""
    _flip(path, path.stat().st_size - 9)


def flip_manifest(path: Path) -> None:
    """One bit of what the blocks are said to be."""
    _flip(path, 60)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 256)


def remove(path: Path) -> None:
    path.unlink()


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


SPOILS: tuple[Callable[[Path], None], ...] = (flip_block, flip_manifest, truncate, remove)


@dataclass(frozen=True, slots=True)
class Op:
    """A step on both engines, after some requests have changed engines and some KV has moved or gone."""

    model: int
    who: int
    chunk: int
    hand: tuple[int, ...]
    spoil: int
    """Which of SPOILS happens to all parcels; none if there is no such."""
    swap: tuple[int, ...]
    drop: int | None


ANY = st.integers(0, 2 * len(PROMPTS) - 1)
SCHEDULES = st.lists(
    st.builds(
        Op,
        model=st.integers(0, 1),
        who=st.integers(1, 2 ** len(PROMPTS) - 1),
        chunk=st.integers(1, 40),
        hand=st.lists(ANY, max_size=3, unique=True).map(tuple),
        spoil=st.integers(0, 3 * len(SPOILS)),
        swap=st.lists(ANY, max_size=3, unique=True).map(tuple),
        drop=st.one_of(st.none(), st.none(), ANY),
    ),
    min_size=4,
    max_size=20,
)


class Two:
    """Two engines that know the same models, each of which holds one at a time."""

    def __init__(self, models: dict[str, TinyModel], names: tuple[str, ...], directory: Path) -> None:
        self.names = names
        self.directory = directory
        self.drivers = [
            Driver(engine_for({name: models[name] for name in names}, SPARE_BYTES, HOST_BYTES)) for _ in "ab"
        ]
        for driver in self.drivers:
            driver.engine.export_to(directory)
        for name in names:
            for length in PROMPTS:
                self.drivers[length % 2].submit(f"{name}/{length}", name, prompt_of(length, 1), GREEDY)

    def request(self, index: int) -> str:
        return f"{self.names[index % 2]}/{PROMPTS[index // 2]}"

    def giver(self, request_id: str) -> Driver:
        return next(driver for driver in self.drivers if request_id in driver.requests)

    def hand_over(self, request_id: str, spoil: Callable[[Path], None] = lambda path: None) -> int:
        giver = self.giver(request_id)
        return giver.hand_over(request_id, self.drivers[giver is self.drivers[0]], spoil)

    def follow(self, schedule: list[Op]) -> None:
        for op in schedule:
            spoil = SPOILS[op.spoil] if op.spoil < len(SPOILS) else lambda path: None
            for index in op.swap:
                self.giver(self.request(index)).swap_out(self.request(index))
            for index in op.hand:
                self.hand_over(self.request(index), spoil)
            if op.drop is not None:
                self.giver(self.request(op.drop)).drop_kv(self.request(op.drop))
            name = self.names[op.model]
            chosen = {f"{name}/{length}" for bit, length in enumerate(PROMPTS) if op.who >> bit & 1}
            for driver in self.drivers:
                driver.step(name, [one for one in driver.unfinished(name) if one in chosen], op.chunk)

    def finish(self) -> None:
        for driver in self.drivers:
            driver.finish(self.names)

    def close(self) -> None:
        assert list(self.directory.iterdir()) == []
        for driver in self.drivers:
            driver.close()


@pytest.fixture
def two(models: dict[str, TinyModel], tmp_path: Path) -> Iterator[Two]:
    two = Two(models, ("llama", "gpt2"), tmp_path)
    yield two
    two.close()


def assert_exact(two: Two, oracle: Oracle) -> None:
    ties = 0
    for driver in two.drivers:
        for request_id, request in driver.requests.items():
            found = oracle(request.model, list(request.prompt), request.produced)
            assert found.first_difference is None, f"{request_id} differs from token {found.first_difference} on"
            assert len(request.produced) == NEW_TOKENS
            ties += found.ties
    assert ties <= 6 * NEW_TOKENS / 1000


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
@settings(max_examples=5, phases=(Phase.generate,))
@given(schedule=SCHEDULES)
def test_greedy_tokens_are_those_of_transformers_wherever_the_kv_travels(
    models: dict[str, TinyModel],
    oracle: Oracle,
    names: tuple[str, ...],
    schedule: list[Op],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    two = Two(models, names, tmp_path_factory.mktemp("parcels"))
    two.follow(schedule)
    two.finish()
    assert_exact(two, oracle)
    two.close()


@pytest.mark.parametrize("swapped", [False, True], ids=["device", "host"])
def test_kv_that_travels_is_not_computed_again(two: Two, oracle: Oracle, swapped: bool) -> None:
    giver = two.giver("llama/61")
    giver.step("llama", ["llama/61"])
    giver.step("llama", ["llama/61"])
    if swapped:
        assert giver.swap_out("llama/61")
    assert two.hand_over("llama/61") == 62
    assert giver.engine.kv_bytes() == giver.engine.host_kv_bytes() == 0
    assert two.hand_over("llama/61") == 62, "and on, before the taker has run it"
    two.finish()
    assert_exact(two, oracle)


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_parcel_that_is_not_whole_is_computed_again(two: Two, oracle: Oracle, spoil: Callable[[Path], None]) -> None:
    giver = two.giver("llama/61")
    giver.step("llama", ["llama/61"])
    taken = two.hand_over("llama/61", spoil)
    assert taken == (61 if spoil is flip_block else 0), "blocks are checked when they are used"
    taker = two.giver("llama/61")
    taker.step("llama", ["llama/61"])
    assert taker.lost == (["llama/61"] if taken else [])
    two.finish()
    assert_exact(two, oracle)


def test_kv_of_other_tokens_or_another_model_or_request_is_refused(two: Two) -> None:
    giver = two.giver("llama/61")
    giver.step("llama", ["llama/61"])
    request = giver.requests["llama/61"]
    known = request.known(request.total)
    for epoch, (model, request_id, ids) in enumerate(
        [
            ("llama", "llama/61", (*known[:30], known[30] ^ 1, *known[31:])),
            ("gpt2", "llama/61", known),
            ("llama", "llama/20", known),
        ]
    ):
        giver.step("llama", ["llama/61"])
        assert giver.engine.export_kv("llama/61", epoch, "llama", request.known(request.context))
        parcel = giver._exported()
        request.start_over()
        assert parcel
        assert two.drivers[0].engine.import_kv(request_id, model, parcel, ids) == 0
        assert not Path(parcel.path).exists()


def test_a_taker_that_knows_fewer_tokens_uses_whole_blocks_of_them_only(two: Two, tmp_path: Path) -> None:
    giver, taker = two.giver("llama/61"), two.drivers[0]
    for _ in range(5):
        giver.step("llama", ["llama/61"])
    request = giver.requests["llama/61"]
    known = request.known(request.context)
    assert (len(known), giver.engine.export_kv("llama/61", 3, "llama", known)) == (65, True)
    request.start_over()
    parcel = giver._exported()
    assert parcel
    assert parcel.path == str(tmp_path / parcel_name("llama/61", 3))
    assert Path(parcel.path).stat().st_mode & 0o777 == 0o600
    assert Path(parcel.path).stat().st_size == parcel.nbytes
    reader = ParcelReader(Path(parcel.path))
    assert [reader.manifest.covers((*known, 1)), reader.manifest.covers(known)] == [65, 64]
    assert [reader.manifest.covers(known[:count]) for count in (64, 49, 48, 17, 16, 1)] == [48, 48, 32, 16, 0, 0]
    reader.close()
    assert taker.engine.import_kv("llama/61", "llama", parcel, known[:62]) == 48
    taker.engine.drop_kv("llama/61")
    assert taker.engine.host_kv_bytes() == 0


def test_an_epoch_leaves_one_parcel_and_never_writes_over_it(two: Two) -> None:
    giver = two.giver("llama/61")
    request = giver.requests["llama/61"]
    parcels: list[Parcel | None] = []
    for _ in range(2):
        giver.step("llama", ["llama/61"])
        assert giver.engine.export_kv("llama/61", 1, "llama", request.known(request.context))
        parcels.append(giver._exported())
        request.start_over()
    assert parcels[0]
    assert parcels[1] is None
    reader = ParcelReader(Path(parcels[0].path))
    assert reader.manifest.tokens == 61
    reader.close()
    Path(parcels[0].path).unlink()


def test_where_no_parcel_can_be_made_or_taken_in_kv_stays_behind(two: Two, tmp_path: Path, oracle: Oracle) -> None:
    giver, taker = two.giver("llama/61"), two.drivers[0]
    giver.step("llama", ["llama/61"])
    giver.engine.export_to(tmp_path / "nowhere")
    assert two.hand_over("llama/61") == 0
    giver.engine.export_to(tmp_path)
    taker.step("llama", ["llama/61"])
    two.finish()
    assert_exact(two, oracle)
