"""Heads that put vectors into classes, and heads of experts around any encoder."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from fusion_core.errors import RecipeError
from fusion_core.weights import as_weights, assemble, safe_config

if TYPE_CHECKING:
    from torch import Tensor

    from fusion_core import ModelPool

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

    shell: Any
    place: nn.Module

    @classmethod
    def of(cls, pool: ModelPool[Any], task: str) -> ExpertHead:
        """Read the head of a task's expert; raises `RecipeError` for one that has none."""
        from pools_lm.architecture import architecture  # transformers: seconds

        source, fields = as_weights(pool.expert_of(task), pool.base), _config(pool, task)
        own = architecture("AutoModelForSequenceClassification", json.dumps(fields)).checked
        with torch.device("meta"):
            shell: Any = own.construct()
        place = nn.Identity()
        setattr(shell, shell.base_model_prefix, place)
        named = own.named(source)
        if missing := [name for name in shell.state_dict() if name not in named.infos]:
            raise RecipeError(
                f"the expert for task {task!r} has no head: {missing[0]!r} is missing",
                hint="Use another one: task_pool.head=probe",
            )
        values = {
            name: assemble(named, name, dtype=torch.float32).reshape(each.shape)
            for name, each in shell.state_dict().items()
        }
        shell.load_state_dict(values, assign=True)
        return cls(shell.eval().requires_grad_(False), place)

    def around(self, model: nn.Module) -> nn.Module:
        """Return the classifier with a live model's encoder in it: the module itself, no copy."""
        whole: Any = model
        device = next(model.parameters()).device
        if self.shell.device != device:
            self.shell.to(device)
        shared = [self.shell.config, *self.shell.parameters(), *self.shell.buffers()]
        kept = {id(each): each for each in shared}
        found: nn.Module = copy.deepcopy(self.shell, {**kept, id(self.place): whole.base_model})
        return found

    @property
    def digest(self) -> str:
        """Tells heads apart."""
        found = hashlib.sha256()
        for name, each in self.shell.state_dict().items():
            found.update(name.encode() + each.cpu().numpy().tobytes())
        return found.hexdigest()


def names_of(pool: ModelPool[Any], task: str | None) -> list[str]:
    """Return what the configuration of a task's expert, or of the base, calls the classes."""
    named = _config(pool, task).get("id2label") or _TWO
    return [str(named[number]) for number in sorted(named, key=int)]


def _config(pool: ModelPool[Any], task: str | None) -> dict[str, Any]:
    """Return what lies beside a task's expert or, for None and for an adapter, the base."""
    experts = [name for name in pool.experts if pool.task_of(name) == task]
    found = [safe_config(each, name) for name, each in pool.beside().items() if name in experts]
    return next(filter(None, found), None) or safe_config(pool.assets(), "base") or {}
