"""python -m medreason.serve run=DIR: a run's model behind the API that OpenAI's clients speak.

    RUN/export_merged, made where there is none --> transformers serve, or vllm serve

The server takes this process's place: what ends the one ends the other, and an export's memory is free again.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medreason.command import command, root
from medreason.config import ConfigError, Engine, ExportFormat, Quantization, ServeConfig
from medreason.export import check_base, read_run, write_export
from medreason.preflight import check_installed, check_port
from medreason.progress import say
from medreason.sweep_results import read_mapping


def serve(config: ServeConfig) -> None:
    check_engine(config.engine)
    check_port(config.host, config.port)
    folder = Path(config.weights) if config.weights else merged_export(Path(config.run or ""))
    template = read_template(folder)
    words = server_command(config, folder.resolve(), template)
    say(f"serving model={model_name(folder.resolve())} at http://{config.host}:{config.port}/v1; Ctrl-C ends it")
    say(describe_reasoning(config.engine, template))
    sys.stdout.flush()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}  # all that it needs is in the folder
    os.chdir(folder.resolve().parent.parent)  # the server takes the model's name for a path
    os.execvp(words[0], words)


def check_engine(engine: Engine) -> None:
    """Raises ConfigError where the server is not installed."""
    if engine is Engine.transformers:
        check_installed("serve", "fastapi", "uvicorn", "openai")
    elif shutil.which("vllm") is None:
        raise ConfigError(
            "engine=vllm: no vllm on the PATH; install it in an environment of its own (pip install vllm)"
        )


def merged(run: Path) -> Path:
    return run / "export_merged"


def merged_export(run: Path) -> Path:
    """RUN/export_merged, which is made if it is not there. Raises ConfigError or RunFailed where it cannot be."""
    folder = merged(run)
    if folder.is_dir():
        return folder
    try:
        found = read_run(run)
        check_base(found.model)
    except ConfigError as error:
        raise ConfigError(f"run={run}: {error}") from error
    say(f"no {folder} yet: making it")
    usual = OmegaConf.load(root() / "conf" / "export.yaml")
    asked = {"questions": usual.questions, "max_new_tokens": usual.max_new_tokens}
    write_export(found, ExportFormat.merged, Quantization.q8_0, folder, **asked)
    return folder


def read_template(folder: Path) -> dict[str, Any] | None:
    """How an export says that reasoning and answer are told apart; None where it says nothing.

    Raises ConfigError for a folder that holds no model.
    """
    if not (folder / "config.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        raise ConfigError(f"weights={folder}: no merged export there; make one with medreason.export format=merged")
    template: dict[str, Any] | None = read_mapping(folder / "tokenizer_config.json")[0].get("response_template")
    return template


def model_name(folder: Path) -> str:
    """What clients call the model: RUN/export_merged."""
    return str(folder.relative_to(folder.parent.parent))


def server_command(config: ServeConfig, folder: Path, template: dict[str, Any] | None) -> list[str]:
    """The server's command, to be run two folders above the model."""
    where = ["--host", config.host, "--port", str(config.port)]
    if config.engine is Engine.vllm:
        parser = ["--reasoning-parser", VLLM_PARSER] if vllm_parts(template) else []
        return ["vllm", "serve", str(folder), "--served-model-name", model_name(folder), *where, *parser]
    import torch

    # as medreason.chat has it: bfloat16 stalls on a CPU whose cores are shared
    where += [] if torch.cuda.is_available() else ["--dtype", "float32"]
    # -P: what lies in the folder that it runs in is data, not Python's modules
    return [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", model_name(folder), *where]


VLLM_PARSER = "olmo3"  # reads think tags as text; vLLM's others need them to be tokens of the vocabulary


def vllm_parts(template: dict[str, Any] | None) -> bool:
    """Whether vLLM can part reasoning and answer: its parsers know think tags."""
    return template is not None and "<think>" in template["fields"]["thinking"]["open_pattern"]


def describe_reasoning(engine: Engine, template: dict[str, Any] | None) -> str:
    """Where a client finds the reasoning."""
    if vllm_parts(template) if engine is Engine.vllm else template:
        return "reasoning comes apart from the answer, in " + (
            "message.reasoning (message.reasoning_content before vLLM 0.12)"
            if engine is Engine.vllm
            else "message.reasoning_content"
        )
    return "reasoning stays in message.content; medreason.prompts.parse_answer takes it apart"


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the draft of an export is taken away
    command(serve, "serve", ServeConfig)


if __name__ == "__main__":
    main()
