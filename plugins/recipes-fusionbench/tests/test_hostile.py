"""Files that nobody vouches for: YAML, interpolations, and names of files."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_core.errors import RecipeError
from recipes_fusionbench.importing import import_text
from recipes_fusionbench.interpolation import Unresolved, resolve

if TYPE_CHECKING:
    from pathlib import Path

POOL = (
    "modelpool: {_target_: fusion_bench.modelpool.BaseModelPool, models: {_pretrained_: a, b: c}}\n"
)
DOUBLING = "".join(f"k{n}: '${{k{n - 1}}}${{k{n - 1}}}'\n" for n in range(1, 60))
COPIES = "".join(f"k{n}: {{a: '${{k{n - 1}}}', b: '${{k{n - 1}}}'}}\n" for n in range(1, 60))
HOSTILE = {
    "aliases": f"{POOL}a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(
        f"{c}: &{c} [{', '.join([f'*{p}'] * 10)}]\n"
        for p, c in zip("abcdefg", "bcdefgh", strict=True)
    ),
    "tag": f"{POOL}method: !!python/object/apply:os.system ['true']",
    "duplicate keys": POOL + POOL,
    "depth": f"{POOL}method: " + "[" * 5000,
    "size": POOL + "#" * 2**21,
    "doubling texts": f"{POOL}k0: xx\n{DOUBLING}",
    "copied mappings": f"{POOL}k0: {{a: 1}}\n{COPIES}",
    "a path out of the tree": "defaults:\n  - modelpool: ../../etc/passwd\n  - method: dummy\n",
    "an absolute path": "defaults:\n  - modelpool: //etc//passwd\n  - method: dummy\n",
    "an interpolated name": "defaults:\n  - modelpool: '${x}'\n  - method: dummy\n",
    "a cycle": f"{POOL}a: '${{b}}'\nb: '${{a}}'\nmethod: {{_target_: "
    "fusion_bench.method.MagMaxAlgorithm, scaling_factor: '${a}'}",
    "no mapping": "modelpool: {}\nmethod: 3\ntaskpool: [1]\nseed: x\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    start = time.process_time()
    with pytest.raises(RecipeError):
        import_text(HOSTILE[name], "config.yaml", tmp_path)
    assert time.process_time() - start < 5


def test_files_outside_of_the_tree_are_not_read(tmp_path: Path) -> None:
    tree, secret = tmp_path / "tree", tmp_path / "secret.yaml"
    (tree / "method").mkdir(parents=True)
    secret.write_text("_target_: fusion_bench.method.MagMaxAlgorithm\n")
    (tree / "method" / "linked.yaml").symlink_to(secret)
    text = f"defaults: [{{method: linked}}]\n{POOL}"
    with pytest.raises(RecipeError, match=r"defaults.method/linked: unknown name"):
        import_text(text, "config.yaml", tree)


def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    content = {"a": "${oc.env:SECRET}", "b": "x${a}", "c": "${oc.decode:${d}}", "d": 1}
    resolved = resolve(content)
    assert all(isinstance(resolved[key], Unresolved) for key in "abc")


CASES: list[tuple[dict[str, Any], Any]] = [
    ({"a": "${b.c}", "b": {"c": [1, 2]}}, [1, 2]),
    ({"a": "${b[1]}-${b.0}", "b": [1, "x"]}, "x-1"),
    ({"a": {"b": "${.c}", "c": "${..d}"}, "d": 5}, {"b": 5, "c": 5}),
    ({"a": "${k${n}}", "k1": True, "n": 1}, True),
    ({"a": "${b.x}", "b": "${c}", "c": {"x": 3}}, 3),
    ({"a": "$5 {b}"}, "$5 {b}"),
]


@pytest.mark.parametrize(("content", "expected"), CASES)
def test_interpolations(content: dict[str, Any], expected: Any) -> None:
    assert resolve(content)["a"] == expected


leaves = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=4)
leaves |= st.sampled_from(["${a}", "${..models}", "???", "fusion_bench.method.MagMaxAlgorithm"])
keys = st.sampled_from(
    [
        *("_target_", "models", "_pretrained_", "scaling_factor", "threshold", "weights", "split"),
        *("test_datasets", "clip_model", "mnist", "path", "name", "type", "tasks", "model_kwargs"),
    ]
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)
targets = st.sampled_from(["TiesMergingAlgorithm", "WeightedAverageAlgorithm", "EMRMerging"])
SECTIONS = st.sampled_from(
    ["taskpool", "seed", "fabric", "merged_model_save_kwargs", "fast_dev_run"]
)
pools = st.sampled_from(["CLIPVisionModelPool", "CausalLMPool", "BaseModelPool"])


@settings(max_examples=120, deadline=None)
@given(
    st.dictionaries(keys, values, max_size=5),
    st.dictionaries(keys, values, max_size=5),
    st.dictionaries(SECTIONS, values),
    targets,
    pools,
)
def test_any_content_gives_a_recipe_or_a_refusal(
    method: dict[str, Any], pool: dict[str, Any], rest: dict[str, Any], target: str, kind: str
) -> None:
    from recipes_fusionbench.importing import _File
    from recipes_import import ImportFindings

    content = {
        **rest,
        "method": {**method, "_target_": f"fusion_bench.method.{target}"},
        "modelpool": {**pool, "_target_": f"fusion_bench.modelpool.{kind}"},
    }
    findings = ImportFindings()
    recipe, _ = _File(resolve(content), findings).make_recipe()
    assert findings.problems or recipe["algorithm"]["name"]
