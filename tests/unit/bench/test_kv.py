"""The bench of KV: as far as it is quick."""

import pytest
from bench.kv import fragmentation

PEAK_BYTES = 38881984512
"""Of its trace."""


@pytest.mark.parametrize("share", [0.9, 1.0, 1.25])
def test_host_memory_is_hardly_fragmented_by_six_block_shapes(share: float) -> None:
    found, peak_bytes = fragmentation(int(PEAK_BYTES * share) // 256 * 256)
    assert 0.0 < found < 0.1
    assert peak_bytes <= PEAK_BYTES * share
