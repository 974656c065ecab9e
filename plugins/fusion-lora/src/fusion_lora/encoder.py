"""`output.adapter`: write a merge of adapters as an adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion_core import EncodedOutput, OutputEncoder
from fusion_core.errors import RecipeError
from fusion_core.weights import Location, RenamedSource, as_weights
from fusion_lora.config import AdapterConfig
from fusion_lora.experts import find_groups
from fusion_lora.extraction import Extraction, Ranks
from fusion_lora.modules import find_module, is_vector
from fusion_lora.reading.config import ADAPTER_CONFIG
from fusion_lora.reading.live_names import find_live_names
from fusion_lora.reading.source import STEM, LoraSource
from fusion_lora.record import REPORT
from fusion_lora.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from fusion_core import ModelPool, OutputParts, TensorInfo, WeightSource

#: The side files that also belong to an adapter: PEFT users expect the tokenizer next to it.
_MODEL_FILES = ("config.json", "generation_config.json")


class AdapterEncoder(OutputEncoder[AdapterConfig]):
    """Write a merge of adapters as an adapter, which PEFT loads.

    A sum or an average of adapters is an adapter whose factors are those of the experts joined. A
    lower rank keeps the largest singular components, computed from the joined factors. Any other
    merge is factorised matrix by matrix. Weights that an expert stores whole stay whole. Modules
    have the names of the live model, which may differ from those in the base's files.
    """

    config_class = AdapterConfig

    def check(self, infos: Mapping[str, TensorInfo], pool: ModelPool[Any]) -> None:
        """Raise `RecipeError` for a merge that headers show to be no adapter.

        It has no base, other tensors than the base, or full models as experts and no rank.
        """
        shapes = {name: info.shape for name, info in _base_of(pool).infos.items()}
        for name, info in infos.items():
            if shapes.get(name) != info.shape:
                raise RecipeError(
                    f"output.adapter: an adapter changes tensors of its base, and the base has no "
                    f"{name!r} of shape {list(info.shape)}, as the merge has",
                    hint="Leave output.adapter out, and write a full model.",
                )
        full = [expert for expert, model in pool.experts.items() if not model.is_delta]
        if self.config.rank is None and full:
            raise _rank_required(f"{full[0]} is a full model, without factors")

    def encode(self, parts: OutputParts) -> EncodedOutput:
        """Return the adapter's files. Raises `RecipeError` for a pool without base or adapters."""
        pool, base_model = parts.pool, _base_of(parts.pool)
        names_in_base = _names_in_base(pool, base_model)
        names_written = {stored: name for name, stored in names_in_base.items()}
        merged, base = (_rename(source, names_in_base) for source in (parts.merged, base_model))
        stored = {
            names_written.get(name, name)  # alignment may have dropped it
            for model in pool.experts.values()
            for name in _stored_whole(model)
        }
        embeddings = {
            names_written.get(name, name): is_embedding
            for model in pool.experts.values()
            for name, is_embedding in _find_embeddings(model).items()
        }
        factored = {
            name
            for name in merged.infos
            if name not in stored and find_module(base, name) is not None
        }
        vectors = {name for name, info in base.infos.items() if is_vector(info)}
        names = frozenset(merged.infos) - stored
        if self.config.rank is None:  # experts have no rank that could be added up
            names -= {name for group in find_groups(base.infos) for name in group.tensors}
        extraction = Extraction(
            merged,
            base,
            Ranks(self.config.rank, by_name=self._ranks_of_experts(pool, factored, names_in_base)),
            names=names,
            whole=stored | vectors,
            dtype=getattr(torch, self.config.dtype),
            embeddings=embeddings,
        )
        spool = Spool(parts.scratch / "factors")
        adapter, record = extraction.run(spool, parts.executor, parts.progress)
        for kind, treatments in record.left_out.items():
            example = names_in_base[treatments[0].tensor]
            raise RecipeError(
                f"output.adapter: {len(treatments)} tensors change that an adapter cannot hold "
                f"({kind}), for example {example}",
                hint="Set output.adapter.rank for experts. Otherwise leave output.adapter out, or "
                f"skip these tensors: --set 'algorithm.skip={example}'",
            )
        files = {name: content for name, content in parts.files.items() if name not in _MODEL_FILES}
        files[ADAPTER_CONFIG] = adapter.config(base, name_of_base(pool))
        files[REPORT] = record.as_json()
        summary = (f"adapter: {record.describe()}",)
        return EncodedOutput(spool, files, STEM, {"adapter": record.as_data()}, summary)

    def decode(self, directory: Path, pool: ModelPool[Any]) -> WeightSource:
        """Return the base with the adapter merged into it."""
        base_model = _base_of(pool)
        names_in_base = _names_in_base(pool, base_model)
        base = _rename(base_model, names_in_base)
        adapter = LoraSource(Location(directory, str(directory)), base)
        names = {stored: name for name, stored in names_in_base.items()}
        return _rename(as_weights(adapter, base), names)

    def _ranks_of_experts(
        self, pool: ModelPool[Any], names: Iterable[str], names_in_base: Mapping[str, str]
    ) -> dict[str, int]:
        """Return the sum of the experts' ranks by tensor, if no rank is set.

        Raises `RecipeError` for an expert that has no rank there. A tensor that no expert changes
        gets the largest rank, in case that the method changes it.
        """
        if self.config.rank is not None:
            return {}
        ranks = {}
        for name in names:
            parts = {
                expert: model.low_rank(names_in_base[name])
                for expert, model in pool.experts.items()
            }
            full = sorted(expert for expert, part in parts.items() if part is None)
            if full:
                raise _rank_required(
                    f"{full[0]} holds no factors of {name} that can be joined with others"
                )
            ranks[name] = sum(part.rank for part in parts.values() if part is not None)
        largest = max(ranks.values(), default=1) or 1
        return {name: rank or largest for name, rank in ranks.items()}


def _rank_required(reason: str) -> RecipeError:
    return RecipeError(
        f"output.adapter.rank: required, because {reason}",
        hint="For example: --set output.adapter.rank=32",
    )


def find_adapter(source: WeightSource) -> LoraSource | None:
    """Return the adapter that a model reads from, None for a full model."""
    if isinstance(source, LoraSource):
        return source
    return next(filter(None, map(find_adapter, source.sources)), None)


def _base_of(pool: ModelPool[Any]) -> WeightSource:
    if pool.base is None:
        raise RecipeError(
            "output.adapter needs the base, and the model pool has none",
            hint="Name the model that the experts were fine-tuned from: model_pool.base.",
        )
    return pool.base


def _names_in_base(pool: ModelPool[Any], base: WeightSource) -> dict[str, str]:
    """Return the base's names by those to write, which are the live model's.

    An adapter of the same model with, or without, a head has them with another prefix, and keeps
    it. A matrix that all adapters change as the output head has the name of the head.
    """
    names = find_live_names(base)
    for model in pool.experts.values():
        for stored, trained in _names_in_file(model).items():
            name = names.get(stored, trained)
            if trained.endswith(f".{name}") or name.endswith(f".{trained}"):
                names[stored] = trained
    adapters = [find_adapter(model) for model in pool.experts.values()]
    for adapter in filter(None, adapters):
        names |= {
            embeddings: head
            for head, embeddings in adapter.lone_heads.items()
            if all(other is not None and other.is_head(embeddings) for other in adapters)
        }
    return {names.get(stored, stored): stored for stored in base.infos}


def _names_in_file(model: WeightSource) -> dict[str, str]:
    """Return the names in an adapter's file that differ from the base's, by the base's."""
    return {
        names.get(name, name): trained
        for adapter, names in _adapter_in_pool(model)
        for name, trained in adapter.file_names.items()
    }


def _stored_whole(model: WeightSource) -> set[str]:
    """Return the tensors that an adapter stores whole, by the base's names."""
    return {
        names.get(name, name)
        for adapter, names in _adapter_in_pool(model)
        for name in adapter.whole - adapter.factored
    }


def _find_embeddings(model: WeightSource) -> dict[str, bool]:
    """Tell of each matrix that an adapter factorises whether it is an embedding."""
    return {
        names.get(name, name): flag
        for adapter, names in _adapter_in_pool(model)
        for name, flag in adapter.embeddings.items()
    }


def _adapter_in_pool(model: WeightSource) -> Iterator[tuple[LoraSource, dict[str, str]]]:
    """Yield a model's adapter, if it has one, and the pool's names of tensors that it renamed."""
    adapter = find_adapter(model)
    if adapter is not None:
        yield adapter, {name: stored for stored, name in _own_names(model).items()}


def _own_names(source: WeightSource) -> dict[str, str]:
    """Return the names that an adapter has in another pool than its own, by the pool's."""
    if isinstance(source, RenamedSource) and isinstance(source.sources[0], LoraSource):
        return {stored: name for stored, name in source.names.items() if stored != name}
    return next(filter(None, map(_own_names, source.sources)), {})


def _rename(source: WeightSource, names: Mapping[str, str]) -> WeightSource:
    if all(name == stored for name, stored in names.items()):
        return source
    return RenamedSource(
        source, {name: stored for name, stored in names.items() if stored in source.infos}
    )


def name_of_base(pool: ModelPool[Any]) -> str | None:
    """Return the path or the hub id of a pool's base."""
    base = getattr(pool.config, "base", None)
    return base if isinstance(base, str) else None
