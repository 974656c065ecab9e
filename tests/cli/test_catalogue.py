"""How people choose: algorithms by family, what each needs and costs, and an example that runs."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from fusion_core.contracts.specs import AlgorithmSpec
from fusion_core.plugins.manager import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Outcome, Site

    Fuse = Callable[..., Outcome]

pytestmark = pytest.mark.plugins

ALGORITHMS = [component.spec for component in load_plugins().components(AlgorithmSpec)]
STRANGERS = """
    from fusion_core import AlgorithmSpec, hookimpl
    @hookimpl
    def fusion_register_algorithms():
        yield AlgorithmSpec(
            name="odd", summary="Is odd.", target="a:b", config="a:b", max_experts=3
        )
        yield AlgorithmSpec(
            name="even", summary="Is even.", target="a:b", config="a:b", stage="calibrate",
            needs_tasks="labeled",
        )
    """


@pytest.mark.parametrize("spec", ALGORITHMS, ids=lambda spec: spec.name)
def test_our_algorithms_have_family_cost_and_formula(spec: AlgorithmSpec) -> None:
    assert spec.family
    assert spec.cost
    assert spec.formula
    assert "\n" not in spec.formula
    passes = spec.cost in {"forward", "backward"}
    has_texts = spec.name == "moe"  # among its options
    assert passes == (spec.needs_tasks != "none" or has_texts)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("spec", ALGORITHMS, ids=lambda spec: spec.name)
def test_the_example_that_info_shows_can_be_run(fuse: Fuse, spec: AlgorithmSpec) -> None:
    (described,) = json.loads(fuse("info", spec.name, "--json").out)
    assert described["formula"] in fuse("info", spec.name).out
    program, *arguments = shlex.split(described["example"])
    assert (program, spec.name in arguments[2].split(",")) == ("fuse", True)
    done = fuse(*arguments, "--dry-run")
    assert done.code == 0, done.err


def test_families_stand_together_from_the_cheapest_on(fuse: Fuse) -> None:
    lines = fuse("list", "algorithms").out.splitlines()
    headings = [line for line in lines if re.search(": (transforms|merges|calibrations)", line)]
    families = list(dict.fromkeys(heading.partition(":")[0] for heading in headings))
    assert families[0] == "averages and arithmetic"
    assert families[-2:] == ["closed forms on data", "learned coefficients"]
    at = headings.index("signs and sparsity: merges")
    assert headings[at - 1] == "signs and sparsity: transforms, before a merge"
    row = next(line for line in lines if line.startswith("lot "))
    assert row.split() == ["lot", "base,", "unlabeled", "forward", "arXiv:2505.23859"]
    assert max(map(len, lines)) <= 100


def test_a_stranger_s_methods_stand_under_its_plugin_s_name(site: Site, fuse: Fuse) -> None:
    site.install("strange-one", STRANGERS)
    shown = fuse("list", "algorithms").out
    ours, _, theirs = shown.partition("\nstrange-one: merges\nodd")
    assert "learned coefficients" in ours
    assert theirs.split("\n\n")[0].split() == ["1-3", "Is", "odd."]
    assert "even               labeled\n" in theirs
    rows = json.loads(fuse("list", "algorithms", "--json").out)
    (odd,) = (row for row in rows if row["name"] == "odd")
    assert (odd["family"], odd["cost"], odd["formula"]) == ("strange-one", None, None)


def test_a_wide_terminal_has_the_summary_on_the_same_line(
    fuse: Fuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    lines = fuse("list", "algorithms").out.splitlines()
    assert any(line.startswith("ties ") and line.endswith("entries that agree.") for line in lines)


@pytest.mark.parametrize("wrong", [{"stage": "merging"}, {"cost": "cheap"}, {"needs_tasks": "all"}])
def test_a_word_that_is_not_known_is_refused_by_name(wrong: dict[str, str]) -> None:
    (word,) = wrong.values()
    with pytest.raises(ValueError, match=f"algorithm 'a': expected one of .*, got '{word}'"):
        AlgorithmSpec(name="a", summary="", target="a:b", config="a:b", **wrong)  # type: ignore[arg-type]
