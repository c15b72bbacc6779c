import pytest
import torch
from torch import nn

from hekaton.engine.head import PIECE_ROWS, Head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [7, PIECE_ROWS, 2 * PIECE_ROWS + 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_in_pieces_is_a_linear_layer(outputs: int, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    plain = nn.Linear(24, outputs, bias, dtype=dtype)
    head = Head(plain)
    head.load_state_dict(plain.state_dict())
    given = torch.randn(1, 3, 24, dtype=dtype)
    with torch.inference_mode():
        assert head(given).shape == (1, 3, outputs)
        torch.testing.assert_close(head(given), plain(given), rtol=1e-5, atol=1e-6)
