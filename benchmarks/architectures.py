"""Merge a tiny model of every architecture of transformers, and compare with live models.

    python benchmarks/architectures.py
    python benchmarks/architectures.py --pools causal-lm --types gemma3 mamba2

For every model class that a pool of pools-lm may build, it saves a base and two experts with random
weights, as full models and as LoRA adapters by PEFT, and checks:

- live: the model that the pool builds has the values of transformers' `from_pretrained`.
- merged: transformers loads the sum of task vectors that `task-arithmetic` wrote.
- adapters: the same for adapters; the values are those of PEFT's `merge_and_unload`.
- gradient: the exact gradient of coefficients agrees with differences of the objective, in fp64.

Prints the number of architectures that pass per pool, and each that does not, with the reason. A
class whose tiny configuration is invalid or too large is not counted, and named with `--verbose`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from architecture_sizes import make_tiny
from measuring import headings, row
from transformers.models.auto import modeling_auto as auto

from fusion_adapting import LiveMerge
from fusion_core import RunContext, run_fusion
from fusion_core.errors import FusionError
from fusion_core.weights import Linear
from pools_lm import pools
from pools_lm.config import LanguageConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

SCALE, STD, RANK = 0.5, 0.05, 2
#: Larger models are left out.
LARGEST = 3_000_000
EXPERTS = "one", "two"
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18]])
#: The classes that each pool may build, by type.
CLASSES: dict[str, tuple[type[pools.LanguagePool], Any]] = {
    "causal-lm": (pools.CausalPool, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "vision-language": (pools.VisionLanguagePool, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    "seq2seq-lm": (pools.Seq2SeqPool, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "sequence-classification": (
        pools.ClassificationPool,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
}
#: The pools whose models score the next token of `TOKENS`.
SCORING = {"causal-lm", "vision-language"}


@dataclass(frozen=True)
class Case:
    """A model class with a base on disk."""

    pool: str
    model_class: Any
    directory: Path

    def load(self, name: str) -> nn.Module:
        """Return a model as transformers loads it."""
        model: nn.Module = self.model_class.from_pretrained(self.directory / name)
        return model.float().eval()

    def options(self, kind: str) -> dict[str, Any]:
        """Return a pool's options for full models or adapters."""
        models = {name: str(self.directory / f"{kind}-{name}") for name in EXPERTS}
        return {"base": str(self.directory / "base"), "models": models}

    def open(self, kind: str) -> pools.LanguagePool:
        """Return the pool."""
        return CLASSES[self.pool][0](LanguageConfig(**self.options(kind)))

    def merge(self, kind: str) -> dict[str, Tensor]:
        """Return the values of a merge that transformers loads."""
        output = self.directory / f"merged-{kind}"
        algorithm = {"name": "task-arithmetic", "scale": SCALE}
        pool = {"name": self.pool, **self.options(kind)}
        run_fusion(algorithm=algorithm, model_pool=pool, output=output)
        return values_of(self.load(output.name))


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's floating-point tensors."""
    state = model.state_dict()
    return {name: value.clone() for name, value in state.items() if value.is_floating_point()}


def build(model_type: str, class_name: str, pool: str, directory: Path) -> Case | None:
    """Save a base and experts; return None for a model that cannot be made small."""
    torch.manual_seed(0)
    try:
        model_class = getattr(transformers, class_name)
        model = model_class(make_tiny(model_type)).float()
        if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
            return None
        model.save_pretrained(directory / "base")
        case = Case(pool, model_class, directory)
        loaded: Any = case.load("base")  # some configurations change when they are loaded
        saved = {"base": loaded}
        for name in EXPERTS:
            expert: Any = case.load("base")
            for parameter in expert.parameters():
                parameter.data.add_(STD * torch.randn(parameter.shape))
            saved[f"full-{name}"] = expert
        for name, model in saved.items():
            model.save_pretrained(directory / name)
            before, after = values_of(model), values_of(case.load(name))
            if any(not torch.equal(before[key], value) for key, value in after.items()):
                return None  # transformers does not load what it saved
        if pool in SCORING:
            case.load("base")(input_ids=TOKENS)
    except Exception:  # noqa: BLE001 - configurations and models raise anything
        return None
    return case


def add_adapters(case: Case) -> dict[str, Tensor] | None:
    """Save adapters; return the sum of PEFT's changes, or None where PEFT has no LoRA."""
    merged = []
    try:
        for name in EXPERTS:
            config = peft.LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
            adapted: Any = peft.get_peft_model(case.load("base"), config)
            adapted.save_pretrained(case.directory / f"adapter-{name}")
            merged.append(adapted.merge_and_unload())
    except Exception:  # noqa: BLE001 - PEFT refuses some layers in many ways
        return None
    return sum_changes(case, merged)


def sum_changes(case: Case, models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Return the sum of the differences of models from the base."""
    base, others = values_of(case.load("base")), [values_of(model) for model in models]
    return {
        name: sum((other[name] - value for other in others), torch.zeros_like(value))
        for name, value in base.items()
    }


def check_live(case: Case) -> None:
    """Compare a live model of the pool with transformers'."""
    pool = case.open("full")
    pool.check_builds()
    assert pool.base is not None
    ours, theirs = values_of(pool.build(pool.base)), values_of(case.load("base"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items()), "values differ"


def check_merge(case: Case, kind: str, total: dict[str, Tensor]) -> None:
    """Compare a merge of full models or adapters with the base plus a scaled sum of changes."""
    merged = case.merge(kind)
    for name, value in values_of(case.load("base")).items():
        error = (merged[name] - value - SCALE * total[name]).abs().max() if value.numel() else 0
        assert error < 1e-5, f"{name} differs by {error:.1e}"


def check_gradient(case: Case) -> None:
    """Compare the gradient of one coefficient per tensor with central differences."""
    pool = case.open("full")
    merged = RunContext().merge_matrices(pool, Linear((SCALE,) * len(EXPERTS)))
    live = LiveMerge(pool, merged, torch.device("cpu"), dtype=torch.float64)
    model: Any = live.model
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the fast ones lack fp64

    def objective(coefficients: Tensor) -> Tensor:
        live.merge(coefficients)
        scores: Tensor = model(input_ids=TOKENS, use_cache=False).logits
        return scores.double().log_softmax(-1).square().mean()

    generator = torch.Generator().manual_seed(0)
    shape = (len(EXPERTS), live.columns)
    at, direction = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in "ab")
    at = SCALE + 0.1 * at
    objective(at).backward()  # type: ignore[no-untyped-call]
    ours = float((live.gradient() * direction).sum())
    with torch.no_grad():
        for step in (1e-3, 1e-4, 1e-5):  # a long one may change the experts of a mixture
            change = objective(at + step * direction) - objective(at - step * direction)
            theirs = float(change) / (2 * step)
            if abs(ours - theirs) <= 1e-2 * abs(theirs) + 1e-4:
                return
    raise AssertionError(f"{ours:.4g}, differences give {theirs:.4g}")


def checks_of(case: Case) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks of a model by name."""
    yield "live", partial(check_live, case)
    total = sum_changes(case, [case.load(f"full-{name}") for name in EXPERTS])
    yield "merged", partial(check_merge, case, "full", total)
    if (by_peft := add_adapters(case)) is not None:
        yield "adapters", partial(check_merge, case, "adapter", by_peft)
    if case.pool in SCORING:
        yield "gradient", partial(check_gradient, case)


def measure(pool: str, types: list[str], folder: Path) -> tuple[Counter[str], list[str], list[str]]:
    """Return how many models pass each check, what failed, and what was not built."""
    counts, failed, unbuilt = Counter[str](), list[str](), list[str]()
    for model_type, names in CLASSES[pool][1].items():
        name = names if isinstance(names, str) else names[0]
        if types and model_type not in types:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        case = build(model_type, name, pool, folder)
        if case is None:
            unbuilt.append(model_type)
            continue
        for check, run in checks_of(case):
            counts[f"of {check}"] += 1
            try:
                run()
                counts[check] += 1
            except Exception as error:  # noqa: BLE001 - to go on with the next
                reason = str(error).partition("\n")[0].replace(str(folder), "the model")
                label = "" if isinstance(error, FusionError | AssertionError) else "error: "
                failed.append(f"{pool}, {model_type}, {check}: {label}{reason}")
    return counts, failed, unbuilt


def main() -> None:
    """Check all architectures, and print a table and what failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pools", nargs="+", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--types", nargs="+", default=[], help="of models; default: all")
    parser.add_argument("--verbose", action="store_true", help="name what was not built")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    kinds = ["live", "merged", "adapters", "gradient"]
    rows, notes = [], []
    with tempfile.TemporaryDirectory(prefix="architectures-") as folder:
        for pool in options.pools:
            counts, failed, unbuilt = measure(pool, options.types, Path(folder, "models"))
            cells = [
                f"{counts[k]} of {counts[f'of {k}']}" if counts[f"of {k}"] else "" for k in kinds
            ]
            rows.append(row([pool, *cells]))
            notes += failed
            notes += [f"{pool}, not built: {', '.join(unbuilt)}"] if options.verbose else []
    print(f"transformers {transformers.__version__}, PEFT {peft.__version__}\n")
    print(headings(["pool", *kinds]), *rows, "", *notes, sep="\n")


if __name__ == "__main__":
    main()
