"""TIES, DARE, MagMax and EMR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes_fusionbench.linear import backbone
from recipes_fusionbench.options import target_of

if TYPE_CHECKING:
    from recipes_fusionbench.fusion import Fusion
    from recipes_fusionbench.options import Options


def ties(fusion: Fusion) -> None:
    """Translate TIES-Merging."""
    fusion.add("ties", **_ties_options(fusion), **backbone(fusion))


def _ties_options(fusion: Fusion) -> dict[str, Any]:
    given = fusion.options
    given.expect("remove_keys", reason="ties cannot leave tensors out of the model")
    function = str(given.take("merge_func", "sum")).rpartition("-")[2]
    if function not in {"sum", "mean"}:
        given.refuse("merge_func", f"{function} has no counterpart, only sum and mean")
    return {
        "density": kept_fraction(given, "threshold"),
        "scope": "model",
        "zero_sign": "majority",
        "normalize": function == "mean",
        "scale": given.number("scaling_factor"),
    }


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
    drop = _drop(fusion)
    fusion.add("dare", **drop, elect="none", normalize=False, scale=_dare_scale(fusion, drop))


def _dare_scale(fusion: Fusion, drop: dict[str, Any]) -> float:
    """Return the scale of a sum, without the division by the density if `rescale` is false."""
    given = fusion.options
    is_average = target_of(given.values) == "DareSimpleAverage"
    scale = 1 / len(fusion.models.experts) if is_average else given.number("scaling_factor")
    return scale if given.switch("rescale", default=True) else scale * drop["density"]


def dare_ties(fusion: Fusion) -> None:
    """Translate DARE with TIES-Merging, which are two stages here."""
    drop, ties = _drop(fusion), _ties_options(fusion)
    if not fusion.options.switch("rescale", default=True):
        ties["scale"] *= drop["density"]  # TIES keeps the same entries of scaled task vectors
    fusion.add("drop", **drop)
    fusion.add("ties", **ties)


def _drop(fusion: Fusion) -> dict[str, Any]:
    given = fusion.options
    given.warn("", "drops entries at random; FusionBench draws other random numbers")
    reason = "true needs the classes of the model's modules, which recipes do not name"
    given.expect("only_on_linear_weights", False, reason=reason)
    dropped = given.number("sparsity_ratio")
    if not 0 <= dropped < 1:
        given.refuse("sparsity_ratio", f"expected a fraction below 1, got {dropped:g}")
        dropped = 0.0
    return {"density": 1 - dropped, "rescale": "paper"}


def magmax(fusion: Fusion) -> None:
    """Translate MagMax."""
    fusion.options.ignore("inplace")
    fusion.add("magmax", scale=fusion.options.number("scaling_factor", 0.5))


def emr(fusion: Fusion) -> None:
    """Translate EMR-Merging."""
    fusion.add("emr", rescale="authors")
