"""TIES, DARE, MagMax and EMR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes_fusionbench.linear import backbone
from recipes_fusionbench.options import target_of

if TYPE_CHECKING:
    from recipes_fusionbench.fusion import Fusion
    from recipes_fusionbench.options import Options

#: Kinds of models that may tie their embeddings to each other and to a head.
_TYING = {"causal-lm", "seq2seq-lm", "sequence-classification", "checkpoints"}
#: Weights of `nn.Linear` by the kind of models, which recipes choose by name.
_LINEAR = {"clip": ["*_proj.weight", "*.mlp.fc?.weight"]}


def ties(fusion: Fusion) -> None:
    """Translate TIES-Merging."""
    _add_ties(fusion, backbone(fusion))


def _add_ties(fusion: Fusion, more: dict[str, Any]) -> None:
    """Add TIES with further options: one stage, or its steps if the largest entries are taken."""
    given = fusion.options
    warn_of_ties(fusion)
    given.expect("remove_keys", reason="ties cannot leave tensors out of the model")
    function = str(given.take("merge_func", "sum")).rpartition("-")[2]
    density, scale = kept_fraction(given, "threshold"), given.number("scaling_factor")
    trimmed = {"density": density, "scope": "model"}
    signed = {"zero_sign": "majority"}
    match function:
        case "sum" | "mean":
            normalize = {"normalize": function == "mean"}
            fusion.add("ties", **trimmed, **signed, **normalize, scale=scale, **more)
        case "max":
            fusion.add("trim", **trimmed, **more)
            fusion.add("elect", scope="model", **signed, **more)
            fusion.add("magmax", scale=scale, **more)
        case _:
            given.refuse("merge_func", f"expected sum, mean or max, got {function}")


def kept_fraction(given: Options, name: str) -> float:
    """Return a fraction of entries to keep, which FusionBench takes in percent above 1."""
    number = given.number(name)
    fraction = number / 100 if number > 1 else number
    if not 0 < fraction < 1:
        reason = f"expected a percentage from above 1 to below 100, or a fraction, got {number:g}"
        given.refuse(name, reason)
    given.warn(name, "FusionBench keeps one more entry of each task vector than this fraction")
    return fraction


def dare(fusion: Fusion) -> None:
    """Translate DARE with a mean or a sum."""
    given = fusion.options
    is_average = target_of(given.values) == "DareSimpleAverage"
    scale = 1 / len(fusion.models.experts) if is_average else given.number("scaling_factor")
    fusion.add("dare", **_drop(fusion), elect="none", normalize=False, scale=scale)


def dare_ties(fusion: Fusion) -> None:
    """Translate DARE with TIES-Merging, which are two stages here."""
    fusion.add("drop", **_drop(fusion))
    _add_ties(fusion, {})


def _drop(fusion: Fusion) -> dict[str, Any]:
    """Return the options of what drops entries at random."""
    given = fusion.options
    given.warn("", "drops entries at random; FusionBench draws other random numbers")
    dropped = given.number("sparsity_ratio")
    if not 0 <= dropped < 1:
        given.refuse("sparsity_ratio", f"expected a fraction below 1, got {dropped:g}")
        dropped = 0.0
    rescale = "paper" if given.switch("rescale", default=True) else "none"
    if not given.switch("only_on_linear_weights", default=False):
        return {"density": 1 - dropped, "rescale": rescale}
    kind = fusion.models.kind
    if kind not in _LINEAR:
        reason = f"true needs the names of linear layers, unknown for models of the pool {kind}"
        given.refuse("only_on_linear_weights", reason)
    chosen = {"match": _LINEAR.get(kind, []), "density": 1 - dropped}
    return {"density": 1.0, "rescale": rescale, "overrides": [chosen]}


def magmax(fusion: Fusion) -> None:
    """Translate MagMax."""
    fusion.options.ignore("inplace")
    fusion.add("magmax", scale=fusion.options.number("scaling_factor", 0.5))


def warn_of_ties(fusion: Fusion) -> None:
    """Warn that FusionBench merges a tied tensor once per name, which changes what all share."""
    if fusion.models.kind in _TYING:
        reason = (
            "models whose embeddings are tied: FusionBench counts a tied tensor once per name, "
            "fusion-core once"
        )
        fusion.options.warn("", reason)


def emr(fusion: Fusion) -> None:
    """Translate EMR-Merging."""
    warn_of_ties(fusion)
    fusion.add("emr", rescale="authors")
