"""Compare averages over one training run with runs that decay the learning rate.

    python benchmarks/training_run.py --seeds 0 1 2 --picture curves.svg

Each seed trains a small character language model on the sources of Python's standard library, at a
constant learning rate, with a checkpoint every 50 steps. From the same step on, other runs see the
same batches and decay the learning rate to zero. `run-average` averages the checkpoints in between.
Prints a table of validation losses in nats per character, and draws the curves of the first seed.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from fusion_core import run_fusion

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, BEGIN, EVERY = 3000, 2000, 50
RATE, BATCH, CONTEXT, WIDTH, HIDDEN = 3e-3, 128, 8, 16, 128
#: Characters of each stretch of text.
BLOCK = 2000
_MODULES = ("argparse", "ast", "inspect", "pathlib", "statistics", "tarfile", "typing", "zipfile")
CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "1-sqrt": lambda u: 1 - math.sqrt(u),
}
AVERAGES: dict[str, dict[str, Any]] = {
    "mean of the last 5 (`lawa`)": {"preset": "lawa"},
    "mean of the last 10 (`pma`)": {"preset": "pma"},
    "mean of all 21 (`soup`)": {"preset": "soup"},
    "EMA, factor 0.2": {"ema": 0.2},
    **{f"`{name}`": {"schedule": name} for name in CURVES},
}


class CharacterModel(nn.Module):
    """A perceptron that predicts a character of ASCII text from those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(128, WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(CONTEXT * WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 128)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return scores of the next character, of shape (batch, 128)."""
        scores: torch.Tensor = self.layers(self.tokens(tokens).flatten(1))
        return scores


@dataclass
class Run:
    """A model in training, and the validation losses so far by step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: Data
    losses: dict[int, float] = field(default_factory=dict)

    def train(self, steps: range, factor: Callable[[int], float], save: Path | None) -> None:
        """Train with the learning rate times `factor`, and save checkpoints."""
        for step in steps:
            if step % EVERY == 0:
                self.keep(step, save)
            for group in self.optimizer.param_groups:
                group["lr"] = RATE * factor(step)
            loss = loss_of(self.model, self.data.batch(step))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.keep(steps.stop, save)

    def keep(self, step: int, save: Path | None) -> None:
        """Record the validation loss, and save the weights."""
        self.losses[step] = self.data.measure(self.model)
        if save is not None and step >= BEGIN:
            (save / f"checkpoint-{step}").mkdir()
            tensors = dict(self.model.state_dict())
            save_file(tensors, save / f"checkpoint-{step}" / "model.safetensors")


@dataclass
class Data:
    """Characters to train on and to validate on."""

    train: torch.Tensor
    valid: torch.Tensor
    seed: int

    def batch(self, step: int) -> torch.Tensor:
        """Return the batch of a step: the same in every run of a seed."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(len(self.train) - CONTEXT, (BATCH, 1), generator=random)
        return self.train[starts + torch.arange(CONTEXT + 1)]

    @torch.no_grad()
    def measure(self, model: nn.Module) -> float:
        """Return the loss on the validation text in nats per character."""
        model.eval()
        loss = float(loss_of(model, self.valid))
        model.train()
        return loss


def loss_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of predicting the last character from those before it."""
    return nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1])


def load_data(seed: int) -> Data:
    """Split the sources: every tenth stretch of text validates."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES)
    characters = torch.frombuffer(bytearray(text.encode("ascii", "ignore")), dtype=torch.uint8)
    blocks = characters[: len(characters) // BLOCK * BLOCK].long().view(-1, BLOCK)
    validates = torch.arange(len(blocks)) % 10 == 0
    windows = blocks[validates].unfold(1, CONTEXT + 1, 8).flatten(0, 1)
    return Data(blocks[~validates].flatten(), windows, seed)


def run_seed(seed: int, folder: Path) -> dict[str, dict[int, float]]:
    """Return losses by step of the run, of the decayed runs, and of the averages."""
    torch.manual_seed(seed)
    model = CharacterModel()
    run = Run(model, torch.optim.AdamW(model.parameters(), lr=RATE), load_data(seed))
    run.train(range(BEGIN), lambda _step: 1.0, None)
    state = copy.deepcopy((model.state_dict(), run.optimizer.state_dict()))
    run.train(range(BEGIN, STEPS), lambda _step: 1.0, folder)
    curves = {"constant": run.losses}
    for name, curve in CURVES.items():
        model.load_state_dict(state[0])
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        optimizer.load_state_dict(copy.deepcopy(state[1]))
        decayed = Run(model, optimizer, run.data)
        decayed.train(
            range(BEGIN, STEPS), lambda s, c=curve: c((s - BEGIN) / (STEPS - BEGIN)), None
        )
        curves[f"decayed {name}"] = decayed.losses
    for name, options in AVERAGES.items():
        stops = range(BEGIN, STEPS + 1, EVERY) if name.startswith("mean of the last 10") else []
        for stop in {*stops, STEPS}:
            if (loss := average(folder, stop, options, run)) is not None:
                curves.setdefault(name, {})[stop] = loss
    return curves


def average(folder: Path, stop: int, options: dict[str, Any], run: Run) -> float | None:
    """Return the loss of an average over the checkpoints up to a step; None for too few."""
    steps = [*range(stop, BEGIN - 1, -EVERY)]
    if options.get("preset") == "pma" and len(steps) < 10:
        return None
    models = {f"step-{step}": str(folder / f"checkpoint-{step}") for step in steps}
    merged = run_fusion(
        algorithm={"name": "run-average", **options},
        model_pool={"name": "checkpoints", "models": models},
        output=None,
    )
    run.model.load_state_dict(merged.weights.state_dict())
    return run.data.measure(run.model)


def print_table(seeds: list[dict[str, dict[int, float]]]) -> None:
    """Print the losses at the last step as Markdown."""
    numbers = " | ".join(f"seed {number}" for number in range(1, len(seeds) + 1))
    print(f"| model at step {STEPS} | {numbers} | mean | below the last checkpoint |")
    print("|" + " --- |" * (len(seeds) + 3))
    last = statistics.mean(curves["constant"][STEPS] for curves in seeds)
    for name in seeds[0]:
        losses = [curves[name][STEPS] for curves in seeds]
        mean = statistics.mean(losses)
        label = "last checkpoint" if name == "constant" else name
        cells = [label, *(f"{loss:.4f}" for loss in (*losses, mean)), f"{last - mean:.4f}"]
        print(f"| {' | '.join(cells)} |")


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    """Draw the losses of one seed by step."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "training-run", "svg.fonttype": "none"})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, style, label in (
        ("constant", "-", "each checkpoint"),
        ("mean of the last 10 (`pma`)", "-", "mean of the last 10"),
        ("decayed linear", "--", "decayed run, linear"),
        ("decayed 1-sqrt", "--", "decayed run, 1-sqrt"),
    ):
        steps = sorted(step for step in curves[name] if step >= BEGIN - 500)
        axes.plot(steps, [curves[name][step] for step in steps], style, label=label)
    for name, marker in (("`linear`", "o"), ("`1-sqrt`", "s"), ("mean of all 21 (`soup`)", "^")):
        axes.plot([STEPS], [curves[name][STEPS]], marker, label=f"average: {name.strip('`')}")
    axes.set(xlabel="training step", ylabel="validation loss (nats per character)")
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train and average every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--picture", type=Path, help="draw the curves of the first seed here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(run_seed(seed, Path(folder)))
    print_table(seeds)
    if arguments.picture is not None:
        draw(seeds[0], arguments.picture)


if __name__ == "__main__":
    main()
