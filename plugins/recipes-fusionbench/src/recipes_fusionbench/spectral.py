"""Merges of spectra and subspaces."""

from __future__ import annotations

from glob import escape
from typing import TYPE_CHECKING, Any

from recipes_fusionbench.sparse import kept_fraction, warn_of_ties

if TYPE_CHECKING:
    from recipes_fusionbench.fusion import Fusion
    from recipes_fusionbench.options import Options


#: FusionBench decomposes tensors of two dimensions, not convolutions or packed experts.
AS_STORED: dict[str, Any] = {"matrices": "stored"}
#: Prefixes of names.
_CLIP, _GPT2 = "vision_model.", "transformer."


def tsv_m(fusion: Fusion) -> None:
    """Translate TSV-M."""
    given = fusion.options
    given.expect("return_single_task_models", False, reason="true has no counterpart")
    if isinstance(given.values.get("alpha"), list):
        given.ignore("alpha")
        given.refuse("alpha", "tsv-m has one factor for the merge, not one per model")
    else:
        fusion.add("tsv-m", scale=given.number("alpha", 1.0), **_choose_matrices(fusion))


def iso_c(fusion: Fusion) -> None:
    """Translate Iso-C."""
    given = fusion.options
    _warn_of_rank(given)
    fusion.add("iso-c", scale=given.number("scaling_factor"), **_choose_matrices(fusion))


def iso_cts(fusion: Fusion) -> None:
    """Translate Iso-CTS."""
    given = fusion.options
    _warn_of_rank(given)
    fraction = given.number("common_space_fraction")
    if not 0 <= fraction <= 1:
        given.refuse("common_space_fraction", f"expected a fraction, got {fraction:g}")
    scale = given.number("scaling_factor")
    fusion.add("iso-cts", scale=scale, common_fraction=fraction, **_choose_matrices(fusion))


def _warn_of_rank(given: Options) -> None:
    reason = (
        "task vectors of low rank, as of adapters: fusion-core counts only nonzero singular values"
    )
    given.warn("", reason)


def _choose_matrices(fusion: Fusion) -> dict[str, Any]:
    """Return which tensors are decomposed. FusionBench averages those of `exclude_keys`."""
    kind = fusion.models.kind
    patterns = []
    for key in fusion.options.texts("exclude_keys"):
        if kind == "gpt2" and key.startswith(_GPT2):
            reason = f"{key} is the name of no tensor: GPT2Model names them without {_GPT2}"
            fusion.options.warn("exclude_keys", reason)
        else:
            patterns.append(_match_one(key, kind))
    if not patterns:
        return AS_STORED
    warn_of_ties(fusion)
    chosen = {"match": patterns, "unmatched": "warn", "matrices": "none"}
    return {**AS_STORED, "overrides": [chosen]}


def _match_one(key: str, kind: str) -> str:
    """Return the pattern of one tensor. FusionBench compares whole names, of the live model.

    A live vision model of CLIP may lack the prefix that its files have. Files of GPT-2 may have one
    that the live model lacks.
    """
    if kind == "clip":
        return f"{_CLIP}{escape(key.removeprefix(_CLIP))}"
    if kind == "gpt2":
        return f"*{escape(key)}"
    return escape(key)


def wudi(fusion: Fusion) -> None:
    """Translate WUDI."""
    given = fusion.options
    fusion.add("wudi", steps=given.count("iter_num"), lr=1e-5, **_choose_matrices(fusion))


def opcm(fusion: Fusion) -> None:
    """Translate OPCM, which projects the weights of linear layers."""
    given = fusion.options
    given.ignore("seed", "save_on_every_step", "evaluate_on_every_step", "num_ray_actors")
    if given.switch("shuffle_order", default=True):
        reason = (
            "FusionBench merges in a random order; here the models keep their order in the file"
        )
        given.warn("shuffle_order", reason)
    alpha = given.number("alpha", 0.5)
    if not 0 <= alpha < 1:
        given.refuse("alpha", f"expected a number from 0 to below 1, got {alpha:g}")
    kind = fusion.models.kind
    if kind == "clip":
        given.warn("", "FusionBench leaves out class_embedding; here it is merged like a bias")
    else:
        reason = f"it needs the names of linear layers, unknown for models of the pool {kind}"
        given.refuse("", reason)
    tables = {"match": "*embed*", "unmatched": "warn", "matrices": "none"}
    fusion.add("opcm", project={"alpha": alpha, **AS_STORED, "overrides": [tables]})


def doge(fusion: Fusion) -> None:
    """Translate DOGE TA, which merges the matrices of encoders and leaves all others."""
    given = fusion.options
    fusion.add(
        "doge",
        scale=given.number("lamda"),
        density=kept_fraction(given, "K"),
        subspace=given.count("subspace"),
        steps=400,
        lr=1e-4,
        only="*encoder*weight*",
        skip="*layer_norm*",
        **AS_STORED,
    )
