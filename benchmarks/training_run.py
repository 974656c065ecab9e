"""Compare averages over one training run with runs that decay the learning rate.

    python benchmarks/training_run.py --seeds 0 1 2 3 4 --picture docs/how-to/training-run.svg

Each seed trains a small character language model on the sources of Python's standard library, at a
constant learning rate, with a checkpoint every 50 steps. Averages take the checkpoints of the last
200, 500 or 1000 steps. Other runs see the same batches, and decay the learning rate to zero over
the same steps. Prints a table of differences in validation loss, in nats per character, with 95 %
intervals over the seeds, and draws the curves of the first seed. Five seeds take about six minutes
of processor time. Losses repeat on one machine with the same versions of Python and torch.
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
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import nn

from fusion_core import (
    AdaptiveTask,
    Batch,
    ComponentConfig,
    Metric,
    MetricValues,
    Split,
    Task,
    TaskPool,
    run_fusion,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: rule and window -> step -> loss
    Curves = dict[tuple[str, int], dict[int, float]]

STEPS, EVERY, WARM_UP = 2000, 50, 100
#: Steps over which averages go and learning rates decay, before the last step.
WINDOWS = (200, 500, 1000)
RATE, BATCH, CONTEXT, WIDTH, LAYERS = 4e-3, 16, 32, 32, 2
#: Characters of a stretch of text, and the stretches to validate on and to choose soups on.
STRETCH, HELD_OUT = 2048, 16
#: The learning rate's factor after a share of the decay.
DECAYS: dict[str, Callable[[float], float]] = {
    "linear decay": lambda share: 1 - share,
    "1-sqrt decay": lambda share: 1 - math.sqrt(share),
}
EQUAL, CONSTANT = "equal weights", "last checkpoint"
AVERAGES: dict[str, dict[str, Any]] = {
    EQUAL: {"preset": "soup"},
    **{f"`{name}`": {"schedule": name} for name in ("linear", "cosine", "1-sqrt")},
}
#: Averages over the longest window alone; without options, a greedy soup.
OTHERS: dict[str, dict[str, Any]] = {"`--ema 0.2`": {"ema": 0.2}, "`--greedy`": {}}


class CharacterModel(nn.Module):
    """A transformer that predicts each character of ASCII text from those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, **options) for _ in range(LAYERS)
        )
        self.scores = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return scores of the next characters, of shape (batch, length, 128)."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.tokens(tokens) + self.places.weight[:length]
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        scores: torch.Tensor = self.scores(hidden)
        return scores


def loss_of(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of predicting every character but the first, in nats."""
    scores = model(windows[:, :-1])
    return nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def measure(model: nn.Module, windows: torch.Tensor) -> float:
    """Return the loss on held-out windows."""
    model.eval()
    loss = float(loss_of(model, windows))
    model.train()
    return loss


@dataclass
class Data:
    """Characters to train on, windows to validate on, and windows to choose soups on."""

    train: torch.Tensor
    valid: torch.Tensor
    choose: torch.Tensor

    def batch(self, seed: int, step: int) -> torch.Tensor:
        """Return the batch of a step: the same in every run of a seed."""
        random = torch.Generator().manual_seed(seed * 1_000_003 + step)
        starts = torch.randint(len(self.train) - CONTEXT, (BATCH, 1), generator=random)
        return self.train[starts + torch.arange(CONTEXT + 1)]


def load_data() -> Data:
    """Read the sources, and hold out stretches that are spread evenly over them."""
    folder = Path(sysconfig.get_path("stdlib"))
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("[a-z]*.py")))
    characters = torch.frombuffer(bytearray(text.encode("ascii", "ignore")), dtype=torch.uint8)
    stretches = characters[: len(characters) // STRETCH * STRETCH].long().view(-1, STRETCH)
    spread = torch.linspace(0, len(stretches) - 1, 2 * HELD_OUT).round().long()
    trains = torch.ones(len(stretches), dtype=torch.bool)
    trains[spread] = False
    windows = stretches[spread].unfold(1, CONTEXT + 1, CONTEXT)
    return Data(
        stretches[trains].flatten(), windows[::2].flatten(0, 1), windows[1::2].flatten(0, 1)
    )


class Loss(AdaptiveTask):
    """The loss on some windows, which greedy soups only measure."""

    name = "loss"
    metrics = (Metric("loss", unit="nats", higher_is_better=False),)

    def __init__(self, windows: torch.Tensor) -> None:
        self._windows = windows

    def evaluate(self, model: nn.Module) -> MetricValues:
        """Measure the loss."""
        return {"loss": measure(model, self._windows)}

    def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
        """Refuse: nothing adapts here."""
        raise NotImplementedError

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Refuse: nothing adapts here."""
        raise NotImplementedError


class Losses(TaskPool[ComponentConfig]):
    """The held-out text: one part chooses soups, the other part measures them."""

    config_class = ComponentConfig
    names = ("loss",)

    def __init__(self, *parts: torch.Tensor) -> None:
        super().__init__(ComponentConfig())
        self._parts = parts

    def __getitem__(self, name: str) -> Task:
        """Return the loss on the first part."""
        return Loss(self._parts[0])

    def halves(self) -> tuple[Losses, Losses]:
        """Return the part to choose on, and the part to measure on."""
        first, second = self._parts
        return Losses(first), Losses(second)


@dataclass
class Run:
    """A model in training, and its validation losses so far by step."""

    seed: int
    data: Data
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: dict[int, float] = field(default_factory=dict)

    def train(self, steps: range, decay: Callable[[float], float], save: Path | None) -> None:
        """Train with a learning rate that decays over the steps, and save checkpoints."""
        for step in steps:
            if step % EVERY == 0:
                self._keep(step, save)
            factor = min(1, (step + 1) / WARM_UP) * decay((step - steps.start) / len(steps))
            for group in self.optimizer.param_groups:
                group["lr"] = RATE * factor
            loss = loss_of(self.model, self.data.batch(self.seed, step))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self._keep(steps.stop, save)

    def branch(self) -> Run:
        """Return a copy that trains on from here."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return Run(self.seed, self.data, model, optimizer)

    def _keep(self, step: int, save: Path | None) -> None:
        self.losses[step] = measure(self.model, self.data.valid)
        if save is not None and step >= STEPS - max(WINDOWS):
            save_file(dict(self.model.state_dict()), save / f"step-{step}.safetensors")


def run_seed(seed: int, data: Data, folder: Path) -> Curves:
    """Return losses by step of the run, of the decayed runs, and of the averages."""
    torch.manual_seed(seed)
    model = CharacterModel()
    run = Run(seed, data, model, torch.optim.AdamW(model.parameters(), lr=RATE))
    curves, start = {(CONSTANT, 0): run.losses}, 0
    for window in sorted(WINDOWS, reverse=True):
        begin = STEPS - window
        run.train(range(start, begin), lambda _: 1.0, folder)
        for name, decay in DECAYS.items():
            decayed = run.branch()
            decayed.train(range(begin, STEPS), decay, None)
            curves[name, window] = decayed.losses
        start = begin
    run.train(range(start, STEPS), lambda _: 1.0, folder)
    for window in WINDOWS:
        for name, options in AVERAGES.items():
            stops = [STEPS]
            if (name, window) == (EQUAL, min(WINDOWS)):
                stops = [*range(STEPS - max(WINDOWS) + window, STEPS + 1, EVERY)]
            curves[name, window] = {
                stop: average(folder, stop, window, options, data) for stop in stops
            }
    for name, options in OTHERS.items():
        curves[name, 0] = {STEPS: average(folder, STEPS, max(WINDOWS), options, data)}
    return curves


def average(folder: Path, stop: int, window: int, options: dict[str, Any], data: Data) -> float:
    """Return the loss of an average over the checkpoints of some steps."""
    models = {}
    for step in range(stop - window, stop + 1, EVERY):
        models[f"step-{step}"] = model = CharacterModel()
        model.load_state_dict(load_file(folder / f"step-{step}.safetensors"))
    merged = run_fusion(
        algorithm={"name": "run-average" if options else "greedy-soup", **options},
        model_pool={"name": "checkpoints", "models": models},
        task_pool=None if options else Losses(data.choose, data.valid),
        output=None,
    )
    model = CharacterModel()
    model.load_state_dict(merged.weights.state_dict())
    return measure(model, data.valid)


def print_table(seeds: Sequence[Curves]) -> None:
    """Print mean losses at the last step, minus that of the last checkpoint, as Markdown."""
    names = [*AVERAGES, *DECAYS]
    titles = ["steps", *names[: len(AVERAGES)], *(f"run with {name}" for name in DECAYS)]
    print(f"| {' | '.join([*titles, 'equal weights minus linear decay'])} |")
    print("|" + " --- |" * (len(titles) + 1))
    for window in WINDOWS:
        cells = [_describe(seeds, (name, window), (CONSTANT, 0)) for name in names]
        cells.append(_describe(seeds, (EQUAL, window), ("linear decay", window)))
        print(f"| the last {window} | {' | '.join(cells)} |")
    last = [curves[CONSTANT, 0][STEPS] for curves in seeds]
    print(f"last checkpoint: {statistics.fmean(last):.3f}")
    for name in OTHERS:
        print(f"{name}: {_describe(seeds, (name, 0), (CONSTANT, 0))}")


def _describe(seeds: Sequence[Curves], rule: tuple[str, int], other: tuple[str, int]) -> str:
    """Return the mean difference over seeds, with half of Student's 95 % interval."""
    differences = [curves[rule][STEPS] - curves[other][STEPS] for curves in seeds]
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return f"{mean:+.3f}"
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return f"{mean:+.3f} ± {half:.3f}"


def draw(curves: Curves, path: Path) -> None:
    """Draw the losses of one seed by step, as narrow and white as the other charts of the guide."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "training-run", "svg.fonttype": "none", "font.size": 11})
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    lines = {
        (CONSTANT, 0): ("#9aa5b1", "-", "each checkpoint"),
        (EQUAL, min(WINDOWS)): ("#2f855a", "-", "mean of the last 5"),
    }
    for window in WINDOWS:
        label = "runs with linear decay" if window == WINDOWS[0] else None
        lines["linear decay", window] = ("#b7791f", "--", label)
    for rule, (color, style, label) in lines.items():
        steps = sorted(step for step in curves[rule] if step >= STEPS - max(WINDOWS))
        losses = [curves[rule][step] for step in steps]
        axes.plot(steps, losses, style, color=color, label=label)
    axes.set(xlabel="training step", ylabel="validation loss (nats per character)")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def main() -> None:
    """Train and average every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--picture", type=Path, help="draw the curves of the first seed here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, seeds = load_data(), []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(run_seed(seed, data, Path(folder)))
    print_table(seeds)
    if arguments.picture is not None:
        draw(seeds[0], arguments.picture)


if __name__ == "__main__":
    main()
