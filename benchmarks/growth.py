"""What several GPUs would give at which network, on paper: no GPU is needed, and nothing is measured.

usage: growth.py [TOKENS_A_SECOND] [PICTURE]

A step is the forward and backward passes of a GPU's own rows, then one message: the adapter's gradients in float32, by
a ring through all GPUs, each link of which carries 2 (n - 1) / n times their bytes. The ring is as slow as its slowest
link, which is the network between machines once there are more than one. Nothing of the message hides behind the passes
(train/fit.py says why); the time until it is under way is left out. benchmarks/several_gpus.py measures two GPUs.
"""

import sys
from pathlib import Path

from medreason.models.flops import Shape
from medreason.models.memory import lora_weights

MISTRAL = Shape(4096, 14336, 32, 32, 8, 128, 32768)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROW_TOKENS = 8192
GPUS = (1, 8, 64, 512)
IN_A_MACHINE, NVLINK = 8, 450e9  # GPUs, bytes a second
NETWORKS = {"400 Gb/s": 50e9, "100 Gb/s": 12.5e9, "25 Gb/s": 3.125e9, "10 Gb/s": 1.25e9}  # between machines
SPEED = 29_072  # tokens a second of one H100, fp8, no cap (benchmarks/RESULTS.md)
ROWS_A_STEP = (1, 8)  # of each GPU


def sent(weights: int, gpus: int) -> float:
    """Bytes that each link carries in a step."""
    return 4 * weights * 2 * (gpus - 1) / gpus


def share(speed: float, rows: int, weights: int, gpus: int, bandwidth: float) -> float:
    """What each of several GPUs trains, of what one alone does."""
    passes = rows * ROW_TOKENS / speed
    return passes / (passes + sent(weights, gpus) / (NVLINK if gpus <= IN_A_MACHINE else min(NVLINK, bandwidth)))


def draw(speed: float, weights: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, rows in zip(figure.subplots(1, 2, sharey=True), ROWS_A_STEP, strict=True):
        for (name, bandwidth), marker in zip(NETWORKS.items(), "osD^", strict=True):
            shares = [100 * share(speed, rows, weights, gpus, bandwidth) for gpus in GPUS]
            axes.plot(GPUS, shares, marker=marker, lw=2, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, map(str, GPUS))
        axes.set_ylim(0, 103)
        axes.set_title(f"{rows} {'row' if rows == 1 else 'rows'} of {ROW_TOKENS:,} tokens a GPU and step", fontsize=11)
        axes.set_xlabel("GPUs")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("speed, % of as many times one")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False,
                  title="between machines")  # fmt: skip
    figure.savefig(path, dpi=110)


def main() -> None:
    speed = float(sys.argv[1]) if len(sys.argv) > 1 else float(SPEED)
    for r in (16, 32):
        weights = lora_weights(MISTRAL, r, LINEARS)
        print(f"r={r}: {weights / 1e6:.1f}M weights, gradients of {4 * weights / 1e6:.0f} MB a step")
    weights = lora_weights(MISTRAL, 16, LINEARS)
    for rows in ROWS_A_STEP:
        seconds = rows * ROW_TOKENS / speed
        print(f"\n{rows} x {ROW_TOKENS:,} tokens a GPU and step at {speed:,.0f} tokens/s ({seconds:.2f} s)")
        print(f"{'':12}" + "".join(f"{gpus:>20}" for gpus in GPUS))
        for name, bandwidth in NETWORKS.items():
            shares = [share(speed, rows, weights, gpus, bandwidth) for gpus in GPUS]
            speeds = [gpus * each * speed / 1e3 for gpus, each in zip(GPUS, shares, strict=True)]
            cells = [f"{one:,.0f}k tok/s {each:4.0%}" for one, each in zip(speeds, shares, strict=True)]
            print(f"{name:12}" + "".join(f"{cell:>20}" for cell in cells))
    if len(sys.argv) > 2:
        draw(speed, weights, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
