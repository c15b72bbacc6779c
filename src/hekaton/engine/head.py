"""The products with a whole vocabulary, in pieces that a processor's library multiplies well."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

PIECE_ROWS = 1024
"""Of the weights at a time. MKL takes half as long again to multiply a few rows by tens of thousands at once."""


class Head(nn.Linear):
    """A linear layer, of few inputs and very many outputs."""

    def __init__(self, other: nn.Linear) -> None:
        weight = other.weight
        super().__init__(other.in_features, other.out_features, other.bias is not None, weight.device, weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features)
        mkl = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32
        if len(rows) == 1 or self.out_features <= PIECE_ROWS or not mkl:
            return linear(input, self.weight, self.bias)
        out = rows.new_empty(len(rows), self.out_features)
        for start in range(0, self.out_features, PIECE_ROWS):
            end = start + PIECE_ROWS
            torch.mm(rows, self.weight[start:end].t(), out=out[:, start:end])
        if self.bias is not None:
            out += self.bias
        return out.view(*input.shape[:-1], self.out_features)
