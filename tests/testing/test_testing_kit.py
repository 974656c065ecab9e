"""The conformance suites: they pass what is sound, catch what is not, and say what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from suites import expressions, run_suites

import fusion_testing
from fusion_core import ExecutorSpec, TaskPoolSpec
from fusion_core.commands import Subject
from fusion_core.plugins.manager import load_plugins
from fusion_testing import (
    AlgorithmSuite,
    ExecutorSuite,
    TaskPoolSuite,
    TinyTasks,
    tiny_pool,
)
from fusion_testing._compare import differing_bytes, differing_values
from fusion_testing._guards import digest
from fusion_testing._models import MODELS, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Site


# --- the core's own executors -------------------------------------------------------------------


class TestExecutors(ExecutorSuite):
    @pytest.fixture(params=["serial", "threads"])
    def spec(self, request: pytest.FixtureRequest) -> ExecutorSpec:
        return load_plugins().find(ExecutorSpec, request.param).spec


# --- planted faults -----------------------------------------------------------------------------

PLUGIN = """
    from fusion_core import AlgorithmSpec, CommandSpec, ExecutorSpec, ModelPoolSpec, hookimpl

    METHODS = {
        "sound": "Sound", "mutated-input": "MutatedInput", "wrong-dtype": "WrongDtype",
        "global-rng": "GlobalRng", "order-dependence": "OrderDependence",
        "dropped-buffer": "DroppedBuffer", "cut-dependence": "CutDependence",
        "kept-state": "KeptState",
        "silent-nan": "SilentNan", "absolute-floor": "AbsoluteFloor",
        "absolute-rate": "AbsoluteRate", "written-piece": "WrittenPiece",
        "global-seed": "GlobalSeed",
    }

    TRANSFORMS = {
        "sound-transform": "Half", "turned-rows": "TurnedRows", "one-row": "OneRow",
        "written-rows": "WrittenRows", "cut-norms": "CutNorms", "moved-zero": "MovedZero",
    }
    CALIBRATIONS = {
        "sound-calibration": "Halfway", "no-merge": "NoMerge", "written-merge": "WrittenMerge",
        "lost-tensors": "LostTensors",
    }

    @hookimpl
    def fusion_register_algorithms():
        for name, target in METHODS.items():
            yield AlgorithmSpec(
                name=name, summary="Planted.", target=f"faulty_methods:{target}",
                config="fusion_core.recipe.config:ComponentConfig",
            )
        for name, target in TRANSFORMS.items():
            yield AlgorithmSpec(
                name=name, stage="transform", summary="Planted.", needs_base=True,
                target=f"faulty_stages:{target}",
                config="fusion_core.recipe.config:ComponentConfig",
            )
        for name, target in CALIBRATIONS.items():
            yield AlgorithmSpec(
                name=name, stage="calibrate", summary="Planted.", needs_base=True,
                target=f"faulty_stages:{target}",
                config="fusion_core.recipe.config:ComponentConfig",
            )
        yield AlgorithmSpec(
            name="unknown-option", summary="Planted.", target="faulty_methods:UnknownOption",
            config="faulty_options:Careless",
        )
        yield AlgorithmSpec(
            name="no-such-option", summary="Planted.", target="faulty_methods:Sound",
            config="fusion_core.recipe.config:ComponentConfig",
            needs_tasks="unlabeled", needs_tasks_unless="coefficients",
        )

    POOLS = {
        "sound-pool": "Nets", "missing-key": "MissingKey", "left-on-meta": "LeftOnMeta",
        "unwritten-buffer": "UnwrittenBuffer", "own-dtype": "OwnDtype", "own-device": "OwnDevice",
        "unloaded-buffer": "UnloadedBuffer", "loaded-delta": "LoadedDelta",
        "stale-base": "StaleBase", "old-build": "OldBuild",
    }

    @hookimpl
    def fusion_register_model_pools():
        for name, target in POOLS.items():
            yield ModelPoolSpec(
                name=name, summary="Planted.", target=f"faulty_pools:{target}",
                config="fusion_core.recipe.config:ComponentConfig",
            )

    @hookimpl
    def fusion_register_executors():
        for name, target in {"lost-error": "LosingErrors", "closed-one": "get_closed"}.items():
            yield ExecutorSpec(
                name=name, summary="Planted.", target=f"faulty_executors:{target}",
                config="fusion_core.recipe.config:ComponentConfig",
            )

    @hookimpl
    def fusion_register_commands():
        for name, target in {"any-flag": "lenient", "no-command": "NOTHING", "info": "ok"}.items():
            yield CommandSpec(name=name, summary="Planted.", target=f"faulty_commands:{target}")
        yield CommandSpec(name="heavy-help", summary="Planted.", target="faulty_methods:mean")
"""

EXECUTORS = """
    from concurrent.futures import ThreadPoolExecutor

    class LosingErrors(ThreadPoolExecutor):
        def __init__(self, config):
            super().__init__(1)
        def submit(self, function, /, *arguments):
            def attempt():
                try:
                    return function(*arguments)
                except LookupError:
                    return None
            return super().submit(attempt)

    SHARED = ThreadPoolExecutor(1)

    def get_closed(config):
        return SHARED
"""

COMMANDS = """
    import typer

    def ok():
        pass

    NOTHING = 3
    lenient = typer.Typer()
    lenient.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(ok)
"""

OPTIONS = """
    from pydantic import ConfigDict
    from fusion_core import ComponentConfig

    class Careless(ComponentConfig):
        model_config = ConfigDict(extra="ignore")
"""

METHODS = """
    import torch
    from fusion_core import Algorithm, ComponentConfig, TensorwiseAlgorithm
    from fusion_core.weights import Cut, MergedSource, Operands, StateDictSource, sum_in_order
    from faulty_options import Careless

    def mean(piece):
        return sum_in_order(piece.experts) / len(piece.experts)

    def mean_of_task_vectors(piece):
        return sum_in_order(piece.task_vectors) / len(piece.names)

    class Sound(TensorwiseAlgorithm):
        config_class = ComponentConfig
        def merge(self, piece):
            return mean(piece)

    class UnknownOption(Sound):
        config_class = Careless

    class WrongDtype(Sound):
        def merge(self, piece):
            return mean(piece).half()

    class GlobalRng(Sound):
        def merge(self, piece):
            return mean(piece) + 1e-6 * torch.rand_like(piece.experts[0])

    class GlobalSeed(Sound):
        def merge(self, piece):
            torch.manual_seed(0)
            return mean(piece)

    class WrittenPiece(Sound):
        def merge(self, piece):
            return piece.experts.div_(len(piece.experts)).sum(dim=0)

    class OrderDependence(Sound):
        def merge(self, piece):
            first, *others = piece.experts
            return mean(piece) + 0.01 * (first - mean(piece))

    class CutDependence(Sound):
        def merge(self, piece):
            return piece.experts.mean(dim=0)

    class KeptState(Sound):
        def merge(self, piece):
            if not hasattr(self, "share"):
                self.share = float(piece.task_vectors.abs().max())
            return piece.base + sum_in_order(piece.task_vectors) * min(self.share, 1)

    class Whole(Algorithm):
        config_class = ComponentConfig
        def run(self, pool, context):
            states = [each.state_dict() for each in pool.experts.values()]
            names = self.names(states)
            return StateDictSource({n: self.one(n, [s[n] for s in states]) for n in names})
        def names(self, states):
            return states[0]
        def one(self, name, tensors):
            if not tensors[0].is_floating_point():
                return tensors[0]
            wide = [each.double() for each in tensors]
            if not all(each.isfinite().all() for each in wide):
                from fusion_core.errors import WeightsError
                raise WeightsError(f"{name} is not finite")
            return (sum(wide) / len(wide)).to(tensors[0].dtype)

    class DroppedBuffer(Whole):
        def names(self, states):
            return [name for name in states[0] if not name.endswith("num_batches_tracked")]

    class SilentNan(Sound):
        def run(self, pool, context):
            return MergedSource(self, Operands(pool.base, pool.experts, finite=False))
        def merge(self, piece):
            return sum_in_order(piece.experts.nan_to_num()) / len(piece.names)

    class AbsoluteFloor(Sound):
        cut = Cut.TENSOR
        def merge(self, piece):
            squares = piece.task_vectors.square().reshape(len(piece.names), -1).sum(dim=1)
            shares = 1 / (squares + 1e-12)
            return piece.base + mean_of_task_vectors(piece) * shares.mean()

    class AbsoluteRate(Sound):
        def merge(self, piece):
            return piece.base + mean_of_task_vectors(piece).clamp(-1e-3, 1e-3)

    class MutatedInput(Sound):
        def run(self, pool, context):
            for source in pool.experts.values():
                for name, info in source.infos.items():
                    if info.dtype.is_floating_point:
                        source.read(name, 0, info.numel).mul_(0.5)
            return super().run(pool, context)
"""

POOLS = """
    import torch
    from torch import nn
    from fusion_core import ComponentConfig, ModelPool, build_model
    from fusion_core.weights import StateDictSource, as_weights

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)
            self.register_buffer("positions", torch.arange(6), persistent=False)

    def state(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {n: torch.rand_like(t) if t.is_floating_point() else t + seed
                    for n, t in Net().state_dict().items()}

    class Nets(ModelPool):
        config_class = ComponentConfig
        def __init__(self, config):
            super().__init__(config)
            self.base, a, b = (StateDictSource(state(seed)) for seed in range(3))
            self.experts = {"a": a, "b": b}
        def build(self, weights, *, dtype=torch.float32, device="cpu"):
            return build_model(Net, weights, base=self.base, dtype=dtype, device=device)

    class ByHand(Nets):
        assign, strict = True, True
        def build(self, weights, *, dtype=torch.float32, device="cpu"):
            tensors = self.load(as_weights(weights, self.base))
            model = self.make()
            model.load_state_dict(tensors, strict=self.strict, assign=self.assign)
            return model.eval().to(device, dtype)
        def load(self, weights):
            return weights.state_dict()
        def make(self):
            with torch.random.fork_rng():
                return Net()

    class MissingKey(ByHand):
        strict = False

    class LeftOnMeta(ByHand):
        def build(self, weights, *, dtype=torch.float32, device="cpu"):
            with torch.device("meta"):
                model = Net()
            model.load_state_dict(as_weights(weights, self.base).state_dict(), assign=True)
            return model.eval()

    class UnwrittenBuffer(ByHand):
        assign = False
        def make(self):
            with torch.device("meta"):
                return Net().to_empty(device="cpu")

    class UnloadedBuffer(ByHand):
        strict = False
        def load(self, weights):
            return {n: t for n, t in weights.state_dict().items() if "running" not in n}

    class LoadedDelta(Nets):
        def build(self, weights, *, dtype=torch.float32, device="cpu"):
            plain = StateDictSource(weights.state_dict())
            return build_model(Net, plain, dtype=dtype, device=device)

    class OwnDtype(Nets):
        def build(self, weights, *, dtype=torch.float32, device="cpu"):
            return super().build(weights, device=device)

    class OwnDevice(Nets):
        def build(self, weights, *, dtype=torch.float32, device="cpu"):
            return super().build(weights, dtype=dtype)

    class StaleBase(Nets):
        def __init__(self, config):
            super().__init__(config)
            self.first_base = self.base
        def build(self, weights, *, dtype=torch.float32, device="cpu"):
            return build_model(Net, weights, base=self.first_base, dtype=dtype, device=device)

    class OldBuild(Nets):
        def build(self, weights):
            return super().build(weights)
"""

STAGES = """
    import torch
    from fusion_core import Calibration, ComponentConfig, TensorwiseCalibration, Transform
    from fusion_core.weights import StateDictSource, sum_in_order

    class Half(Transform):
        config_class = ComponentConfig
        def rows(self, piece):
            return piece.task_vectors / 2

    class TurnedRows(Half):
        def rows(self, piece):
            return piece.task_vectors.roll(1, dims=0)

    class OneRow(Half):
        def rows(self, piece):
            return sum_in_order(piece.task_vectors)

    class WrittenRows(Half):
        def rows(self, piece):
            return piece.task_vectors.mul_(0.5)

    class CutNorms(Half):
        def rows(self, piece):
            return torch.stack([row / (1 + row.norm()) for row in piece.task_vectors])

    class MovedZero(Half):
        def rows(self, piece):
            return piece.task_vectors + 0.01

    class Halfway(TensorwiseCalibration):
        config_class = ComponentConfig
        def merge(self, piece):
            return piece.base + (piece.merged - piece.base) / 2

    class NoMerge(Halfway):
        def merge(self, piece):
            return piece.base + sum_in_order(piece.task_vectors) / 2

    class WrittenMerge(Halfway):
        def merge(self, piece):
            return piece.merged.sub_(piece.base).mul_(0.5).add_(piece.base)

    class LostTensors(Calibration):
        config_class = ComponentConfig
        def calibrate(self, merged, pool, context):
            state = merged.state_dict()
            return StateDictSource({n: v for n, v in state.items() if v.dim() != 1})
"""

HEAVY = """
    import torch
    from fusion_core import AlgorithmSpec, hookimpl

    @hookimpl
    def fusion_register_algorithms():
        yield AlgorithmSpec(
            name="heavy-import", summary="Planted.", target="faulty_methods:Sound",
            config="fusion_core.recipe.config:ComponentConfig",
        )
"""

TESTS = """
    import pytest
    from fusion_core.plugins.manager import load_plugins
    from fusion_core.contracts.specs import ComponentSpec
    from fusion_testing import AlgorithmSuite, CommandSuite, ExecutorSuite, ModelPoolSuite
    from fusion_testing import CalibrationSuite, TransformSuite

    SUITES = {
        "merge": AlgorithmSuite, "model pool": ModelPoolSuite, "executor": ExecutorSuite,
        "command": CommandSuite, "transform": TransformSuite, "calibrate": CalibrationSuite,
    }
    NAMES = {each.spec.name: each.spec for each in load_plugins().components(ComponentSpec)}

    def suite_of(name):
        spec = pytest.fixture(lambda self: NAMES[name])
        kind = SUITES[getattr(NAMES[name], "stage", NAMES[name].kind)]
        return type("Test_" + name.replace("-", "_"), (kind,), {"spec": spec})

    for name, spec in NAMES.items():
        if spec.summary == "Planted.":
            globals()["Test_" + name.replace("-", "_")] = suite_of(name)
"""

CAUGHT_BY = {
    "mutated_input": {"test_the_models_are_not_changed"},
    "wrong_dtype": {"test_every_tensor_is_kept_in_its_dtype"},
    "global_rng": {"test_global_state_is_not_changed", "test_the_seed_decides_everything"},
    "global_seed": {"test_global_state_is_not_changed"},
    "written_piece": {"test_pieces_are_not_written_into"},
    "order_dependence": {"test_the_order_of_experts_does_not_matter"},
    "dropped_buffer": {"test_every_tensor_is_kept_in_its_dtype"},
    "heavy_import": {"test_listing_it_imports_nothing_heavy"},
    "no_such_option": {"test_what_it_does_without_tasks_for_is_an_option"},
    "unknown_option": {"test_an_unknown_option_is_refused"},
    "cut_dependence": {"test_cuts_do_not_matter"},
    "kept_state": {"test_cuts_do_not_matter"},
    "silent_nan": {"test_nan_in_an_expert_is_refused_by_name"},
    "absolute_floor": {
        "test_degenerate_task_vectors_stay_bounded",
        "test_task_vectors_of_any_size_stay_bounded",
    },
    "absolute_rate": {"test_larger_task_vectors_give_the_same_merge_enlarged"},
    "turned_rows": {"test_each_expert_keeps_its_row"},
    "one_row": {"test_every_tensor_is_kept_in_its_dtype"},
    "written_rows": {"test_pieces_are_not_written_into"},
    "cut_norms": {"test_cuts_do_not_matter"},
    "moved_zero": {"test_equal_models_give_the_same_model"},
    "no_merge": {"test_another_merge_gives_another_model"},
    "written_merge": {"test_pieces_are_not_written_into"},
    "lost_tensors": {"test_every_tensor_is_kept_in_its_dtype"},
    "missing_key": {"test_building_refuses_what_does_not_fit"},
    "left_on_meta": {"test_every_tensor_of_a_live_model_has_values"},
    "unwritten_buffer": {"test_every_tensor_of_a_live_model_has_values"},
    "own_dtype": {"test_a_live_model_has_the_dtype_that_is_asked_for"},
    "own_device": {"test_a_live_model_is_on_the_device_that_is_asked_for"},
    "unloaded_buffer": {"test_a_live_model_has_the_weights"},
    "loaded_delta": {"test_differences_are_built_as_the_models_that_they_make"},
    "stale_base": {"test_a_pool_with_merges_in_the_places_of_models_builds_those"},
    "old_build": {
        "test_a_live_model_has_the_dtype_that_is_asked_for",
        "test_a_live_model_is_on_the_device_that_is_asked_for",
    },
    "lost_error": {"test_what_work_raises_comes_back"},
    "closed_one": {"test_it_can_be_made_again"},
    "any_flag": {"test_an_unknown_flag_is_refused"},
    "no_command": {"test_it_shows_its_help"},
    "info": {"test_its_name_is_not_the_cores"},
    "heavy_help": {"test_its_help_imports_nothing_heavy"},
}


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory, make_site: type[Site]
) -> dict[str, dict[str, str]]:
    """Run the checks that should catch something on every planted fault: class -> check -> text."""
    root = tmp_path_factory.mktemp("planted")
    (root / "site").mkdir()
    files = {
        "faulty_methods.py": METHODS,
        "faulty_options.py": OPTIONS,
        "faulty_pools.py": POOLS,
        "faulty_executors.py": EXECUTORS,
        "faulty_commands.py": COMMANDS,
        "faulty_stages.py": STAGES,
    }
    site = make_site(root / "site")
    site.install("faulty-plugin", PLUGIN, requires=("fusion-core>=0.1,<0.2",), files=files)
    site.install("heavy-plugin", HEAVY, requires=("fusion-core>=0.1,<0.2",))
    return run_suites(root, TESTS, expressions(CAUGHT_BY))


@pytest.mark.thorough
@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_a_planted_fault_is_caught_by_the_checks_that_are_about_it(
    planted: dict[str, dict[str, str]], fault: str
) -> None:
    assert planted[fault].keys() >= CAUGHT_BY[fault], planted[fault]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["", "_transform", "_calibration", "_pool"])
def test_what_is_sound_passes(planted: dict[str, dict[str, str]], kind: str) -> None:
    assert planted[f"sound{kind}"] == {}


@pytest.mark.thorough
def test_a_failure_says_what_to_do(planted: dict[str, dict[str, str]]) -> None:
    for failures in planted.values():
        for text in failures.values():
            assert re.search(r"\n\nTo fix it: \w", text), text
            assert "Traceback" not in text


# --- the rules of suites ------------------------------------------------------------------------


def test_a_check_cannot_be_overridden() -> None:
    with pytest.raises(TypeError, match=r"overrides the check 'test_tied_tensors_stay_tied'"):

        class Sly(AlgorithmSuite):
            def test_tied_tensors_stay_tied(self) -> None:  # type: ignore[override]
                pass


def test_not_even_from_the_side() -> None:
    class Aside:
        def test_tied_tensors_stay_tied(self) -> None:
            pass

    with pytest.raises(TypeError, match="Aside overrides the check"):
        type("Sly", (Aside, AlgorithmSuite), {})


def test_an_expected_failure_names_a_check_and_a_reason() -> None:
    with pytest.raises(
        TypeError, match=r"expected_failures: 'test_tied_tensors_stay'; did you mean"
    ):
        type("Odd", (AlgorithmSuite,), {"expected_failures": {"test_tied_tensors_stay": "why"}})
    with pytest.raises(TypeError, match="lacks the reason"):
        type("Odd", (TaskPoolSuite,), {"expected_failures": {"test_metrics_keep_their_unit": " "}})


def test_own_tests_may_be_added_and_refined() -> None:
    class Own(AlgorithmSuite):
        def test_mine(self) -> str:
            return "mine"

    class Refined(Own):
        def test_mine(self) -> str:
            return "refined"

    assert Refined().test_mine() == "refined"


EXPECTING = """
    import pytest
    from fusion_core.plugins.manager import load_plugins
    from fusion_core.contracts.specs import AlgorithmSpec
    from fusion_testing import AlgorithmSuite

    CHECK = "test_the_order_of_experts_does_not_matter"

    class Base(AlgorithmSuite):
        expected_failures = {CHECK: "experts have roles"}

    class Test_told(Base):
        @pytest.fixture
        def spec(self):
            return load_plugins().find(AlgorithmSpec, "order-dependence").spec

    class Test_stale(Base):
        @pytest.fixture
        def spec(self):
            return load_plugins().find(AlgorithmSpec, "sound").spec

    class Test_bare(AlgorithmSuite):
        pass
"""


@pytest.mark.thorough
def test_expected_failures_are_strict(site: Site, tmp_path: Path) -> None:
    files = {"faulty_methods.py": METHODS, "faulty_options.py": OPTIONS}
    site.install("faulty-plugin", PLUGIN, files=files)
    check = "test_the_order_of_experts_does_not_matter"
    failures = run_suites(tmp_path, EXPECTING, [check])
    assert failures["told"] == {}
    assert "XPASS(strict)" in failures["stale"][check]
    assert "no fixture `spec`" in failures["bare"][check]


# --- tiny models and tasks ----------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_tiny_models_are_the_same_each_time_and_fit_tiny_tasks(model: str) -> None:
    state = torch.get_rng_state()
    one, two = tiny_pool(model), tiny_pool(model)
    assert torch.equal(state, torch.get_rng_state())
    for name, source in one.experts.items():
        assert differing_bytes(source.state_dict(), two.experts[name].state_dict()) is None
        assert differing_values(source.state_dict(), one.base.state_dict(), tolerance=1e-3)
    metrics = TinyTasks().measure(Subject.of(one.build(one.base)))
    assert all(0 <= metric["accuracy"] <= 1 for metric in metrics.values())
    other = tiny_pool(model, seed=1)
    assert differing_values(one.base.state_dict(), other.base.state_dict(), tolerance=1e-3)


def test_tiny_models_are_of_the_kinds_that_go_wrong() -> None:
    transformer = tiny_model("transformer")
    names = dict(transformer.named_parameters(remove_duplicate=False))
    assert names["embedding.weight"] is names["output.weight"]
    shapes = {tuple(tensor.shape) for tensor in transformer.state_dict().values()}
    assert {(), (0, 4)} <= shapes
    buffers = dict(tiny_model("convolution").named_buffers())
    assert {buffer.dtype for buffer in buffers.values()} == {torch.float32, torch.int64}


class TestTinyTasks(TaskPoolSuite):
    expected_failures: ClassVar[dict[str, str]] = {
        "test_the_plugin_is_installed": "no plugin registers what tests are made with",
        "test_the_plugin_says_which_core_it_needs": "the same",
        "test_listing_it_imports_nothing_heavy": "the same",
        "test_batches_are_the_same_in_another_process": "it is made from names, not from options",
        "test_heads_are_the_same_in_another_process": "the same",
    }

    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        return TaskPoolSpec(
            name="tiny",
            summary="What tests are made with.",
            target="fusion_testing._tasks:TinyTasks",
            config="fusion_core.recipe.config:ComponentConfig",
        )

    @pytest.fixture
    def make(self) -> Callable[[], TinyTasks]:
        return TinyTasks

    @pytest.fixture
    def model(self) -> torch.nn.Module:
        return tiny_model("transformer")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(12.0).reshape(3, 4).T,
        lambda: torch.arange(12.0).bfloat16()[::2],
        lambda: torch.arange(12) > 5,
        lambda: torch.zeros(0, 4),
        lambda: torch.tensor(2.5),
    ],
    ids=["not contiguous", "strided bf16", "bool", "empty", "0-d"],
)
def test_a_digest_is_of_values_and_not_of_freed_memory(make: Callable[[], torch.Tensor]) -> None:
    digests = {digest(make(), torch.rand(number)[:0]) for number in range(50)}
    assert digests == {digest(make().clone(), torch.zeros(0))}
    assert digest(make()) != digest(make().double())


# --- fixtures and names -------------------------------------------------------------------------


def test_the_fixtures_are_there_without_being_asked_for(
    make_tiny_pool: Callable[..., Any], tiny_tasks: TinyTasks, run_fuse: Callable[..., Any]
) -> None:
    assert list(make_tiny_pool("mlp", experts=2).experts) == ["a", "b"]
    assert list(tiny_tasks.names) == ["a", "b", "c"]
    assert run_fuse("--version").stdout.startswith("fuse ")
    with pytest.raises(pytest.fail.Exception, match="exit code 2"):
        run_fuse("run", "--no-such-flag")


def test_a_session_that_uses_no_fixture_does_not_pay_for_them() -> None:
    code = "import sys, fusion_testing.fixtures; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pydantic", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize("name", fusion_testing.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(fusion_testing, name) is not None
    assert name in dir(fusion_testing)


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fusion_testing.nonsense  # type: ignore[attr-defined]
