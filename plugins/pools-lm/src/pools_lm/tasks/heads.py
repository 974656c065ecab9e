"""Classification heads: linear heads on embeddings, and experts' heads on any encoder."""

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
from fusion_core.weights import as_weights, assemble, parse_safe_config, read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion_core import ModelPool
    from fusion_core.weights import WeightSource
    from pools_lm.architecture import Architecture

#: The head of a decoder that classifies texts, as transformers names it.
SCORE = "score.weight"
#: Scale of cosine similarities, as in the losses of sentence-transformers.
_SCALE = 20.0
#: The default class names, which transformers omits from a configuration.
_TWO_CLASSES = {"0": "LABEL_0", "1": "LABEL_1"}


@dataclass(frozen=True)
class LinearHead:
    """A weight, shape (classes, width), and a bias, shape (classes,)."""

    weight: Tensor
    bias: Tensor
    #: whether vectors are normalized first
    is_cosine: bool = False

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return scores, shape (texts, classes)."""
        rows = functional.normalize(vectors, dim=-1) if self.is_cosine else vectors
        return functional.linear(rows, self.weight.to(rows), self.bias.to(rows))


def nearest_name_head(names: Tensor) -> LinearHead:
    """Return the head that selects the nearest class name; `names` has shape (classes, width)."""
    return LinearHead(_SCALE * functional.normalize(names, dim=-1), torch.zeros(len(names)), True)


def fit_logistic(vectors: Tensor, labels: Tensor, classes: int) -> LinearHead:
    """Fit a logistic regression to vectors, shape (texts, width), with scikit-learn's defaults.

    The loss is the summed cross entropy plus half the squared weights. For two classes,
    scikit-learn penalizes only the one vector that separates them.
    """
    rows = vectors.detach().double()
    weight = torch.zeros(classes, rows.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    factor = 1.0 if classes == 2 else 0.5  # noqa: PLR2004
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

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
    """A transformers classifier without its encoder, which can be attached to any model's."""

    #: the classifier on the meta device
    skeleton: Any
    #: the classifier's weights, under the names in `skeleton`
    weights: WeightSource

    @classmethod
    def of(cls, pool: ModelPool[Any], task: str, path: str | None = None) -> ExpertHead:
        """Find a task's head: its expert's, or the one of the classifier at `path`.

        Weights are not read yet. Raises `RecipeError` for a model without a head, or of another
        type than the pool's models.
        """
        if path is None:
            source = as_weights(pool.expert_of(task), pool.base)
            config = config_of(pool, task)
        else:
            source, config = _open_classifier(path, task)
        head_type, pool_type = config.get("model_type"), config_of(pool).get("model_type")
        if head_type != pool_type:
            raise RecipeError(
                f"conflicting model types for task {task!r}: its head belongs to {head_type}, the "
                f"models are {pool_type}",
                hint="Name another head, or the models that it belongs to.",
            )
        from pools_lm.architecture import has_pooler  # transformers takes seconds to import

        reads_pooler = has_pooler(_load_architecture(config).tensors)
        if reads_pooler and not has_pooler(pool.reference.infos):
            raise RecipeError(
                f"the head of task {task!r} reads the encoder's pooler, and the models have none",
                hint="Use another head: task_pool.head=probe",
            )
        skeleton = _build_skeleton(config)
        weights = _load_architecture(config).rename_to_live(source)
        missing = [name for name in skeleton.state_dict() if name not in weights.infos]
        if missing:
            option = "task_pool.head=probe" if path is None else f"task_pool.datasets.{task}.head"
            raise RecipeError(
                f"{source.describe()} has no head for task {task!r}: {missing[0]!r} is missing",
                hint=f"Use another one: {option}",
            )
        return cls(skeleton, weights)

    @cached_property
    def module(self) -> Any:  # noqa: ANN401 - transformers' many classes
        """The classifier with its weights, without an encoder."""
        values = {
            name: assemble(self.weights, name, dtype=torch.float32).reshape(tensor.shape)
            for name, tensor in self.skeleton.state_dict().items()
        }
        self.skeleton.load_state_dict(values, assign=True)
        return self.skeleton.eval().requires_grad_(False)

    def attach(self, model: nn.Module) -> nn.Module:
        """Return the classifier with a live model's encoder, which is shared, not copied."""
        live: Any = model
        values = next(model.parameters())
        module = self.module
        if module.device != values.device:
            module.to(values.device)
        if module.dtype != values.dtype:
            module = copy.deepcopy(module).to(values.dtype)
        shared = [module.config, *module.parameters(), *module.buffers()]
        memo = {id(value): value for value in shared}
        encoder = getattr(module, module.base_model_prefix)
        classifier: nn.Module = copy.deepcopy(module, {**memo, id(encoder): live.base_model})
        return classifier

    @property
    def digest(self) -> str:
        """A digest of the head's weights."""
        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


def reads_last_token(pool: ModelPool[Any]) -> bool:
    """Tell whether classifiers of the pool's type have a linear head on the last token."""
    return list(_build_skeleton(config_of(pool)).state_dict()) == [SCORE]


def class_names_in(config: Mapping[str, Any]) -> list[str]:
    """Return the class names in a model's configuration."""
    names = config.get("id2label") or _TWO_CLASSES
    return [str(names[number]) for number in sorted(names, key=int)]


def config_of(pool: ModelPool[Any], task: str | None = None) -> dict[str, Any]:
    """Return the configuration of a task's expert, or of the base.

    The base's is returned for None, and for an expert without one, such as an adapter.
    """
    experts = [name for name in pool.experts if pool.task_of(name) == task]
    configs = [
        parse_safe_config(files, name)
        for name, files in pool.side_files().items()
        if name in experts
    ]
    return next(filter(None, configs), None) or parse_safe_config(pool.assets(), "base") or {}


def _open_classifier(path: str, task: str) -> tuple[WeightSource, dict[str, Any]]:
    option = f"task_pool.datasets.{task}.head"
    model = find_model(path, option)
    if model.is_delta:
        raise RecipeError(
            f"{option}: expected a classifier, found an adapter: {model.location.name}",
            hint="Name the directory of a full model with a head.",
        )
    return model.open(), read_config(model.location.directory / "config.json")


def _build_skeleton(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - transformers' many classes
    with torch.device("meta"):
        skeleton: Any = _load_architecture(config).construct()
    setattr(skeleton, skeleton.base_model_prefix, nn.Identity())
    return skeleton


def _load_architecture(config: Mapping[str, Any]) -> Architecture:
    from pools_lm.architecture import load_architecture  # transformers takes seconds to import

    return load_architecture("AutoModelForSequenceClassification", json.dumps(config))
