"""The directory of images: its lock, what is adopted from a crash, what is removed."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hekaton.engine.image import Prepared, digest_of, write_prepared
from hekaton.errors import InvalidArgument
from hekaton.facts import ModelSpec, TensorEntry
from hekaton_memory.cache import Cache
from hekaton_memory.segments import Segments

B, C = (letter * 16 for letter in "bc")


def leave(directory: Path, fill: str, nbytes: int, promised: int | None = None) -> str:
    """A pair of files as a crashed service leaves them; returns their digest."""
    spec = ModelSpec("", "LlamaForCausalLM", "float32", nbytes if promised is None else promised, 1, 1, 1)
    prepared = Prepared(spec, (TensorEntry("w", "uint8", (nbytes,), 0, nbytes, ()),), "{}", "", "", {})
    image = directory / "new.img"
    image.write_bytes(fill.encode() * nbytes)
    digest = digest_of(image, prepared)
    image.rename(directory / f"{digest}.img")
    write_prepared(directory / f"{digest}.json", replace(prepared, spec=replace(spec, digest=digest)))
    return digest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "segments"
    path.mkdir()
    return path


@pytest.fixture
def segments(directory: Path) -> Iterator[Segments]:
    segments = Segments(directory)
    yield segments
    segments.close()


def test_whole_images_are_adopted_and_the_rest_is_removed(directory: Path, segments: Segments) -> None:
    whole = leave(directory, "a", 300)
    short = leave(directory, "b", 300, promised=400)
    changed = leave(directory, "c", 300)
    with (directory / f"{changed}.img").open("r+b") as image:
        image.seek(299)
        image.write(b"!")
    (directory / f"{C}.img").touch()
    (directory / "dddddddd.json").write_text("{}")
    (directory / "notes.txt").write_text("not ours")
    (directory / "build-left").mkdir()
    (directory / "build-left" / "part").touch()
    assert segments.adopt() == {whole: 300}
    assert {path.name for path in directory.iterdir()} == {f"{whole}.img", f"{whole}.json", "notes.txt"}
    assert [segments.knows(one) for one in (whole, short, changed)] == [True, False, False]
    assert segments.read(whole).spec.digest == whole


def test_a_file_under_another_name_is_not_adopted(directory: Path, segments: Segments) -> None:
    digest = leave(directory, "a", 300)
    for kind in ("img", "json"):
        (directory / f"{digest}.{kind}").rename(directory / f"{B}.{kind}")
    assert segments.adopt() == {}


def test_the_oldest_go_where_the_budget_has_shrunk(directory: Path, segments: Segments) -> None:
    digests = [leave(directory, fill, 300) for fill in "abc"]
    for age_s, digest in enumerate(digests):
        os.utime(directory / f"{digest}.img", (1000 - age_s, 1000 - age_s))
    cache = Cache(segments, 600)
    assert [image.digest for image in cache.images()] == [digests[1], digests[0]]
    assert segments.knows(digests[2])
    cache.check_integrity()


def test_a_directory_has_one_owner_at_a_time(directory: Path) -> None:
    first = Segments(directory)
    with pytest.raises(InvalidArgument, match="in use by another memory service"):
        Segments(directory)
    first.close()
    Segments(directory).close()


def test_it_is_made_for_this_user_alone_and_removed_when_empty(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "made" / "here")
    assert (tmp_path / "made" / "here").stat().st_mode & 0o777 == 0o700
    segments.close()
    assert not (tmp_path / "made" / "here").exists()


def test_what_is_not_ours_stays(directory: Path) -> None:
    segments = Segments(directory)
    (directory / "notes.txt").touch()
    leave(directory, "a", 300)
    segments.close()
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link"):
        with pytest.raises(InvalidArgument, match=f"segment_dir={place}"):
            Segments(place)
