"""Which search finds the best of 40 settings for how many tokens? Courses are recorded once, searches replayed on them.

usage: search_strategies.py record FILE.npz [ALPHA]    SmolLM2-135M: a minute a setting on a CPU, 14 s on a GPU
       search_strategies.py replay FILE.npz            seconds

A recording holds the held-out loss of each document at each validation of each setting, trained in earnest, once: 5
ranks, 8 learning rates. A replay is a simulation: a search "trains" a setting by reading on in its recording, in
another order of the settings for each of ten seeds, one trial after another, with the pruners themselves. It counts the
tokens up to where each trial was stopped. What it cannot show is how results vary with the order of the rows.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the package is not installed
from medreason.config import Pruner, Sampler
from medreason.sweep.lr_then_rank import propose_lr_then_rank
from medreason.sweep.paired import certainly_worse, keep_losses
from medreason.sweep.space import read_space
from medreason.sweep.study import Propose, begin, make_pruner, propose_new

RANKS = (2, 4, 8, 16, 32)
RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 4e-3, 8e-3, 2e-2)
STEPS, EVERY = 18, 2  # optimizer steps of a trial, and between validations


def record(path: Path, alpha: str) -> None:
    import torch

    from medreason.batch import PackedBatch
    from medreason.core.cli import composed
    from medreason.data.corpus import read_split
    from medreason.data.datamodule import prepare
    from medreason.models.load import document_losses, import_unsloth, load_model, load_tokenizer, summed_loss
    from medreason.train.optimizer import build_optimizer, build_schedule

    import_unsloth()
    config = composed("experiments=quickstart", f"lora.alpha={alpha}", "data.max_validation_rows=20")
    tokenizer, split = load_tokenizer(config.model), read_split(config.data)
    data = prepare(config, split, tokenizer, lambda line: None)
    train, validation = data.loaders["train"], data.loaders["validation"]
    order, held_out = train.order(0)[:STEPS], list(validation)
    losses: list[Any] = []

    def moved(batch: PackedBatch) -> PackedBatch:
        tensors = {name: getattr(batch, name).to(model.device) for name in ("input_ids", "labels", "position_ids")}
        return replace(batch, **tensors)

    for rank in RANKS:
        scale = float(alpha[:-1]) * rank if alpha.endswith("r") else float(alpha)
        lora = replace(config.lora, r=rank, alpha=scale)
        model = load_model(config.model, lora, row_tokens=256, recompute=config.trainer.recompute, seed=1)
        fresh = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        for rate in RATES:
            began = time.monotonic()
            with torch.no_grad():
                for name, value in model.named_parameters():
                    if name in fresh:
                        value.copy_(fresh[name])
            optim = replace(config.optim, lr=rate)
            optimizer = build_optimizer(model.named_parameters(), optim, scaled=False)
            schedule = build_schedule(optimizer, optim, STEPS)
            course = []
            for step in range(STEPS):
                batch = moved(train.batch(order, step))
                (summed_loss(model, batch) / batch.targets).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm or float("inf"))
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                if step % EVERY == EVERY - 1:
                    model.eval()
                    course.append(torch.cat([document_losses(model, moved(one)) for one in held_out]).cpu().numpy())
                    model.train()
            losses.append(course)
            total = sum(one.targets for one in held_out)
            told = " ".join(f"{each.sum() / total:.4f}" for each in course)
            print(f"r={rank} lr={rate:g}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
            np.savez(path, losses=np.asarray(losses, np.float32), targets=[
                validation.documents[member].targets for index in range(len(held_out))
                for member in validation.members(index)
            ])  # fmt: skip


def replay(path: Path) -> None:
    with np.load(path) as found:
        losses, targets = found["losses"].astype(float), found["targets"]
    losses = losses.reshape(len(RANKS), len(RATES), *losses.shape[1:])
    final = losses[:, :, -1].sum(-1) / targets.sum()
    best = np.unravel_index(final.argmin(), final.shape)
    print(f"{losses.shape[3]} documents; the best is r={RANKS[best[0]]} lr={RATES[best[1]]:g} with {final.min():.4f}")
    for rank, row in zip(RANKS, final, strict=True):
        print(f"  r={rank:<3}", *(f"{each:8.4f}" for each in row))
    print("ten seeds: share of the grid's tokens, of ASHA's; times that the best, or one not certainly worse, is found;"
          " mean loss above the best")  # fmt: skip
    usual = 0.0
    for name, (pruner, first, propose) in SEARCHES.items():
        spent, sure, above = [], 0, []
        for seed in range(10):
            with TemporaryDirectory() as folder:
                steps, chosen = carry_out(losses, targets, Path(folder), pruner, first, propose(seed))
            spent.append(steps / (STEPS * final.size))
            sure += not certainly_worse(losses[chosen][-1], losses[best][-1], 0.05)
            above.append(final[chosen] - final.min())
        mean = statistics.mean(spent)
        usual = usual or mean
        print(f"{name:28} {mean:6.1%} {mean / usual:6.0%} {sure:3} {statistics.mean(above):8.4f}")


def carry_out(
    losses: np.ndarray, targets: np.ndarray, folder: Path, kind: Pruner, first: int, propose: Propose
) -> tuple[int, tuple[int, int]]:
    """Optimizer steps that a search took on recorded courses, and the setting that it found best.

    No trial is stopped before step `first`.
    """
    study = optuna.create_study(pruner=make_pruner(kind, first, 3, folder))
    spent, done = 0, {}
    for _ in range(TRIALS):
        if (params := propose(study)) is None:
            break
        trial = optuna.trial.Trial(study, begin(study, params, SPACE)._trial_id)
        place = RANKS.index(params["lora.r"]), RATES.index(params["optim.lr"])
        (folder / str(trial.number)).mkdir()
        for look, course in enumerate(losses[place], 1):
            keep_losses(folder / str(trial.number), EVERY * look, course, targets)
            value = float(course.sum() / targets.sum())
            trial.report(value, EVERY * look)
            if EVERY * look < STEPS and trial.should_prune():
                study.tell(trial.number, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial.number, value)
            done[place] = value
        spent += EVERY * look
    return spent, min(done, key=done.__getitem__)


SPACE, _ = read_space({"lora.r": f"choice({','.join(map(str, RANKS))})",
                       "optim.lr": f"choice({','.join(map(str, RATES))})"}, [])  # fmt: skip
TRIALS = 30  # as in the sweep of the README


def tpe(seed: int) -> Propose:
    return propose_new(SPACE, Sampler.tpe, 1000 * seed)


def rates_then_ranks(seed: int) -> Propose:
    return propose_lr_then_rank(SPACE, 8, Sampler.tpe, 1000 * seed, len(RATES))


SEARCHES: dict[str, tuple[Pruner, int, Callable[[int], Propose]]] = {  # the first is what the others stand beside
    "TPE, asha": (Pruner.asha, EVERY, tpe),
    "TPE, paired": (Pruner.paired, EVERY, tpe),
    "lr_then_rank, asha": (Pruner.asha, EVERY, rates_then_ranks),
    "lr_then_rank, paired": (Pruner.paired, EVERY, rates_then_ranks),
    "TPE, none": (Pruner.none, EVERY, tpe),
    "lr_then_rank, none": (Pruner.none, EVERY, rates_then_ranks),
    "TPE, paired from step 6": (Pruner.paired, 6, tpe),
    "lr_then_rank, asha from 6": (Pruner.asha, 6, rates_then_ranks),
    "lr_then_rank, paired from 4": (Pruner.paired, 4, rates_then_ranks),
}


if __name__ == "__main__":
    if sys.argv[1] == "record":
        record(Path(sys.argv[2]), [*sys.argv[3:], "2r"][0])
    else:
        replay(Path(sys.argv[2]))
