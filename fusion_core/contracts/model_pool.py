"""The models to fuse: a base, its experts, and how weights become a live model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import torch

from fusion_core.contracts.matrices import layout_of, matrices_by_name
from fusion_core.errors import BrokenPluginError, RecipeError
from fusion_core.recipe.config import ComponentConfig
from fusion_core.weights import Difference, WeightSource, align
from fusion_core.weights.aligning.difference import judge
from fusion_core.weights.origin import Origin
from fusion_core.weights.packing import Layout
from fusion_core.weights.reading.assets import CONFIG, parse_config
from fusion_core.weights.reading.quantisation import refuse_quantised
from fusion_core.weights.source import check_unchanged, collect_origins, reference_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from fusion_core.contracts.treatments import Treatment
    from fusion_core.hub import FileRequest
    from fusion_core.recipe.config import AlignmentPolicy
    from fusion_core.weights.aligning.difference import Topic
    from fusion_core.weights.matrices import Matrices
    from fusion_core.weights.reading.assets import Files

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class ModelPool(ABC, Generic[ConfigT]):
    """A base, its experts, and how to build a live model of their kind.

    A subclass sets `config_class`. Its constructor sets `base` (or None) and `experts`, and reads
    headers but no weights. Results are summed in the order of `experts`. Merging needs only these
    two attributes. Evaluation and adaptive algorithms call `build`; a pool that cannot build raises
    a `FusionError` in `build` and in `check_builds`. Example::

        from pathlib import Path

        import torch
        from torch import nn

        from fusion_core import ComponentConfig, InputPath, ModelPool, build_model
        from fusion_core.weights import CheckpointSource

        class BirdsConfig(ComponentConfig):
            folder: InputPath
            "The directory that holds the checkpoints."
            experts: list[str] = ["garden", "shore"]
            "The names of the experts' directories."

        class BirdsPool(ModelPool[BirdsConfig]):
            config_class = BirdsConfig

            def __init__(self, config):
                super().__init__(config)
                folder = Path(config.folder)
                self.base = CheckpointSource(folder / "base")
                self.experts = {name: CheckpointSource(folder / name) for name in config.experts}

            def build(self, weights, *, dtype=torch.float32, device="cpu"):
                return build_model(
                    lambda: nn.Linear(6, 3), weights, base=self.base, dtype=dtype, device=device
                )
    """

    config_class: ClassVar[type[ComponentConfig]] = ComponentConfig
    #: whether `build` can make a model with as many layers as the weights have
    builds_any_depth: ClassVar[bool] = False
    base: WeightSource | None = None
    experts: Mapping[str, WeightSource]
    #: expert tensors that alignment dropped
    dropped: frozenset[str] = frozenset()
    #: tensors of the base that no expert has
    untouched: frozenset[str] = frozenset()
    #: differences that alignment accepted and the user should know
    warnings: tuple[str, ...] = ()
    #: whether tensors are merged as they are stored, and not each matrix inside of them
    merges_stored: bool = False
    #: the experts before any transform, in a pool of transformed experts
    _untransformed: Mapping[str, WeightSource] | None = None

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def build(
        self,
        weights: WeightSource,
        *,
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """Return a live model with these weights, in evaluation mode, without a second copy.

        Call `build_model`, which does this for any module. `weights` may be a checkpoint, a merge,
        or differences from the base. `dtype` is the dtype of parameters and saved buffers. None
        means the pool's usual dtype: fp32, or that of models that were given live. Raises
        `AlignmentError` for weights that do not fit.
        """

    def check_builds(self) -> None:
        """Raise a `FusionError` if `build` cannot make a model; called before any work."""

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Map the sources' tensor names to the parameters of a model that `build` returned.

        A parameter that holds several of the sources' tensors has a name in `live_layout` instead.
        """
        return dict(module.named_parameters(remove_duplicate=False))

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        """Return the matrices that a floating-point tensor of the sources holds.

        Methods treat every matrix as a tensor of its own: the experts of a packed mixture are
        merged as if they were stored one by one. The default follows names and shapes that torch
        and transformers always use. Override it for layouts that only the pool knows, such as the
        rows of a fused `qkv`, and leave all other tensors to the default::

            def matrices(self, name, shape):
                if name.endswith("attn.qkv.weight"):
                    third = shape[0] // 3
                    return Matrices((Rows(q=third, k=third, v=third), Columns(shape[1])))
                return super().matrices(name, shape)
        """
        return matrices_by_name(name, shape)

    @property
    def treatments(self) -> Mapping[str, Treatment]:
        """The tensors that the pool keeps from all stages, and how each gets its values.

        For example routers of a mixture that come from the base. Default: none.
        """
        return {}

    def assets(self, *, dtype: torch.dtype | None = None) -> Mapping[str, bytes | Path]:
        """Return the files that make an output directory loadable, by name: content or path.

        `dtype` is the dtype of the written weights if it differs from the base's.
        """
        del dtype
        return {}

    def side_files(self) -> Mapping[str, Files]:
        """Return the files next to each model's weights that describe it, by the model's name.

        Examples are `config.json` and the files of a tokenizer. A pool that returns any must
        compare the models by these files in `differences`. Default: none.
        """
        return {}

    def differences(self, topic: Topic) -> Iterable[Difference]:
        """Find ways in which the descriptions of models contradict each other.

        Alignment asks for the topics `config` and `tokenizer`, unless a policy ignores them. A
        serious difference is an error, which the policy of the topic may allow. Others are
        warnings. Default: none, for models without side files. For others, derive the pool from
        `pools_checkpoints.DescribedPool`, which compares all files that transformers writes.
        """
        del topic
        if any(self.side_files().values()):
            raise BrokenPluginError(
                f"the model pool {type(self).__name__} has side files and does not compare them",
                hint="Its authors must derive it from pools_checkpoints.DescribedPool, or "
                "implement `differences`.",
            )
        return ()

    def task_of(self, expert: str) -> str:
        """Return the task that an expert was fine-tuned for; default: they share a name."""
        return expert

    def expert_of(self, task: str) -> WeightSource:
        """Return the first expert that was fine-tuned for a task, before any transform.

        Raises `RecipeError` for a task without an expert.
        """
        experts = self._untransformed or self.experts
        tasks = {name: self.task_of(name) for name in experts}
        for name, expert_task in tasks.items():
            if expert_task == task:
                return experts[name]
        raise RecipeError(
            f"no expert was fine-tuned for task {task!r}",
            hint=f"The experts' tasks: {', '.join(dict.fromkeys(tasks.values()))}.",
        )

    def inputs(self) -> Mapping[str, Any]:
        """Identify the inputs for the provenance; default: each source's name and `origin`."""
        return {name: identify_input(source) for name, source in self.by_name.items()}

    def identity(self) -> Mapping[str, Any] | None:
        """Return, as JSON data, all that live models depend on besides weights and `assets`.

        Measurements of a model are reused while it stays the same. Return None to measure models
        every time. Default: the pool's options.
        """
        return self.config.identity()

    def cards(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what the model cards say, by the model's name, `base` included; JSON data.

        The keys are `licence`, `licence_link` and `languages` (a list of codes), each if the card
        has it. `pools_checkpoints.read_card` reads a card. Default: no card is known.
        """
        return {}

    def downloads(self) -> Sequence[FileRequest]:
        """Return the hub files that the weights are read from, including those in the cache."""
        sources = self.by_name.values()
        wanted = [origin.wanted for source in sources for origin in collect_origins(source)]
        return [file for file in wanted if file is not None]

    def with_sources(self, sources: Mapping[str, WeightSource]) -> Self:
        """Return a copy of this pool with other weights for the named models, `base` included."""
        clone = copy.copy(self)
        clone.base = None if self.base is None else sources.get("base", self.base)
        clone.experts = {name: sources.get(name, expert) for name, expert in self.experts.items()}
        return clone

    def transformed(self, experts: Mapping[str, WeightSource]) -> Self:
        """Return a copy of this pool with transformed experts."""
        clone = copy.copy(self)
        clone._untransformed = self._untransformed or self.experts  # noqa: SLF001 - of this class
        clone.experts = experts
        return clone

    def aligned(self, policy: AlignmentPolicy) -> Self:
        """Return a copy of this pool in which every model has the base's tensor names and shapes.

        Under `alignment.vocab: pad` all models, the base included, get the largest vocabulary.

        Raises `RecipeError` for a pool without experts, `CheckpointError` for quantised models, and
        `AlignmentError` for models that do not fit together.
        """
        if not self.experts:
            raise RecipeError("the model pool has no experts", hint="Give it some models.")
        if self.base is not None and "base" in self.experts:
            raise RecipeError(
                "an expert is called 'base', a name that is reserved for the base",
                hint="Rename that expert.",
            )
        refuse_quantised(self.by_name, self.side_files())
        differences, warnings = judge(self._find_differences, policy)
        clone = copy.copy(self)
        alignment = align(self.base, self.experts, policy, differences)
        clone.base, clone.experts = alignment.base, alignment.experts
        clone.dropped, clone.untouched = alignment.dropped, alignment.untouched
        clone.warnings = (*warnings, *alignment.warnings)
        clone.merges_stored = policy.matrices == "stored"
        return clone

    def describe_differences(self, model: WeightSource, files: Files) -> Sequence[str]:
        """Describe how another model's side files, by name, differ from those of `assets`.

        Differences count only if they change how a live model computes, or how it reads inputs.
        Default: none; `pools_checkpoints.DescribedPool` compares the files.
        """
        del model, files
        return ()

    def with_assets(self, files: Files) -> Self | None:
        """Return a copy with these side files in place of `assets`, such as another tokenizer.

        An evaluated directory is built and read with its own files. None, the default, means that
        the pool always uses its own.
        """
        del files
        return None

    def check_unchanged(self) -> None:
        """Raise `IntegrityError` if a file has changed since the pool was made."""
        for source in (self.reference, *self.experts.values()):
            check_unchanged(source)

    @property
    def layout(self) -> Layout:
        """The positions of matrices in the tensors that are not merged as stored.

        A method that reads sources itself reads `pool.layout.unpack(source)`. Raises
        `BrokenPluginError` if `matrices` does not fit the tensors.
        """
        if self.merges_stored:
            return Layout({}, {})
        return layout_of(self.reference.infos, self.matrices, type(self).__name__)

    @property
    def live_layout(self) -> Layout:
        """The positions of the sources' matrices in live parameters, named as in `parameters`.

        By default, parameters hold what the sources' tensors hold: `layout`. Override it for
        parameters that hold several tensors, such as experts that the sources store one by one. The
        slots then have the names of these tensors.
        """
        return self.layout

    def _find_differences(self, topic: Topic) -> Iterator[Difference]:
        yield from self.differences(topic)
        if topic == "config":
            yield from self._contradictions

    @cached_property
    def _contradictions(self) -> Sequence[Difference]:
        """The statements in files of weights that their tensors, or the base, contradict."""
        base_config = parse_config(self.side_files().get("base", {}), CONFIG, "base") or {}
        return [
            Difference(subject, name, problem, is_serious=is_serious)
            for name, source in self.by_name.items()
            for subject, problem, is_serious in source.contradictions(base_config)
        ]

    @property
    def by_name(self) -> Mapping[str, WeightSource]:
        """All models by name: `base`, if there is one, and the experts.

        Raises `BrokenPluginError` for anything but weights by name.
        """
        experts = getattr(self, "experts", None)
        if not isinstance(experts, Mapping):
            raise self._broken(f"has a {type(experts).__name__} as its experts, not a mapping")
        models = {**({} if self.base is None else {"base": self.base}), **experts}
        for name, model in models.items():
            if not isinstance(model, WeightSource):
                raise self._broken(f"has a {type(model).__name__} as the model {name!r}")
        return models

    def _broken(self, problem: str) -> BrokenPluginError:
        return BrokenPluginError(
            f"the model pool {type(self).__name__} {problem}",
            hint="Its constructor sets `experts` to weights by name, such as "
            '{"a": StateDictSource(module.state_dict())}, and `base` to weights or None.',
        )

    @property
    def reference(self) -> WeightSource:
        """The base, or the first expert without one: the source of names, dtypes and buffers."""
        return reference_model(self.base, self.experts)


def identify_input(source: WeightSource) -> dict[str, Any]:
    """Identify a model for the provenance: its name or hub commit, and its files."""
    origin = source.origin or Origin()
    details = {
        "files": dict(origin.files),
        "inputs": origin.inputs,
        "decoded_from": origin.decoded_from,
    }
    return {"source": source.describe(), **{key: value for key, value in details.items() if value}}
