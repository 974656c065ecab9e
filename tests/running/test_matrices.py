"""Every method merges packed tensors like the same matrices stored separately."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fusion_core import (
    AlgorithmSpec,
    Cut,
    RunContext,
    RunOptions,
    load_for_task,
    merge,
    plan,
    run_fusion,
)
from fusion_core.commands import load_plugins, read_provenance
from fusion_core.contracts.model_pool import ModelPool
from fusion_core.errors import BrokenPluginError
from fusion_core.planning.pipeline import apply_stages
from fusion_core.weights import Columns, Linear, Matrices, Rows, Stacked
from fusion_testing import TinyTasks
from fusion_testing._bench import with_sources
from fusion_testing._sources import recut
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from pathlib import Path

    State = dict[str, torch.Tensor]

pytestmark = pytest.mark.plugins

AROUND = {"transform": "{} task-arithmetic", "merge": "{}", "calibrate": "task-arithmetic {}"}
OPTIONS: dict[str, dict[str, Any]] = {"passthrough": {"model": "a"}}
#: `stack` copies tensors whole, and `moe` takes models of transformers alone
FREE = {
    component.spec.name: component.spec
    for component in load_plugins().components(AlgorithmSpec)
    if component.spec.needs_tasks == "none" and component.spec.name not in {"moe", "stack"}
}
SHAPES = {
    "embed.weight": (7, 5),
    "blocks.0.experts.gate_up": (3, 5, 12),
    "blocks.0.experts.down_proj": (3, 5, 6),
    "blocks.0.experts.down_proj_bias": (3, 5),
    "blocks.0.attn.fused.weight": (14, 5),
    "blocks.0.attn.fused.bias": (14,),
    "blocks.1.by_head.weight": (12, 5),
    "blocks.1.columns.weight": (5, 9),
    "stem.conv.weight": (4, 3, 2, 2),
    "norm.weight": (5,),
    "steps": (),
}
INTERLEAVED = Columns(5), Rows(6), Rows(gate=1, up=1)
TOLD = {
    "blocks.0.experts.gate_up": Matrices(
        (Stacked(3), *INTERLEAVED), "blocks.0.experts.{index}.{part}.weight"
    ),
    "blocks.0.attn.fused.weight": Matrices(
        (Rows(q=6, k=4, v=4), Columns(5)), "blocks.0.attn.{part}.weight"
    ),
    "blocks.0.attn.fused.bias": Matrices((Rows(q=6, k=4, v=4),), "blocks.0.attn.{part}.bias"),
    "blocks.1.by_head.weight": Matrices(
        (Rows(2), Rows(q=1, k=1, v=1), Rows(2), Columns(5)), "blocks.1.{part}.weight"
    ),
    "blocks.1.columns.weight": Matrices(
        (Rows(5), Columns(a=4, b=2, c=3)), "blocks.1.{part}.weight"
    ),
}


class Told(CheckpointsPool):
    """A pool that declares how its tensors are packed."""

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        return TOLD.get(name) or super().matrices(name, shape)


def states(count: int) -> dict[str, State]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    moved = {
        name: {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        for name in "abc"[:count]
    }
    return {
        name: {**state, "steps": torch.tensor(3)} for name, state in {"base": base, **moved}.items()
    }


def apart(state: State) -> State:
    """Store every matrix separately, by plain slices."""
    matrices: State = {}
    for name, values in state.items():
        module = name.rpartition(".")[0]
        if name.endswith("gate_up"):
            for index, expert in enumerate(values):
                matrices[f"{module}.{index}.gate.weight"] = expert[:, 0::2].T
                matrices[f"{module}.{index}.up.weight"] = expert[:, 1::2].T
        elif "down_proj" in name:
            kind = "bias" if name.endswith("_bias") else "weight"
            matrices |= {
                f"{module}.{n}.down_proj.{kind}": matrix for n, matrix in enumerate(values)
            }
        elif "fused" in name:
            outer, kind = module.removesuffix(".fused"), name.rpartition(".")[2]
            parts = zip("qkv", values.split([6, 4, 4]), strict=True)
            matrices |= {f"{outer}.{part}.{kind}": matrix for part, matrix in parts}
        elif "by_head" in name:
            heads = values.view(2, 3, 2, 5)
            matrices |= {
                f"blocks.1.{part}.weight": heads[:, n].reshape(4, 5) for n, part in enumerate("qkv")
            }
        elif "columns" in name:
            parts = zip("abc", values.split([4, 2, 3], dim=1), strict=True)
            matrices |= {f"blocks.1.{part}.weight": matrix for part, matrix in parts}
        else:
            matrices[name] = values.flatten(1) if "conv" in name else values
    return {name: values.contiguous() for name, values in matrices.items()}


def pool_of(models: dict[str, Any], kind: type[CheckpointsPool] = Told) -> CheckpointsPool:
    base, *experts = models
    config = CheckpointsConfig(base=models[base], models={name: models[name] for name in experts})
    return kind(config)


def stages_of(name: str) -> list[dict[str, Any]]:
    names = AROUND[FREE[name].stage].format(name).split()
    return [{"name": stage, **OPTIONS.get(stage, {})} for stage in names]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", FREE)
def test_packed_and_separate_matrices_merge_to_the_same_bytes(name: str) -> None:
    models = states(min(3, FREE[name].max_experts or 3))
    one_by_one = {key: apart(state) for key, state in models.items()}
    packed = apart(merge(stages_of(name), pool_of(models)).state_dict())
    expected = merge(stages_of(name), pool_of(one_by_one, CheckpointsPool)).state_dict()
    assert packed.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(packed[key], expected[key])] == []


@pytest.mark.parametrize("name", ["slerp", "model-stock", "sce"])
def test_packed_matrices_may_be_merged_as_stored(name: str) -> None:
    models = states(FREE[name].max_experts or 3)
    plain = {
        key: {"x": state["blocks.0.attn.fused.weight"].clone()} for key, state in models.items()
    }
    recipe = {"algorithm": name, "alignment": {"matrices": "stored"}}
    stored = run_fusion(recipe, model_pool=pool_of(models))
    merged = stored.weights.tensor("blocks.0.attn.fused.weight")
    assert torch.equal(merged, merge(name, pool_of(plain)).tensor("x"))
    assert not torch.equal(
        merged, merge(name, pool_of(models)).tensor("blocks.0.attn.fused.weight")
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["ties", "dare", "tsv-m", "knots", "della"])
def test_result_is_independent_of_cuts_threads_and_pickling(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion_core.weights.source.BLOCK", 8)
    planned = plan({"algorithm": name, "model_pool": pool_of(states(3))}, RunOptions())
    with ThreadPoolExecutor(3) as threads:
        context = RunContext(executor=threads)
        lazy = apply_stages(planned.stages, planned.aligned, context)
        again = pickle.loads(pickle.dumps(lazy))
        expected = lazy.state_dict()
        read = threads.map(
            lambda name: torch.cat([lazy.read(name, *span) for span in lazy.ranges(name)]),
            lazy.infos,
        )
        values = dict(zip(lazy.infos, read, strict=True))
    for key, state in expected.items():
        assert torch.equal(values[key].view(state.shape), state)
        assert torch.equal(again.tensor(key), state)
        if key not in TOLD:  # a source whose cut is a tensor is read by tensors
            continue
        middle = state.numel() // 2
        parts = [lazy.read(key, 0, middle), lazy.read(key, middle, state.numel())]
        assert torch.equal(torch.cat(parts).view(state.shape), state)


@pytest.mark.parametrize("method", [{"name": "emr"}, {"name": "consensus", "task_masks": True}])
def test_task_masks_apply_to_packed_matrices(method: dict[str, Any], tmp_path: Path) -> None:
    keys = ("blocks.0.experts.down_proj", "norm.weight", "stem.conv.weight")
    loaded: dict[str, dict[str, State]] = {}
    for kind in ("packed", "apart"):
        paths = {}
        for name, state in states(3).items():
            packed = {key: state[key] for key in keys}
            paths[name] = str(tmp_path / f"{kind}-{name}.safetensors")
            save_file(packed if kind == "packed" else apart(packed), paths[name])
        pool = {"name": "checkpoints", "base": paths.pop("base"), "models": paths}
        output = tmp_path / kind
        run_fusion(algorithm=method, model_pool=pool, output={"path": str(output)})
        loaded[kind] = {task: load_for_task(output, task).state_dict() for task in "abc"}
    for task, expected in loaded["apart"].items():
        packed = apart(loaded["packed"][task])
        assert all(torch.equal(packed[key], state) for key, state in expected.items())


@pytest.mark.parametrize("cut", [Cut.ROW, Cut.TENSOR])
@pytest.mark.parametrize("name", ["task-arithmetic", "ties", "dare", "svc"])
def test_coarsely_cut_operands_give_the_same_result(name: str, cut: Cut) -> None:
    """Adapters are read by row, and results of matrix methods by tensor."""
    pool = pool_of(states(3))
    expected = merge(stages_of(name), pool).state_dict()
    coarse = with_sources(pool, lambda source: recut(source, cut))
    actual = merge(stages_of(name), coarse).state_dict()
    for key, state in expected.items():
        torch.testing.assert_close(actual[key], state, rtol=0, atol=0)


@pytest.mark.parametrize("overrides", [[], [{"match": "blocks.0.*", "density": 0.2}]])
def test_nested_merge_unpacks_matrices_again(overrides: list[Any]) -> None:
    """Nested recipes, parts of a merge and coordinates unpack matrices again."""
    models = states(3)
    ties = {"name": "ties", "density": 0.5, "overrides": overrides}
    stages = [{"name": "core-space"}, ties, {"name": "svc"}]
    inner = merge("tsv-m", pool_of(models))
    nested = {**models, "b": inner.state_dict()}
    pool = pool_of(nested)
    pool.experts = {**pool.experts, "b": inner}
    one_by_one = pool_of({key: apart(state) for key, state in nested.items()}, CheckpointsPool)
    actual = apart(merge(stages, pool).state_dict())
    expected = merge(stages, one_by_one).state_dict()
    # Tensors may be cut differently, so products of matrices differ in the last bit.
    for key, state in expected.items():
        torch.testing.assert_close(actual[key], state, rtol=1e-6, atol=1e-6)


def test_convolution_is_merged_as_output_by_input_matrix() -> None:
    models = states(3)
    merged = merge("iso-c", pool_of(models)).tensor("stem.conv.weight")
    base = models["base"]["stem.conv.weight"].flatten(1).double()
    total = sum(models[name]["stem.conv.weight"].flatten(1).double() - base for name in "abc")
    left, values, right = torch.linalg.svd(total, full_matrices=False)
    scale = plan({"algorithm": "iso-c", "model_pool": pool_of(models)}, RunOptions())
    expected = base + scale.recipe["algorithm"]["scale"] * values.mean() * left @ right
    torch.testing.assert_close(merged, expected.float().view_as(merged))


class Packed(nn.Module):
    """A mixture and a fused projection, as transformers packs them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 2)
        self.fused = nn.Linear(45, 14)
        self.experts = nn.ParameterDict({"gate_up": nn.Parameter(torch.randn(3, 4, 12) / 4)})
        self.out = nn.Linear(6, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.fused(self.stem(inputs).flatten(1))
        q, k, v = hidden.split([6, 4, 4], dim=1)
        both = (v * k).unsqueeze(0) @ self.experts["gate_up"]
        mixed = both[..., 0::2].sigmoid() * both[..., 1::2]
        scores: torch.Tensor = self.out(q + mixed.sum(0))
        return scores


class Apart(nn.Module):
    """The same model with separate matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 2)
        for name, size in {"q": 6, "k": 4, "v": 4}.items():
            self.add_module(name, nn.Linear(45, size))
        pairs = {name: nn.Linear(4, 6, bias=False) for name in ("gate", "up")}
        self.experts = nn.ModuleList([nn.ModuleDict(pairs)])
        for _ in range(2):
            pairs = {name: nn.Linear(4, 6, bias=False) for name in ("gate", "up")}
            self.experts.append(nn.ModuleDict(pairs))
        self.out = nn.Linear(6, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(inputs).flatten(1)
        q, k, v = (getattr(self, name)(hidden) for name in "qkv")
        mixed = [expert["gate"](v * k).sigmoid() * expert["up"](v * k) for expert in self.experts]  # type: ignore[index]
        scores: torch.Tensor = self.out(q + sum(mixed))
        return scores


OF_MODULES = {
    "experts.gate_up": Matrices((Stacked(3), Columns(4), Rows(6), Rows(gate=1, up=1)),
                                "experts.{index}.{part}.weight"),
    "fused.weight": Matrices((Rows(q=6, k=4, v=4), Columns(45)), "{part}.weight"),
    "fused.bias": Matrices((Rows(q=6, k=4, v=4),), "{part}.bias"),
}  # fmt: skip


class Live(CheckpointsPool):
    """A pool of live modules that declares how their tensors are packed."""

    def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
        return OF_MODULES.get(name) or super().matrices(name, shape)


def apart_module(state: State) -> State:
    matrices: State = {}
    for name, values in state.items():
        if name == "experts.gate_up":
            for n, expert in enumerate(values):
                matrices[f"experts.{n}.gate.weight"] = expert[:, 0::2].T
                matrices[f"experts.{n}.up.weight"] = expert[:, 1::2].T
        elif name.startswith("fused"):
            parts = zip("qkv", values.split([6, 4, 4]), strict=True)
            matrices |= {f"{part}.{name.partition('.')[2]}": matrix for part, matrix in parts}
        else:
            matrices[name] = values
    return matrices


def live_pools() -> tuple[Live, CheckpointsPool]:
    """Return two pools of equivalent live modules, packed and separate."""
    torch.manual_seed(0)
    base = Packed().double()
    packed: dict[str, nn.Module] = {"base": base}
    for name in "ab":
        packed[name] = Packed().double()
        with torch.no_grad():
            for parameter, origin in zip(packed[name].parameters(), base.parameters(), strict=True):
                parameter.copy_(origin + 0.1 * torch.randn(origin.shape, dtype=torch.float64))
    singly: dict[str, nn.Module] = {}
    for name, module in packed.items():
        singly[name] = Apart().double()
        singly[name].load_state_dict(apart_module(module.state_dict()))
    inputs = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(packed["a"](inputs), singly["a"](inputs))
    pools = pool_of(packed, Live), pool_of(singly, CheckpointsPool)
    assert isinstance(pools[0], Live)
    return pools[0], pools[1]


_STEPS = {"steps": 4, "batch_size": 4, "adapt_split": "unlabeled"}
ADAPTIVE: dict[str, dict[str, Any]] = {
    "adamerging": _STEPS,
    "adamerging row": {**_STEPS, "granularity": "row"},
    "adamerging column": {**_STEPS, "granularity": "column", "task_vectors": "disk"},
    "adamerging row+column": {**_STEPS, "granularity": "row+column"},
    "adamerging rank": {**_STEPS, "granularity": "rank"},
    "adarank": _STEPS,
    "symerge": _STEPS,
    "fisher": {"samples": 16},
}
#: Methods on layer inputs; all but `featcal` observe the inputs of packed experts.
OF_LAYERS = {
    "regmean": {"samples": 64},
    "regmean-plus-plus": {"samples": 64},
    "lot": {"samples": 64},
    "cat": {"samples": 64, "directions": 2},
    "featcal": {"samples": 64},
}


def adapted(name: str, pool: CheckpointsPool, options: dict[str, Any]) -> State:
    stages: list[Any] = [{"name": name.split(maxsplit=1)[0], **options}]
    if name == "featcal":
        stages = ["task-arithmetic", *stages]
    planned = plan(
        {"algorithm": stages, "model_pool": pool, "task_pool": TinyTasks(("a", "b"))}, RunOptions()
    )
    context = RunContext(tasks=planned.tasks)
    return apply_stages(planned.stages, planned.aligned, context).state_dict()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_methods_learn_the_same_from_packed_matrices(name: str) -> None:
    packed, singly = live_pools()
    actual = apart_module(adapted(name, packed, ADAPTIVE[name]))
    expected = adapted(name, singly, ADAPTIVE[name])
    assert actual.keys() == expected.keys()
    for key, state in expected.items():
        torch.testing.assert_close(actual[key], state, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_methods_on_inputs_treat_packed_matrices_like_separate_layers(name: str) -> None:
    packed, singly = live_pools()
    actual = apart_module(adapted(name, packed, OF_LAYERS[name]))
    expected = adapted(name, singly, OF_LAYERS[name])
    assert actual.keys() == expected.keys()
    for key, state in expected.items():
        # `featcal` leaves packed experts as they were, which changes the inputs of later layers
        if name != "featcal" or key.startswith(("q.", "k.", "v.")):
            torch.testing.assert_close(actual[key], state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_only_featcal_reports_packed_experts(name: str) -> None:
    packed, _ = live_pools()
    stages = ["task-arithmetic", name] if name == "featcal" else [name]
    planned = plan(
        {"algorithm": stages, "model_pool": packed, "task_pool": TinyTasks(("a", "b"))},
        RunOptions(),
    )
    fallbacks = [fallback for fallback in planned.fallbacks if fallback.stage == name]
    largest = "experts.gate_up" if name == "featcal" else "stem.weight"
    assert [fallback.example for fallback in fallbacks] == [largest]


def test_plan_and_provenance_describe_matrices(tmp_path: Path) -> None:
    pool = pool_of(states(2))
    planned = plan({"algorithm": "iso-c", "model_pool": pool}, RunOptions())
    assert [(known.tensors, known.count, known.holds) for known in planned.holdings] == [
        ("blocks.*.experts.gate_up", 1, "6 matrices of 6 x 5"),
        ("blocks.*.experts.down_proj", 1, "3 matrices of 5 x 6"),
        ("blocks.*.experts.down_proj_bias", 1, "3 vectors of 5"),
        ("blocks.*.attn.fused.weight", 1, "1 matrix of 6 x 5, 2 matrices of 4 x 5"),
        ("blocks.*.attn.fused.bias", 1, "1 vector of 6, 2 vectors of 4"),
        ("blocks.*.by_head.weight", 1, "3 matrices of 4 x 5"),
        (
            "blocks.*.columns.weight",
            1,
            "1 matrix of 5 x 4, 1 matrix of 5 x 2, 1 matrix of 5 x 3",
        ),
        ("stem.conv.weight", 1, "1 matrix of 4 x 12"),
    ]
    run_fusion(algorithm="iso-c", model_pool=pool, output={"path": str(tmp_path / "out")})
    recorded = read_provenance(tmp_path / "out").matrices
    assert recorded[0] == {
        "tensors": "blocks.*.experts.gate_up",
        "count": 1,
        "holds": "6 matrices of 6 x 5",
    }
    vectors = [fallback for fallback in planned.fallbacks if fallback.stage == "iso-c"]
    assert [vector.tensors for vector in vectors] == [3]  # two biases and the norm


HOSTILE: dict[str, tuple[object, str]] = {
    "beyond": (Matrices((Rows(8), Columns(5))), r"8 \* 5 = 40 elements, the tensor 35"),
    "short": (Matrices((Rows(q=3, k=3), Columns(5))), r"6 \* 5 = 30 elements, the tensor 35"),
    "zero": (Matrices((Rows(0 ), Columns(5))), "not whole numbers above 0"),
    "negative": (Matrices((Rows(q=9, k=-2), Columns(5))), "not whole numbers above 0"),
    "fraction": (Matrices((Rows(3.5), Columns(10))), "not whole numbers above 0"),  # type: ignore[arg-type]
    "true": (Matrices((Rows(True), Columns(35))), "not whole numbers above 0"),
    "stacked last": (Matrices((Rows(7), Stacked(5))), "Stacked is the first axis or none"),
    "stacked alone": (Matrices((Stacked(35),)), "Stacked is the first axis or none"),
    "stacked in parts": (Matrices((Stacked(a=3, b=4), Rows(5))), "Stacked cannot have parts"),
    "two in parts": (Matrices((Rows(a=3, b=4), Columns(c=2, d=3))), "several axes have parts"),
    "an axis of another kind": (Matrices(((7, 5),)), "expected Stacked, Rows and Columns"),  # type: ignore[arg-type]
    "nothing": (None, "expected Matrices, got a NoneType"),
    "a shape": ((7, 5), "expected Matrices, got a tuple"),
    "another's name": (Matrices((Stacked(7), Rows(5)), "norm.weight"), None),
    "one name": (Matrices((Rows(7), Columns(5)), "norm.weight"), "2 matrices called 'norm.weight'"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [case for case, (_, message) in HOSTILE.items() if message is not None]
)
def test_wrong_matrix_declaration_names_pool(case: str) -> None:
    declared, message = HOSTILE[case]

    class Hostile(CheckpointsPool):
        def matrices(self, name: str, shape: tuple[int, ...]) -> Any:
            return declared if name == "embed.weight" else super().matrices(name, shape)

    planned = plan({"algorithm": "ties", "model_pool": pool_of(states(2), Hostile)}, RunOptions())
    with pytest.raises(BrokenPluginError, match=rf"the model pool Hostile declares .*{message}"):
        _ = planned.fallbacks
    with pytest.raises(BrokenPluginError, match="the model pool Hostile declares"):
        merge("ties", pool_of(states(2), Hostile))


def test_tensor_without_matrices_is_merged_as_vector() -> None:
    class Tables(CheckpointsPool):
        def matrices(self, name: str, shape: tuple[int, ...]) -> Matrices:
            return Matrices.none(shape) if name == "embed.weight" else super().matrices(name, shape)

    models = {name: {"embed.weight": state["embed.weight"]} for name, state in states(2).items()}
    pool = pool_of(models, Tables)
    planned = plan({"algorithm": "iso-c", "model_pool": pool}, RunOptions())
    assert [(fallback.example, fallback.treatment) for fallback in planned.fallbacks] == [
        ("embed.weight", "averaged")
    ]
    mean = sum(models[name]["embed.weight"] - models["base"]["embed.weight"] for name in "ab") / 2
    scale = planned.recipe["algorithm"]["scale"]
    expected = models["base"]["embed.weight"] + scale * mean
    torch.testing.assert_close(merge("iso-c", pool).tensor("embed.weight"), expected)


def test_merge_without_packed_tensors_is_unchanged() -> None:
    """No source stands between the engine and models whose tensors are merged as stored."""
    state = {"q.weight": torch.randn(4, 3), "norm.bias": torch.randn(3)}
    pool = pool_of({"base": state, "a": {k: v + 1 for k, v in state.items()}}, CheckpointsPool)
    merged: Any = RunContext().merge(pool, Linear((1.0,)))
    assert merged.operands.base is pool.base
    assert isinstance(pool, ModelPool)
    assert not pool.layout.slots
