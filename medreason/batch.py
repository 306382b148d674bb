"""What data hands to a model: rows of documents for one forward pass."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an estimate of memory needs no torch
    from torch import Tensor

IGNORE_INDEX = -100  # torch's cross entropy leaves these labels out
LOGIT_ROWS = 2048  # tokens whose logits the fast engine holds at once


@dataclass  # not frozen: Lightning writes the moved tensors into a copy
class PackedBatch:
    """Rows for one forward pass. Labels are not shifted: the token at i is predicted from those before i."""

    input_ids: "Tensor"  # (rows, row_tokens) int64
    labels: "Tensor"  # (rows, row_tokens) int64, IGNORE_INDEX where nothing is learned
    position_ids: "Tensor"  # (rows, row_tokens) int64, from 0 in each document
    lengths: tuple[int, ...]  # tokens of each document, row after row, padding included; sums to rows x row_tokens
    tokens: int  # of documents: padding left out
    targets: int  # labels that count in this batch
    step_targets: int  # labels that count in the optimizer step that this batch belongs to, on all processes
