"""The card of an adapter or an export: how to use it, what its run has on record, and nothing else.

Names, reasons, statuses and settings come from outside: whatever they hold, they stand in the card as text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medreason.config import Format
from medreason.core.disk import whole_file
from medreason.core.hub import hub_name
from medreason.core.outside import markdown, one_line
from medreason.core.overrides import command_line
from medreason.core.recorded import finite, look_up, mapping, read_mapping
from medreason.core.run_directory import tokens_trained
from medreason.core.what_next import ollama, text
from medreason.models.checks import EMBEDDED
from medreason.models.prompts import FORMATS
from medreason.report.results import with_interval

NOT_MEASURED = "not measured"
LIBRARIES = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
KINDS = {
    "adapter": "LoRA adapter, to be put on its base model",
    "merged": "LoRA merged into the unquantised base model",
    "gguf": "LoRA merged into the unquantised base model, converted to GGUF",
}
LORA = ("r", "alpha", "dropout", "target_modules", "rslora", "dora")
TRAINING = (
    "optim.algorithm", "optim.lr", "optim.loraplus_ratio", "optim.weight_decay", "optim.warmup_steps", "optim.decay",
    "data.format", "data.packing", "data.row_tokens", "trainer.precision", "trainer.max_epochs", "trainer.max_steps",
    "trainer.rows_per_batch", "trainer.accumulate", "trainer.devices", "trainer.nodes", "seed",
)  # fmt: skip

USE = """\
Research on fine-tuning language models for medical question answering: comparing training settings, data and formats.

**Research software; not a medical device; not for clinical decisions.** Do not use it to diagnose, to treat or to \
advise anyone."""

NAMESAKE = """\
medreason is the software that trained this. It is not the data set or the model named MedReason, and has no part in \
them."""

QUESTION = "A patient's arterial pH is 7.10. What does that mean?"
ASK = """\
written = model.generate(
    **prompt.to(model.device), max_new_tokens=512, do_sample=False,
    eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
)
print(tokenizer.decode(written[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))"""

LIMITS = """\
- Its answers can be wrong while they sound sure; the reasoning that it writes is no proof of the answer.
- It knows nothing newer than its base model and the training data below, and has their gaps and biases.
- What is given under Results was measured on held-out rows of the training data's own kind: it says nothing about \
patients, other sources or other languages.
- Safety, bias and calibration: not measured.
- Licence: none is claimed here. Those of the base model and of the training data apply."""


def write_cards(run: Path) -> None:
    """README.md of a run's adapters, in place of the stub that PEFT leaves there."""
    for name in ("adapter", "adapter_last"):
        if (run / name).is_dir():
            card = card_of_run(run, "adapter", last=name == "adapter_last")
            with whole_file(run / name / "README.md") as draft:
                draft.write_text(card, encoding="utf-8")


def card_of_run(
    run: Path,
    kind: str,
    parity: Sequence[tuple[str, str]] = (),
    quantization: str | None = None,
    *,
    last: bool = False,
) -> str:
    """The card of a run's adapter or of an export, from the run's files; `last`: of the last step's adapter."""
    record = read_mapping(run / "run.json")[0]
    if last:
        record = record | {"results": of_last_step(mapping(record.get("results")))}
    return model_card(
        name=run.resolve().name + (", its last step" if last else ""),
        kind=kind,
        config=read_mapping(run / "config.yaml")[0],
        record=record,
        corpus=read_mapping(run / "data.json")[0],
        tokens=tokens_trained(run) or None,
        parity=parity,
        evaluations={path.parent.name: read_mapping(path)[0] for path in run.glob("evaluation/*/scores.json")},
        quantization=quantization,
    )


def of_last_step(results: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the last step's weights where the best step's were measured."""
    known = {key: found for key, found in results.items() if not key.endswith("_after")}
    return known | {"val_loss_after": results.get("val_loss_last"), "adapter_step": results.get("steps")}


def model_card(
    *,
    name: str,
    kind: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    corpus: Mapping[str, Any],
    tokens: int | None,
    parity: Sequence[tuple[str, str]],
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    quantization: str | None = None,
) -> str:
    """README.md of an export of `kind` (adapter, merged, gguf), YAML front matter first.

    `config`, `record` and `corpus` are a run's config.yaml, run.json and data.json, as far as they could be read;
    `evaluations` the scores.json of each of its evaluations, by name.
    """
    path = one_line(str(look_up(config, "model.path")))
    front = {
        **({"base_model": path} if hub_name(path) else {}),  # the hub refuses a card with any other
        "library_name": LIBRARIES[kind],
        "tags": ["medical", "reasoning", "lora", "medreason"],
    }
    data, results = mapping(record.get("data")), mapping(record.get("results"))
    base = [
        ("model", look_up(config, "model.path")),
        ("revision", look_up(config, "model.revision") or ("not pinned" if "model" in config else None)),
        ("held in training as", look_up(config, "model.precision")),
        *([("quantised for this export to", quantization)] if quantization else []),
    ]
    before_after = [
        (label, results.get(f"{key}_before"), results.get(f"{key}_after"))
        for label, key in (("held-out loss, nats per token", "val_loss"), ("held-out exact match, share", "accuracy"))
    ]
    return "\n\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
            f"# {markdown(name)}",
            f"{KINDS[kind]}, trained with medreason.",
            NAMESAKE,
            *([f"## How to use\n\n{how}"] if (how := usage(name, kind, config)) else []),
            f"## Intended use\n\n{USE}",
            f"## Limits\n\n{LIMITS}",
            f"## Base model\n\n{facts(base)}",
            f"## Training data\n\n{facts([*sources(data, corpus), *findings(config, corpus)])}",
            f"## LoRA\n\n{facts([(key, look_up(config, f'lora.{key}')) for key in LORA])}",
            f"## Training\n\n{facts([*course(record, results, tokens), *settings(config)])}",
            f"## Results\n\n{table(('', 'before', 'after'), before_after)}",
            f"## Evaluation\n\n{evaluated(evaluations or {})}",
            *([f"## The export beside its adapter\n\n{facts(parity)}"] if parity else []),
            f"## Made with\n\n{facts(origin(record))}\n",
        ]
    )


def usage(name: str, kind: str, config: Mapping[str, Any]) -> str:
    """How to ask the model, begun in the folder of its card; nothing where its run's settings do not tell."""
    path, revision = look_up(config, "model.path"), look_up(config, "model.revision")
    style = Format.__members__.get(str(look_up(config, "data.format")))
    if not isinstance(path, str) or style is None:
        return ""
    if kind == "gguf":
        return f"In this folder:\n\n```bash\n{ollama('.', name)}\n```"
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    folder = '"."  # this folder, or its name on the hub'
    if kind == "adapter":
        imports.insert(0, "from peft import PeftModel")
        base = text(path)
        if path.startswith(EMBEDDED):
            imports.insert(0, "from medreason.models.embedded import materialize")
            base = f"materialize({text(path.removeprefix(EMBEDDED))})"
        pinned = f", revision={text(revision)}" if isinstance(revision, str) else ""
        load = [
            f"adapter = {folder}",
            "tokenizer = AutoTokenizer.from_pretrained(adapter)",
            f'model = AutoModelForCausalLM.from_pretrained({base}{pinned}, dtype="auto", device_map="auto")',
            "model = PeftModel.from_pretrained(model, adapter).eval()",
        ]
    else:
        load = [
            f"folder = {folder}",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto").eval()',
        ]
    written = FORMATS[style].prompt
    if written is None or kind != "adapter":  # a merged model's chat template holds the prompt of every format
        ask = [
            'turns = [{"role": "user", "content": question}]',
            "prompt = tokenizer.apply_chat_template(",
            '    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        ask = [f'prompt = tokenizer({text(written)}.replace("{{question}}", question), return_tensors="pt")']
    lines = [*imports, "", *load, "", f"question = {text(QUESTION)}", *ask, ASK]
    return "In this folder:\n\n```python\n" + "\n".join(lines) + "\n```"


def evaluated(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each benchmark of each evaluation: score with its 95% interval, what was not seen in training."""
    rows: list[tuple[str, object, object, object]] = []
    for name, found in sorted(evaluations.items()):
        for benchmark, each in mapping(found.get("scores")).items():
            score = mapping(each)
            measured = mean_loss(mapping(score["loss"])) if "loss" in score else share(score) or by_judge(score)
            if measured is None:
                continue
            seen = mapping(found.get("seen_in_training")).get(benchmark)  # None: not looked for
            unseen: object = None if seen is None else "no question was seen"
            if "unseen" in score:
                accuracy = finite(mapping(score["unseen"]).get("accuracy"))
                unseen = None if accuracy is None else f"{accuracy:.1%}"
            rows.append((f"{benchmark}, {name}", score.get("questions"), measured, unseen))
    if not rows:
        return f"Benchmarks: {NOT_MEASURED}."
    header = ("benchmark, evaluation", "questions", "score (95% interval)", "without questions seen in training")
    return table(header, rows)


def mean_loss(loss: Mapping[str, Any]) -> str | None:
    """A loss with its interval; None where the file does not say."""
    found = with_interval(loss.get("mean"), loss)
    return None if found is None else "loss {:.3f} nats a token ({:.3f} to {:.3f})".format(*found)


def share(score: Mapping[str, Any]) -> str | None:
    """An accuracy with its interval; None where the file does not say."""
    found = with_interval(score.get("accuracy"), score)
    return None if found is None else "{:.1%} ({:.1%} to {:.1%})".format(*found)


def by_judge(score: Mapping[str, Any]) -> str | None:
    """What a judge says of open answers, with its interval; None where the file does not say."""
    judged = mapping(score.get("judged"))
    found = with_interval(judged.get("mean"), judged)
    return None if found is None else "{:.1%} ({:.1%} to {:.1%}) by a judge model".format(*found)


def sources(data: Mapping[str, Any], corpus: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Where the rows came from, which they were, how many."""
    rows = mapping(corpus.get("rows"))
    rejects = mapping(corpus.get("rejects"))
    return [
        ("source", data.get("source")),
        ("fingerprint (SHA-256 of both sides' content)", data.get("sha256")),
        *((f"rows of {source}", count) for source, count in rows.items()),
        *((f"rejected: {reason}", mapping(found).get("count")) for reason, found in rejects.items()),
        *((f"left out: {reason}", count) for reason, count in mapping(data.get("left_out")).items()),
        ("documents learned", data.get("train_documents")),
        ("documents held out", data.get("validation_documents")),
        ("tokens of an epoch", data.get("train_tokens")),
        ("of these learned", data.get("train_targets")),
    ]


def findings(config: Mapping[str, Any], corpus: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What was found about duplicates and about text shared with test sets."""
    duplicates, found = mapping(corpus.get("duplicates")), mapping(corpus.get("contamination"))
    benchmarks = mapping(found.get("benchmarks"))
    return [
        ("exact duplicates", duplicates.get("exact")),
        ("near duplicates", duplicates.get("near")),
        ("policy for duplicates", look_up(config, "data.deduplicate")),
        ("compared with benchmark questions", ", ".join(f"{key} ({count})" for key, count in benchmarks.items())),
        ("examples that share text with them", found.get("examples")),
        ("policy for shared text", look_up(config, "data.decontaminate")),
    ]


def course(record: Mapping[str, Any], results: Mapping[str, Any], tokens: int | None) -> list[tuple[str, object]]:
    """How far training went, and at what cost."""
    return [
        ("status of the run", record.get("status")),
        ("started", record.get("started")),
        ("optimizer steps", results.get("steps")),
        *([("optimizer step of these weights", step)] if (step := results.get("adapter_step")) is not None else []),
        ("tokens trained on", tokens),
        ("seconds", record.get("seconds")),
        ("peak memory, GiB", results.get("peak_memory_gib")),
        ("device", record.get("device")),
    ]


def settings(config: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [(key, look_up(config, key)) for key in TRAINING]


def origin(record: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Command, commit and versions."""
    overrides = record.get("overrides")
    command = command_line("train", list(map(str, overrides))) if isinstance(overrides, list) else None
    return [
        ("command", command),
        ("medreason commit", record.get("commit")),
        ("python", record.get("python")),
        *mapping(record.get("versions")).items(),
    ]


def facts(rows: Sequence[tuple[str, object]]) -> str:
    return table(("", ""), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; a cell without a value says that it was not measured."""
    lines = [header, *([label, *map(value, values)] for label, *values in rows)]
    cells = ["| " + " | ".join(markdown(str(text)) for text in line) + " |" for line in lines]
    return "\n".join([cells[0], "| " + " | ".join(["---"] * len(header)) + " |", *cells[1:]])


def value(content: object) -> str:
    """A logged value as text."""
    if content is None or content == "":
        return NOT_MEASURED
    if isinstance(content, float):
        return f"{content:.6g}"
    return ", ".join(map(str, content)) if isinstance(content, list) else str(content)
