"""A tiny run that knows one answer behind an OpenAI-compatible endpoint, asked by OpenAI's own client."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, TAUGHT, free_port, run_command
from medreason import serve
from medreason.config import ConfigError, Engine, ExportFormat, Format, Quantization, ServeConfig
from medreason.export import read_run, write_export
from medreason.generate import Written
from medreason.json_lines import read_json_lines
from medreason.prompts import completion_text, response_template
from medreason.remote import write_remotely


@pytest.fixture(scope="module")
def exported(taught_run: Path) -> Path:
    folder = taught_run / "export_merged"
    run = read_run(taught_run)
    write_export(run, ExportFormat.merged, Quantization.q8_0, folder, questions=2, max_new_tokens=4)
    return folder


@pytest.fixture(scope="module")
def server(taught_run: Path, exported: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    words = [sys.executable, "-m", "medreason.serve", f"run={taught_run}", f"port={port}"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield process, url
    finally:
        process.kill()
        process.wait()


def asked(url: str, **options: Any) -> Any:
    from openai import OpenAI

    question: Any = [{"role": "user", "content": TAUGHT.question}]
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    return client.chat.completions.create(model="run/export_merged", messages=question, max_tokens=80, **options)


def test_an_openai_client_gets_the_answer_and_apart_from_it_the_reasoning(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    choice = asked(server[1]).choices[0]
    assert (choice.message.reasoning_content, choice.message.content) == (TAUGHT.reasoning, TAUGHT.answer)
    assert choice.finish_reason == "stop"


def test_a_streamed_answer_has_its_reasoning_apart_too(server: tuple[subprocess.Popen[str], str]) -> None:
    deltas = [chunk.choices[0].delta for chunk in asked(server[1], stream=True) if chunk.choices]
    reasoning = [text for delta in deltas if (text := getattr(delta, "reasoning_content", None))]
    assert "".join(reasoning) == TAUGHT.reasoning and len(reasoning) > 5
    assert "".join(delta.content or "" for delta in deltas) == TAUGHT.answer


def test_reasoning_and_answer_of_a_server_are_joined_as_the_model_wrote_them(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    found = write_remotely(
        f"{server[1]}/v1", "run/export_merged", [TAUGHT.question], Format.think, max_new_tokens=80, at_once=1
    )
    assert dict(found) == {0: Written(completion_text(TAUGHT, Format.think), cut=False)}


def test_a_served_model_is_evaluated_and_writes_what_it_writes_here(
    server: tuple[subprocess.Popen[str], str], taught_run: Path
) -> None:
    asked = [f"run={taught_run}", "benchmarks=[clinical_cases]", "method=generate", "limit=5", "max_new_tokens=40"]
    texts = []
    for name, more in (("generate_served", [f"server={server[1]}/v1", "batch=2"]), ("generate", [])):
        said = run_command("evaluate", *asked, *more)
        assert said.returncode == 0, said.stderr[-3000:]
        assert "HTTP Request" not in said.stdout + said.stderr  # one a question would bury how far it is
        records = read_json_lines(taught_run / "evaluation" / name / "clinical_cases.jsonl")
        texts.append({record["id"]: record["text"] for record in records})
    assert texts[0] == texts[1] and len(texts[0]) == 5


def test_ctrl_c_ends_the_server_and_leaves_no_process(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)  # ends when nobody holds its output any more
    port = url.rpartition(":")[2]
    assert f"serving model=run/export_merged at http://127.0.0.1:{port}/v1; Ctrl-C ends it" in said
    assert "in message.reasoning_content" in said
    with socket.create_server(("127.0.0.1", int(port))):
        pass


def config(**changes: Any) -> ServeConfig:
    given = {"run": "runs/one", "weights": None, "engine": Engine.transformers, "host": "127.0.0.1", "port": 8000}
    return ServeConfig(**{**given, **changes})


def test_vllm_reads_think_tags_and_leaves_other_marks_in_the_answer(tokenizer: Any) -> None:
    folder = Path("/runs/one/export_merged")
    settings = config(engine=Engine.vllm, host="0.0.0.0", port=8001)
    plain = ["vllm", "serve", "/runs/one/export_merged", "--served-model-name", "one/export_merged"]
    plain += ["--host", "0.0.0.0", "--port", "8001"]
    think, huatuo = (response_template(tokenizer, style) for style in (Format.think, Format.huatuo))
    assert serve.server_command(settings, folder, think) == [*plain, "--reasoning-parser", "olmo3"]
    assert serve.server_command(settings, folder, huatuo) == plain
    assert serve.server_command(settings, folder, None) == plain
    assert "message.reasoning (" in serve.describe_reasoning(Engine.vllm, think)
    for template in (huatuo, None):
        assert "medreason.prompts.parse_answer takes it apart" in serve.describe_reasoning(Engine.vllm, template)


def test_an_export_of_before_response_templates_is_served_with_a_word_on_its_reasoning(exported: Path) -> None:
    template = serve.read_template(exported)
    assert "message.reasoning_content" in serve.describe_reasoning(Engine.transformers, template)
    assert "parse_answer takes it apart" in serve.describe_reasoning(Engine.transformers, None)


def test_the_server_takes_this_process_place_where_the_model_is_found_by_its_name(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[str] = []
    monkeypatch.setattr(serve, "check_port", lambda host, port: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "execvp", lambda file, words: became.extend([str(Path.cwd()), *words]))
    monkeypatch.chdir(ROOT)  # and back again
    serve.serve(config(run=None, weights=str(exported)))
    assert (Path(became[0]) / "run/export_merged/config.json").is_file()
    assert became[1:7] == [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", "run/export_merged"]


def test_a_run_without_an_export_gets_one(taught_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(serve, "write_export", lambda run, kind, packed, output, **counts: made.append(output))
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name != "export_merged")
    assert serve.merged_export(taught_run) == taught_run / "export_merged"
    assert made == [taught_run / "export_merged"]


def test_a_mistake_is_one_line_before_anything_is_loaded(taught_run: Path, tmp_path: Path) -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        for given, telling in (
            ([], "run must name a run directory (run=DIR), or weights=DIR an export, not both, got None"),
            (["run=nowhere"], "run=nowhere: no such folder"),
            ([f"run={tmp_path}"], f"run={tmp_path}: no config.yaml; name a run that medreason.train has written"),
            ([f"weights={tmp_path}"], f"weights={tmp_path}: no merged export there; make one with medreason.export"),
            ([f"run={taught_run}", f"port={taken}"], f"port={taken}: address already in use; give another port"),
            ([f"run={taught_run}", "engine=vllm"], "engine=vllm: no vllm on the PATH"),
            ([f"run={taught_run}", "engine=ollama"], "expected one of [transformers, vllm]; full_key: engine"),
        ):
            said = run_command("serve", f"port={free}", *given, env={**os.environ, "PATH": ""})
            assert said.returncode == 2 and said.stderr.count("\n") == 1 and telling in said.stderr, said.stderr
            assert said.stdout == ""


def test_the_server_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medreason.preflight.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"no fastapi here; pip install 'medreason\[serve\]'"):
        serve.check_engine(Engine.transformers)
