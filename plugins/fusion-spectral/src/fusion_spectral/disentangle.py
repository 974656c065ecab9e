"""A transform that chooses directions and scale of task vectors by unlabeled examples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from fusion_adapting import join_ranks
from fusion_core import Piece, Transform
from fusion_core.errors import FusionError
from fusion_core.weights import Linear, StateDictSource
from fusion_spectral.config import DisentangleConfig, IsotropiseConfig, OrthogonaliseConfig
from fusion_spectral.iso import Isotropise
from fusion_spectral.matrixwise import Matrixwise
from fusion_spectral.orthogonalise import Orthogonalise
from fusion_spectral.sums import Judges, find_full_strength, have_answers, judged_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fusion_core import ModelPool, RunContext

_DIRECTIONS = ("orthogonal", "isotropic")
_SCALES = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: The file that records the choice and the distances of all candidates.
CHOICE = "choice.json"
#: Standard deviation of the logarithm of a scale, before any example is seen.
_SPREAD = 0.5


class _Candidate(NamedTuple):
    """A sum of task vectors, and how it compares with the experts."""

    directions: str
    scale: float
    #: mean disagreement with the experts, in nats
    distance: float
    #: how unlikely the scale is before any example is seen, in nats per prediction
    surprise: float

    @property
    def is_finite(self) -> bool:
        """Whether the sum's predictions are finite."""
        return math.isfinite(self.distance)


class Disentangle(Matrixwise, Transform[DisentangleConfig]):
    """Choose orthogonal or isotropic task vectors, and their scale, by unlabeled examples.

    Formula: scale * orthogonalise(tau_k), or scale * isotropise(tau_k). Both are tried at scales
    from 0.5 to 6. Chosen is the sum that is closest to the experts: it has the smallest mean over
    tasks of KL(softmax(z_k) || softmax(z)) + 2 ln(scale / expected)^2 / N, of N predictions in all.
    z_k are the logits of the task's expert and z those of the sum, centred per example and divided
    by their root mean square over the examples. The expected scale is 1 for orthogonal task
    vectors. For isotropic ones, whose sum is tau, it is sum |tau_k|^2 / sum <tau, tau_k> over
    all matrices, at which tau contains the experts' task vectors at full strength.
    Options: `directions` (`orthogonal` or `isotropic`; chosen), `scale` (factor, if `directions` is
    given; 1.0), `samples` (unlabeled examples per task to choose by; 32), `matrices` (`all`).
    Differences: no paper has this choice. Logits of one size matter: isotropic sums prefer the
    right classes by small margins, so that plain divergences miss them.

    Data: `samples` unlabeled examples of each expert's task. If an example has several predictions,
    as answers of language models have, or a task rules classes out, nothing is chosen: directions
    are orthogonal and the scale is 1. Memory: four models. Cost: both decompositions, 16 passes of
    the examples, and one of the experts' weights. The chosen task vectors are decomposed again.
    """

    config_class = DisentangleConfig
    other_tensors = "divided by the number of experts"
    pieces_held, squares = (9, 4.8), (9, 1)

    def fit(self, pool: ModelPool[Any], context: RunContext) -> Self:
        """Return the transform with the given or the chosen directions and scale."""
        if self.config.directions is not None:
            return self
        tasks, default = judged_tasks(pool, context), self._with("orthogonal", 1.0)
        if have_answers(tasks):  # before experts are asked, which takes long for language models
            return default
        judges = Judges(pool, tasks, self.config.samples, context)
        return self._choose(pool, judges, context) if judges.can_judge else default

    def rows(self, piece: Piece) -> Tensor:
        """Return task vectors of the given directions and scale, (experts, ...)."""
        matrices = self.config.matrices
        stage = (
            Isotropise(IsotropiseConfig(matrices=matrices))
            if self.config.directions == "isotropic"
            else Orthogonalise(OrthogonaliseConfig(matrices=matrices))
        )
        rows, scale = stage.rows(piece), self.config.scale
        return rows if scale is None else rows * scale

    def held_memory(self, model: int, pool: ModelPool[Any]) -> int:
        """Count a sum twice, the base, and the sum's task vector."""
        held = super().held_memory(model, pool)
        return 4 * held if self.config.directions is None else held

    def _choose(self, pool: ModelPool[Any], judges: Judges, context: RunContext) -> Self:
        """Return the transform whose sum the judges find closest to the experts."""
        finite = [
            candidate for candidate in self._judge(pool, judges, context) if candidate.is_finite
        ]
        if not finite:
            raise FusionError(
                "no sum of task vectors has finite predictions",
                hint="Evaluate each expert: one of them may predict NaN.",
            )
        best = min(finite, key=lambda candidate: candidate.distance + candidate.surprise)
        directions, scale = join_ranks().broadcast((best.directions, best.scale))
        if directions == "isotropic":
            context.warn(
                f"isotropic task vectors at scale {scale:g} agree best with the experts. The "
                "merge may be far less sure of its classes than they are: do not rely on the size "
                "of its probabilities (for orthogonal ones: directions=orthogonal)."
            )
        chosen = {"directions": directions, "scale": scale}
        context.save(
            CHOICE, {"chosen": chosen, "candidates": [candidate._asdict() for candidate in finite]}
        )
        return self._with(directions, scale)

    def _judge(
        self, pool: ModelPool[Any], judges: Judges, context: RunContext
    ) -> Iterator[_Candidate]:
        """Yield the sum of each kind of task vectors at each scale."""
        count = len(_DIRECTIONS) * len(_SCALES)
        with context.progress.track("disentangle", total=count, unit="sums") as advance:
            for directions in _DIRECTIONS:
                models = context.transform(pool, self._with(directions, 1.0))
                merged = context.merge(models, Linear((1.0,) * len(pool.experts)))
                total = StateDictSource(merged.state_dict())
                is_isotropic = directions == "isotropic"
                expected = find_full_strength(pool, total, context) if is_isotropic else 1.0
                for scale, distance in judges.judge(total, _SCALES):
                    surprise = (math.log(scale / expected) / _SPREAD) ** 2 / 2 / judges.count
                    yield _Candidate(directions, scale, distance, surprise)
                    advance(1, note=f"{directions}, scale {scale:g}: {distance:.3f}")

    def _with(self, directions: str, scale: float) -> Self:
        chosen = {"directions": directions, "scale": scale}
        return type(self)(self.config.model_copy(update=chosen))
