"""Room in one piece: weights move to the bottom of the device, KV to its top, and what is free meets between them."""

from collections.abc import Iterable

from hekaton.engine.device import Extent, Extents
from hekaton.engine.kv import CopyBytes, KvCache, Slab


def gather(
    memory: Extents, kv: KvCache, weights: Iterable[Extent], nbytes: int, copy: CopyBytes
) -> dict[Extent, Extent]:
    """Moves things until `nbytes` bytes are free in one piece, no more than that takes and each twice at most.

    Of weights only those given move; the result has the new extent by the old one of those that did. If all are given
    it succeeds whenever the bytes suffice that neither weights nor KV blocks in use take. Otherwise nothing moves.
    """
    places: dict[Extent, Extent] = {}
    if memory.free_bytes + kv.unused_bytes < nbytes:
        return places
    for extent in sorted(weights):
        if memory.largest_free_bytes >= nbytes:
            return places
        places[extent] = memory.lower(extent)
        _follow(extent, places[extent], copy)
    _lift(memory, kv, places, nbytes, copy)
    return {old: new for old, new in places.items() if old != new}


def _lift(memory: Extents, kv: KvCache, places: dict[Extent, Extent], nbytes: int, copy: CopyBytes) -> None:
    """Moves KV to the top, and with it the weights that have come to lie among it."""
    slabs = kv.slabs()
    border = min((slab.extent for slab in slabs), default=None)
    among = [old for old, place in places.items() if border is not None and place > border]
    upper: list[tuple[Extent, Slab | Extent]] = [(slab.extent, slab) for slab in slabs]
    upper += [(places[old], old) for old in among]
    for extent, one in sorted(upper, key=lambda entry: entry[0], reverse=True):
        if memory.largest_free_bytes >= nbytes:
            break
        if isinstance(one, Slab):
            kv.lift(one, copy)
        else:
            places[one] = memory.lift(extent, extent.nbytes)
            _follow(extent, places[one], copy)
    kv.rename()


def _follow(old: Extent, new: Extent, copy: CopyBytes) -> None:
    """The bytes of an extent that was booked anew."""
    if old != new:
        copy(old.start, new.start, old.nbytes)
