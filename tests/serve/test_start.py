"""A tiny run that knows one answer behind an OpenAI-compatible endpoint, asked by OpenAI's own client."""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from medreason.config import ConfigError, Engine, ExportFormat, Format, Quantization, ServeConfig
from medreason.core.json_lines import read_json_lines
from medreason.export.write import read_run, write_export
from medreason.inference.batched import Written
from medreason.inference.server import write_remotely
from medreason.models.prompts import completion_text, response_template
from medreason.serve import start
from support import ROOT, TAUGHT, free_port, python, run_command


@pytest.fixture(scope="module")
def exported(taught_run: Path) -> Path:
    folder = taught_run / "export_merged"
    run = read_run(taught_run)
    write_export(run, ExportFormat.merged, Quantization.q8_0, folder, questions=2, max_new_tokens=4)
    return folder


@pytest.fixture(scope="module")
def server(taught_run: Path, exported: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    words = [python(), "-m", "medreason.serve", f"run={taught_run}", f"port={port}"]
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


def test_two_hundred_at_once_half_of_them_leaving_are_answered_or_refused_and_memory_stays(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = server
    asked(url)
    before = most_mib(process.pid)
    turn = {"role": "user", "content": TAUGHT.question}

    def request(number: int) -> int:
        longer = {"content": "a" * 10**6} if number % 10 == 1 else {}
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)
        try:
            connection.request(
                "POST", "/v1/chat/completions", json.dumps({"messages": [turn | longer], "max_tokens": 10**9})
            )
            return 0 if number % 2 == 0 else connection.getresponse().status
        finally:
            connection.close()

    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(request, range(200)))
    assert set(statuses) <= {0, 200, 413, 429} and {200, 413} <= set(statuses), Counter(statuses)
    assert asked(url).choices[0].finish_reason == "stop"
    assert most_mib(process.pid) - before < 200, "a prompt of a megabyte would take gigabytes"


def most_mib(process: int) -> float:
    """The most that a process ever held."""
    return int(Path(f"/proc/{process}/status").read_text().partition("VmHWM:")[2].split()[0]) / 2**10


def test_a_stop_ends_the_answer_and_not_the_reasoning(server: tuple[subprocess.Popen[str], str]) -> None:
    """ "7.10 is below 7.35.\\nSo it is low." is the reasoning: it holds a line feed, and two stand after it."""
    choice = asked(server[1], stop=["\n", "daemia"]).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Aci", "stop")
    assert choice.message.reasoning_content == TAUGHT.reasoning
    pieces = [chunk.choices[0].delta for chunk in asked(server[1], stream=True, stop="daemia") if chunk.choices]
    assert "".join(piece.content or "" for piece in pieces) == "Aci"
    assert "".join(getattr(piece, "reasoning_content", None) or "" for piece in pieces).strip() == TAUGHT.reasoning


def test_reasoning_and_answer_of_a_server_are_joined_as_the_model_wrote_them(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    found = write_remotely(
        f"{server[1]}/v1", "run/export_merged", [TAUGHT.question], Format.think, max_new_tokens=80, at_once=1
    )
    assert dict(found) == {0: Written(completion_text(TAUGHT, Format.think), cut=False)}


def test_a_served_model_is_evaluated_and_writes_what_it_writes_here(
    server: tuple[subprocess.Popen[str], str], taught_run: Path, exported: Path, tmp_path: Path
) -> None:
    rows = [{"id": str(i), "question": f"{i} days ill?", "options": ["fever", "cough"], "answer": 0} for i in range(5)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [f"benchmarks=[{tmp_path}/own.jsonl]", "method=generate", "max_new_tokens=40"]
    here = [f"run={exported}"]  # the same merged weights: rounding decides ties of the untaught
    texts = []
    for name, more in (("served", [f"run={taught_run}", f"server={server[1]}/v1", "batch=2"]), ("here", here)):
        said = run_command("evaluate", *asked, *more, f"output={tmp_path / name}")
        assert said.returncode == 0, said.stderr[-3000:]
        assert "HTTP Request" not in said.stdout + said.stderr  # one a question would bury how far it is
        records = read_json_lines(tmp_path / name / "own.jsonl")
        texts.append({record["id"]: record["text"] for record in records})
    assert texts[0] == texts[1] and len(texts[0]) == 5


def test_a_served_model_that_is_no_judge_gives_no_verdicts_and_that_is_said(
    server: tuple[subprocess.Popen[str], str], taught_run: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"How warm is {i}?", "answer": "As warm as blood."} for i in range(2)]
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [f"run={taught_run}", f"benchmarks=[{tmp_path}/open.jsonl]", "method=generate", "max_new_tokens=20"]
    address = f"{server[1]}/v1"
    said = run_command(
        "evaluate", *asked, f"server={address}", f"judge={address}", "judge_tokens=20", f"output={tmp_path / 'out'}"
    )
    assert said.returncode == 0, said.stderr[-3000:]
    assert "none: no verdict" in said.stdout and "2 of 2" in said.stdout
    assert "no verdict in 2 of the judge's 2 replies, asked again: there is no score" in said.stdout
    lines = read_json_lines(tmp_path / "out" / "open_judge.jsonl")
    assert {line["verdict"] for line in lines} == {None} and {line["question"] for line in lines} == {"1", "2"}
    assert json.loads((tmp_path / "out" / "judge.json").read_text())["model"] == "run/export_merged"


@pytest.mark.skipif(shutil.which("lm_eval") is None, reason="no lm_eval on the PATH (pip install 'lm-eval[api]')")
def test_an_existing_harness_evaluates_what_is_served_by_the_documented_command(
    server: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "pages" / "how-to" / "export-and-serving.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    (line,) = re.findall(r"^lm_eval .*$", page, re.M)
    (tmp_path / "quiz.yaml").write_text(task)
    rows = [{"question": f"{i} days ill?", "options": {"A": "fever", "B": "cough"}, "answer": "A"} for i in range(4)]
    rows.append({"question": TAUGHT.question, "options": {"A": "Low", "B": "High"}, "answer": TAUGHT.answer})
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # the same rows, asked as the model was taught, with the stop that many tasks have
    exact = yaml.safe_load(task) | {"task": "exact", "doc_to_text": "{{question}}"}
    exact["generation_kwargs"] = {"until": ["\n\n", "Question:"], "max_gen_toks": 80}
    del exact["filter_list"]
    (tmp_path / "exact.yaml").write_text(yaml.safe_dump(exact))
    words = shlex.split(line.replace("http://127.0.0.1:8000", server[1]).replace("RUN/export", "run/export"))
    words[words.index("quiz")] = "quiz,exact"
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=plain)
    assert said.returncode == 0, said.stderr[-3000:]
    assert "API request failed" not in said.stdout + said.stderr
    (results,) = (tmp_path / "harness").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]
    assert found["exact"]["exact_match,none"] == pytest.approx(1 / 5) and "exact_match,letter" in found["quiz"]
    (samples,) = (tmp_path / "harness").rglob("samples_exact_*.jsonl")
    answers = {one["doc"]["question"]: one["resps"][0][0] for one in read_json_lines(samples)}
    assert len(answers) == 5 and answers[TAUGHT.question] == TAUGHT.answer


def test_ctrl_c_ends_the_server_and_leaves_no_process(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)  # ends when nobody holds its output any more
    port = url.rpartition(":")[2]
    assert f"serving model=run/export_merged at http://127.0.0.1:{port}/v1; Ctrl-C ends it" in said
    assert "in message.reasoning_content" in said
    assert said.index("serving") < said.index("ready: ") < said.index("stopped")
    assert process.returncode == 0 and "Aborted" not in said
    with socket.create_server(("127.0.0.1", int(port))):
        pass


def config(**changes: Any) -> ServeConfig:
    given = {"run": "runs/one", "weights": None, "engine": Engine.transformers, "host": "127.0.0.1", "port": 8000}
    return ServeConfig(**{**given, "checkpoint": None, "max_requests": None, **changes})


def test_vllm_reads_think_tags_and_leaves_other_marks_in_the_answer(tokenizer: Any) -> None:
    folder = Path("/runs/one/export_merged")
    settings = config(engine=Engine.vllm, host="0.0.0.0", port=8001)
    plain = ["vllm", "serve", "/runs/one/export_merged", "--served-model-name", "one/export_merged"]
    plain += ["--host", "0.0.0.0", "--port", "8001", "--max-model-len", "32768", "--max-num-seqs", "256"]
    think, huatuo = (response_template(tokenizer, style) for style in (Format.think, Format.huatuo))
    assert start.vllm_command(settings, folder, think) == [*plain, "--reasoning-parser", "olmo3"]
    assert start.vllm_command(settings, folder, huatuo) == plain
    assert start.vllm_command(settings, folder, None) == plain
    assert "message.reasoning (" in start.describe_reasoning(Engine.vllm, think)
    for template in (huatuo, None):
        assert "medreason.models.prompts.parse_answer takes it apart" in start.describe_reasoning(Engine.vllm, template)


def test_an_export_of_before_response_templates_is_served_with_a_word_on_its_reasoning(exported: Path) -> None:
    template = start.read_template(exported)
    assert "message.reasoning_content" in start.describe_reasoning(Engine.transformers, template)
    assert "parse_answer takes it apart" in start.describe_reasoning(Engine.transformers, None)


def test_a_model_is_served_for_its_own_context_and_no_longer_than_chat_takes(exported: Path, tmp_path: Path) -> None:
    assert start.served_tokens(exported) == 4096
    for config, tokens in (("{", 32_768), ('{"max_position_embeddings": 131072}', 32_768),
                           ('{"text_config": {"max_position_embeddings": 8192}}', 8192)):  # fmt: skip
        (tmp_path / "config.json").write_text(config)
        assert start.served_tokens(tmp_path) == tokens


def test_a_run_without_an_export_gets_one_and_the_process_begins_anew(
    taught_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    def anew(program: str, words: list[str]) -> None:
        done.append((program, words))
        raise InterruptedError

    monkeypatch.setattr(start, "check_port", lambda host, port: None)
    monkeypatch.setattr(start, "write_export", lambda run, kind, packed, output, **counts: done.append(output))
    monkeypatch.setattr(os, "execv", anew)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "medreason.serve", f"run={taught_run}"])
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name != "export_merged" and is_dir(path))
    with pytest.raises(InterruptedError):
        start.serve(config(run=str(taught_run)))
    again = [sys.executable, "-m", "medreason.serve", f"run={taught_run}"]
    assert done == [taught_run / "export_merged", (sys.executable, again)]


FAKE_VLLM = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
print("vllm was given", *sys.argv[1:], flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_vllm_says_ready_when_it_answers_and_ends_with_ctrl_c(exported: Path, tmp_path: Path) -> None:
    fake, port = tmp_path / "vllm", free_port()
    fake.write_text(FAKE_VLLM.replace("{python}", sys.executable))
    fake.chmod(0o755)
    words = [python(), "-m", "medreason.serve", f"weights={exported}", "engine=vllm", f"port={port}"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(
        [*words, "max_requests=9"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while "ready: " not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "it ended"
        process.send_signal(signal.SIGINT)
        said = "".join(lines) + process.stdout.read()
    assert "--max-model-len 4096 --max-num-seqs 9" in said and "stopped" in said and process.returncode == 0


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
    monkeypatch.setattr("medreason.models.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"no fastapi here; pip install 'medreason\[serve\]'"):
        start.check_engine(Engine.transformers)
