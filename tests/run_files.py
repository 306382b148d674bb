"""Run directories as training leaves them, and what stands in the tables of their pages."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import yaml


def write_run(
    folder: Path, swept: dict[str, Any], losses: list[float], status: str = "finished", /, **more: Any
) -> Path:
    """A run directory as medreason.train leaves it: a validation every 10 steps, 1,000 tokens a step."""
    folder.mkdir(parents=True)
    rank, lr, seed = (swept.get(key, usual) for key, usual in (("lora.r", 16), ("optim.lr", 1e-4), ("seed", 1)))
    alpha = float(swept.get("lora.alpha", "2r")[:-1]) * rank
    config = {"lora": {"r": rank, "alpha": alpha}, "optim": {"lr": lr}, "seed": seed, "monitor": "val/loss"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"data": {"format": "think"}}))
    steps = 10 * len(losses)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "train/loss", "train/tokens", "val/loss"])
        writer.writeheader()
        for step in range(steps):
            writer.writerow({"epoch": 0, "step": step, "train/loss": 2.0, "train/tokens": 1000 * (step + 1)})
            if step % 10 == 9:
                writer.writerow({"epoch": 0, "step": step + 1, "val/loss": losses[step // 10]})
    overrides = ["experiments=quickstart", *(f"{key}={value}" for key, value in swept.items())]
    record = {
        "status": status,
        "started": f"2026-03-01T00:{int(folder.name) if folder.name.isdecimal() else 0:02}:00+0000",
        "seconds": 60.0,
        "swept": {key: str(value) for key, value in swept.items()},
        "overrides": overrides,
    }
    if status == "finished":
        final = losses[-1]
        record["results"] = {"steps": steps, "tokens": 1000 * steps, "val_loss_after": final, "monitored": final}
    (folder / "run.json").write_text(json.dumps(record | more))
    return folder


def rows_of(page: str, title: str) -> list[list[str]]:
    """Cells of the first table under a heading, without their tags."""
    part = page.partition(f"<h2>{title}</h2>")[2].partition("</table>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in part.split("<tr")]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in rows if row]
