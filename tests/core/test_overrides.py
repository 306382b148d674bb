"""Values that people have, as words of Hydra's command line and back."""

import io
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from medreason.config import ConfigError, EvaluateConfig, Packing, TrainConfig
from medreason.core.overrides import agents_overrides, as_meant, command_line, override, shell_word, spelled
from medreason.core.run_directory import run_config, settings_of, write_settings
from medreason.sweep.space import read_space
from support import composed

TEXTS = [
    "/d/run=1/rows.jsonl", "/d/a,b.jsonl", "/d/a b.jsonl", " /d/ends in blanks ", "/d/it's.jsonl", '/d/"so".jsonl',
    "/d/$HOME.jsonl", "/d/${HOME}.jsonl", "\\${x}", "a\\\\${x", "${", "/d/{a}.jsonl", "/d/[1].jsonl", "[a,b]", "{a:b}",
    "/d/#1.jsonl", "~/rows.jsonl~", "C:\\d\\rows.jsonl", "ends in \\", "\\\\'", "/d/病例/行.jsonl", "/d/😀.jsonl",
    "/d/a\u3000b.jsonl", "/d/e\u0301.jsonl", "", "null", "Null", "true", "FALSE", "inf", "-nan", "1e5", "1_000", "007",
    "12", "-0.5", "a:b", "a;b|c&d<e>f`g`!^", "choice(1,2)", "range(3)", "a(b", "two\nlines", "tab\there", "a%b", "*",
    "/d/\udcff.jsonl", "don't \"mix\" \\'quotes\\\"", "x" * 200,
]  # fmt: skip


class Letter(Enum):
    off = "off"


def test_texts_compose_to_themselves_alone_in_a_list_and_in_a_dictionary() -> None:
    mix = [{"path": "x" + text, "name": text, "weight": 0.5} for text in TEXTS]
    config = composed("data=local", "data.path=x", override("logger.tags", TEXTS), override("data.mix", mix))
    assert config.logger.tags == TEXTS
    assert [(one.path, one.name) for one in config.data.mix] == [("x" + text, text) for text in TEXTS]
    for text in TEXTS:
        read = OverridesParser.create().parse_override(override("data.path", text)).value()
        assert OmegaConf.to_container(OmegaConf.create({"path": read}), resolve=True) == {"path": text}


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -7, 10**30, 1e-4, 1e30, -2.5, float("inf"), [], {}, [None, True, "null", "true", 1, "1"],
        [["a", "b"], ["c d"]], {"a": None, "b": [1, {"c": "x y"}], "d": "1e5"}, Letter.off, ("a", "b"), Path("/d/a b"),
    ],
)  # fmt: skip
def test_a_value_of_any_kind_is_read_as_it_was(value: Any) -> None:
    read = OverridesParser.create().parse_override(override("x", value)).value()
    expected = {Letter.off: "off", ("a", "b"): ["a", "b"], Path("/d/a b"): "/d/a b"}.get(
        value if isinstance(value, Letter | tuple | Path) else None, value
    )
    assert read == expected
    assert type(read) is type(expected)


def test_common_values_stay_as_people_write_them() -> None:
    assert override("model.path", "embedded:tiny") == "model.path=embedded:tiny"
    assert override("data.path", "runs/a-b_1.2/rows.jsonl") == "data.path=runs/a-b_1.2/rows.jsonl"
    assert override("optim.lr", 2e-05) == "optim.lr=2e-05"
    assert override("lora.target_modules", ["q_proj", "v_proj"]) == "lora.target_modules=[q_proj,v_proj]"
    assert override("data.packing", Packing.off) == "data.packing=off"


def test_a_command_pasted_into_a_shell_hands_over_the_same_words() -> None:
    words = [override("data.path", text) for text in TEXTS] + [f"ckpt={text}" for text in TEXTS]
    line = command_line("train", words)
    assert "\n" not in line
    shown = f"{sys.executable} -c 'import sys; print([ascii(word) for word in sys.argv[1:]])'"
    pasted = line.replace("python -m medreason.train", shown, 1)
    said = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, check=True)
    assert eval(said.stdout) == [ascii(word) for word in words]


def test_settings_stand_in_a_runs_file_as_they_are_and_are_read_again(tmp_path: Path) -> None:
    config = composed(override("logger.tags", TEXTS), override("model.chat_template", "${a}{% b %}"))
    write_settings(config, tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == settings_of(config)
    assert run_config(tmp_path) == config


def test_values_of_a_sweep_arrive_in_its_trials_as_they_were() -> None:
    import optuna

    values: list[Any] = [None, True, 3, 1e-4, *TEXTS, ["q_proj", "v proj"], ["null"], [None], {"k": "a,b"}]
    for sweep in (f"x={','.join(map(spelled, values))}", f"x=choice({','.join(map(spelled, values))})"):
        space, _ = read_space({}, [as_meant(sweep, TrainConfig)])
        study = optuna.create_study()
        for value in values:
            study.enqueue_trial({"x": value})
            found = study.ask(space).params["x"]
            again = OverridesParser.create().parse_override(f"x={spelled(found)}").value()
            assert again == value
            assert type(again) is type(value)


def test_a_command_can_be_pasted_from_a_terminal_that_lacks_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    form = shell_word("data.path='/d/病 é.jsonl'")
    assert form.isascii()
    said = subprocess.run(["bash", "-c", f"printf %s {form}"], capture_output=True, encoding="utf-8", check=True)
    assert said.stdout == "data.path='/d/病 é.jsonl'"


@pytest.mark.parametrize(
    ("word", "works"),
    [
        ("data.path=/d/病例/x.jsonl", "/d/病例/x.jsonl"),
        ("data.path=/d/#1.jsonl", "/d/#1.jsonl"),
        ("data.path=/d/a (1).jsonl", "/d/a (1).jsonl"),
        ("data.path=/d/it's.jsonl", "/d/it's.jsonl"),
        ("data.path=~/x.jsonl", "~/x.jsonl"),
        ("data.path=/d/run=1/x.jsonl", "/d/run=1/x.jsonl"),
        ("data.path=[1].jsonl", "[1].jsonl"),
        ("data.path=😀,{b}", "😀,{b}"),
        ("+data.path=/d/病.jsonl", "/d/病.jsonl"),
        ("model.chat_template={{ bos_token }}", "{{ bos_token }}"),
        ("data.benchmarks=[/d/病.jsonl,b.jsonl]", ["/d/病.jsonl", "b.jsonl"]),
        ("data.benchmarks=['/d/a, b.jsonl',~/b.jsonl]", ["/d/a, b.jsonl", "~/b.jsonl"]),
        (
            "data.mix=[{path:/d/病.jsonl,weight:0.5},{path:#2}]",
            [{"path": "/d/病.jsonl", "weight": 0.5}, {"path": "#2"}],
        ),
        ("hydra.run.dir=runs/病例", "runs/病例"),
        ("experiments=试", "试"),
    ],
)
def test_what_hydra_cannot_read_is_answered_with_the_quoted_form_that_works(word: str, works: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        as_meant(word, TrainConfig)
    told, _, form = str(refused.value).partition("; write ")
    assert "quotes" in told
    said = subprocess.run(["bash", "-c", f"printf %s {form}"], capture_output=True, text=True, check=True)
    assert OverridesParser.create().parse_override(as_meant(said.stdout, TrainConfig)).value() == works


def test_of_several_values_each_is_quoted() -> None:
    with pytest.raises(ConfigError, match=r"write 'data\.path=choice\(\"/d/病\.jsonl\",/d/b\.jsonl\)'"):
        as_meant("data.path=choice(/d/病.jsonl,/d/b.jsonl)", TrainConfig)


@pytest.mark.parametrize("word", ["lora.r=病", "lora.target_modules=[q_proj", "optim.lr=1#", "a\nb", "病", "data.path"])
def test_what_no_quotes_mend_is_one_line_without_advice_on_quotes(word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        as_meant(word, TrainConfig)
    assert "write '" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_text_that_looks_like_a_number_is_the_text() -> None:
    assert composed(as_meant("model.revision=1e10", TrainConfig)).model.revision == "1e10"
    assert composed(as_meant("logger.name=1_000", TrainConfig)).logger.name == "1_000"
    assert composed(as_meant("logger.name=null", TrainConfig)).logger.name is None
    assert as_meant("hydra.run.dir=2026_01", TrainConfig) == 'hydra.run.dir="2026_01"'
    for other in ("lora.r=16", "optim.lr=1e-4", "hydra.launcher.n_jobs=2", "lora.alpha=2r", "data.name=en,zh"):
        assert as_meant(other, TrainConfig) == other


def test_home_is_found_wherever_a_path_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = composed(
        "data=local", "data.path='~/a.jsonl'", "model.path='~/m'", "ckpt='~/c.ckpt'", "data.benchmarks=['~/b.jsonl']",
        "data.mix=[{path:'~/d.jsonl'}]",
    )  # fmt: skip
    assert (config.data.path, config.model.path, config.ckpt) == tuple(
        f"{tmp_path}/{x}" for x in ("a.jsonl", "m", "c.ckpt")
    )
    assert (config.data.benchmarks, config.data.mix[0].path) == ([f"{tmp_path}/b.jsonl"], f"{tmp_path}/d.jsonl")
    assert as_meant("hydra.run.dir='~/runs/a b'", TrainConfig) == f'hydra.run.dir="{tmp_path}/runs/a b"'
    assert as_meant("hydra.sweep.dir='~/s'", TrainConfig) == f"hydra.sweep.dir={tmp_path}/s"
    assert composed("data=local", "data.path='~nobody-here/x'").data.path == "~nobody-here/x"


def test_what_an_agent_of_wandb_writes_as_python_does_is_written_for_hydra() -> None:
    given = {"lora.r": 8, "lora.rslora": True, "model.chat_template": None, "data.path": "/d/病 例.jsonl",
             "lora.target_modules": ["q_proj", "v_proj"], "optim.lr": 1e-5}  # fmt: skip
    words = ["logger=wandb", *(f"{name}={value}" for name, value in given.items())]
    found = composed("data=local", *agents_overrides(words, given)[1:])
    assert (found.lora.r, found.lora.rslora, found.model.chat_template, found.optim.lr) == (8, True, None, 1e-5)
    assert (found.data.path, found.lora.target_modules) == ("/d/病 例.jsonl", ["q_proj", "v_proj"])
    assert agents_overrides(words, given)[0] == "logger=wandb"


@pytest.mark.parametrize(
    ("word", "schema", "meant"),
    [
        ("benchmarks=medqa", EvaluateConfig, "benchmarks=[medqa]"),
        ("benchmarks=medqa,pubmedqa", EvaluateConfig, "benchmarks=[medqa,pubmedqa]"),
        ("benchmarks=[medqa,pubmedqa]", EvaluateConfig, "benchmarks=[medqa,pubmedqa]"),
        ("benchmarks='[medqa,pubmedqa]'", EvaluateConfig, "benchmarks=[medqa,pubmedqa]"),
        ("benchmarks=cais/mmlu:anatomy", EvaluateConfig, "benchmarks=[cais/mmlu:anatomy]"),
        ("benchmarks='a,b.jsonl'", EvaluateConfig, 'benchmarks=["a,b.jsonl"]'),
        ("benchmarks='病例.jsonl'", EvaluateConfig, 'benchmarks=["病例.jsonl"]'),
        ("data.benchmarks=medqa.jsonl", TrainConfig, "data.benchmarks=[medqa.jsonl]"),
        ("data.benchmarks=a.jsonl,b.jsonl", TrainConfig, "data.benchmarks=[a.jsonl,b.jsonl]"),
        ("data.case_kinds=null", TrainConfig, "data.case_kinds=null"),
        ("optim.betas=0.9,0.95", TrainConfig, "optim.betas=[0.9,0.95]"),
        ("lora.target_modules=q_proj,v_proj", TrainConfig, "lora.target_modules=[q_proj,v_proj]"),
        ("logger.tags=first", TrainConfig, "logger.tags=[first]"),
        ("logger.tags=${x}", TrainConfig, "logger.tags=${x}"),
        ("data.mix=a.jsonl", TrainConfig, "data.mix=[{path:a.jsonl}]"),
        ("data.mix=a.jsonl,b.jsonl", TrainConfig, "data.mix=[{path:a.jsonl},{path:b.jsonl}]"),
        ("data.mix=[{path:a.jsonl}]", TrainConfig, "data.mix=[{path:a.jsonl}]"),
        ("data.mix=[]", TrainConfig, "data.mix=[]"),
    ],
)
def test_a_list_needs_no_brackets(word: str, schema: type, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", word])
    assert as_meant(word, schema) == meant


def test_in_a_sweep_a_comma_is_between_values_of_a_list_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ("--multirun", "sweeps=rank_grid", "hydra.mode=MULTIRUN"):
        monkeypatch.setattr(sys, "argv", ["train.py", more])
        assert as_meant("data.benchmarks=a.jsonl,b.jsonl", TrainConfig) == "data.benchmarks=[a.jsonl],[b.jsonl]"
        assert as_meant("data.benchmarks=[a.jsonl,b.jsonl],c.jsonl", TrainConfig) == (
            "data.benchmarks=[a.jsonl,b.jsonl],[c.jsonl]"
        )
        assert as_meant("data.case_kinds=null,[x]", TrainConfig) == "data.case_kinds=null,[x]"
        assert as_meant("data.path=a.jsonl,b.jsonl", TrainConfig) == "data.path=a.jsonl,b.jsonl"


@pytest.mark.parametrize("word", ["data.path=a.jsonl,b.jsonl", "data.path=[a.jsonl,b.jsonl]"])
def test_several_files_are_told_to_be_mixed(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", word])
    with pytest.raises(ConfigError, match=r"mixed with it: data\.path=a\.jsonl 'data\.mix=\[\{path:b\.jsonl\}\]'$"):
        as_meant(word, TrainConfig)
