import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medreason.config import Format
from medreason.data.datamodule import PackedLoader
from medreason.data.tokenization import tokenize
from medreason.models.embedded import materialize
from medreason.models.load import summed_loss
from medreason.models.prompts import Example, completion_text, prompt_text
from support import ROOT


def test_the_loss_of_a_step_equals_trls_on_the_same_rows_and_weights(
    make_model: Callable[..., Any], tokenizer: Any, cases: list[Example], tmp_path: Path
) -> None:
    model, examples = make_model(), cases[:8]
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    # TRL appends the end-of-sequence token to a completion, and its tokenizer writes BOS before a prompt
    prompts = [prompt_text(tokenizer, e.question, Format.think).removeprefix(tokenizer.bos_token) for e in examples]
    rows = [
        {"prompt": prompt, "completion": completion_text(e, Format.think)}
        for prompt, e in zip(prompts, examples, strict=True)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = [
        sys.executable,
        Path(__file__).with_name("trl_reference.py"),
        materialize("tiny"),
        tmp_path / "adapter",
        tmp_path / "rows.json",
    ]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr[-2000:]
    theirs = float(said.stdout.rpartition("LOSS ")[2])

    batches = list(
        PackedLoader(tokenize(examples, tokenizer, Format.think), 1024, pad_token=tokenizer.pad_token_id, accumulate=99)
    )
    assert len(batches) > 1
    with torch.no_grad():
        ours = sum(summed_loss(model, batch).item() for batch in batches) / batches[0].step_targets
    assert ours == pytest.approx(theirs, abs=1e-3)
