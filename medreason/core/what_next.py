"""What can be done next with a finished run or an export: lines with its paths filled in, to be pasted.

RUN                 evaluate, chat, export, report; resume, where it has not ended
sampled rows        train
export, adapter     transformers + PEFT, vLLM with LoRA
export, merged      transformers, vLLM
export, gguf        Ollama
"""

import re
from pathlib import Path

from medreason.config import ExportFormat, Format, Source
from medreason.core.outside import one_line
from medreason.core.overrides import command_line, override, shell_word
from medreason.core.run_directory import read_json

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be told to make room for

VLLM_PARSER = "olmo3"  # reads think tags as text; vLLM's others need them to be tokens of the vocabulary


def from_here(path: Path) -> Path:
    """The path as it is said from the working directory, where it lies in there."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def after_run(run: Path, source: str | None, rows: str | None) -> list[str]:
    """Commands that go on with a run of data.source `source` and data.path `rows`: evaluate, chat, export, report."""
    folder = from_here(run)
    name = override("run", folder)
    if source == Source.clinical_cases.value:
        asked = ["benchmarks=[clinical_cases]", "method=generate"]
    elif rows is not None and not Path(rows).exists():  # the hub's, where the benchmarks are too
        asked = ["benchmarks=[medqa,pubmedqa]"]
    else:
        asked = ["benchmarks=[held_out]"]
    return [
        command_line("evaluate", [name, *asked]),
        command_line("chat", [name]),
        command_line("export", [name, "format=merged"]),
        command_line("report", [str(folder)]),
    ]


def after_stop(run: Path) -> list[str]:
    """The command that goes on with a run that has not ended."""
    return [command_line("train", [override("resume", from_here(run))])]


ROWS = ("data=", "data.path=", "data.name=", "data.revision=", "data.mix=", "data.weight=", "data.columns.",
        "data.cases=", "data.case_kinds=")  # fmt: skip
OF_A_RUN = ("hydra.run.dir=", "resume=", "ckpt=", "logger.name=")


def after_sampling(run: Path | None, rows: Path, model: str) -> str:
    """The command that trains a run's base, `model`, on rows sampled from it, all else as in the run."""
    told = read_json(run / "run.json").get("overrides") if run is not None else None
    if isinstance(told, list):
        same = [str(one) for one in told if not str(one).startswith(ROWS + OF_A_RUN)]
    else:
        _, embedded, name = model.rpartition("embedded:")
        same = [override("model", name) if embedded else override("model.path", model)]
    return command_line("train", [*same, "data=local", override("data.path", from_here(rows))])


def after_export(folder: Path, kind: ExportFormat, *, base: str, rank: int, style: Format) -> list[str]:
    """Lines that use an export of a run: by what, then how. `base` is what `from_pretrained` takes, of rank `rank`."""
    place = str(from_here(folder))
    if kind is ExportFormat.gguf:
        return [f"Ollama: {ollama(place, run_name(folder))}"]
    loaded = f'AutoModelForCausalLM.from_pretrained({text(base)}, dtype="auto")'
    if kind is ExportFormat.adapter:
        lines = [f"transformers + PEFT: PeftModel.from_pretrained({loaded}, {text(place)})"]
        serving = vllm_with_lora(place, base, rank)
    else:
        lines = [f'transformers: AutoModelForCausalLM.from_pretrained({text(place)}, dtype="auto")']
        serving = vllm(place, style)
    # vLLM asks by the chat template of the tokenizer, which an adapter of `seed`, without turns, does not go by
    if not (kind is ExportFormat.adapter and style is Format.seed):
        lines.append(f"vLLM: {serving}")
    return [*lines, f"an answer from beginning to end: {one_line(place)}/README.md"]


def ollama(place: str, name: str) -> str:
    """Makes an export known to Ollama, under a name that it takes, and talks to it."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:80] or "medreason"
    return f"ollama create {plain} -f {shell_word(f'{place}/Modelfile')} && ollama run {plain}"


def run_name(export: Path) -> str:
    """Of the run that an export lies in, or of the export's own folder."""
    folder = export.resolve()
    return folder.parent.name if folder.name.startswith("export_") else folder.name


def vllm(place: str, style: Format) -> str:
    parser = ["--reasoning-parser", VLLM_PARSER] if style is Format.think else []
    return " ".join(["vllm serve", shell_word(place), *parser])


def vllm_with_lora(place: str, base: str, rank: int) -> str:
    """vLLM with an adapter on its base, asked by the chat template that lies beside the adapter."""
    room = next((each for each in LORA_RANKS if each >= rank), rank)
    lora = ["--enable-lora", "--max-lora-rank", str(room), "--lora-modules", shell_word(f"medreason={place}")]
    template = ["--chat-template", shell_word(f"{place}/chat_template.jinja")]
    return " ".join(["vllm serve", shell_word(base), *lora, *template])


def text(value: str) -> str:
    """A text as Python reads it, in letters that mean nothing to a terminal, to Markdown and to HTML."""
    return re.sub(r"[<>`\[\]]", lambda found: f"\\x{ord(found[0]):02x}", repr(value))
