"""A model so small that a whole run takes no time."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from medreason.config import Algorithm, Decay, OptimConfig

OPTIM = OptimConfig(Algorithm.adamw, 0.05, 1.0, [0.9, 0.999], 1e-8, 0.0, 1, Decay.linear, 1.0)
TOKENS, WIDTH = 24, 8


class Toy(nn.Module):
    """A frozen embedding and a trained layer behind dropout, which makes a run depend on its random states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, TOKENS)
        self.dropout = nn.Dropout(0.2)
        self.embedding.weight.requires_grad = False
        shape = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1}
        self.config = SimpleNamespace(model_type="llama", num_key_value_heads=1, vocab_size=TOKENS, **shape)

    def forward(self, input_ids: Any, labels: Any, **_: Any) -> Any:
        logits = self.head(self.dropout(self.embedding(input_ids)))[:, :-1]
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))
