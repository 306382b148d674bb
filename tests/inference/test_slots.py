"""Attention to slots against softmax(q k) v written out, by torch's FlashAttention-2 on a GPU and plainly anywhere."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from medreason.config import ConfigError, RunFailed
from medreason.inference import slots as slots_module
from medreason.inference.slots import (
    KNOWN,
    Pass,
    Slots,
    Writer,
    attend_by_flash,
    attend_plainly,
    attending,
    make_slots,
    padded,
    read_prompts,
)

SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
LENGTH = 40
WAYS = [
    pytest.param(attend_plainly, "cpu", torch.float32, 1e-5, id="plainly"),
    pytest.param(attend_by_flash, "cuda", torch.bfloat16, 2e-2, id="flash",
                 marks=pytest.mark.skipif(not GPU, reason="needs a GPU")),
]  # fmt: skip
HEADS = [pytest.param(8, 2, id="grouped"), pytest.param(4, 4, id="each its own")]


def slots(heads: int, flash: bool, device: str, dtype: torch.dtype) -> Slots:
    torch.manual_seed(0)
    keys, values = (torch.randn(4 * LENGTH, heads, 64).to(device, dtype) for _ in range(2))
    return Slots([keys], [values], 3, LENGTH, flash)


def written_out(query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Of the last tokens of a text, (tokens, heads, width), to all its keys, (all, heads, width)."""
    tokens, heads, width = query.shape
    keys, values = (each.repeat_interleave(heads // each.shape[1], 1).double() for each in (keys, values))
    scores = torch.einsum("qhw,khw->hqk", query.double(), keys) * width**-0.5
    at = torch.arange(len(keys), device=query.device)
    asking = at[-tokens:, None]
    hidden = (at > asking) | (at <= asking - (window or len(keys)))
    return torch.einsum("hqk,khw->qhw", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)


@pytest.mark.parametrize(("attend", "device", "dtype", "apart"), WAYS)
@pytest.mark.parametrize(("heads", "keys"), HEADS)
@pytest.mark.parametrize("window", [None, 5])
def test_prompts_attend_to_themselves(
    attend: Any, device: str, dtype: torch.dtype, apart: float, heads: int, keys: int, window: int | None
) -> None:
    bounds = [0, 7, 8, 30]
    query, key, value = (torch.randn(30, many, 64).to(device, dtype) for many in (heads, keys, keys))
    begins = torch.tensor(bounds, dtype=torch.int32, device=device)
    place = Pass(slots(keys, device == "cuda", device, dtype), begins, begins, None, 22)
    found = attend(place, query, key, value, 64**-0.5, window)
    for begin, end in itertools.pairwise(bounds):
        wanted = written_out(query[begin:end], key[begin:end], value[begin:end], window)
        assert (found[begin:end] - wanted).abs().max() < apart


@pytest.mark.parametrize(("attend", "device", "dtype", "apart"), WAYS)
@pytest.mark.parametrize(("heads", "keys"), HEADS)
@pytest.mark.parametrize("window", [None, 5])
def test_the_newest_token_attends_to_its_slot(
    attend: Any, device: str, dtype: torch.dtype, apart: float, heads: int, keys: int, window: int | None
) -> None:
    held = slots(keys, device == "cuda", device, dtype)
    order, lengths = [2, 0, 1], [1, LENGTH, 17]
    query = torch.randn(3, heads, 64).to(device, dtype)
    begins = torch.tensor([LENGTH * slot for slot in (*order, 3)], dtype=torch.int32, device=device)
    reading = torch.tensor(lengths, dtype=torch.int32, device=device)
    place = Pass(held, begins, begins, reading, LENGTH)
    found = attend(place, query, held.keys[0], held.values[0], 64**-0.5, window)
    for number, (slot, length) in enumerate(zip(order, lengths, strict=True)):
        its = slice(LENGTH * slot, LENGTH * slot + length)
        wanted = written_out(query[number : number + 1], held.keys[0][its], held.values[0][its], window)
        assert (found[number] - wanted[0]).abs().max() < apart


def tiny(device: str, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM, MistralConfig

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    return model.eval()


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 6},
    "unrecordable": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not GPU, reason="a GPU"))])
@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_those_that_the_model_finds_likeliest(device: str, form: str) -> None:
    """Passes of other numbers of texts, repeated and recorded, into slots that are not in order."""
    model = tiny(device, **FORMS[form])
    prompts = [[1, 5, 9, 8], [1, 5, 9, 8], [1, 30], [1, *range(3, 25)], [1, 7, 7]]
    into = [4, 2, 0, 1, 3]
    with attending(model):
        slots = make_slots(model, 64, 5)
        first = read_prompts(model, slots, prompts, into).argmax(-1).tolist()
        texts = [[*prompt, token] for prompt, token in zip(prompts, first, strict=True)]
        writer = Writer(model, slots, 0.0)
        for chosen in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [4, 2, 0], [2], [0, 1, 2, 3, 4]):
            written = writer.write(
                [texts[one][-1] for one in chosen],
                [len(texts[one]) - 1 for one in chosen],
                [into[one] for one in chosen],
                4,
            )
            for one, more in zip(chosen, written, strict=True):
                assert len(more) == 4
                texts[one] += more
    if device == "cuda":
        assert {rows: graph is not None for rows, graph in writer.recorded.items()} == dict.fromkeys(
            (5, 4, 1), form != "unrecordable"
        )
    assert texts[0][: len(texts[1])] == texts[1] and len(texts[2]) == 2 + 1 + 5 * 4
    for prompt, text in zip(prompts, texts, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text], device=device)).logits[0].float()
        for at in range(len(prompt), len(text)):
            apart = logits[at - 1].max() - logits[at - 1, text[at]]
            assert apart <= (0.02 if device == "cuda" else 1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not GPU, reason="a GPU"))])
@pytest.mark.parametrize("form", FORMS)
def test_drawn_tokens_differ_from_text_to_text_and_pass_to_pass(device: str, form: str) -> None:
    model = tiny(device, **FORMS[form])
    with attending(model):
        slots = make_slots(model, 64, 3)
        read_prompts(model, slots, [[1, 5, 9]] * 3, [0, 1, 2])
        writer = Writer(model, slots, 1.0)
        drawn = [writer.write([4, 4, 4], [3, 3, 3], [0, 1, 2], 8) for _ in range(2)]
    texts = [tuple(text) for written in drawn for text in written]
    assert len(set(texts)) == 6 and all(0 <= token < 64 for text in texts for token in text)


def test_a_model_is_given_its_own_attention_back() -> None:
    model = tiny("cpu")
    before = model.config._attn_implementation
    with attending(model):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before


def test_without_room_for_one_answer_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "room", lambda device: 1e6)
    with pytest.raises(RunFailed, match=r"no memory is left .* max_new_tokens"):
        make_slots(tiny("cpu"), 1000, 4)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_known_model_writes_what_it_writes_alone(kind: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    window = {"sliding_window": 6} if kind in ("cohere2", "gemma3_text", "ministral", "mistral", "phi3") else {}
    experts = {"num_local_experts": 4} if kind == "mixtral" else {}
    if kind in ("qwen2_moe", "qwen3_moe"):
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                   "shared_expert_intermediate_size": 32}  # fmt: skip
    if kind == "qwen2":
        window = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    config = CONFIG_MAPPING[kind](**SMALL, **window, **experts)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    prompts = [[1, 5, 9, 8], [1, 30], [1, *range(3, 25)]]
    alone = []
    for prompt in prompts:
        written = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=12,
            do_sample=False, eos_token_id=None,
        )  # fmt: skip
        alone.append(written[0, len(prompt) :].tolist())
    with attending(model):
        slots = make_slots(model, 64, 3)
        first = read_prompts(model, slots, prompts, [2, 0, 1]).argmax(-1).tolist()
        more = Writer(model, slots, 0.0).write(first, list(map(len, prompts)), [2, 0, 1], 11)
    assert [[token, *tokens] for token, tokens in zip(first, more, strict=True)] == alone


def test_a_model_that_is_not_known_is_refused() -> None:
    model = tiny("cpu")
    model.config.model_type = "gemma2"
    with pytest.raises(ConfigError, match="does not know gemma2 models; use batching=static"):
        make_slots(model, 64, 4)


def test_sizes_of_passes_are_few() -> None:
    assert [padded(texts, 300) for texts in (1, 3, 33, 64, 65, 257, 300)] == [1, 4, 64, 64, 128, 300, 300]
    assert len({padded(texts, 512) for texts in range(1, 513)}) <= 14
