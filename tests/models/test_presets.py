"""Presets of other models, tried on tiny ones with their architectures, tokens and templates; experiments by card."""

import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, Qwen2Config, Qwen3Config

from medreason.config import Format, ModelConfig, Precision, Recompute, TrainingEngine
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import asked_documents, tokenize
from medreason.models.chat_template import rendered
from medreason.models.checks import check_model_path
from medreason.models.control_tokens import encode
from medreason.models.flops import Shape, linear_weights, peak_flops, shape_of
from medreason.models.load import check_lora, load_model, load_tokenizer, summed_loss
from medreason.models.memory import GIB, Base, Need, choose, lora_weights, seconds
from medreason.models.prompts import (
    DATE,
    Example,
    completion_text,
    conversation_text,
    dated,
    opens_reasoning,
    parse_answer,
    prompt_text,
)
from support import ROOT, composed, lora

# in the form of each family's own: a system turn with dates; a default system turn; think tags of earlier turns taken
# out, those of the last one written though they are empty
LLAMA = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}{%- endif %}'
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' }}"
    "{{- date_string + '\\n\\n' }}{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] | trim }}"
    "{%- set messages = messages[1:] %}{%- endif %}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
    "{{- '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- for message in messages %}{%- set content = message.content %}{%- set reasoning_content = '' %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set reasoning_content = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>"]


class Family(NamedTuple):
    """What a preset's model is made of: `plain` are tokens that stay in a text when special ones are taken out."""

    config: type
    special: list[str]
    plain: list[str]
    named: dict[str, str]
    end: str
    template: str
    before: str  # of a prompt, before and after the question
    after: str
    shape: Shape  # of the real one
    weights: float  # billions, as its makers count them, embeddings included


FAMILIES = {
    "llama31_8b": Family(
        LlamaConfig,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>",
         "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"],
        [],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"},
        "<|eot_id|>",
        LLAMA,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        Shape(4096, 14336, 32, 32, 8, 128, 128256),
        8.03,
    ),
    "qwen25_7b": Family(
        Qwen2Config, CHATML, [], {"eos_token": "<|im_end|>", "pad_token": "<|vision_pad|>"}, "<|im_end|>", QWEN25,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        Shape(3584, 18944, 28, 28, 4, 128, 152064),
        7.62,
    ),
    "qwen3_8b": Family(
        Qwen3Config, CHATML, ["<think>", "</think>"], {"eos_token": "<|im_end|>", "pad_token": "<|vision_pad|>"},
        "<|im_end|>", QWEN3, "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n",
        Shape(4096, 12288, 36, 32, 8, 128, 151936),
        8.19,
    ),
}  # fmt: skip
CASE = Example("What does a pH of 7.10 mean?", "7.10 is below 7.35.\nSo it is low.", "Acidaemia.")


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, ModelConfig]:
    """A preset's settings with, in place of the real model, two narrow layers of its architecture over bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp(request.param)
    words = [*family.special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(family.special)
    core.add_tokens([AddedToken(word, normalized=False) for word in family.plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **family.named)
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = family.config(
        vocab_size=len(words) + len(family.plain), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    model = composed(f"model={request.param}", f"model.path={folder}", "model.precision=half").model
    check_model_path(model)
    return family, model


def test_a_preset_is_unsloths_open_copy_in_4_bits() -> None:
    for name in FAMILIES:
        model = composed(f"model={name}").model
        assert model.path.startswith("unsloth/") and model.precision is Precision.nf4 and model.chat_template is None


def test_a_document_is_the_models_own_prompt_and_ends_with_its_end_of_turn(tiny: tuple[Family, ModelConfig]) -> None:
    family, model = tiny
    tokenizer = load_tokenizer(model)
    for example in (CASE, Example(CASE.question, "", CASE.answer)):
        (document,) = tokenize([example], tokenizer, Format.think)
        prompt = tokenizer.decode(document.tokens[: document.prompt_tokens], skip_special_tokens=False)
        learned = tokenizer.decode(document.tokens[document.prompt_tokens :], skip_special_tokens=False)
        assert prompt == family.before + CASE.question + family.after
        assert learned == completion_text(example, Format.think) + family.end, "no empty think tags, one end"
        assert document.tokens[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(family.end)
        written = tokenizer.decode(document.tokens[document.prompt_tokens :], skip_special_tokens=True)
        answer = parse_answer(written, Format.think)
        assert (answer.reasoning, answer.answer) == (example.reasoning, example.answer)
    assert not opens_reasoning(tokenizer, Format.think)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_what_the_model_is_asked_is_what_it_was_taught_also_after_an_earlier_turn(
    tiny: tuple[Family, ModelConfig],
) -> None:
    family, model = tiny
    tokenizer = load_tokenizer(model)
    asked = conversation_text(tokenizer, [("Why?", "Because.")], CASE.question, Format.think)
    assert asked.startswith(family.before + "Why?" + family.after + "Because." + family.end)
    assert asked.endswith(CASE.question + family.after)
    mean = f"Is {family.end} a token? <think> {family.special[0]}"
    tokens = encode(tokenizer, conversation_text(tokenizer, [], mean, Format.think))
    steering = [token for token in tokens if token in tokenizer.all_special_ids]
    plain = encode(tokenizer, prompt_text(tokenizer, "Is it?", Format.think))
    assert steering == [token for token in plain if token in tokenizer.all_special_ids], "the names stayed text"
    (document,) = asked_documents([Example(mean, "r", "a")], tokenizer, Format.think)
    assert document.tokens[: document.prompt_tokens].tolist() == tokens


def test_the_engine_trains_it_and_documents_in_a_row_do_not_see_each_other(
    tiny: tuple[Family, ModelConfig], cases: list[Example]
) -> None:
    _, settings = tiny
    tokenizer = load_tokenizer(settings)
    check_lora(settings, lora())
    model = load_model(settings, lora(), row_tokens=2048, recompute=Recompute.none, seed=1).float()
    shape = shape_of(AutoConfig.from_pretrained(settings.path))
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert sum(value.numel() for value in trained.values()) == lora_weights(shape, 4, lora().target_modules)
    torch.manual_seed(2)
    for name, value in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.05)

    def loss(examples: list[Example]) -> Any:
        documents = tokenize(examples, tokenizer, Format.think)
        loader = PackedLoader(documents, sum(map(len, documents)), pad_token=tokenizer.pad_token_id)
        return summed_loss(model, loader.batch([0], 0))

    together = loss(cases[:3])
    together.backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in trained.values())
    with torch.no_grad():
        assert together.item() == pytest.approx(sum(loss([case]).item() for case in cases[:3]), rel=1e-5)


def test_the_fast_engine_computes_each_as_transformers_does(
    tiny: tuple[Family, ModelConfig], cases: list[Example]
) -> None:
    _, model = tiny
    tokenizer = load_tokenizer(model)
    documents = tokenize(cases[:3], tokenizer, Format.think)
    batch = PackedLoader(documents, sum(map(len, documents)), pad_token=tokenizer.pad_token_id).batch([0], 0)
    fast = replace(model, precision=Precision.bf16, engine=TrainingEngine.fast)
    found = []
    for one in (fast, model):
        made = load_model(one, lora(), row_tokens=1024, recompute=Recompute.none, seed=1)
        with torch.no_grad():
            found.append(summed_loss(made, batch).item())
    assert found[0] == pytest.approx(found[1], rel=2e-3)


def test_a_template_that_writes_todays_date_always_writes_the_same(tiny: tuple[Family, ModelConfig]) -> None:
    family, model = tiny
    template = load_tokenizer(model).chat_template
    assert template == (DATE + LLAMA if family.template is LLAMA else family.template)
    assert dated(template) == template, "an adapter's own template, read again, is what it was"
    assert "26 Jul 2024" in rendered(load_tokenizer(model), [{"role": "user", "content": "q"}]) or (
        family.template is not LLAMA
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shape_has_the_weights_that_its_makers_count(name: str) -> None:
    shape, billions = FAMILIES[name].shape, FAMILIES[name].weights
    assert (linear_weights(shape) + shape.hidden_size * shape.vocab_size) / 1e9 == pytest.approx(billions, rel=1e-3)


MISTRAL_7B = Shape(4096, 14336, 32, 32, 8, 128, 32768)
# GiB that torch finds free on the card before a run; how it is called, where its peak is known
CARDS: dict[str, tuple[float, str | None]] = {
    "colab_t4": (14.5, "Tesla T4"),  # 15,360 MiB by nvidia-smi
    "laptop_8gb": (7.0, None),  # 8,188 MiB, of which the screen takes some
    "gpu_24gb": (23.2, "NVIDIA GeForce RTX 3090"),  # 24,576 MiB
    "h100": (78.5, "NVIDIA H100 80GB HBM3"),  # 81,559 MiB
}


def base_on(model: ModelConfig, card: str) -> Base:
    """What the fast engine multiplies in on a card: of these, those before Ada have no products in eight bits."""
    fp8 = model.fast and model.precision is not Precision.bf16 and "3090" not in card
    return Base(model.precision, model.fast, fp8)


def expected(name: str, *overrides: str, card: str | None = None) -> tuple[Need, float | None]:
    """The estimate of an experiment on its card, and tokens a second."""
    config = composed(f"experiments={name}", *overrides)
    free, device = CARDS[name]
    adapter = lora_weights(MISTRAL_7B, config.lora.r, config.lora.target_modules)
    found = choose(
        MISTRAL_7B,
        base := base_on(config.model, card or device or ""),
        recompute=config.trainer.recompute,
        tokens=config.data.row_tokens * config.trainer.rows_per_batch,
        adapter_weights=adapter,
        algorithm=config.optim.algorithm,
        free=free * GIB,
    )
    peak = peak_flops(card or device or "")
    duration = seconds(MISTRAL_7B, adapter, base, found, 10**6, peak)
    return found, None if duration is None else 10**6 / duration


@pytest.mark.parametrize("name", CARDS)
def test_an_experiment_fits_its_card_as_its_comment_says(name: str) -> None:
    said = re.sub(r"\n# ", " ", (ROOT / "experiments" / f"{name}.yaml").read_text(encoding="utf-8"))
    found, speed = expected(name)
    assert f"Expected: {found.total / GIB:.1f} GiB" in said
    if speed is not None:
        assert f"{speed:.0f} tokens a second" in said


def test_the_other_numbers_of_a_24_gb_card_are_right_too() -> None:
    said = re.sub(r"\n# ", " ", (ROOT / "experiments" / "gpu_24gb.yaml").read_text(encoding="utf-8"))
    _, ada = expected("gpu_24gb", card="NVIDIA GeForce RTX 4090")
    fast = [
        expected("gpu_24gb", "model=mistral_7b_fast_nf4", card=f"NVIDIA GeForce RTX {name}") for name in (3090, 4090)
    ]
    assert f"{ada:.0f} on a 4090" in said
    (ampere, slower), (way, faster) = fast
    assert f"expected {ampere.total / GIB:.1f} and {way.total / GIB:.1f} GiB, {slower:.0f} on a 3090 and " in said
    assert f"{faster:.0f} on a 4090" in said


def test_a_t4_is_given_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    from medreason.models.checks import check_hardware, lightning_precision

    for name, answer in {"is_available": True, "get_device_capability": (7, 5), "device_count": 1}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, answer=answer: answer)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "Tesla T4")
    config = composed("experiments=colab_t4")
    check_hardware(config.model, config.trainer)
    assert lightning_precision(config.trainer) == "16-mixed"


def test_an_experiment_holds_only_what_differs() -> None:
    import yaml

    for name in CARDS:
        own = yaml.safe_load((ROOT / "experiments" / f"{name}.yaml").read_text(encoding="utf-8"))
        groups = [f"{key.split('/')[1]}={value}" for entry in own.pop("defaults") for key, value in entry.items()]
        without = composed(*groups)
        for group, settings in own.items():
            for key, value in settings.items():
                assert getattr(getattr(without, group), key) != value, f"{name}: {group}.{key}={value} changes nothing"
