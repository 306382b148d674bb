import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from medreason.config import Batching, ConfigError, EvaluateConfig, Method, Precision, typed
from medreason.core.json_lines import read_json_lines
from medreason.evaluate import run as evaluate_run
from medreason.evaluate.run import choose_batching, load_base_once, load_model
from medreason.inference.target import find_answerer
from support import ROOT, SHARED, TINY, run_command, run_train, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows_file: Path) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    # by the fast engine, for the many commands that follow: the import of Unsloth takes most of a short one's time
    engine = ["model.precision=bf16", "lora.dropout=0"]
    said = run_train(*tiny_run(run, rows_file, *engine, "trainer.max_steps=8", "trainer.answer_questions=0"))
    assert said.returncode == 0, said.stderr[-3000:]
    return run


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve questions of two subjects, in the form of the shared files."""
    path = tmp_path_factory.mktemp("questions") / "quiz.jsonl"
    rows = [
        {
            "id": f"q{index}",
            "question": f"Which value is {'too high' if index % 2 else 'normal'} in\u2028case\x85{index}?",
            "options": {"A": f"{index}", "B": f"{index + 1}", "C": "neither"},
            "answer": "ABC"[index % 3],
            "source": f"quiz/{'renal' if index < 5 else 'cardiac'}",
        }
        for index in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation" / name / "scores.json").read_text())
    return found


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return read_json_lines(run / "evaluation" / name / "quiz.jsonl")


def test_a_run_is_evaluated_and_compared_with_its_base(run: Path, questions: Path) -> None:
    base = run_command("evaluate", f"run={run}", f"benchmarks=[{questions}]", "base=true")
    assert base.returncode == 0, base.stderr[-3000:]
    said = run_command(
        "evaluate", f"run={run}", f"benchmarks=[{questions}]", f"against={run}/evaluation/likelihood_base"
    )
    assert said.returncode == 0, said.stderr[-3000:]
    found = scores(run, "likelihood")["scores"]["quiz"]
    records = lines(run, "likelihood")
    assert found["questions"] == 12
    assert found["correct"] == sum(record["choice"] == record["gold"] for record in records)
    assert found["interval"][0] < found["accuracy"] < found["interval"][1]
    assert {subject: part["questions"] for subject, part in found["subjects"].items()} == {"renal": 5, "cardiac": 7}
    assert all(sum(record["probabilities"].values()) == pytest.approx(1) for record in records)
    assert any(one["probabilities"] != other["probabilities"] for one, other in
               zip(records, lines(run, "likelihood_base"), strict=True)), "the adapter was not used"  # fmt: skip
    assert scores(run, "likelihood")["differences"]["quiz"]["questions"] == 12
    others = scores(run, "likelihood")["others"]
    assert others["scores"]["quiz"]["accuracy"] == scores(run, "likelihood_base")["scores"]["quiz"]["accuracy"]
    assert others["evaluated"]["base"] and 0 < found["chance"] < 1
    assert "no significant difference" in said.stdout.lower()
    assert (run / "evaluation" / "likelihood" / "scores.png").stat().st_size > 5000
    mixed = run_command(
        "evaluate", f"run={run}", f"benchmarks=[{questions}]", f"output={run}/evaluation/likelihood_base"
    )
    assert mixed.returncode == 2
    assert "holds answers with base=True, not False; give another output=DIR" in mixed.stderr


def test_an_interrupted_evaluation_goes_on_where_it_stopped(run: Path, questions: Path) -> None:
    place = run / "evaluation" / "likelihood" / "quiz.jsonl"
    before = lines(run, "likelihood")
    kept = before[:5]
    kept[0]["choice"] = "Z"  # it must not be asked again
    place.write_text("".join(json.dumps(record) + "\n" for record in kept) + '{"id": "q7", "cho')
    said = run_command("evaluate", f"run={run}", f"benchmarks=[{questions}]")
    assert said.returncode == 0, said.stderr[-3000:]
    assert "quiz: 12 questions, 7 to answer" in said.stdout
    after = {record["id"]: record for record in lines(run, "likelihood") if "gold" in record}
    assert after[kept[0]["id"]]["choice"] == "Z"
    for record in before[5:]:
        assert after[record["id"]]["probabilities"] == pytest.approx(record["probabilities"], abs=1e-3)  # in bfloat16


def test_written_answers_are_kept_and_no_answer_counts_as_wrong(run: Path, questions: Path) -> None:
    said = run_command(
        "evaluate", f"run={run}", f"benchmarks=[{questions}]", "method=generate", "limit=4", "max_new_tokens=8"
    )
    assert said.returncode == 0, said.stderr[-3000:]
    records, found = lines(run, "generate"), scores(run, "generate")["scores"]["quiz"]
    assert len(records) == found["questions"] == 4
    assert all(record["prompt"].startswith("<s>[INST]") for record in records)
    assert found["no_answer"] == sum(record["choice"] is None for record in records)
    assert found["correct"] <= 4 - found["no_answer"]
    assert "HuatuoGPT-o1's rule" in said.stdout


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["run=nowhere"], "run=nowhere: no run directory, adapter or model there"),
        (["benchmarks=[medqaa]"], "medqa"),
        (["benchmarks=[{questions},{questions}]"], "benchmarks: two of them are called quiz"),
        (["benchmarks=[]"], "benchmarks must name at least one"),
        (["against=nowhere"], "against=nowhere: no evaluation there"),
        (["limits=3"], "limits: no such setting (did you mean limit?)"),
        (
            ["benchmarks=[clinical_cases]"],
            "benchmarks=clinical_cases: its answers have no letters",
        ),
        (["samples=3"], "samples must be 1 where nothing is written (method=generate), got 3"),
        (["orders=0"], "orders must be positive, got 0"),
        (["served_model=m"], "served_model must be null without server=URL, got 'm'"),
        (["server=http://127.0.0.1:9/v1"], "server must be null where nothing is written (method=generate)"),
        (
            ["server=http://127.0.0.1:9/v1", "method=generate", "base=true"],
            "base must be left out where a server writes",
        ),
        (["server=http://127.0.0.1:9/v1", "method=generate"], "server=http://127.0.0.1:9/v1: no list of models there"),
    ],
)
def test_a_mistake_is_one_line(run: Path, questions: Path, overrides: list[str], said: str) -> None:
    given = [one.format(questions=questions) for one in overrides]
    told = run_command("evaluate", f"run={run}", f"benchmarks=[{questions}]", *given)
    assert told.returncode == 2, told.stderr[-2000:]
    assert said in told.stderr.splitlines()[-1]
    assert len(told.stderr.splitlines()) == 1


def test_a_setting_that_must_be_given_is_asked_for() -> None:
    told = run_command("evaluate")
    assert (told.returncode, told.stderr) == (2, "medreason.evaluate: run must be given: run=VALUE\n")


def test_what_a_run_held_out_and_rule_made_cases_are_benchmarks(run: Path) -> None:
    said = run_command("evaluate", f"run={run}", "benchmarks=[held_out]")
    assert said.returncode == 0, said.stderr[-3000:]
    found = scores(run, "likelihood")["scores"]["held_out"]
    logged = json.loads((run / "run.json").read_text())["results"]["val_loss_after"]
    assert found["loss"]["mean"] == pytest.approx(logged, rel=2e-3)
    written = run_command(
        "evaluate", f"run={run}", "benchmarks=[clinical_cases,held_out]", "method=generate", "limit=3",
        "max_new_tokens=4", "samples=2", f"output={run}/evaluation/sampled",
    )  # fmt: skip
    assert written.returncode == 0, written.stderr[-3000:]
    found = scores(run, "sampled")["scores"]
    assert found["clinical_cases"]["questions"] == 3 and "calibration" in found["clinical_cases"]
    assert "accuracy" not in found["held_out"] and found["held_out"]["format"]["accuracy"] == 0
    assert "reasoning, then answer" in written.stdout


def test_options_in_several_orders_are_asked_and_scored(run: Path, questions: Path) -> None:
    place = f"output={run}/evaluation/orders"
    said = run_command("evaluate", f"run={run}", f"benchmarks=[{questions}]", "orders=3", place)
    assert said.returncode == 0, said.stderr[-3000:]
    records = lines(run, "orders")
    assert all(len(record["choices"]) == 3 for record in records)
    assert "all choices agree" in said.stdout
    assert scores(run, "orders")["scores"]["quiz"]["agreement"]["questions"] == 12


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared rows")
def test_another_order_of_options_changes_a_real_models_score_within_noise_only(tmp_path: Path) -> None:
    rows = read_json_lines(SHARED / "mcq_mmlu_medical_test.jsonl")[::36]
    turned = []
    for row in rows:
        texts = list(row["options"].values())
        options = dict(zip("ABCD", [*texts[1:], texts[0]], strict=True))
        turned.append(row | {"options": options, "answer": "ABCD"["BCDA".index(row["answer"])]})
    found: list[Path] = []
    for name, asked in (("mmlu", rows), ("turned", turned)):
        folder = tmp_path / name
        folder.mkdir()
        path = folder / "mmlu.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in asked))
        more = [f"against={found[0]}"] if found else []
        told = run_command(
            "evaluate", "run=embedded:smollm2_135m", f"benchmarks=[{path}]", f"output={folder}/out", *more
        )
        assert told.returncode == 0, told.stderr[-3000:]
        found.append(folder / "out")
    pair = json.loads((found[1] / "scores.json").read_text())["differences"]["mmlu"]
    assert pair["questions"] == len(rows) > 30
    assert "no significant difference" in pair["in_words"]


def test_a_stressed_score_stands_beside_the_plain_one(run: Path, questions: Path) -> None:
    assert run_command("evaluate", f"run={run}", f"benchmarks=[{questions}]").returncode == 0
    said = run_command("evaluate", f"run={run}", f"benchmarks=[{questions}]", "stress=none_of_above")
    assert said.returncode == 0, said.stderr[-3000:]
    assert all("None of the above" in record["prompt"] for record in lines(run, "likelihood_none_of_above"))
    assert not any("None of the above" in record["prompt"] for record in lines(run, "likelihood"))
    pair = scores(run, "likelihood_none_of_above")["differences"]["quiz"]
    assert pair["questions"] == 12 and f"quiz, against {run}/evaluation/likelihood: " in said.stdout.replace("\n", "")


def test_a_wrong_answer_in_a_models_mouth_is_part_of_what_is_read(run: Path, questions: Path) -> None:
    asked = [f"run={run}", f"benchmarks=[{questions}]", "method=generate", "limit=3", "max_new_tokens=4"]
    said = run_command("evaluate", *asked, "stress=prefill")
    assert said.returncode == 0, said.stderr[-3000:]
    for record in lines(run, "generate_prefill"):
        wrong = {"A": "B", "B": "C", "C": "A"}[record["gold"]]
        assert record["text"].startswith(f"<think>\nThe answer is {wrong}.") and record["prompt"].endswith(f"{wrong}.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stress=prefill"], "stress must be none_of_above or null where nothing is written here"),
        (["stress=none_of_above", "benchmarks=[held_out]"], "stress=none_of_above: held_out has no options"),
        (["stress=wrong"], "expected one of [none_of_above, prefill]; full_key: stress"),
    ],
)
def test_a_stress_that_cannot_be_is_one_line(run: Path, questions: Path, words: list[str], said: str) -> None:
    given = [] if any(word.startswith("benchmarks") for word in words) else [f"benchmarks=[{questions}]"]
    told = run_command("evaluate", f"run={run}", *given, *words)
    assert told.returncode == 2 and said in told.stderr and told.stderr.count("\n") == 1


MISTRAL_7B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "vocab_size": 32768, "model_type": "mistral"}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "capability", "gib", "batching"),
    [
        (MISTRAL_7B, (9, 0), 80, Batching.continuous),
        (MISTRAL_7B, (8, 6), 24, Batching.continuous),
        (MISTRAL_7B, (8, 6), 16, Batching.static),
        (MISTRAL_7B, (8, 9), 8, Batching.static),
        (MISTRAL_7B, (7, 5), 80, Batching.static),
        (MISTRAL_7B | {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}, (8, 6), 8,
         Batching.continuous),
        (MISTRAL_7B | {"model_type": "of another form"}, (9, 0), 80, Batching.static),
        (MISTRAL_7B, None, 0, Batching.continuous),
        ({}, None, 0, Batching.static),
    ],
)  # fmt: skip
def test_answers_are_written_continuously_where_a_card_has_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], capability: tuple[int, int] | None,
    gib: int, batching: Batching,
) -> None:  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (gib * 2**29, gib * 2**30))
    model = replace(TINY, path=str(tmp_path))
    assert choose_batching(None, model, {}) is batching
    assert choose_batching(Batching.static, model, {"batching": "continuous"}) is Batching.static
    assert choose_batching(None, model, {"batching": "static"}) is Batching.static  # what is there is gone on with
    if settings.get("model_type") == "mistral":
        assert choose_batching(None, model, {"batching": "continuous"}) is Batching.continuous
    else:
        with pytest.raises(ConfigError, match=r"does not know .* models; use batching=static"):
            choose_batching(Batching.continuous, model, {})
    if capability is None:  # in 4 bits, which continuous batching would widen to 32
        assert choose_batching(None, replace(model, precision=Precision.nf4), {}) is Batching.static


@pytest.mark.parametrize("method", [Method.likelihood, Method.generate])
def test_a_base_is_loaded_once_for_itself_and_its_run(
    taught_run: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    plain = load_model
    loaded = []

    def watched(*what: Any) -> Any:
        loaded.append(what[1].adapter)
        return plain(*what)

    monkeypatch.setattr(evaluate_run, "load_model", watched)
    usual: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "evaluate.yaml"))
    values = {name: value for name, value in usual.items() if name not in ("defaults", "hydra")}
    config = typed(EvaluateConfig, values | {"run": str(taught_run), "method": method.value})
    base, run = find_answerer(str(taught_run), base=True), find_answerer(str(taught_run))
    tokens = torch.arange(3, 40)[None]

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
        return found

    load = load_base_once()
    before = logits(load(config, base, Batching.continuous))
    after = logits(load(config, run, Batching.continuous))
    assert loaded == [None] and not torch.equal(before, after)
    assert torch.equal(after, logits(plain(config, run, Batching.continuous)))
    assert torch.equal(before, logits(plain(config, base, Batching.continuous)))
    alone = load_base_once()  # where a base has answered before, in another command
    assert torch.equal(after, logits(alone(config, run, Batching.continuous)))
