"""The search as a user sees it: coefficients, the merge they give, reproducibility, errors."""

from __future__ import annotations

import copy
import json
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
import torch
from safetensors.torch import load
from torch import nn

from fusion_adamerging.adamerging import AdaMerging
from fusion_adamerging.coefficients import Coefficients
from fusion_adamerging.config import AdaMergingConfig
from fusion_adapting import disagreement
from fusion_core import Progress, RunContext, RunOptions, Split, note, run_fusion
from fusion_core.errors import RecipeError
from fusion_core.weights import RowsKernel
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion_core import Piece

KERNELS = "fusion_core.machine.linear_kernels"
Make = "Callable[..., CheckpointsPool]"


def _entropies(logged: list[dict[str, float]]) -> list[float]:
    return [metrics["entropy"] for metrics in logged]


def _run(pool: CheckpointsPool, tasks: Any, **options: Any) -> tuple[Any, list[dict[str, float]]]:
    logged: list[dict[str, float]] = []
    context = RunContext(tasks=tasks, on_metrics=lambda _, metrics: logged.append(dict(metrics)))
    source = AdaMerging(AdaMergingConfig(**options)).run(pool, context)
    return (source, json.loads(context.side_files["coefficients.json"])), logged


@pytest.mark.sampled(2)
@pytest.mark.parametrize("granularity", ["layer", "model", "row", "column", "row+column", "rank"])
def test_search_lowers_the_entropy(make_pool: Make, tasks: Any, granularity: str) -> None:
    pool = make_pool("mlp", trained=True)
    _, logged = _run(pool, tasks, granularity=granularity, steps=30, lr=0.02)
    first, last = _entropies(logged)[:5], _entropies(logged)[-5:]
    assert sum(last) < 0.95 * sum(first)
    tasks_, means = {"entropy/a", "entropy/b"}, {"coefficient/a", "coefficient/b"}
    assert set(logged[0]) == {"entropy"} | tasks_ | means


def test_progress_shows_what_a_step_waits_for(
    make_pool: Make, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are decoded when a step first asks for them."""
    notes: list[str] = []
    kind = type(next(iter(tasks)))
    batch = kind.batch

    def decoding(task: Any, step: int, **options: Any) -> Any:
        note("decoding")
        return batch(task, step, **options)

    class Recording(Progress):
        @contextmanager
        def track(self, *_: Any, **__: Any) -> Iterator[Any]:
            yield lambda _=1, *, note="": notes.append(note)

    monkeypatch.setattr(kind, "batch", decoding)
    context = RunContext(tasks=tasks, progress=Recording())
    AdaMerging(AdaMergingConfig(steps=1)).run(make_pool("mlp"), context)
    assert "decoding" in notes


@pytest.mark.parametrize("kind", ["mlp", "convolution", "transformer"])
@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_the_merge_is_base_plus_coefficients_times_task_vectors(
    make_pool: Make, tasks: Any, kind: str, granularity: str
) -> None:
    pool = make_pool(kind)
    (source, saved), _ = _run(pool, tasks, granularity=granularity, steps=3)
    for name, merged in source.state_dict().items():
        base = pool.base.tensor(name)
        if not base.is_floating_point():
            assert torch.equal(merged, base)
            continue
        expected = base.clone()
        for expert, weights in pool.experts.items():
            factor = saved["coefficients"][expert][name]
            expected += factor * (weights.tensor(name) - base)
        torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("task_vectors", ["fp32", "bf16", "disk"])
@pytest.mark.parametrize("kind", ["mlp", "convolution", "transformer", "recurrent"])
@pytest.mark.parametrize(("granularity", "dim"), [("row", 0), ("column", 1)])
def test_finer_coefficients_are_saved_exactly_and_as_means(  # noqa: PLR0913, PLR0917 - a case is four
    make_pool: Make, tasks: Any, kind: str, granularity: str, dim: int, task_vectors: str
) -> None:
    pool, context = make_pool(kind), RunContext(tasks=tasks)
    options = {"granularity": granularity, "task_vectors": task_vectors, "lr": 0.1}
    source = AdaMerging(AdaMergingConfig(steps=3, **options)).run(pool, context)
    saved = json.loads(context.side_files["coefficients.json"])["coefficients"]
    exact = load(context.side_files["coefficients.safetensors"])
    base = pool.base.state_dict()
    for name, merged in source.state_dict().items():
        if not base[name].is_floating_point():
            continue
        expected = base[name].clone()
        for expert, weights in pool.experts.items():
            factor = exact.pop(f"{expert}/{name}", None)
            if factor is None:
                assert base[name].dim() < 2 or saved[expert][name] == AdaMergingConfig().init
                factor = saved[expert][name]
            else:
                matrix = base[name].flatten(1)  # a convolution is one of (out, in * k * k)
                assert factor.numel() == factor.shape[dim] == matrix.shape[dim]
                assert float(factor.mean()) == pytest.approx(saved[expert][name])
                factor = factor.expand_as(matrix).view_as(base[name])
            expected += factor * (weights.tensor(name) - base[name])
        torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6)
    assert not exact


class Halved(RowsKernel):
    """A transform that counts the pieces it computes."""

    computed = 0

    def rows(self, piece: Piece) -> torch.Tensor:
        self.computed += 1
        return piece.task_vectors / 2


def test_no_step_transforms_task_vectors_on_disk_again(
    make_pool: Make, tasks: Any, tmp_path: Path
) -> None:
    computed = []
    for steps in (1, 4):
        transform = Halved()
        pool = RunContext().transform(make_pool("mlp"), transform)
        state = tmp_path / str(steps)
        state.mkdir()
        context = RunContext(tasks=tasks, transforms=({"name": "halved"},), state=state)
        AdaMerging(AdaMergingConfig(steps=steps, task_vectors="disk")).run(pool, context)
        computed.append(transform.computed)
    assert computed[0] == computed[1] > 0


@pytest.mark.parametrize("granularity", ["row+column", "rank"])
@pytest.mark.parametrize("task_vectors", ["fp32", "bf16", "disk"])
def test_saved_lists_of_coefficients_give_the_merge_and_load_again(
    make_pool: Make, tasks: Any, task_vectors: str, granularity: str, tmp_path: Path
) -> None:
    pool = make_pool("transformer", experts=3, dtype=torch.float64)
    context = RunContext(tasks=tasks)
    options = {"granularity": granularity, "task_vectors": task_vectors, "lr": 0.1, "steps": 3}
    source = AdaMerging(AdaMergingConfig(**options)).run(pool, context)
    for name, content in context.side_files.items():
        (tmp_path / name).write_bytes(content)
    exact = load(context.side_files["coefficients.safetensors"])
    for name in ("embedding.weight", "encoder.layers.0.linear1.weight"):
        base = pool.base.tensor(name)
        expected = base.clone()
        for expert, weights in pool.experts.items():
            factors, row = exact[f"{expert}/{name}"], weights.tensor(name) - base
            assert factors.std() > 0.01
            if granularity == "row+column":
                expected += (factors[: len(row), None] + factors[None, len(row) :]) / 2 * row
                continue
            left, values, right = torch.linalg.svd(row, full_matrices=False)
            assert len(factors) == 1 + len(values) // 3
            rest = factors[-1].repeat(len(values) + 1 - len(factors))
            expected += left @ torch.diag(values * torch.cat([factors[:-1], rest])) @ right
        torch.testing.assert_close(source.tensor(name), expected, rtol=0, atol=1e-9)
    again = AdaMerging(coefficients=str(tmp_path / "coefficients.json")).run(pool, RunContext())
    for name, merged in source.state_dict().items():
        assert torch.equal(again.tensor(name), merged)


def test_task_wise_is_one_coefficient_per_model() -> None:
    assert AdaMergingConfig(granularity="task") == AdaMergingConfig(granularity="model")


def test_adapting_on_test_examples_is_transductive(
    make_pool: Make, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[Split] = set()
    kind = type(next(iter(tasks)))
    batch = kind.batch

    def record_split(task: Any, step: int, *, split: Split, **options: Any) -> Any:
        seen.add(split)
        return batch(task, step, split=split, **options)

    monkeypatch.setattr(kind, "batch", record_split)
    algorithm = AdaMerging(adapt_split="test", steps=2)
    adapted = algorithm.tasks(tasks)
    algorithm.run(make_pool("mlp"), RunContext(tasks=adapted))
    assert (seen, adapted.transductive, tasks.transductive) == ({Split.TEST}, True, False)


def test_layer_wise_has_one_coefficient_per_parameter_and_task_wise_one_per_expert(
    make_pool: Make, tasks: Any
) -> None:
    pool = make_pool("convolution")
    (_, layer), _ = _run(pool, tasks, granularity="layer", steps=2)
    (_, task), _ = _run(pool, tasks, granularity="task", steps=2)
    parameters = {name for name, _ in pool.config.base.named_parameters()}
    buffers = {"1.running_mean", "1.running_var"}
    for saved in (layer, task):
        for row in saved["coefficients"].values():
            assert row.keys() == parameters | buffers
            assert {row[name] for name in buffers} == {AdaMergingConfig().init}
    assert len({layer["coefficients"]["a"][name] for name in parameters}) == len(parameters)
    shared = [{row[n] for n in parameters} for row in task["coefficients"].values()]
    assert [len(values) for values in shared] == [1, 1]
    assert shared[0] != shared[1]


def test_zero_steps_is_task_arithmetic(make_pool: Make, tasks: Any) -> None:
    pool = make_pool("mlp")
    (source, _), _ = _run(pool, tasks, steps=0, init=0.3)
    for name, merged in source.state_dict().items():
        base = pool.base.tensor(name)
        total = sum(expert.tensor(name) - base for expert in pool.experts.values())
        torch.testing.assert_close(merged, base + 0.3 * total, rtol=1e-6, atol=1e-6)


def test_clamp_keeps_coefficients_in_the_unit_interval(make_pool: Make, tasks: Any) -> None:
    pool = make_pool("mlp", trained=True)
    free = _run(pool, tasks, steps=20, lr=0.1)[0][1]
    clamped = _run(pool, tasks, steps=20, lr=0.1, clamp=True)[0][1]
    inside = [
        [0 <= value <= 1 for row in saved["coefficients"].values() for value in row.values()]
        for saved in (free, clamped)
    ]
    assert not all(inside[0])
    assert all(inside[1])


def test_same_seed_same_bits_other_seed_other_bits(make_pool: Make, tasks: Any) -> None:
    pool = make_pool("mlp")
    state = torch.random.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        context = RunContext(tasks=tasks, seed=seed)
        AdaMerging(AdaMergingConfig(steps=5)).run(pool, context)
        results.append(context.side_files["coefficients.json"])
    assert results[0] == results[1] != results[2]
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is not ours"


def test_saved_coefficients_give_the_same_model_without_tasks(
    make_pool: Make, tasks: Any, tmp_path: Path
) -> None:
    pool = make_pool("transformer")
    first = run_fusion(
        algorithm={"name": "adamerging", "steps": 4}, model_pool=pool, task_pool=tasks
    )
    path = tmp_path / "coefficients.json"
    path.write_bytes(first.side_files["coefficients.json"])
    algorithm = {"name": "adamerging", "coefficients": str(path)}
    for task_pool in (tasks, None):
        second = run_fusion(algorithm=algorithm, model_pool=pool, task_pool=task_pool)
        assert second.side_files["coefficients.json"] == first.side_files["coefficients.json"]
        for name, tensor in first.weights.state_dict().items():
            assert torch.equal(tensor, second.weights.state_dict()[name])


def _finer_run(pool: CheckpointsPool, tasks: Any, folder: Path, **options: Any) -> Any:
    algorithm = {"name": "adamerging", "steps": 4, "granularity": "row", "lr": 0.05, **options}
    return run_fusion(algorithm=algorithm, model_pool=pool, task_pool=tasks, output=folder)


@pytest.mark.parametrize("granularity", ["row", "column"])
def test_saved_finer_coefficients_give_the_same_bytes(
    make_pool: Make, tasks: Any, tmp_path: Path, granularity: str
) -> None:
    pool, first, second = make_pool("convolution"), tmp_path / "first", tmp_path / "second"
    _finer_run(pool, tasks, first, granularity=granularity)
    algorithm = {"name": "adamerging", "coefficients": str(first / "coefficients.json")}
    run_fusion(algorithm=algorithm, model_pool=pool, output=second)
    for name in ("model.safetensors", "coefficients.json", "coefficients.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def _delete(folder: Path) -> None:
    (folder / "coefficients.safetensors").unlink()


def _corrupt(folder: Path) -> None:
    path = folder / "coefficients.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _edit(folder: Path) -> None:
    content = json.loads((folder / "coefficients.json").read_text())
    content["coefficients"]["a"]["1.weight"] = 0.3
    (folder / "coefficients.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [(_delete, "No such file"), (_corrupt, "expected SHA-256"), (_edit, "not the mean")],
)
def test_finer_coefficients_of_another_file_are_refused(
    make_pool: Make, tasks: Any, tmp_path: Path, harm: Any, message: str
) -> None:
    pool, folder = make_pool("mlp"), tmp_path / "out"
    _finer_run(pool, tasks, folder)
    harm(folder)
    again = AdaMerging(AdaMergingConfig(coefficients=str(folder / "coefficients.json")))
    with pytest.raises(RecipeError, match=f"'coefficients.safetensors' does not match .*{message}"):
        again.run(pool, RunContext())


def test_finer_coefficients_of_other_shapes_are_refused(
    make_pool: Make, tasks: Any, tmp_path: Path
) -> None:
    _finer_run(make_pool("mlp"), tasks, tmp_path / "out")
    path = str(tmp_path / "out" / "coefficients.json")
    shapes = {"1.weight": (17, 48), "1.bias": (16,), "3.weight": (4, 16), "3.bias": (4,)}
    with pytest.raises(
        RecipeError, match=r"'1.weight' has coefficients of shape \[16, 1\], which do not fit"
    ):
        Coefficients.load(path, experts=["a", "b"], shapes=shapes)


def test_the_picture_shows_the_spread_of_finer_coefficients(
    make_pool: Make, tasks: Any, tmp_path: Path
) -> None:
    _finer_run(make_pool("mlp"), tasks, tmp_path / "out")
    drawn = ET.fromstring((tmp_path / "out" / "coefficients.svg").read_bytes())
    assert len(drawn.findall(".//{*}rect/{*}title")) == 2 * 2 * 4, "mean and spread"
    titles = [element.text for element in drawn.findall(".//{*}text")]
    assert any(title.startswith("coefficients by layer, their standard dev") for title in titles)


@pytest.mark.parametrize(
    ("name", "label"),
    [("adamerging", "'adamerging'"), ("strong", r"'strong' \(its stage 'disentangle'\)")],
)
def test_a_search_without_tasks_is_refused(make_pool: Make, name: str, label: str) -> None:
    with pytest.raises(RecipeError, match=f"{label} needs tasks with unlabeled data") as caught:
        run_fusion(algorithm=name, model_pool=make_pool("mlp"))
    assert "causal-lm" in (caught.value.hint or "")


def test_inputs_are_not_modified(make_pool: Make, tasks: Any) -> None:
    pool = make_pool("transformer")
    modules = [pool.config.base, *pool.config.models.values()]
    before = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]
    flags = [[p.requires_grad for p in module.parameters()] for module in modules]
    training = [module.training for module in modules]
    _run(pool, tasks, steps=3)
    for module, values in zip(modules, before, strict=True):
        assert all(torch.equal(values[k], v) for k, v in module.state_dict().items())
    assert flags == [[p.requires_grad for p in module.parameters()] for module in modules]
    assert training == [module.training for module in modules]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a coefficients file"),
        ("[]", "not a coefficients file"),
        ('{"coefficients": {"a": {"x": "?"}}}', "not a coefficients file"),
        ('{"coefficients": {"a": {"x": NaN}}}', "expected a finite number for 'x' of 'a', got nan"),
        ('{"coefficients": {"a": {"x": -Infinity}}}', "got -inf"),
        ('{"coefficients": {"a": {"x": true}}}', "got True"),
        ('{"coefficients": {"a": {"x": 1%s}}}' % ("0" * 400), "not a coefficients file"),
        ("[" * 10**5, "not a coefficients file"),
        ('{"coefficients": {"a": {}}}', "for other models: .*b"),
        ('{"coefficients": {"a": {"zz": 1}, "b": {}}}', "for other models: .*zz"),
    ],
)
def test_bad_coefficients_file_is_named(
    make_pool: Make, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "coefficients.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message) as caught:
        AdaMerging(AdaMergingConfig(coefficients=str(path))).run(make_pool("mlp"), RunContext())
    assert str(path) in str(caught.value)


def test_skipped_tensors_get_no_coefficient_and_keep_the_base(make_pool: Make, tasks: Any) -> None:
    pool = make_pool("mlp")
    options = {"name": "adamerging", "steps": 3, "skip": "*.bias"}
    result = run_fusion(algorithm=options, model_pool=pool, task_pool=tasks)
    saved = json.loads(result.side_files["coefficients.json"])
    assert all(set(row) == {"1.weight", "3.weight"} for row in saved["coefficients"].values())
    assert torch.equal(result.weights.tensor("3.bias"), pool.base.tensor("3.bias"))
    assert not torch.equal(result.weights.tensor("3.weight"), pool.base.tensor("3.weight"))
    assert torch.equal(result.model.state_dict()["1.bias"], pool.base.tensor("1.bias"))


def test_the_search_is_drawn_and_logged(make_pool: Make, tasks: Any, tmp_path: Path) -> None:
    algorithm = {"name": "adamerging", "steps": 3}
    path = tmp_path / "out"
    run_fusion(algorithm=algorithm, model_pool=make_pool("mlp"), task_pool=tasks, output=path)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    drawn = ET.fromstring((path / "coefficients.svg").read_bytes())
    cells = drawn.findall(".//{*}rect/{*}title")
    assert len(cells) == 2 * 4, "two experts, four parameters"
    assert {cell.text.split(":")[0] for cell in cells} >= {"a, 1.weight", "b, 3.bias"}
    assert len(drawn.findall(".//{*}polyline")) == 4, "two tasks, two experts"


def test_trim_keeps_what_ties_would(make_pool: Make, tasks: Any) -> None:
    pool = make_pool("mlp", experts=3)
    (source, _), _ = _run(pool, tasks, trim=True, density=0.1, steps=0, init=1.0)
    base = pool.base.state_dict()
    changed = sum(int((source.tensor(n) != base[n]).sum()) for n in base)
    total = sum(value.numel() for value in base.values())
    assert 0.1 * total <= changed <= 0.3 * total, "three experts, a tenth of each"


def test_a_preset_sets_options_that_are_not_given() -> None:
    paper = AdaMergingConfig(preset="paper")
    assert (paper.lr, paper.steps, paper.schedule) == (1e-3, 1000, "constant")
    assert AdaMergingConfig(preset="paper", steps=7).steps == 7
    assert AdaMergingConfig(**paper.model_dump()) == paper, "a resolved recipe says the same"
    assert AdaMergingConfig().steps < paper.steps


@pytest.mark.parametrize(
    ("learned", "used"),
    [
        ({"trim": True}, {}),
        ({}, {"trim": True}),
        ({"trim": True, "density": 0.3}, {"trim": True}),
        ({"adapt_split": "holdout"}, {}),
        ({}, {"adapt_split": "holdout"}),
    ],
)
def test_coefficients_of_other_options_are_refused(
    make_pool: Make, tasks: Any, tmp_path: Path, learned: Any, used: Any
) -> None:
    pool, path = make_pool("mlp", experts=3), tmp_path / "coefficients.json"
    _, saved = _run(pool, tasks, steps=1, **learned)[0]
    path.write_text(json.dumps(saved))
    again = AdaMerging(AdaMergingConfig(coefficients=str(path), **learned))
    again.run(pool, RunContext())
    with pytest.raises(RecipeError, match=r"was learned with .* not with .*") as caught:
        AdaMerging(AdaMergingConfig(coefficients=str(path), **used)).run(pool, RunContext())
    assert "--set algorithm." in str(caught.value.hint)


def test_coefficients_that_saw_test_examples_are_measured_as_such(
    make_pool: Make, tasks: Any, tmp_path: Path
) -> None:
    pool, path = make_pool("mlp"), tmp_path / "coefficients.json"
    lent = copy.copy(tasks)
    lent.transductive = True  # as if its unlabeled examples were the test examples
    path.write_text(json.dumps(_run(pool, lent, steps=1)[0][1]))
    _run(pool, lent, coefficients=str(path))
    with pytest.raises(RecipeError, match="learned with adapt_split: test") as caught:
        _run(pool, tasks, coefficients=str(path))
    assert "--set algorithm.adapt_split=" in str(caught.value.hint)
    path.write_text(json.dumps(_run(pool, tasks, steps=1)[0][1]))
    _run(pool, lent, coefficients=str(path))


def test_tasks_without_halves_are_refused_with_an_alternative(tasks: Any) -> None:
    with pytest.raises(RecipeError, match="no halves") as caught:
        AdaMerging(adapt_split="holdout").tasks(tasks)
    assert "--set algorithm.adapt_split=unlabeled" in str(caught.value.hint)


def test_a_coefficients_file_records_how_they_were_learned(make_pool: Make, tasks: Any) -> None:
    _, saved = _run(make_pool("mlp"), tasks, steps=1, objective="teacher")[0]
    assert saved["learned"] == {
        "granularity": "layer",
        "shrinkage": 0,
        "objective": "teacher",
        "trim": False,
        "density": 0.2,
        "adapt_split": "unlabeled",
        "tasks": ["a", "b"],
        "examples": {},
        "task_vectors": {"float32": 4},
    }


def test_an_expert_that_predicts_the_same_for_all_examples_is_named(
    make_pool: Make, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = tasks.kind.logits

    def biased(self: Any, *given: Any) -> Any:
        first = torch.tensor([1e3, 0, 0, 0])
        return logits(self, *given) + (first if self.name == "b" else 0)

    monkeypatch.setattr(tasks.kind, "logits", biased)
    context = RunContext(tasks=tasks)
    AdaMerging(preset="strong", steps=2).run(make_pool("mlp"), context)
    (warning,) = context.warnings
    assert "the same for all examples to adapt on: b." in warning


@pytest.mark.parametrize(
    ("names", "missing"), [(("a", "b"), "c"), (("b", "x"), "a, c"), (("x", "y"), "a, b, c")]
)
def test_experts_without_a_task_are_named(
    names: tuple[str, ...], missing: str, make_pool: Make, tasks: Any
) -> None:
    adapted = [name for name in names if name in "abc"] or list(names)
    context, chosen = (RunContext(tasks=type(tasks)(names)) for _ in range(2))
    AdaMerging(steps=1).run(make_pool("mlp", experts=3), context)
    AdaMerging(steps=1, tasks=adapted).run(make_pool("mlp", experts=3), chosen)
    (warning,) = context.warnings
    assert warning.startswith(f"experts without a task in the task pool: {missing}. ")
    assert f"are learned from other tasks alone: {', '.join(adapted)}. " in warning
    assert not chosen.warnings


def test_a_task_with_fewer_examples_than_a_batch_gives_what_it_has(
    make_pool: Make, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, batch = set(), tasks.kind.batch

    def spy(self: Any, step: int, *, size: int, **options: Any) -> Any:
        sizes.add((self.name, size))
        return batch(self, step, size=size, **options)

    counts = {"a": 4, "b": None}
    monkeypatch.setattr(tasks.kind, "batch", spy)
    monkeypatch.setattr(tasks.kind, "count", lambda self, _: counts[self.name])
    context = RunContext(tasks=tasks)
    AdaMerging(preset="strong", steps=2).run(make_pool("mlp"), context)
    assert sizes == {("a", 4), ("b", 16)}
    (warning,) = context.warnings
    assert "fewer unlabeled examples than batch_size 16: a 4." in warning
    saved = json.loads(context.side_files["coefficients.json"])
    assert saved["learned"]["examples"] == {"a": 4}
    assert saved["learned"]["shrinkage"] == AdaMergingConfig(preset="strong").shrinkage > 0


def test_deviations_grow_with_the_examples_and_not_with_shrinkage(
    make_pool: Make, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, teacher = make_pool("mlp", trained=True), {"objective": "teacher", "lr": 0.05}

    def deviation(count: int, shrinkage: float) -> float:
        monkeypatch.setattr(tasks.kind, "count", lambda *_: count)
        options = {"granularity": "row+column", "shrinkage": shrinkage, **teacher}
        return _run(pool, tasks, batch_size=4, steps=60, **options)[1][-1]["deviation/a"]

    assert deviation(4, 30) < 0.7 * deviation(40, 30) < 0.5 * deviation(400, 30)
    assert deviation(4, 30) == deviation(40, 300), "their quotient counts"


@pytest.mark.parametrize("granularity", ["layer", "model"])
def test_shrinkage_leaves_one_coefficient_per_tensor_alone(
    make_pool: Make, tasks: Any, granularity: str
) -> None:
    pool = make_pool("mlp")
    (_, plain), (_, shrunk) = (
        _run(pool, tasks, steps=3, granularity=granularity, shrinkage=shrinkage)[0]
        for shrinkage in (0, 30)
    )
    assert plain["coefficients"] == shrunk["coefficients"]


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_tasks_are_named_once_each(names: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"^tasks = "):
        AdaMergingConfig(tasks=names)


def test_a_teacher_is_the_whole_expert_even_if_tensors_are_skipped(
    make_pool: Make, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, teachers, logits = make_pool("mlp"), [], tasks.kind.logits

    def record_call(task: Any, model: nn.Module, batch: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():  # a teacher
            teachers.append(model.state_dict())
        return logits(task, model, batch)

    monkeypatch.setattr(tasks.kind, "logits", record_call)
    options = {"name": "adamerging", "steps": 1, "objective": "teacher", "skip": "*.bias"}
    unmeasured = RunOptions(evaluate=False)
    run_fusion(algorithm=options, model_pool=pool, task_pool=tasks, options=unmeasured)
    assert len(teachers) == 2
    for state, name in zip(teachers, pool.experts, strict=True):
        for tensor, value in state.items():
            assert torch.equal(value, pool.experts[name].tensor(tensor)), (name, tensor)


def test_parameters_without_part_in_predictions_keep_their_coefficient(
    make_pool: Make, tasks: Any
) -> None:
    pool = make_pool("mlp")
    kind = tasks.kind
    tasks.kind = type("Blind", (kind,), {"logits": lambda _, __, batch: batch.inputs.flatten(1)})
    (_, saved), _ = _run(pool, tasks, steps=2)
    values = [value for row in saved["coefficients"].values() for value in row.values()]
    assert values == pytest.approx([AdaMergingConfig().init] * len(values))


def test_integer_parameters_are_not_merged(make_pool: Make, tasks: Any) -> None:
    pool = make_pool("mlp")
    for number, module in enumerate([pool.config.base, *pool.config.models.values()]):
        module[3].count = torch.nn.Parameter(torch.tensor(number), requires_grad=False)
    pool = type(pool)(pool.config)
    (source, saved), _ = _run(pool, tasks, steps=2)
    assert "3.count" not in saved["coefficients"]["a"]
    assert source.tensor("3.count") == 0


def test_models_in_float64_are_searched_in_float64(
    make_pool: Make, tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    kind = tasks.kind
    logits = kind.logits
    monkeypatch.setattr(
        kind,
        "logits",
        lambda task, model, batch: (
            seen.add(next(model.parameters()).dtype) or logits(task, model, batch)
        ),
    )
    _run(make_pool("mlp", dtype=torch.float64), tasks, steps=1)
    assert seen == {torch.float64}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("objective", ["entropy", "teacher"])
def test_faster_products_lead_to_the_same_coefficients(
    make_pool: Make, tasks: Any, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    seen: list[bool] = []
    logits = type(next(iter(tasks))).logits

    def record_call(task: Any, model: nn.Module, batch: Any) -> torch.Tensor:
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        seen.append(
            all(isinstance(layer, resolve_name(f"{KERNELS}:OneDnnLinear")) for layer in layers)
        )
        return logits(task, model, batch)

    def search(*, faster: bool) -> Any:
        seen.clear()
        monkeypatch.setattr(f"{KERNELS}._is_outrun_here", lambda: faster)
        (_, coefficients), _ = _run(make_pool("mlp"), tasks, objective=objective, steps=5)
        assert seen == [faster] * (20 if objective == "teacher" else 10)
        return coefficients

    monkeypatch.setattr(type(next(iter(tasks))), "logits", record_call)
    monkeypatch.setattr(f"{KERNELS}._WORTHWHILE", 1)
    plain, fast = search(faster=False), search(faster=True)
    assert search(faster=True) == fast, "to the bit"
    for task, row in plain["coefficients"].items():
        assert fast["coefficients"][task] == pytest.approx(row, rel=1e-4)


def test_a_merge_stays_closer_to_the_base_on_tasks_that_it_retains(
    make_pool: Make, tasks: Any
) -> None:
    pool, tasks = make_pool("mlp", trained=True), type(tasks)(("a", "b", "general"))
    assert pool.base is not None
    teacher = {"objective": "teacher", "lr": 0.05, "granularity": "row+column"}
    batch = tasks["general"].batch(0, size=256, split=Split.TEST, seed=3)
    expected = tasks["general"].logits(pool.build(pool.base), batch).detach()
    distances = []
    for retain in ([], ["general"]):
        (source, saved), logged = _run(pool, tasks, retain=retain, **teacher)
        assert saved["learned"]["tasks"] == ["a", "b", *retain]
        assert ("teacher/general" in logged[0]) == bool(retain)
        logits = tasks["general"].logits(pool.build(source), batch).detach()
        distances.append(float(disagreement(logits, expected)))
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "teacher", "retain": ["a"]}, "task 'a' has an expert"),
        ({"objective": "teacher", "retain": ["nothing"]}, "nothing"),
        ({"retain": ["general"]}, "retain needs a teacher"),
    ],
)
def test_only_the_base_teaches_what_is_retained(
    make_pool: Make, tasks: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((RecipeError, ValueError), match=message):
        _run(make_pool("mlp"), type(tasks)(("a", "b", "general")), **options)


def test_gradient_checkpointing_finds_the_same_coefficients(
    tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [nn.Sequential(nn.Linear(48, 48), nn.Tanh()) for _ in range(3)]
    base = nn.Sequential(nn.Flatten(), nn.Sequential(*layers), nn.Linear(48, 4)).eval()
    models = {}
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        models[name] = copy.deepcopy(base)
        for weight in models[name].parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    pool = CheckpointsPool(CheckpointsConfig(base=base, models=models))
    calls: list[bool] = []
    forward = nn.Tanh.forward
    monkeypatch.setattr(nn.Tanh, "forward", lambda *args: calls.append(True) or forward(*args))
    options: dict[str, Any] = {"steps": 4, "lr": 0.05, "shared_pass": 0}
    (_, plain), _ = _run(pool, tasks, **options)
    count = len(calls)
    (_, checkpointed), _ = _run(pool, tasks, gradient_checkpointing=True, **options)
    assert len(calls) == 3 * count, "each layer ran twice"
    assert checkpointed["coefficients"] == plain["coefficients"]


def test_checkpointing_a_model_without_repeated_layers_is_refused(
    make_pool: Make, tasks: Any
) -> None:
    with pytest.raises(RecipeError, match="Sequential has no list of layers of one class"):
        _run(make_pool("mlp"), tasks, gradient_checkpointing=True)
