"""What a second stage on a model's own right answers brings (STaR), by this project's own commands.

usage: rejection_sampling.py OUT_FOLDER [MODEL] [TAUGHT] [POOL] [UNSEEN] [STEPS] [SAMPLES] [SETTING...]
       MODEL is an option of conf/model, smollm2_135m without; SETTINGs go to both training runs.

Rule-made cases are parted in three: TAUGHT with their reasoning, POOL with their answers alone, UNSEEN to be scored.

    first     the base, trained on the taught cases for half of STEPS: half-trained
    sampled   its right answers to the pool, SAMPLES tries each
    longer    the base, trained on the taught cases for STEPS: what more steps alone bring
    second    the base, trained on the taught cases and what was sampled for STEPS

Each then answers the unseen cases, greedily and by exact match; McNemar's exact test compares them case by case.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package is not installed
from medreason.core.json_lines import json_lines, read_json_lines
from medreason.core.run_directory import provenance, read_json, write_json
from medreason.data.clinical_cases import generate_cases
from medreason.models.prompts import Example
from medreason.report.statistics import in_words, mcnemar, paired_difference, wilson

KINDS = ["kidney_stage", "body_mass", "diabetes"]
SEED = 99
WRITING = ["max_new_tokens=80", "batch=64", "batching=static"]


def carry_out(name: str, *words: str) -> None:
    """`python -m medreason.NAME WORDS`. Raises CalledProcessError where it fails."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", f"medreason.{name}", *words], check=True)
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def write_cases(path: Path, cases: Sequence[Example], columns: Sequence[str]) -> None:
    rows: list[Mapping[str, Any]] = [{name: getattr(case, name) for name in columns} for case in cases]
    path.write_text(json_lines(rows), encoding="utf-8")


def right(folder: Path) -> dict[str, bool]:
    return {one["id"]: one["right"][0] for one in read_json_lines(folder / "answers.jsonl")}


def main(
    out: str,
    model: str = "smollm2_135m",
    taught: str = "60",
    pool: str = "120",
    unseen: str = "200",
    steps: str = "88",
    samples: str = "8",
    *settings: str,
) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    counts = [int(taught), int(pool), int(unseen)]
    cases = generate_cases(sum(counts), SEED, KINDS)
    whole, pair = ("question", "reasoning", "answer"), ("question", "answer")
    write_cases(folder / "taught.jsonl", cases[: counts[0]], whole)
    write_cases(folder / "pool.jsonl", cases[counts[0] : counts[0] + counts[1]], pair)
    write_cases(folder / "unseen.jsonl", cases[-counts[2] :], pair)

    def train(name: str, how_long: int, *rows: str) -> None:
        if (folder / name / "adapter").is_dir():  # this command goes on after a kill
            return
        ends = [f"trainer.max_steps={how_long}", f"trainer.validate_every_steps={how_long}", "trainer.max_epochs=999"]
        usual = [
            "experiments=quickstart",
            f"model={model}",
            "data=local",
            "data.deduplicate=off",
            "data.row_tokens=256",
        ]
        where = f"hydra.run.dir={folder / name}"
        carry_out("train", *usual, "data.case_kinds=null", "trainer.answer_questions=0", *ends, *rows, *settings, where)

    def score(name: str) -> None:
        asked = [f"run={folder / name}", f"data={folder / 'unseen.jsonl'}", "samples=1", *WRITING]
        carry_out("sample", *asked, f"output={folder / name / 'unseen'}")

    learned = f"data.path={folder / 'taught.jsonl'}"
    train("first", max(int(steps) // 2, 1), learned)
    carry_out(
        "sample", f"run={folder / 'first'}", f"data={folder / 'pool.jsonl'}", f"samples={samples}", "keep=1", *WRITING
    )
    rows = folder / "first" / "sampled" / "rows.jsonl"
    if not read_json_lines(rows):
        raise SystemExit("first: no right answer to learn from; give more STEPS")
    train("longer", int(steps), learned)
    train("second", int(steps), f"data.path={rows}", f"data.mix=[{{path:{folder / 'taught.jsonl'}}}]")
    for name in ("first", "longer", "second"):
        score(name)
    report(folder)


def report(folder: Path) -> None:
    """Prints and writes down what each answered right."""
    found = {name: right(folder / name / "unseen") for name in ("first", "longer", "second")}
    ids = sorted(found["first"])
    scores = {name: [each[id] for id in ids] for name, each in found.items()}
    results: dict[str, Any] = {"provenance": provenance(), "sampled": read_json(
        folder / "first" / "sampled" / "sample.json")["counts"], "right": {}, "second against": {}}  # fmt: skip
    print(json.dumps(results["sampled"]))
    for name, each in scores.items():
        low, high = wilson(sum(each), len(each))
        results["right"][name] = sum(each) / len(each)
        print(f"{name}: {sum(each)} of {len(each)} right ({sum(each) / len(each):.1%}, {low:.1%} to {high:.1%})")
    for name in ("first", "longer"):
        difference, low, high = paired_difference(scores["second"], scores[name])
        p = mcnemar(scores["second"], scores[name])
        results["second against"][name] = {"points": 100 * difference, "interval": [low, high], "p": p}
        print(f"second against {name}: {in_words(scores['second'], scores[name])}, {100 * difference:+.1f} points, "
              f"p = {p:.2g}")  # fmt: skip
    write_json(folder / "rejection_sampling.json", results)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
