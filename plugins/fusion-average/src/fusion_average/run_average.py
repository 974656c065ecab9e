"""Averages over checkpoints of one training run, streamed one checkpoint after the other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fusion_average.config import RunAverageConfig
from fusion_average.decay import decay_weights, ema_weights
from fusion_core import Algorithm, RunContext
from fusion_core.errors import RecipeError
from fusion_core.weights import Kernel, Piece, WeightSource, sum_in_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fusion_core import ModelPool

WEIGHTS = "run_average.json"
_NUMBER = re.compile(r"\d{1,15}")


@dataclass(frozen=True)
class WeightedMean(Kernel):
    """The sum of weight * expert over the experts of positive weight; the weights sum to 1.

    It reads one expert after the other, so memory does not grow with their number.
    """

    weights: tuple[float, ...]
    is_bounded: ClassVar[bool] = True
    pieces_held: ClassVar[tuple[float, float]] = (7, 0)

    def merge(self, piece: Piece) -> Tensor:
        """Add the experts in pool order."""
        return sum_in_order(
            piece.expert(index) * weight for index, weight in enumerate(self.weights) if weight > 0
        )

    def constant_coefficients(self, name: str) -> tuple[float, ...]:
        """Return the weights: their sum is 1, so an average of experts is one of task vectors."""
        del name
        return self.weights


class RunAverage(Algorithm[RunAverageConfig]):
    """Average checkpoints of one training run, with weights by their steps (arXiv:2507.17634).

    Formula: sum of c_k * W_k, with weights that sum to 1. `schedule` emulates a decay of the
    learning rate that the run did not make: c are the differences of the decay factors
    (`fusion_average.decay.decay_weights` has the derivation). `ema` weights a checkpoint by
    a * (1 - a)^age, and the oldest by the rest, (1 - a)^age. Otherwise all weights are equal, as in
    latest weight averaging (arXiv:2209.14981), pre-trained model averaging (arXiv:2505.12082) and
    uniform soups (arXiv:2203.05482).

    Options: `preset` (`lawa`: the last 5, `pma`: the last 10, `soup`: all), `schedule` (`constant`,
    `linear`, `cosine`, `1-sqrt`), `ema` (factor of each new model), `last` (number of models),
    `steps` (in pool order; the last numbers in the names). A base takes no part. Adapters
    are added to their base, so that the result is a full model. Weights are computed in fp64,
    sums in fp32, in pool order. The result's `run_average.json` has the weights.
    Raises `RecipeError` for unknown, repeated or too few steps.
    Shapes: any. Data: none. Cost: one pass.
    """

    config_class = RunAverageConfig

    def run(self, pool: ModelPool[Any], context: RunContext) -> WeightSource:
        """Return the lazy average."""
        weights = self.weights_of([*pool.experts])
        self._warn_of_oldest(weights, context)
        context.save(WEIGHTS, {"schema": 1, "weights": weights})
        return context.merge(pool, WeightedMean(tuple(weights.values())))

    def weights_of(self, names: Sequence[str]) -> dict[str, float]:
        """Return the weight of each model by name; 0 for those that `last` leaves out."""
        config, count = self.config, len(names)
        last = config.last or count
        if last > count:
            given = f"preset {config.preset}" if config.preset else f"last={last}"
            raise RecipeError(
                f"algorithm: {given} averages {last} models, and there are {count}",
                hint=f"Set algorithm.last={count}.",
            )
        depends_on_steps = config.schedule != "constant" or config.ema is not None or last < count
        steps = self._steps_of(names) if depends_on_steps else dict.fromkeys(names, 0)
        chosen = sorted(names, key=steps.__getitem__)[-last:]
        if config.ema is not None:
            values = ema_weights(last, config.ema)
        else:
            values = decay_weights([steps[name] for name in chosen], config.schedule)
        weights = dict(zip(chosen, values, strict=True))
        return {name: weights.get(name, 0.0) for name in names}

    def _warn_of_oldest(self, weights: Mapping[str, float], context: RunContext) -> None:
        """Warn if a moving average is so short that it mostly holds its first model."""
        factor, heaviest = self.config.ema, max(weights, key=weights.__getitem__)
        if factor is not None and weights[heaviest] > factor:
            context.warn(
                f"ema {factor:g} gives {heaviest}, the oldest, the largest weight "
                f"({weights[heaviest]:.2f}): an average over so few models mostly holds its first "
                "one. Take more models or a larger ema."
            )

    def _steps_of(self, names: Sequence[str]) -> dict[str, int]:
        given = self.config.steps
        if given is None:
            numbers = {name: _NUMBER.findall(name) for name in names}
            without = [name for name, digits in numbers.items() if not digits]
            if without:
                raise RecipeError(
                    f"algorithm.steps: missing, and the model {without[0]!r} has no step number",
                    hint="Name the models after their steps, such as step-1000, or give "
                    "algorithm.steps in the order of the models.",
                )
            steps = {name: int(digits[-1]) for name, digits in numbers.items()}
        elif len(given) != len(names):
            raise RecipeError(
                f"algorithm.steps has {len(given)} entries for {len(names)} models",
                hint=f"The models, in order: {', '.join(names)}.",
            )
        else:
            steps = dict(zip(names, given, strict=True))
        by_step: dict[int, str] = {}
        for name, step in steps.items():
            if step in by_step:
                raise RecipeError(
                    f"algorithm.steps: {by_step[step]} and {name} have the same step {step}",
                    hint="Leave one of them out.",
                )
            by_step[step] = name
        return steps
