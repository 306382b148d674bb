"""What a CPU cannot show, on whatever GPUs are here: `make test-gpu`, or `python tests/gpu.py [FOLDER]`.

Kernels against their plain twins; a short run of every engine and every way of holding and multiplying weights; a run
that is killed and goes on; float16; with two GPUs or more, each engine on two. Nothing is fetched: the model is small
and has random weights, the rows are made by rule. Logs lie in FOLDER. A table last; exit code 1 where anything failed.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = min(8, max(2, (os.cpu_count() or 2) // 4))  # runs that share the GPUs: each is mostly imports
SECONDS = 200  # for each
FAST = "model.engine=fast"


@dataclass(frozen=True)
class Check:
    """Something to try: its name, the overrides of a run, and the compute capability that it needs."""

    name: str
    overrides: tuple[str, ...]
    capability: tuple[int, int] = (0, 0)


ONE_GPU = (
    Check("Unsloth, 4-bit", ("model.precision=nf4",)),
    Check("Unsloth, 8-bit", ("model.precision=int8",)),
    Check("Unsloth, 16-bit", ("model.precision=half",)),
    Check("Unsloth, float16 with a scaled loss", ("model.precision=half", "trainer.precision=16-mixed")),
    Check("fast, held in nf4, multiplied as the GPU can", (FAST, "model.precision=nf4"), (8, 0)),
    Check("fast, nf4, full recomputation", (FAST, "model.precision=nf4", "trainer.recompute=full"), (8, 0)),
    Check("fast, nf4 in bf16", (FAST, "model.precision=nf4", "model.compute_dtype=bf16"), (8, 0)),
    Check("fast, fp8", ("model.precision=fp8",), (8, 9)),
    Check("fast, fp8 in bf16", ("model.precision=fp8", "model.compute_dtype=bf16"), (8, 0)),
    Check("fast, bf16", ("model.precision=bf16",), (8, 0)),
    Check("fast, bf16 in fp8", ("model.precision=bf16", "model.compute_dtype=fp8"), (8, 9)),
)
TRIALS = (
    Check("trials of one process: Unsloth, 4-bit", ("model.precision=nf4",)),
    Check("trials of one process: fast, fp8", ("model.precision=fp8",), (8, 9)),
)
TWO_GPUS = (
    Check("two GPUs: Unsloth, 4-bit", ("model.precision=nf4",)),
    Check("two GPUs: fast, nf4", (FAST, "model.precision=nf4"), (8, 0)),
    Check("two GPUs: fast, fp8", ("model.precision=fp8",), (8, 9)),
    Check("two GPUs: fast, bf16", ("model.precision=bf16",), (8, 0)),
)


@dataclass(frozen=True)
class Outcome:
    name: str
    how: str  # passed, failed or skipped
    seconds: float = 0.0
    told: str = ""


def write_model(folder: Path) -> None:
    """The tiny model's tokenizer with four layers whose heads are as wide as attention's kernels have them."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    from medreason.models import embedded

    tokenizer = AutoTokenizer.from_pretrained(embedded.materialize("tiny"))
    tokenizer.save_pretrained(folder)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=4096, sliding_window=None,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)


def command(model: Path, run: Path, *overrides: str) -> list[str]:
    return [
        sys.executable, "-m", "medreason.train", f"model.path={model}", "data=clinical_cases", "data.cases=300",
        "data.row_tokens=1024", "optim.lr=2e-3", "optim.warmup_steps=2", "trainer.max_steps=16", "trainer.max_epochs=9",
        "trainer.validate_every_steps=8", "trainer.checkpoint_every_steps=4", "trainer.answer_questions=2",
        "trainer.max_answer_tokens=8", f"hydra.run.dir={run}", *overrides,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def carry_out(words: list[str], log: Path) -> int:
    with log.open("a", encoding="utf-8") as out:
        try:
            return subprocess.run(
                words, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(), timeout=SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            out.write(f"\nstopped after {SECONDS} s\n")
            return 124


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:150] if lines else "said nothing"


def losses(run: Path) -> list[float]:
    from medreason.core.run_directory import read_metrics, series

    return series(read_metrics(run / "metrics.csv"), "train/loss")[1]


def judged(run: Path) -> tuple[bool, str]:
    """Whether a run ended as it should, and a line on it."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    found = losses(run)
    fell = len(found) == 16 and sum(found[-4:]) < 0.9 * sum(found[:4])
    results = record["results"]
    told = f"loss {found[0]:.3f} -> {found[-1]:.3f}, held out {results['val_loss_after']:.3f}"
    if (expected := record.get("memory")) is not None:
        told += f", {results['peak_memory_gib']:.2f} GiB ({expected['expected_gib']:.2f} expected)"
    return record["status"] == "finished" and fell, told


def file_name(check: Check) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in check.name)


def trains(check: Check, model: Path, folder: Path, *more: str) -> tuple[bool, str]:
    name = file_name(check)
    run, log = folder / name, folder / f"{name}.log"
    if carry_out(command(model, run, *check.overrides, *more), log):
        return False, last_line(log)
    return judged(run)


def goes_on_after_a_kill(model: Path, folder: Path) -> tuple[bool, str]:
    """A run killed after its first checkpoint, and gone on with, has the losses of one that was left alone."""
    run, whole, log = folder / "killed", folder / "whole", folder / "killed.log"
    settings = ["trainer.max_steps=40", "optim.decay=constant"]
    if carry_out(command(model, whole, *settings), folder / "whole.log"):
        return False, last_line(folder / "whole.log")
    with log.open("w", encoding="utf-8") as out:
        started = subprocess.Popen(
            command(model, run, *settings), stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(),
            start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + SECONDS
        while not (run / "checkpoints" / "last.ckpt").is_file() and started.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(started.pid, signal.SIGKILL)
        code = started.wait()
    if code != -signal.SIGKILL:
        return False, f"ended by itself before it was killed ({code}): {last_line(log)}"
    if carry_out([sys.executable, "-m", "medreason.train", f"resume={run}"], log):
        return False, last_line(log)
    resumed, straight = losses(run), losses(whole)
    apart = max(abs(one - other) / other for one, other in zip(resumed, straight, strict=True))
    return apart < 0.01, f"{len(resumed)} steps, losses within {apart:.2%} of an undisturbed run's"


def share_a_base(check: Check, model: Path, folder: Path) -> tuple[bool, str]:
    """Trials of one process end as a run alone does, and begin sooner."""
    name, overrides = file_name(check), check.overrides
    sweep, alone, log = folder / name, folder / f"{name}_alone", folder / f"{name}.log"
    words = [one for one in command(model, alone, *overrides) if not one.startswith("hydra.run.dir")]
    searched = ["lora.r=choice(4,16,64)", "lora.alpha=16", "hydra.sweeper.pruner=none"]
    if carry_out([*words, "sweeps=rank_alpha_lr", *searched, f"hydra.sweep.dir={sweep}"], log):
        return False, last_line(log)
    runs = sorted(one.parent for one in sweep.glob("[0-9]/run.json"))
    records = [json.loads((one / "run.json").read_text(encoding="utf-8")) for one in runs]
    logs = [(one / "train.log").read_text(encoding="utf-8") for one in runs]
    if len({process for said in logs for process in re.findall(r"\(process (\d+)\)", said)}) != 1:
        return False, "the trials had processes of their own"
    rank = next(word for word in records[-1]["overrides"] if word.startswith("lora.r="))
    if carry_out(command(model, alone, *overrides, rank, "lora.alpha=16"), log):
        return False, last_line(log)
    shared, straight = losses(runs[-1]), losses(alone)
    apart = max(abs(one - other) / other for one, other in zip(shared, straight, strict=True))
    began = [first_second(one / "train.log") for one in (*runs, alone)]
    memory = [record["results"]["peak_memory_gib"] for record in records]
    told = f"{began[-1]:.0f} s to begin alone, {began[0]:.0f}, {began[1]:.1f}, {began[2]:.1f} s in one process"
    return apart < 0.01, f"{told}; losses within {apart:.2%}; {', '.join(f'{one:.2f}' for one in memory)} GiB"


def first_second(log: Path) -> float:
    """When a run had its model, in seconds after it began."""
    found = re.search(r"\[ *([\d.]+) s\] training ", log.read_text(encoding="utf-8"))
    return float(found[1]) if found else float("nan")


def kernels(folder: Path) -> tuple[bool, str]:
    log = folder / "kernels.log"
    files = ["tests/engine/kernel_twins.py", "tests/inference/test_slots.py"]
    code = carry_out([sys.executable, "-m", "pytest", *files, "-q"], log)
    return code == 0, last_line(log)


def outcome(name: str, tried: Callable[[], tuple[bool, str]]) -> Outcome:
    start = time.monotonic()
    try:
        passed, told = tried()
    except Exception as error:  # whatever it is, the others go on
        passed, told = False, f"{type(error).__name__}: {error}"[:150]
    found = Outcome(name, "passed" if passed else "FAILED", time.monotonic() - start, told)
    print(f"{found.how:8} {found.name} ({found.seconds:.0f} s)", flush=True)
    return found


def main(folder: Path) -> int:
    import torch

    if not torch.cuda.is_available():
        print("there is no CUDA GPU here; make test is for a CPU")
        return 2
    devices, capability = torch.cuda.device_count(), torch.cuda.get_device_capability()
    print(f"{devices} x {torch.cuda.get_device_name()}, torch {torch.__version__}; logs in {folder}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    write_model(model)
    missing = [
        Outcome(check.name, "skipped", told=f"needs compute capability {check.capability[0]}.{check.capability[1]}")
        for check in (*ONE_GPU, *TRIALS, *TWO_GPUS)
        if check.capability > capability
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = [
            pool.submit(outcome, "kernels and their plain twins", lambda: kernels(folder)),
            pool.submit(outcome, "killed and gone on with", lambda: goes_on_after_a_kill(model, folder)),
        ]
        for check in TRIALS:
            if check.capability <= capability:
                tried = lambda check=check: share_a_base(check, model, folder)  # noqa: E731
                started.append(pool.submit(outcome, check.name, tried))
        for check in ONE_GPU:
            if check.capability <= capability:
                tried = lambda check=check: trains(check, model, folder)  # noqa: E731
                started.append(pool.submit(outcome, check.name, tried))
        if devices > 1:
            several = ("trainer=ddp", "trainer.devices=2")
            for check in TWO_GPUS:
                if check.capability <= capability:
                    tried = lambda check=check: trains(check, model, folder, *several)  # noqa: E731
                    started.append(pool.submit(outcome, check.name, tried))
        else:
            missing += [Outcome(check.name, "skipped", told="needs two GPUs") for check in TWO_GPUS]
        found = [one.result() for one in started]
    print()
    for one in (*found, *missing):
        print(f"{one.how:8} {one.name:46} {one.seconds:4.0f} s  {one.told}")
    failed = sum(one.how == "FAILED" for one in found)
    print(f"{len(found) - failed} passed, {failed} failed, {len(missing)} skipped")
    return int(failed > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    given = sys.argv[1:]
    sys.exit(main(Path(given[0]) if given else Path(tempfile.mkdtemp(prefix="medreason-gpu-"))))
