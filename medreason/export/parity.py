"""Whether an export answers as the adapter that it was made from.

Both answer the same questions greedily. Their logits before the first token may differ by rounding, so texts may part
where two tokens are nearly as good; anything else is an export that went wrong.

    adapter on base   The anion gap is 14, which is | high     18.31      gap 0.06: within twice the tolerance, a tie
    export            The anion gap is 14, which is | raised   18.25

In 16 bits that rounding is as large as what one layer's update does to a logit. So each layer is asked alone as well,
in float32: how much of its update arrived? 1 is all of it, 0 a layer that was forgotten. Less than 1 is what merging
rounds away: an update far smaller than its weight's last bit is lost.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from medreason.core.progress_line import AnswersLine

# largest difference of two logits, as a share of the largest logit: what rounding makes of some tens of layers
TOLERANCE = {"float32": 1e-4, "float16": 2**-7, "bfloat16": 2**-5}
# by how much the share of a layer's update that arrived may differ from 1
SHARE_TOLERANCE = {"float32": 1e-3, "float16": 0.2, "bfloat16": 0.5}
BATCH = 10  # questions answered at once
PROBES, PROBES_SEED = 8, 0  # random inputs to each layer


@dataclass(frozen=True)
class Behaviour:
    """What a model answers to prompts, in their order, and each adapted layer to random inputs."""

    texts: list[str]
    tokens: list[list[int]]  # of each answer, its end-of-sequence token included
    logits: list["Tensor"]  # of each answer: (tokens, vocabulary) float32, on the CPU
    layers: Mapping[str, "Tensor"]  # by name: (probes, out_features) float32, on the CPU


@dataclass(frozen=True)
class Parity:
    """An export beside its adapter."""

    questions: int
    same_texts: int
    parted_at_ties: int  # texts that part where the tokens' logits are within twice the tolerance
    parted_otherwise: int
    logit_difference: float  # the largest at the prompts' last position
    tolerance: float
    largest_logit: float
    adapter_effect: float  # how far the adapter moves those logits: what a lost adapter would look like
    least_share: float  # of a layer's update that arrived
    greatest_share: float
    share_tolerance: float
    worst_layer: str  # whose share is furthest from 1
    dtype: str

    @property
    def holds(self) -> bool:
        shares = (self.least_share, self.greatest_share)
        arrived = all(abs(share - 1) <= self.share_tolerance for share in shares)
        return arrived and self.parted_otherwise == 0 and self.logit_difference <= self.tolerance

    def rows(self) -> list[tuple[str, str]]:
        """The table that is printed."""
        return [
            ("questions", f"{self.questions}"),
            ("same greedy text", f"{self.same_texts}"),
            ("parted at a tie (rounding)", f"{self.parted_at_ties}"),
            ("parted otherwise", f"{self.parted_otherwise}"),
            ("largest logit difference", f"{self.logit_difference:.2g}"),
            (f"tolerance, {self.dtype}", f"{self.tolerance:.2g}"),
            ("largest logit", f"{self.largest_logit:.2g}"),
            ("what the adapter changes in a logit", f"{self.adapter_effect:.2g}"),
            ("share of a layer's update that arrived", f"{self.least_share:.3f} to {self.greatest_share:.3f}"),
            (f"tolerance of that share, {self.dtype}", f"1 +- {self.share_tolerance:g}"),
        ]

    def record(self) -> dict[str, Any]:
        return {"holds": self.holds, **asdict(self)}


def adapted_layers(adapted: Any) -> list[str]:
    """Names of the layers of a PEFT model that LoRA changes, as the model without LoRA names them too."""
    from peft.tuners.lora import LoraLayer

    inner = adapted.base_model.model
    return [name for name, module in inner.named_modules() if isinstance(module, LoraLayer)]


def layer_outputs(model: Any, layers: Sequence[str]) -> dict[str, "Tensor"]:
    """What each layer makes of the same random inputs, computed in float32 whatever it is stored in."""
    import torch

    inner = model.base_model.model if hasattr(model, "peft_config") else model
    generator = torch.Generator().manual_seed(PROBES_SEED)
    outputs = {}
    for name in layers:
        layer = copy.deepcopy(inner.get_submodule(name)).float()
        probes = torch.randn(PROBES, layer.in_features, generator=generator)
        with torch.inference_mode():
            outputs[name] = layer(probes.to(model.device)).cpu()
    return outputs


def observe(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    layers: Sequence[str],
    *,
    max_new_tokens: int,
    line: "AnswersLine | None" = None,
) -> Behaviour:
    """The greedy answers of a plain transformers or PEFT model, the logits that led to them, its layers one by one.

    `line` tells how far they are.
    """
    import torch

    from medreason.inference.batched import counting, left_padded

    texts: list[str] = []
    tokens: list[list[int]] = []
    logits: list[Tensor] = []
    for start in range(0, len(prompts), BATCH):
        members = list(prompts[start : start + BATCH])
        asked, mask = left_padded(tokenizer, members, model.device)
        before = sum(map(len, tokens))
        watched = counting(asked.shape[1], tokenizer.pad_token_id, before, line.wrote) if line is not None else {}
        with torch.inference_mode():
            written = model.generate(
                input_ids=asked,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                output_logits=True,
                return_dict_in_generate=True,
                **watched,
            )
        completions = written.sequences[:, asked.shape[1] :].tolist()
        steps = torch.stack([step.float().cpu() for step in written.logits], dim=1)  # (questions, tokens, vocabulary)
        for completion, scored in zip(completions, steps, strict=True):
            ended = completion.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in completion else None
            tokens.append(completion[:ended])
            logits.append(scored[:ended].clone())  # a view would keep the padding of the whole batch
            texts.append(tokenizer.decode(completion[:ended], skip_special_tokens=True).strip())
        if line is not None:
            line.tell(answered=len(texts))
    return Behaviour(texts, tokens, logits, layer_outputs(model, layers))


def compare(adapter: Behaviour, export: Behaviour, plain: Behaviour, dtype: str) -> Parity:
    """Measures an export by the adapter on its base; `plain` is that base without the adapter."""
    first = [answer[0] for answer in adapter.logits]
    largest_logit = max(float(logits.abs().max()) for logits in first)
    tolerance = TOLERANCE[dtype] * largest_logit
    gaps = [parting(adapter, export, number) for number in range(len(adapter.tokens))]
    parted = [gap for gap in gaps if gap is not None]
    shares = {name: arrived(adapter.layers[name], export.layers[name], plain.layers[name]) for name in adapter.layers}
    ties = sum(gap <= 2 * tolerance for gap in parted)  # each of the two logits may be off by the tolerance
    return Parity(
        questions=len(gaps),
        same_texts=len(gaps) - len(parted),
        parted_at_ties=ties,
        parted_otherwise=len(parted) - ties,
        logit_difference=furthest(first, export),
        tolerance=tolerance,
        largest_logit=largest_logit,
        adapter_effect=furthest(first, plain),
        least_share=min(shares.values()),
        greatest_share=max(shares.values()),
        share_tolerance=SHARE_TOLERANCE[dtype],
        worst_layer=max(shares, key=lambda name: abs(shares[name] - 1)),
        dtype=dtype,
    )


def arrived(adapter: "Tensor", export: "Tensor", plain: "Tensor") -> float:
    """The share of a layer's update that an export has: its change of the outputs, along the adapter's change."""
    update = (adapter - plain).double()
    whole = float((update * update).sum())
    share = float(((export - plain).double() * update).sum()) / whole if whole else 1.0
    return share if share == share else float("inf")


def furthest(first: Sequence["Tensor"], other: Behaviour) -> float:
    """The largest difference of two models' logits before the first token; infinite where one is not a number."""
    differences = [float((one - two[0]).abs().max()) for one, two in zip(first, other.logits, strict=True)]
    return max(value if value == value else float("inf") for value in differences)


def parting(adapter: Behaviour, export: Behaviour, number: int) -> float | None:
    """How much better the adapter finds its own token where an answer's texts part; None where they do not."""
    ours, theirs = adapter.tokens[number], export.tokens[number]
    if ours == theirs:
        return None
    # one is never the other's beginning: it ends with the end-of-sequence token, or both have the same length
    step = next(step for step, (one, two) in enumerate(zip(ours, theirs, strict=False)) if one != two)
    logits = adapter.logits[number][step]
    return float(logits[ours[step]] - logits[theirs[step]])
