"""python -m medreason.serve run=DIR: a run's model behind the API that OpenAI's clients speak.

    RUN/export_merged, made where there is none --> transformers behind bounds (endpoint.py), or vllm serve

Where an export had to be made this process begins anew, so that the export's memory is free again.
"""

import os
import shutil
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medreason.config import Checkpoint, ConfigError, Engine, ExportFormat, Quantization, RunFailed, ServeConfig
from medreason.core.cache import cache_folder
from medreason.core.cli import command
from medreason.core.processes import carry_out, describe_exit
from medreason.core.progress import quieten, say
from medreason.core.recorded import read_mapping
from medreason.core.run_directory import adapter_of, read_json, weights_digest
from medreason.core.run_log import kept_log
from medreason.core.settings_help import root
from medreason.core.what_next import VLLM_PARSER
from medreason.export.write import check_base, read_run, write_export
from medreason.models.checks import check_installed, check_port, check_safetensors

MAX_REQUESTS = {Engine.transformers: 64, Engine.vllm: 256}  # at work and waiting; at work


def serve(config: ServeConfig) -> None:
    check_engine(config.engine)
    check_port(config.host, config.port)
    exported = merged(Path(config.run or ""), config.checkpoint)
    if config.run and not exported.is_dir():
        with kept_log(Path(config.run) / "export.log"):
            make_export(Path(config.run), config.checkpoint)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if config.run:
        check_current(exported, adapter_of(Path(config.run), config.checkpoint))
    folder = Path(config.weights) if config.weights else exported
    template = read_template(folder)
    folder = folder.resolve()
    address = f"http://{config.host}:{config.port}/v1"
    say(f"serving model={model_name(folder)} at {address}; Ctrl-C ends it")
    say(describe_reasoning(config.engine, template))
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}  # all that it needs is in the folder

    def ready() -> None:
        say(f"ready: {address}")

    if config.engine is Engine.transformers:
        with kept_log((folder.parent if config.run else cache_folder()) / "serve.log"):
            by_transformers(config, folder, ready)
    else:
        by_vllm(config, folder, template, ready)
    say("stopped")


def by_transformers(config: ServeConfig, folder: Path, ready: Callable[[], None]) -> None:
    """Serves in this process until Ctrl-C or SIGTERM. Raises RunFailed where nothing could listen."""
    quieten()
    from medreason.serve.endpoint import Endpoint, load_served, serve_requests

    served = load_served(str(folder), model_name(folder), served_tokens(folder))
    endpoint = Endpoint(served, config.max_requests or MAX_REQUESTS[config.engine])
    if not serve_requests(endpoint, config.host, config.port, ready):
        raise RunFailed(f"host={config.host} port={config.port}: nothing could listen there; give another port=NUMBER")


def by_vllm(config: ServeConfig, folder: Path, template: dict[str, Any] | None, ready: Callable[[], None]) -> None:
    """Has vLLM serve until Ctrl-C or SIGTERM. Raises RunFailed where it ends by itself."""
    told = False

    def watch() -> None:
        nonlocal told
        if not told and answers(config.host, config.port):
            told = True
            ready()

    try:
        code = carry_out(vllm_command(config, folder, template), watch=watch)
    except KeyboardInterrupt:
        return
    raise RunFailed(f"vLLM {describe_exit(code)}")


def answers(host: str, port: int) -> bool:
    """Whether a server is ready for requests."""
    reached = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    try:
        urllib.request.urlopen(f"http://{reached}:{port}/health", timeout=1).close()
    except OSError:
        return False
    return True


def check_engine(engine: Engine) -> None:
    """Raises ConfigError where the server is not installed."""
    if engine is Engine.transformers:
        check_installed("serve", "fastapi", "uvicorn", "openai")
    elif shutil.which("vllm") is None:
        raise ConfigError(
            "engine=vllm: no vllm on the PATH; install it in an environment of its own (pip install vllm)"
        )


def merged(run: Path, checkpoint: Checkpoint | None = None) -> Path:
    """The export that is served of a run: of its best step, or of its last one."""
    return run / ("export_merged_last" if checkpoint is Checkpoint.last else "export_merged")


def check_current(exported: Path, adapter: Path) -> None:
    """Raises ConfigError for an export of other weights than a run's adapter has by now."""
    made_of = read_json(exported / "parity.json").get("adapter")  # earlier releases did not say
    if made_of is not None and adapter.is_dir() and made_of != weights_digest(adapter):
        raise ConfigError(
            f"{exported} is of weights from before {adapter} was trained further; remove it: it is made anew"
        )


def make_export(run: Path, checkpoint: Checkpoint | None) -> None:
    """Makes the export that is served of a run. Raises ConfigError or RunFailed where it cannot be."""
    folder = merged(run, checkpoint)
    try:
        found = read_run(run, checkpoint)
        check_base(found.model)
    except ConfigError as error:
        raise ConfigError(f"run={run}: {error}") from error
    say(f"no {folder} yet: making it")
    usual = OmegaConf.load(root() / "conf" / "export.yaml")
    asked = {"questions": usual.questions, "max_new_tokens": usual.max_new_tokens}
    write_export(found, ExportFormat.merged, Quantization.q8_0, folder, **asked)


def read_template(folder: Path) -> dict[str, Any] | None:
    """How an export says that reasoning and answer are told apart; None where it says nothing.

    Raises ConfigError for a folder that holds no model.
    """
    if not (folder / "config.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        raise ConfigError(f"weights={folder}: no merged export there; make one with medreason.export format=merged")
    check_safetensors(folder, f"weights={folder}")
    template: dict[str, Any] | None = read_mapping(folder / "tokenizer_config.json")[0].get("response_template")
    return template


def model_name(folder: Path) -> str:
    """What clients call the model: RUN/export_merged."""
    return str(folder.relative_to(folder.parent.parent))


def served_tokens(folder: Path) -> int:
    """How long a prompt and its answer may be together, in tokens."""
    from medreason.models.load import LONGEST_CONTEXT

    config = read_json(folder / "config.json")
    positions = (config.get("text_config") or config).get("max_position_embeddings")
    return min(positions, LONGEST_CONTEXT) if isinstance(positions, int) else LONGEST_CONTEXT


def vllm_command(config: ServeConfig, folder: Path, template: dict[str, Any] | None) -> list[str]:
    """vLLM's command. It lets requests beyond those at work wait, and ends those whose client has left."""
    bounds = {
        "--served-model-name": model_name(folder),
        "--host": config.host,
        "--port": config.port,
        "--max-model-len": served_tokens(folder),
        "--max-num-seqs": config.max_requests or MAX_REQUESTS[config.engine],
    }
    words = ["vllm", "serve", str(folder), *(str(word) for pair in bounds.items() for word in pair)]
    return [*words, "--reasoning-parser", VLLM_PARSER] if vllm_parts(template) else words


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
    return "reasoning stays in message.content; medreason.models.prompts.parse_answer takes it apart"


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the draft of an export is taken away
    command(serve, "serve", ServeConfig)
