"""Predictions of each task's expert, as targets for a merge."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion_adapting._live import build_live
from fusion_adapting._predictions import (
    disagreement,
    log_probabilities,
    standardise,
    widened,
)
from fusion_core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import Tensor, nn

    from fusion_adapting._passes import Batches
    from fusion_core import AdaptiveTask, Batch, ModelPool, Progress

#: Fraction of an expert's probability that its compact predictions may give to "the rest".
REST = 1e-4
#: Up to this many classes, predictions are kept whole.
SMALL = 8192
#: From fewer examples nothing follows if an expert predicts the same for all.
FEW = 8


@dataclass(frozen=True)
class Predictions:
    """An expert's softened predictions for the distinct examples of a task.

    Of a large vocabulary only the likeliest classes are kept. All others count as one class, the
    rest.
    """

    #: log-probabilities of shape (predictions, kept classes), in decreasing order if not of all
    logs: Tensor
    #: the kept classes, of the same shape in int32; None if all are kept, in order
    classes: Tensor | None
    #: the rows of `logs` for each step's batch
    rows: Mapping[int, Tensor]
    #: the rows of `logs` for each example
    examples: Sequence[range]

    @property
    def are_scores(self) -> bool:
        """Whether these are scores of classes: one prediction per example, of every class."""
        is_single = all(len(rows) == 1 for rows in self.examples)
        is_whole = self.classes is None and self.logs.shape[1] <= SMALL
        ruled_out = self.logs == torch.finfo(self.logs.dtype).min
        return is_single and is_whole and not bool(ruled_out.any())

    def are_alike(self) -> bool:
        """Return whether the likeliest classes are the same for all of eight or more examples."""
        if len(self.examples) < FEW:
            return False
        likeliest = self.logs.argmax(dim=1) if self.classes is None else self.classes[:, 0]
        classes = likeliest.tolist()
        return len({tuple(classes[rows.start : rows.stop]) for rows in self.examples}) == 1

    def describe(self) -> str:
        """Describe what is kept, for a progress bar."""
        predictions, classes = self.logs.shape
        coverage = "all" if self.classes is None else f"the likeliest {classes:,}"
        return f"{predictions:,} predictions, {coverage} classes in {self.logs.dtype}".replace(
            "torch.", ""
        )

    def disagreement(self, step: int, logits: Tensor) -> Tensor:
        """Return the mean KL divergence from the expert's predictions in a step, in nats.

        The logits have the shape (examples, classes) and are softened already. If the rest counts
        as one class, the divergence is at most the true one.
        """
        rows = self.rows[step]
        target = self.logs[rows].to(logits)
        if self.classes is None:
            return disagreement(logits, target)
        classes = self.classes[rows].long().to(logits.device)
        if classes.shape[1] == logits.shape[1]:  # there is no rest
            return disagreement(logits.gather(1, classes), target)
        return disagreement(_merge_rest(logits, classes), _add_rest(target))

    def standardised_disagreement(self, step: int, logits: Tensor) -> Tensor:
        """Return the mean KL divergence of a step's batch if both sides are standardised, in nats.

        It is small where a model orders the classes as the expert does, however sure either is. The
        predictions must be scores of classes (`are_scores`).
        """
        target = self.logs[self.rows[step]].to(logits)
        return disagreement(standardise(logits), standardise(target))


def ask_teachers(  # noqa: PLR0913 - whom to ask, what, and where
    pool: ModelPool[Any],
    tasks: Sequence[AdaptiveTask],
    batches: Batches,
    steps: int,
    *,
    device: torch.device,
    progress: Progress,
    temperature: float = 1.0,
    by_base: Collection[str] = (),
) -> dict[str, Predictions]:
    """Return the experts' predictions for the batches of the first steps, by task.

    The base predicts the tasks named in `by_base`. Each distinct example is predicted once, however
    many steps repeat it. The predictions are softened by the temperature, and lie on the CPU. One
    model is live at a time. Raises `RecipeError` for a task without its teacher: an expert that was
    fine-tuned for it, or the base.
    """
    predictions: dict[str, Predictions] = {}
    total = len(tasks) * steps
    with progress.track("ask the teachers", total=total, unit="batches") as advance:

        def predict_all(teacher: nn.Module, task: AdaptiveTask) -> Predictions:
            numbers: dict[bytes, range] = {}
            rows: dict[int, Tensor] = {}
            parts: list[Tensor] = []
            total = 0
            for step in range(steps):
                batch = batches.of(task, step)
                keys = _identify_examples(batch)
                fresh = {key: row for row, key in enumerate(keys) if key not in numbers}
                if fresh:
                    asked = batch.rows(torch.tensor([*fresh.values()])).to(device)
                    for key, count in zip(fresh, asked.count_predictions(), strict=True):
                        numbers[key] = range(total, total + count)
                        total += count
                    logits = widened(task.logits(teacher, asked))
                    parts.append(log_probabilities(logits / temperature).cpu())
                rows[step] = torch.tensor([row for key in keys for row in numbers[key]])
                advance(1, note=task.name)
            logs = torch.cat(parts) if parts else torch.empty(0, 0)
            compact = Predictions(*_compress(logs), rows, [*numbers.values()])
            advance(0, note=f"{task.name}: {compact.describe()}")
            return compact

        for task in tasks:
            teacher = pool.base if task.name in by_base else pool.expert_of(task.name)
            if teacher is None:
                raise RecipeError(
                    f"the base teaches task {task.name!r}, and the pool has no base",
                    hint="Give the model pool the model that the experts were fine-tuned from.",
                )
            with torch.no_grad():
                predictions[task.name] = predict_all(build_live(pool, teacher, device), task)
    return predictions


def _identify_examples(batch: Batch) -> list[bytes]:
    """Return a digest of each example, without its padding."""
    mask = batch.mask
    keys = [hashlib.blake2b(digest_size=16) for _ in range(len(batch))]
    for name, tensor in sorted(batch.tensors.items()):
        is_padded = mask is not None and tensor.shape[:2] == mask.shape
        for row, key in enumerate(keys):
            example = tensor[row]
            if is_padded and mask is not None:
                example = example[mask[row].bool()]
            key.update(f"{name} {example.dtype} {[*example.shape]}".encode())
            key.update(example.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return [key.digest() for key in keys]


def _compress(logs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the likeliest classes' log-probabilities, and these classes; None if it keeps all.

    It keeps as many classes as every example needs for all but `REST` of its probability. If that
    is more than a third of all, or there are few, it keeps all, of many in fp16.
    """
    if logs.shape[1] <= SMALL:
        return logs, None
    limit = logs.shape[1] // 3
    likeliest, classes = logs.topk(limit, dim=1)
    needed = int((likeliest.exp().cumsum(dim=1) < 1 - REST).sum(dim=1).max()) + 1
    if needed > limit:
        return logs.half(), None
    return likeliest[:, :needed].clone(), classes[:, :needed].int()


def _add_rest(logs: Tensor) -> Tensor:
    """Append the log-probability of all other classes: (examples, k) -> (examples, k + 1)."""
    smallest = torch.finfo(logs.dtype).tiny
    rest = (1 - logs.double().exp().sum(dim=1, keepdim=True)).clamp_min(smallest).log()
    return torch.cat([logs, rest.to(logs)], dim=1)


def _merge_rest(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the logits of these classes and, last, that of all others as one class."""
    rest = logits.scatter(1, classes, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([logits.gather(1, classes), rest], dim=1)
