"""Heads that put vectors into classes, and heads of experts around any encoder."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from fusion_core import find_model
from fusion_core.errors import RecipeError
from fusion_core.weights import as_weights, assemble, read_config, safe_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_core.weights import WeightSource
    from pools_lm.architecture import Architecture

#: What transformers calls the head of a decoder that puts texts into classes.
SCORE = "score.weight"
#: How much similarities count, as in sentence-transformers' losses.
_SCALE = 20.0
#: What transformers leaves out of a configuration.
_TWO = {"0": "LABEL_0", "1": "LABEL_1"}


@dataclass(frozen=True)
class LinearHead:
    """A weight, shape (classes, width), and a bias, shape (classes,)."""

    weight: Tensor
    bias: Tensor
    #: whether it is the angle between vectors that counts
    is_cosine: bool = False

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return scores of shape (texts, classes)."""
        rows = functional.normalize(vectors, dim=-1) if self.is_cosine else vectors
        return functional.linear(rows, self.weight.to(rows), self.bias.to(rows))


def nearest(names: Tensor) -> LinearHead:
    """Return the head that finds the nearest of some vectors, shape (classes, width)."""
    return LinearHead(_SCALE * functional.normalize(names, dim=-1), torch.zeros(len(names)), True)


def logistic(vectors: Tensor, labels: Tensor, classes: int) -> LinearHead:
    """Fit a logistic regression to vectors, shape (texts, width), as scikit-learn does by default.

    That is the minimum of the summed cross entropy and half the squared weights; where there are
    two classes, the squares of the one vector that tells them apart.
    """
    rows = vectors.detach().double()
    weight = torch.zeros(classes, rows.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    factor = 1.0 if classes == 2 else 0.5  # noqa: PLR2004
    how: dict[str, Any] = {"history_size": 10, "line_search_fn": "strong_wolfe"}
    search = torch.optim.LBFGS([weight, bias], max_iter=1000, tolerance_change=0, **how)

    def closure() -> Tensor:
        search.zero_grad()
        loss = functional.cross_entropy(functional.linear(rows, weight, bias), labels)
        total = loss + factor * weight.square().sum() / len(rows)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        search.step(closure)  # type: ignore[no-untyped-call]
    return LinearHead(weight.detach().float(), bias.detach().float())


@dataclass(frozen=True)
class ExpertHead:
    """A classifier of transformers without its encoder, whose place that of any model takes."""

    #: on the meta device
    empty: Any
    #: the classifier's weights, by the names of `empty`
    weights: WeightSource

    @classmethod
    def of(cls, pool: ModelPool[Any], task: str, path: str | None = None) -> ExpertHead:
        """Find the head for a task: its expert's, or that of a classifier, here or on the hub.

        Weights are not read yet. Raises `RecipeError` for a model without a head, or of another
        kind than the pool's.
        """
        source, config = _expert(pool, task) if path is None else _classifier(path, task)
        own, theirs = config.get("model_type"), config_of(pool).get("model_type")
        if own != theirs:
            raise RecipeError(
                f"the head for task {task!r} is that of a {own} model, and the models are {theirs}",
                hint="Name another one, or the models that it belongs to.",
            )
        found = cls(_empty(config), _architecture(config).named(source))
        if missing := [
            name for name in found.empty.state_dict() if name not in found.weights.infos
        ]:
            wanted = "task_pool.head=probe" if path is None else f"task_pool.datasets.{task}.head"
            raise RecipeError(
                f"{source.describe()} has no head for task {task!r}: {missing[0]!r} is missing",
                hint=f"Use another one: {wanted}",
            )
        return found

    @cached_property
    def shell(self) -> Any:  # noqa: ANN401 - transformers' many classes
        """The classifier with its weights, which are read once, and without an encoder."""
        values = {
            name: assemble(self.weights, name, dtype=torch.float32).reshape(each.shape)
            for name, each in self.empty.state_dict().items()
        }
        self.empty.load_state_dict(values, assign=True)
        return self.empty.eval().requires_grad_(False)

    def around(self, model: nn.Module) -> nn.Module:
        """Return the classifier with a live model's encoder in it: the module itself, no copy."""
        whole: Any = model
        shell = self._like(next(model.parameters()))
        shared = [shell.config, *shell.parameters(), *shell.buffers()]
        kept = {id(each): each for each in shared}
        place = getattr(shell, shell.base_model_prefix)
        found: nn.Module = copy.deepcopy(shell, {**kept, id(place): whole.base_model})
        return found

    def _like(self, values: Tensor) -> Any:  # noqa: ANN401 - transformers' many classes
        if self.shell.device != values.device:
            self.shell.to(values.device)
        is_alike = self.shell.dtype == values.dtype
        return self.shell if is_alike else copy.deepcopy(self.shell).to(values.dtype)

    @property
    def digest(self) -> str:
        """Tells heads apart."""
        found = hashlib.sha256()
        for name, each in self.shell.state_dict().items():
            found.update(name.encode() + each.cpu().numpy().tobytes())
        return found.hexdigest()


def reads_last_token(pool: ModelPool[Any]) -> bool:
    """Tell whether classifiers of a pool's kind have a linear head that reads the last token."""
    return list(_empty(config_of(pool)).state_dict()) == [SCORE]


def names_in(config: Mapping[str, Any]) -> list[str]:
    """Return what a model's configuration calls the classes."""
    named = config.get("id2label") or _TWO
    return [str(named[number]) for number in sorted(named, key=int)]


def config_of(pool: ModelPool[Any], task: str | None = None) -> dict[str, Any]:
    """Return what lies beside a task's expert or, for None and for an adapter, the base."""
    experts = [name for name in pool.experts if pool.task_of(name) == task]
    found = [safe_config(each, name) for name, each in pool.beside().items() if name in experts]
    return next(filter(None, found), None) or safe_config(pool.assets(), "base") or {}


def _expert(pool: ModelPool[Any], task: str) -> tuple[WeightSource, dict[str, Any]]:
    return as_weights(pool.expert_of(task), pool.base), config_of(pool, task)


def _classifier(path: str, task: str) -> tuple[WeightSource, dict[str, Any]]:
    option = f"task_pool.datasets.{task}.head"
    found = find_model(path, option)
    if found.is_delta:
        raise RecipeError(
            f"{option}: {found.location.name} is an adapter, not a classifier",
            hint="Name the directory of a whole model with a head.",
        )
    return found.open(), read_config(found.location.directory / "config.json")


def _empty(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - transformers' many classes
    with torch.device("meta"):
        shell: Any = _architecture(config).construct()
    setattr(shell, shell.base_model_prefix, nn.Identity())
    return shell


def _architecture(config: Mapping[str, Any]) -> Architecture:
    from pools_lm.architecture import architecture  # transformers: seconds

    return architecture("AutoModelForSequenceClassification", json.dumps(config)).checked
