"""The Tab key: what a word that has been begun may become, and the same in a real bash."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medreason.completion import SCRIPTS, candidates, main
from support import ROOT

BASH = shutil.which("bash")
MISTRALS = ("fast_bf16", "fast_fp8", "fast_nf4", "fp8", "int8")
CASES = [
    ("medreason tr", ["train"]),
    ("medreason train mod", ["model=", "model."]),
    ("medreason train lora.r", ["lora.r=", "lora.rslora="]),
    ("medreason train optim.decay=", ["optim.decay=linear", "optim.decay=cosine", "optim.decay=constant"]),
    ("medreason train model=mistral_7b_", [f"model=mistral_7b_{one}" for one in MISTRALS]),
    ("medreason train lora.r=8 experiments=q", ["experiments=quickstart"]),
    ("medreason train -m sweeps=rank_g", ["sweeps=rank_grid"]),
    ("medreason train hydra.sweeper.pru", ["hydra.sweeper.pruner="]),
    ("medreason train data.col", ["data.columns."]),
    ("medreason train --m", ["--multirun"]),
    ("medreason evaluate base=", ["base=true", "base=false"]),
    ("medreason evaluate checkpoint=", ["checkpoint=best", "checkpoint=last", "checkpoint=null"]),
    ("medreason evaluate lora", []),
    ("medreason sample da", ["data="]),
    ("medreason completion b", ["bash"]),
    ("python -m medreason.train logger=m", ["logger=mlflow"]),
    ("python3 -m medreason train logger=m", ["logger=mlflow"]),
    ("/x/bin/python -m medreason.tr", ["medreason.train"]),
]


@pytest.mark.parametrize(("line", "words"), CASES)
def test_a_word_may_become_what_there_is(line: str, words: list[str]) -> None:
    assert candidates(line) == words


def test_a_free_value_and_a_strange_line_have_no_candidates() -> None:
    for line in ("medreason train data.path=", "medreason report ", "medreason nope x", "", "python -m", "python 病"):
        assert candidates(line) == []


def test_names_are_offered_a_step_at_a_time() -> None:
    offered = candidates("medreason train ")
    assert {"model=", "model.", "seed=", "experiments="} <= set(offered)
    assert len(offered) < 30 and len(set(offered)) == len(offered)


@pytest.mark.skipif(BASH is None, reason="no bash here")
@pytest.mark.parametrize("breaks", ["whole", "usual"])
@pytest.mark.parametrize(("line", "words"), [case for case in CASES if not case[0].startswith("/x")])
def test_a_real_bash_completes_the_same(line: str, words: list[str], breaks: str, tmp_path: Path) -> None:
    for name, more in (("medreason", " -m medreason"), ("python", ""), ("python3", "")):
        file = tmp_path / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{more} "$@"\n', encoding="utf-8")
        file.chmod(0o755)
    script = "\n".join(
        [
            'eval "$(medreason completion bash)"',
            "COMP_WORDBREAKS=$' \\t\\n\"\\'><;|&('" if breaks == "whole" else "COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'",
            f"COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE)",
            "complete -p ${COMP_WORDS[0]} >&2",
            '_medreason; for one in "${COMPREPLY[@]}"; do printf "<%s>\\n" "$one"; done',
        ]
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(BASH), "--norc", "-c", script], capture_output=True, encoding="utf-8", env=environment, cwd=ROOT
    )
    assert "-F _medreason" in done.stderr
    stop = line.rpartition("=")[0] if breaks == "usual" and "=" in line.split()[-1] else ""
    cut = len(stop.split()[-1]) + 1 if stop else 0
    expected = [f"<{word[cut:]}{'' if word.endswith(('=', '.')) else ' '}>" for word in words]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_one_that_the_shell_reads(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    assert subprocess.run([program, "-n"], input=SCRIPTS[shell], encoding="utf-8", capture_output=True).returncode == 0


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["tcsh"], ["query"], ["bash", "zsh"]):
        assert main(words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["--help"]) == 0
