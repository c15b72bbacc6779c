"""What the engine holds, and gives back, of device memory, images, threads and descriptors."""

import os
import select
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fakes.tinymodels import DEVICE, Driver, TinyModel, engine_for, image_of, prepare, prompt_of, switch
from hekaton.engine.reference import compare, load
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.errors import EngineFailed, InvalidCheckpoint, ModelTooLarge
from hekaton.facts import Image, Sampling

GREEDY = Sampling(max_tokens=8, seed=1)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SPARE_BYTES = 600_000


def test_two_hundred_switches_and_swaps_leave_nothing_behind(models: dict[str, TinyModel]) -> None:
    names = ("llama", "gpt2")
    driver = Driver(engine_for({name: models[name] for name in names}, SPARE_BYTES, 8 << 20))
    for round_ in range(100):
        if round_ == 10:
            before = _held()
        for name in names:
            driver.submit(name, name, prompt_of(20, round_), GREEDY)
            driver.step(name, [name])
            assert driver.swap_out(name)
            driver.step(name, [name])
            assert driver.swap_out(name)
            driver.engine.drop_kv(name)
        driver.engine.check_integrity()
    threads, descriptors, resident_bytes = _held()
    assert (threads, descriptors) == before[:2]
    assert resident_bytes - before[2] < 4 << 20
    driver.close()


def _held() -> tuple[int, int, int]:
    """Threads, descriptors and resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return threading.active_count(), len(os.listdir("/proc/self/fd")), pages * PAGE_BYTES


def test_a_closed_engine_keeps_no_thread_and_no_descriptor() -> None:
    before = _held()[:2]
    TransformersEngine(DEVICE, 1 << 20).close()
    assert _held()[:2] == before


def test_a_dropped_image_is_unmapped(models: dict[str, TinyModel], tmp_path: Path) -> None:
    """Its lease ends then: while it is mapped, its memory is not free."""
    shared = models["llama"]
    path = str(shutil.copy(shared.image.path, tmp_path))
    own = replace(shared, image=replace(shared.image, path=path))
    engine = engine_for({"llama": own}, SPARE_BYTES)
    switch(engine, "llama")
    assert path in Path("/proc/self/maps").read_text()
    engine.provide_image("llama", None)
    assert path not in Path("/proc/self/maps").read_text()
    assert engine.resident() == {"llama"}
    engine.close()


def test_an_image_removed_under_a_worker_is_whole_until_it_is_unmapped(
    models: dict[str, TinyModel], tmp_path: Path
) -> None:
    shared = models["llama"]
    path = Path(shutil.copy(shared.image.path, tmp_path))
    engine = engine_for({"llama": replace(shared, image=replace(shared.image, path=str(path)))}, SPARE_BYTES)
    path.unlink()
    switch(engine, "llama")
    assert engine._buffer[: shared.image.nbytes].numpy().tobytes() == Path(shared.image.path).read_bytes()
    engine.close()


def test_models_of_one_configuration_cost_one_tree_and_a_switch_makes_nothing(
    models: dict[str, TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees and parameters are made when images come; turns use what there is."""
    names = ("llama", "llama-2")
    engine = engine_for({name: models[name] for name in names}, SPARE_BYTES)

    def refuse(*args: object) -> None:
        raise AssertionError("made within a turn")

    monkeypatch.setattr("hekaton.engine.forward.Skeleton", refuse)
    monkeypatch.setattr("hekaton.engine.known.parameters", refuse)
    for name in (*names, *names):
        switch(engine, name)
        engine.bind(name)
    assert len(engine._forward._skeletons) == 1
    engine.close()


def test_an_evicted_load_ends_without_a_word_and_frees_its_place(models: dict[str, TinyModel]) -> None:
    engine = engine_for({name: models[name] for name in ("llama", "gpt2")}, 4 << 20)
    for _ in range(50):
        assert engine.begin_load("llama")
        assert engine.begin_load("gpt2")
        engine.evict("gpt2")
        engine.evict("llama")
        assert engine.finished_loads() == []
        assert engine.weights_bytes() == 0
        engine.check_integrity()
    engine.close()


def test_who_asks_for_kv_only_is_woken_for_a_load_that_ended(models: dict[str, TinyModel]) -> None:
    engine = engine_for({"llama": models["llama"]}, 4 << 20)

    def readable() -> bool:
        return bool(select.select([engine.fileno()], [], [], 0.0)[0])

    assert engine.begin_load("llama")
    job = engine._models["llama"].job
    assert job is not None
    engine._copier.wait(job)
    assert engine.finished_swaps() == []
    assert engine.finished_exports() == []
    assert readable()
    assert [load.model for load in engine.finished_loads()] == ["llama"]
    engine.finished_loads()
    assert not readable()
    engine.close()


def test_kv_that_finds_no_room_changes_nothing(models: dict[str, TinyModel]) -> None:
    engine = engine_for({"llama": models["llama"]}, SPARE_BYTES)
    switch(engine, "llama")
    assert engine.grow_kv("a", "llama", 100)
    held = engine.kv_bytes()
    assert not engine.grow_kv("a", "llama", 100_000)
    assert not engine.grow_kv("b", "llama", 100_000)
    assert engine.kv_bytes() == held
    engine.drop_kv("a")
    engine.drop_kv("b")
    assert engine.kv_bytes() == 0
    engine.check_integrity()
    engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_lay_in_device_memory_before_does_not_show(
    models: dict[str, TinyModel], tmp_path: Path, dtype: str
) -> None:
    """A fresh block over old bytes that read as NaN: masked out, yet 0 · NaN is NaN."""
    model = image_of(models["llama"].checkpoint, tmp_path, dtype)
    engine = engine_for({"llama": model}, SPARE_BYTES)
    engine._buffer.fill_(255)
    driver = Driver(engine)
    driver.submit("r", "llama", prompt_of(5, 1), GREEDY)
    driver.finish(["llama"])
    assert len(driver.tokens("r")) == 8
    driver.close()


def test_a_bfloat16_model_gives_tokens_near_those_of_transformers(models: dict[str, TinyModel], tmp_path: Path) -> None:
    model = image_of(models["llama"].checkpoint, tmp_path, "bfloat16")
    driver = Driver(engine_for({"llama": model}, SPARE_BYTES))
    driver.submit("r", "llama", prompt_of(20, 1), GREEDY)
    driver.finish(["llama"])
    found = compare(load(str(model.checkpoint), "bfloat16"), prompt_of(20, 1), driver.tokens("r"))
    assert found.first_difference is None or found.first_difference > 2
    driver.close()


def test_a_model_larger_than_the_device_is_refused_with_both_sizes(models: dict[str, TinyModel]) -> None:
    spec = models["llama"].prepared.spec
    engine = TransformersEngine(DEVICE, spec.weight_bytes)
    with pytest.raises(
        ModelTooLarge, match=rf"{spec.weight_bytes + 16 * spec.kv_bytes_per_token} .* {spec.weight_bytes}"
    ):
        engine.add_model("m", spec, "")
    engine.close()


def test_an_image_that_is_gone_or_too_short_is_refused(models: dict[str, TinyModel], tmp_path: Path) -> None:
    engine = engine_for({"llama": models["llama"]}, SPARE_BYTES)
    whole = models["llama"].image
    (tmp_path / "short.img").write_bytes(b"short")
    for name in ("gone.img", "short.img"):
        image = Image(str(tmp_path / name), whole.nbytes, whole.tensors, whole.config_json)
        with pytest.raises(InvalidCheckpoint, match=name):
            engine.provide_image("llama", image)
        with pytest.raises(EngineFailed, match="no image"):
            engine.begin_load("llama")
    engine.close()


def test_an_image_of_another_model_is_refused(models: dict[str, TinyModel], tmp_path: Path) -> None:
    narrow = prepare(tmp_path, "llama", intermediate_size=96)
    engine = engine_for({"llama": models["llama"]}, SPARE_BYTES)
    for other in (narrow, models["gpt2"]):
        with pytest.raises(InvalidCheckpoint, match="not of this model"):
            engine.provide_image("llama", other.image)
    engine.close()
