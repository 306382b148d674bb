"""Where the time of a step of the fast engine goes, and what this machine's bandwidth and arithmetic would allow.

usage: roofline.py OUT_FOLDER [fp8|bf16] [MODEL] [TOKENS] [DOCUMENT_TOKENS] [RANK]
       MODEL is a folder with a transformers configuration, or embedded:NAME; "" is Mistral-7B's. Weights are random.

Each pass of a layer is timed by itself, forward and backward, and told for all layers. Its bound is what takes longer:
to read and write its tensors once at the speed of a large copy, or its multiplications at the speed of a large square
product of the same type. Both speeds are measured here, first.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from medreason.config import Precision
from medreason.core.cli import composed
from medreason.core.run_directory import provenance, write_json
from medreason.engine import kernels, layers
from medreason.engine.attention import Documents
from medreason.engine.fp8 import Rows, product, quantise
from medreason.models.load import local_path

CUDA = torch.cuda.is_available()
REPEATS = 4
PASSES = ("cast_rows", "rms_norm", "rms_norm_backward", "swiglu", "swiglu_backward", "rotate", "rotate_backward",
          "narrow", "summed_outer", "add_product")  # fmt: skip
MISTRAL = {"vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None}  # fmt: skip


@dataclass
class Part:
    """What all calls of one pass took and would have to take, in seconds."""

    calls: int = 0
    seconds: float = 0.0
    bound: float = 0.0


@dataclass(frozen=True)
class Machine:
    """What was measured of this machine: bytes per second of a copy, operations per second of products."""

    bandwidth: float
    operations: dict[bool, float]  # of products in 8 bits, in 16 bits


class Stopwatch:
    """Time between two places of what the device is given to do."""

    def __init__(self) -> None:
        self.marks: list[Any] = []

    def mark(self) -> int:
        if CUDA:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())
        return len(self.marks) - 1

    def seconds(self, start: int, end: int) -> float:
        if CUDA:
            return float(self.marks[start].elapsed_time(self.marks[end])) / 1e3
        return float(self.marks[end] - self.marks[start])


def best_of(work: Callable[[], Any], repeats: int = 10) -> float:
    """Seconds of the fastest repeat."""
    work()
    watch = Stopwatch()
    marks = [watch.mark()]
    for _ in range(repeats):
        work()
        marks.append(watch.mark())
    if CUDA:
        torch.cuda.synchronize()
    return min(watch.seconds(*pair) for pair in itertools.pairwise(marks))


def measure_machine(device: torch.device) -> Machine:
    size, side = (2**29, 8192) if CUDA else (2**25, 256)
    source = torch.empty(size, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy = best_of(lambda: target.copy_(source))
    square = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    operations = {}
    for eight in (True, False):
        rows = quantise(square) if eight else Rows(square, None)
        operations[eight] = 2 * side**3 / best_of(lambda rows=rows: product(rows, rows, torch.bfloat16))  # type: ignore[misc]
    return Machine(2 * source.nbytes / copy, operations)


def tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from tensors(one)


def multiplications(name: str, given: tuple[Any, ...], result: Any) -> tuple[float, bool]:
    """Operations of a call's products, and whether they are in 8 bits."""
    if name == "product":
        left, right, _ = given
        return 2.0 * left.values.shape[0] * left.values.shape[1] * right.values.shape[0], left.scale is not None
    if name.startswith("attend"):
        heads, documents = given[0].shape[1] * given[0].shape[2], given[-1]
        seen = sum(length * (length + 1) // 2 for length in documents.lengths)
        return (4.0 if name == "attend" else 10.0) * heads * seen, False
    if name in ("narrow", "summed_outer", "add_product"):
        few = {"narrow": result, "summed_outer": given[1], "add_product": given[1]}[name]
        rows = given[0].values if isinstance(given[0], Rows) else given[0]
        return 2.0 * rows.numel() * few.shape[1], False
    return 0.0, False


@contextmanager
def timed(parts: dict[str, Part], machine: Machine) -> Iterator[None]:
    """Has every pass of the engine timed while it lasts; the times stand in `parts` afterwards."""
    watch, spans, running = Stopwatch(), [], []

    def wrapped(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **settings: Any) -> Any:
            if running:  # a pass that another makes use of is part of it
                return work(*given, **settings)
            running.append(name)
            start = watch.mark()
            result = work(*given, **settings)
            spans.append((name, start, watch.mark()))
            running.clear()
            # one that works in place gives back what it was given, read and written
            moved = sum(one.nbytes for one in tensors((given, result)))
            operations, eight = multiplications(name, given, result)
            part = parts.setdefault(name, Part())
            part.calls += 1
            part.bound += max(moved / machine.bandwidth, operations / machine.operations[eight])
            return result

        return call

    places = [(kernels, name) for name in PASSES]
    places += [(layers, name) for name in ("product", "attend", "attend_backward")]
    patches = [patch.object(place, name, wrapped(name, getattr(place, name))) for place, name in places]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
        if CUDA:
            torch.cuda.synchronize()
        for name, start, end in spans:
            parts[name].seconds += watch.seconds(start, end)


def main(
    out: str, precision: str = "fp8", path: str = "", tokens: str = "8192", document: str = "820", rank: str = "16"
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig

    device = torch.device("cuda" if CUDA else "cpu")
    run = composed(f"lora.r={rank}", *([f"model.path={path}"] if path else []))
    settings: Any = AutoConfig.from_pretrained(local_path(run.model)) if path else MistralConfig(**MISTRAL)
    depth, settings.num_hidden_layers = settings.num_hidden_layers, 1
    torch.manual_seed(0)
    with device:
        base = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    fp8 = precision == "fp8"
    how = layers.How(Precision.fp8 if fp8 else Precision.bf16, fp8, copies=2)
    model = layers.adapt(base, run.lora, how, seed=1)
    count, each = int(tokens), int(document)
    lengths = tuple(min(each, count - start) for start in range(0, count, each))
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    decoder, layer = model.packed.causal.model, model.packed.layers[0]
    x, grad = torch.randn(2, count, settings.hidden_size, device=device, dtype=torch.bfloat16)
    x.requires_grad_()  # as that of all layers but the first
    cos, sin = (one[0].contiguous() for one in decoder.rotary_emb(x[None], positions[None]))
    documents = Documents.of(lengths, getattr(settings, "sliding_window", None), device)
    handed = kernels.cast_rows(grad, fp8=fp8)  # by the layer above
    labels = torch.randint(0, settings.vocab_size, (count,), device=device)

    def pass_of_a_layer() -> None:
        row = layers.Row(cos, sin, {layer.window: documents}, [(grad, handed)])
        layers.LayerStep.apply(x, layer, row, *layer.parameters).backward(grad)

    def pass_of_the_head() -> None:
        head = model.packed.causal.lm_head.weight
        layers.HeadLoss.apply(x, decoder.norm.weight, 1e-5, head, labels, True).backward()

    machine = measure_machine(device)
    for _ in range(3):
        pass_of_a_layer()
    parts: dict[str, Part] = {}
    if CUDA:
        torch.cuda._sleep(10**9)  # half a second, in which the host runs ahead: launches are not to be timed
    with timed(parts, machine):
        for _ in range(REPEATS):
            pass_of_a_layer()
    for part in parts.values():
        for quantity in ("calls", "seconds", "bound"):
            setattr(part, quantity, getattr(part, quantity) * depth / REPEATS)
    operations = 4 * count * settings.hidden_size * settings.vocab_size
    parts["head and loss"] = Part(1, best_of(pass_of_the_head), operations / machine.operations[False])
    report(parts, machine, count, Path(out), precision)


def report(parts: dict[str, Part], machine: Machine, tokens: int, out: Path, precision: str) -> None:
    """The table, roofline.json and roofline.png."""
    out.mkdir(parents=True, exist_ok=True)
    ordered = sorted(parts.items(), key=lambda item: -item[1].seconds)
    print(f"{'all layers, forward and backward':34}{'ms':>9}{'bound':>9}")
    for name, part in ordered:
        print(f"{name:34}{1e3 * part.seconds:9.2f}{1e3 * part.bound:9.2f}")
    total, bound = sum(p.seconds for _, p in ordered), sum(p.bound for _, p in ordered)
    print(f"{'together':34}{1e3 * total:9.2f}{1e3 * bound:9.2f}")
    print(f"{'tokens per second':34}{tokens / total:9,.0f}{tokens / bound:9,.0f}")
    made = provenance()
    found = {"provenance": made, "precision": precision, "tokens": tokens, "machine": vars(machine),
             "parts": {name: vars(part) for name, part in ordered}}  # fmt: skip
    write_json(out / "roofline.json", json.loads(json.dumps(found)))
    draw(ordered, f"{made['device']}, {precision}, a step of {tokens:,} tokens", out / "roofline.png")


def draw(parts: list[tuple[str, Part]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.35 * len(parts)), layout="constrained")
    for place, (_, part) in enumerate(parts):
        axes.barh(place, 1e3 * part.seconds, color="#8fa8c0", label="" if place else "measured")
        axes.barh(place, 1e3 * part.bound, height=0.35, color="#2c5a8c", label="" if place else "bound")
    axes.set_yticks(range(len(parts)), [name for name, _ in parts])
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds, all layers", title=title)
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
