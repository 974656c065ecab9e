from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from fusion_core import AlignmentPolicy, run_fusion
from fusion_core.errors import (
    AlignmentError,
    CheckpointError,
    FusionError,
    HubError,
    IntegrityError,
    RecipeError,
)
from fusion_core.weights import (
    CheckpointSource,
    RemoteSource,
    SerialExecutor,
    StateDictSource,
    check_unchanged,
)
from pools_checkpoints import (
    CheckpointsConfig,
    CheckpointsPool,
    read_card,
    select_tokenizer_files,
)

if TYPE_CHECKING:
    from hub_server import HubServer


def pool(base: Any = None, /, **models: Any) -> CheckpointsPool:
    return CheckpointsPool(CheckpointsConfig(base=base, models=models))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    return tmp_path


def test_sources_come_in_the_order_of_the_recipe(directory: Path) -> None:
    opened = pool(
        str(directory),
        z=str(directory),
        a=nn.Linear(2, 2, bias=False),
        m={"weight": torch.ones(2, 2)},
    )
    assert isinstance(opened.base, CheckpointSource)
    assert [type(expert) for expert in opened.experts.values()] == [
        CheckpointSource,
        StateDictSource,
        StateDictSource,
    ]
    assert list(opened.experts) == ["z", "a", "m"]
    assert [expert.describe() for expert in opened.experts.values()] == [
        str(directory),
        "a (live)",
        "m (live)",
    ]
    assert opened.reference is opened.base
    assert opened.task_of("z") == "z"
    aligned = opened.aligned(AlignmentPolicy())
    assert aligned is not opened
    assert list(aligned.experts) == ["z", "a", "m"]


def test_side_files_come_from_the_named_directory(directory: Path, tmp_path: Path) -> None:
    named = tmp_path / "config"
    named.mkdir()
    (named / "config.json").write_text('{"hidden_size": 2, "dtype": "float32"}')
    (named / "tokenizer.json").write_text("{}")
    (directory / "config.json").write_text('{"hidden_size": 3}')
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "step-7.safetensors")
    models = {"whole": str(directory), "file": str(tmp_path / "step-7.safetensors")}
    opened = CheckpointsPool(CheckpointsConfig(models=models, side_files=str(named)))
    assets = opened.assets(dtype=torch.bfloat16)
    assert json.loads(assets["config.json"]) == {"hidden_size": 2, "dtype": "bfloat16"}
    assert assets["tokenizer.json"] == named / "tokenizer.json"
    for files in opened.side_files().values():
        assert files["config.json"] == named / "config.json"


@pytest.mark.parametrize("problem", ["no config.json or tokenizer", "not a directory"])
def test_a_directory_without_side_files_is_refused(
    problem: str, directory: Path, tmp_path: Path
) -> None:
    named = tmp_path / "config"
    if "no config" in problem:
        named.mkdir()
    config = CheckpointsConfig(models={"a": str(directory)}, side_files=str(named))
    with pytest.raises(CheckpointError, match=rf"side_files: .*{problem}"):
        CheckpointsPool(config)


def test_without_a_base_the_first_expert_is_the_reference(directory: Path) -> None:
    opened = pool(a=str(directory))
    assert opened.base is None
    assert opened.reference is opened.experts["a"]
    assert opened.inputs().keys() == {"a"}


def test_inputs_are_identified(directory: Path) -> None:
    inputs = pool(str(directory), live=nn.Linear(2, 2, bias=False)).inputs()
    assert inputs["live"] == {"source": "live (live)"}
    assert inputs["base"]["source"] == str(directory)
    assert inputs["base"]["files"]["model.safetensors"]["bytes"] > 16
    json.dumps(inputs)


def test_a_live_model_is_copied_to_build_one() -> None:
    original = nn.Linear(2, 2)
    weights = StateDictSource({"weight": torch.zeros(2, 2), "bias": torch.ones(2)})
    for opened in (pool(original, a=original), pool({"weight": torch.ones(1)}, a=original)):
        built = opened.build(weights)
        assert built is not original
        assert not built.training
        assert opened.parameters(built).keys() == {"weight", "bias"}
        assert built(torch.ones(1, 2)).tolist() == [[1, 1]]
    assert original.weight.abs().sum() > 0


def test_extra_states_of_a_live_model_are_no_weights() -> None:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            raise AssertionError

    models = pool(Stateful(2, 2), a=Stateful(2, 2))
    assert models.experts["a"].infos.keys() == {"weight", "bias"}
    assert isinstance(models.build(models.experts["a"]), Stateful)


def test_parameters_that_are_tied_in_all_live_models_stay_tied(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def make() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        return model

    tied, untied = make(), make()
    untied[1].weight = nn.Parameter(torch.ones(3, 3))
    values = {**tied.state_dict(), "1.weight": torch.zeros(3, 3)}  # as random masks leave them
    built: Any = pool(tied, a=make()).build(StateDictSource(values))
    assert built[1].weight is built[0].weight
    assert torch.equal(built[0].weight, tied[0].weight)
    assert "0.weight and 1.weight are one tensor" in caplog.text
    for other in (untied, tied.state_dict()):
        built = pool(tied, a=other).build(StateDictSource(values))
        assert not built[1].weight.any()


def test_files_alone_build_nothing(directory: Path) -> None:
    with pytest.raises(FusionError, match="does not know the class of its models"):
        pool(str(directory), a=str(directory)).build(StateDictSource({}))


# --- what may not be looked at ------------------------------------------------------------------


def _refuse_path(monkeypatch: pytest.MonkeyPatch, function: str, closed: Path) -> None:
    """Refuse a function for a path, as for a user who may not look there."""
    real = getattr(Path, function)

    def call(path: Path, *arguments: Any, **keys: Any) -> Any:
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **keys)

    monkeypatch.setattr(Path, function, call)


def test_a_path_that_may_not_be_looked_at_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse_path(monkeypatch, "exists", Path("org/closed"))
    config = CheckpointsConfig(models=["org/closed"])
    assert list(config.models) == ["closed"]
    with pytest.raises(CheckpointError, match="org/closed cannot be read: Permission denied"):
        CheckpointsPool(config)


def test_a_path_that_is_too_long_is_named() -> None:
    with pytest.raises(CheckpointError, match="xxx cannot be read: File name too long"):
        pool(a="/" + "x" * 300)


def test_a_directory_that_may_not_be_entered_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refuse_path(monkeypatch, "is_file", directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied") as caught:
        pool(a=str(directory))
    assert str(directory) in caught.value.message


@pytest.mark.parametrize("function", ["is_file", "open"])
def test_a_card_that_may_not_be_read_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    _refuse_path(monkeypatch, function, directory / "README.md")
    with pytest.raises(CheckpointError, match=r"README.md cannot be read: Permission denied"):
        read_card(directory)


# --- the files beside the weights ---------------------------------------------------------------


def test_only_known_files_are_copied(directory: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "chat_template.jinja", "merges.txt"):
        (directory / name).write_text(name)
    code = ("modeling_x.py", "chat_template.py", "chat_template.jinja.py")
    for name in (*code, "pytorch_model.bin", "training_args.bin", ".git", "README.md"):
        (directory / name).write_text("no")
    (directory / "spiece.model").mkdir()
    assets = pool(str(directory), a=str(directory)).assets()
    assert assets.keys() == {"tokenizer.json", "vocab.txt", "chat_template.jinja", "merges.txt"}
    assert assets["vocab.txt"] == directory / "vocab.txt"


CONFIGURATIONS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_loses_what_makes_loaders_run_code(directory: Path, name: str) -> None:
    code = {"auto_map": {"AutoTokenizer": "evil.X"}, "inner": {"trust_remote_code": True, "é": 1}}
    (directory / name).write_text(json.dumps({"kept": 1e-6, **code}))
    content = pool(str(directory), a=str(directory)).assets()[name]
    assert isinstance(content, bytes)
    assert json.loads(content) == {"kept": 1e-6, "inner": {"é": 1}}
    if name == "tokenizer_config.json":
        assert select_tokenizer_files({name: content, "config.json": b"{}"}) == {name: content}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_without_them_keeps_its_bytes(directory: Path, name: str) -> None:
    (directory / name).write_text('{"a":   null, "b": 1.50, "c": ["auto_map"]}')
    assert pool(str(directory), a=str(directory)).assets()[name] == directory / name


def test_a_configuration_loses_what_makes_loaders_run_code(directory: Path) -> None:
    config = {
        "model_type": "toy",
        "auto_map": {"AutoModel": "evil.Model"},
        "trust_remote_code": True,
        "_name_or_path": "/home/somebody/model",
        "_attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
        "pad_token_id": -1,
        "rope_theta": 1e6,
        "text_config": {"auto_map": {"x": "y"}, "hidden_size": 8},
        "layers": [{"auto_map": 1, "kind": "a"}],
    }
    (directory / "config.json").write_text(json.dumps(config))
    content = pool(str(directory), a=str(directory)).assets()["config.json"]
    assert isinstance(content, bytes)
    assert json.loads(content) == {
        "model_type": "toy",
        "pad_token_id": -1,
        "rope_theta": 1e6,
        "text_config": {"hidden_size": 8},
        "layers": [{"kind": "a"}],
    }


def test_another_dtype_is_named_in_the_configuration(directory: Path) -> None:
    (directory / "config.json").write_text('{"torch_dtype": "float32", "x": 1}')
    content = pool(str(directory), a=str(directory)).assets(dtype=torch.bfloat16)["config.json"]
    assert isinstance(content, bytes)
    assert json.loads(content) == {"x": 1, "dtype": "bfloat16"}


def test_a_configuration_may_hold_infinity(directory: Path) -> None:
    (directory / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    content = pool(a=str(directory)).assets()["config.json"]
    assert isinstance(content, bytes)
    assert json.loads(content) == {"time_step_limit": [0.0, float("inf")]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "{"),
        ("config.json", '{"a": 1, "a": 2}'),
        ("tokenizer.json", "closed"),
    ],
)
def test_files_beside_the_weights_are_looked_at_before_any_work(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    monkeypatch.setattr("fusion_core.weights.CheckpointSource.read", None)  # no weight is read
    (directory / name).write_text(content)
    if content == "closed":
        _refuse_path(monkeypatch, "open", directory / name)
    with pytest.raises(CheckpointError, match=name):
        run_fusion(
            algorithm="simple-average",
            model_pool={"models": {"a": str(directory), "b": str(directory)}},
            output=directory / "out",
        )


def test_no_expert_takes_the_name_of_the_base(directory: Path) -> None:
    with pytest.raises(RecipeError, match="an expert is called 'base'"):
        pool(str(directory), base=str(directory)).aligned(AlignmentPolicy())
    pool(None, base=str(directory)).aligned(AlignmentPolicy())


def test_files_next_to_the_one_model_of_a_directory_are_copied(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("x")
    single = str(directory / "model.safetensors")
    assert pool(single, a=str(directory)).assets().keys() == {"tokenizer.json"}
    shutil.copy(single, directory / "other.safetensors")
    assert pool(str(directory / "other.safetensors"), a=str(directory)).assets() == {}
    assert pool(nn.Linear(1, 1), a=nn.Linear(1, 1)).assets() == {}
    assert pool(a=str(directory)).assets().keys() == {"tokenizer.json"}


# --- paths, hub ids, licences -------------------------------------------------------------------


def test_names_of_a_list_come_from_paths_and_hub_ids(tmp_path: Path) -> None:
    models = ["./dir/math", "org/code@v2", "x/law.safetensors", nn.Linear(1, 1)]
    config = CheckpointsConfig.model_validate({"models": models})
    assert list(config.models) == ["math", "code", "law", "model-4"]


@pytest.mark.parametrize(
    "name",
    [
        "unet.mid.lora_down.weight",
        "model.layers.0.q_proj.lora_A.weight",
        "a.lora_A.default.weight",
        "lora_unet_down.hada_w1_a",
        "lora_unet_down.lokr_w1",
    ],
)
def test_factors_of_an_adapter_are_not_merged_as_weights(tmp_path: Path, name: str) -> None:
    tensors = {name: torch.ones(2, 3), "unet.mid.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(CheckpointError, match=f"an adapter's factors, such as {name}") as caught:
        pool(a=str(tmp_path / "style.safetensors"))
    assert "Merge it into its base first" in str(caught.value.hint)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter's factors") as caught:
        pool(a=str(tmp_path / "style.safetensors"))
    assert caught.value.hint == f"Name its directory: {tmp_path}"
    save_file({**tensors, "unet.mid.weight": torch.ones(2, 2)}, tmp_path / "whole.safetensors")
    assert pool(a=str(tmp_path / "whole.safetensors")).experts  # a model that contains factors


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"model is a link to .*gone, which does not exist"):
        pool(a=str(tmp_path / "model"))


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(text)
    with pytest.raises(CheckpointError, match="a pointer of Git LFS"):
        pool(a=str(tmp_path))


def test_a_name_with_a_dot_is_quoted() -> None:
    with pytest.raises(ValidationError, match="a name with a dot goes in double quotes"):
        CheckpointsConfig.model_validate({"models": {"v1": {"5": "models/a"}}})


def test_what_exists_as_a_path_is_a_path(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = directory / "org" / "name"
    local.mkdir(parents=True)
    save_file({"weight": torch.zeros(2, 2)}, local / "model.safetensors")
    monkeypatch.chdir(directory)
    assert pool(a="org/name").experts["a"].describe() == "org/name"
    assert hub.requests == []


def test_a_name_that_is_neither_path_nor_repository_is_told_both_readings(hub: HubServer) -> None:
    with pytest.raises(HubError) as caught:
        pool(a="org/typo")
    assert caught.value.message == (
        "model_pool.models.a: org/typo does not exist here, and as a name on the hub: "
        "the hub has no model org/typo, or it is private"
    )


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("llama/maths", HubError),
        ("lama/math", HubError),
        ("./llama/maht", CheckpointError),
        ("lama/maths/model.safetensor", CheckpointError),
    ],
)
def test_a_misspelt_path_is_told_what_lies_there(
    hub: HubServer,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: type[FusionError],
) -> None:
    (directory / "llama" / "math").mkdir(parents=True)
    (directory / "model.safetensors").rename(directory / "llama" / "math" / "model.safetensors")
    monkeypatch.chdir(directory)
    with pytest.raises(error, match=f"^model_pool.models.a: {path} does not exist") as caught:
        pool(a=path)
    message = str(caught.value)
    assert "id you mean llama/math" in message
    assert message.find("llama/math") < (message.find("hub") if error is HubError else len(message))


@pytest.mark.parametrize("path", ["gone", "./gone", "/gone/away", "a/b/c", "org/gone.safetensors"])
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(hub: HubServer, path: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        pool(a=path)
    assert "org/name@revision" in (caught.value.hint or "")
    assert hub.requests == []


def test_of_a_sharded_repository_only_the_indexed_files_are_downloaded(
    hub: HubServer, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        save_file({name: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    shards = {f"{name}.safetensors": tmp_path / f"{name}.safetensors" for name in ("a", "b")}
    index = json.dumps({"weight_map": {name: f"{name}.safetensors" for name in ("a", "b")}})
    commit = hub.add(
        "org/big",
        {
            **shards,
            "model.safetensors.index.json": index.encode(),
            "consolidated.safetensors": b"everything once more",
            "model.fp16.safetensors": b"and again",
            "README.md": b"---\nlicense: mit\n---\n",
            "training_args.bin": b"pickle",
            "vocab.txt": b"words",
            "flax_model.msgpack": b"x",
        },
    )
    opened = pool("org/big", a="org/big")
    assert opened.base is not None
    assert opened.base.describe() == f"org/big@{commit}"
    assert opened.base.infos.keys() == {"a", "b"}
    assert opened.base.tensor("a").tolist() == [1, 1]
    (snapshot,) = (Path(os.environ["HF_HOME"]) / "hub").glob("*/snapshots/*")
    assert {path.name for path in snapshot.iterdir()} == {
        *("a.safetensors", "b.safetensors", "model.safetensors.index.json"),
        *("README.md", "vocab.txt"),
    }
    assert opened.cards() == {"base": {"licence": "mit"}, "a": {"licence": "mit"}}
    assert opened.assets().keys() == {"vocab.txt"}
    assert opened.inputs()["base"]["source"] == f"org/big@{commit}"
    again = pickle.loads(pickle.dumps(opened.base))
    assert again.describe() == f"org/big@{commit}"


def test_an_index_from_the_hub_that_leads_elsewhere_is_refused(hub: HubServer) -> None:
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}}).encode()
    hub.add("org/evil", {"model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match=r"not a plain \.safetensors file name"):
        pool(a="org/evil")


def test_a_repository_of_pickles_is_refused_with_the_way_out(hub: HubServer) -> None:
    hub.add("org/old", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"it has pytorch_model\.bin, a pickle") as caught:
        pool(a="org/old")
    assert "save_pretrained" in (caught.value.hint or "")
    assert not hub.asked("/resolve/")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\ntags:\n- a\nlicense:\n- mit\n- gpl\n---\n", "mit, gpl"),
        ("---\nlicense: !!python/object:os.system x\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\ntags: [license]\n---\nlicense: mit\n", None),
        ("license: mit\n", None),
        ("", None),
    ],
)
def test_a_licence_is_what_the_model_card_says(
    directory: Path, card: str, licence: str | None
) -> None:
    (directory / "README.md").write_bytes(card.encode())
    facts = {} if licence is None else {"licence": licence}
    assert pool(a=str(directory)).cards() == {"a": facts}
    assert pool(a=str(directory / "model.safetensors")).cards() == {"a": facts}


def test_languages_and_the_link_of_a_licence_are_read(directory: Path) -> None:
    card = (
        "---\nlanguage:\n- en\n- no\nlicense: other\nlicense_name: x\nlicense_link: LICENSE\n---\n"
    )
    (directory / "README.md").write_text(card)
    facts = {"licence": "x", "licence_link": "LICENSE", "languages": ["en", "no"]}
    assert read_card(directory) == facts


def test_live_models_have_no_card() -> None:
    assert pool(nn.Linear(1, 1), a=nn.Linear(1, 1)).cards() == {}


def test_models_that_do_not_fit_are_found_out_before_their_weights_are_downloaded(
    hub: HubServer, tmp_path: Path
) -> None:
    for name, size in (("base", 200_000), ("a", 200_001)):
        save_file({"w": torch.ones(size), "b": torch.ones(1)}, tmp_path / f"{name}.safetensors")
        hub.add(f"org/{name}", {"model.safetensors": tmp_path / f"{name}.safetensors"})
    opened = pool("org/base", a="org/a")
    with pytest.raises(AlignmentError, match=r"shape \[200001\], the base's is \[200000\]"):
        opened.aligned(AlignmentPolicy())
    asked = [request[2] for request in hub.asked("/resolve/", "GET")]
    assert asked == ["bytes=0-131071"] * 2
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.safetensors"))


def test_the_limit_of_headers_holds_for_what_is_asked_of_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.arange(9.0)}, file, metadata={"note": "x" * 200_000})
    hub.add("org/a", {"model.safetensors": file})
    monkeypatch.setenv("FUSION_LARGEST_HEADER", "150000")
    with pytest.raises(CheckpointError, match="more than 150000"):
        pool(a="org/a")
    assert [request[2] for request in hub.asked("/resolve/", "GET")] == ["bytes=0-131071"]


def test_a_download_that_changes_while_it_is_read_is_noticed(
    hub: HubServer, tmp_path: Path
) -> None:
    save_file({"w": torch.arange(9.0)}, tmp_path / "w.safetensors")
    hub.add("org/a", {"model.safetensors": tmp_path / "w.safetensors"})
    source = pool(a="org/a").experts["a"]
    assert isinstance(source, RemoteSource)
    check_unchanged(source)  # nothing has been read
    source.prepare(SerialExecutor())
    check_unchanged(source)
    os.utime(source.local.path / "model.safetensors", (1, 1))
    with pytest.raises(IntegrityError, match="changed while it was being read"):
        check_unchanged(source)


def test_weights_are_downloaded_once_when_they_are_read(hub: HubServer, tmp_path: Path) -> None:
    save_file({"w": torch.arange(9.0)}, tmp_path / "w.safetensors")
    hub.add("org/a", {"model.safetensors": tmp_path / "w.safetensors"})
    source = pool(a="org/a").experts["a"]
    assert isinstance(source, RemoteSource)
    copied = pickle.loads(pickle.dumps(source))
    hub.requests.clear()
    source.prepare(SerialExecutor())
    assert source.read("w", 3, 5).tolist() == [3, 4]
    assert copied.tensor("w").tolist() == list(range(9))
    assert len(hub.asked("/resolve/", "GET")) == 1
    assert isinstance(pool(a="org/a").experts["a"], CheckpointSource)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "got 0 bytes"),
        (b"\x00" * 7, "got 7 bytes"),
        (b"\xff" * 8 + b"{}", "the header claims"),
        ((10**6).to_bytes(8, "little") + b"{" * 100, "the header claims"),
        ((2).to_bytes(8, "little") + b"[]", "the header is not a JSON object"),
        ((2).to_bytes(8, "little") + b"{}" + b"rest", "tensors take 0 bytes, but the file holds 4"),
    ],
)
def test_a_malformed_header_on_the_hub_is_refused(hub: HubServer, data: bytes, says: str) -> None:
    commit = hub.add("org/bad", {"model.safetensors": data})
    with pytest.raises(CheckpointError) as caught:
        pool(a="org/bad")
    assert caught.value.message.startswith(f"org/bad@{commit}: model.safetensors: ")
    assert says in caught.value.message


def test_a_header_larger_than_usual_is_asked_for_again(hub: HubServer, tmp_path: Path) -> None:
    tensors = {f"{'x' * 90}.{number}": torch.ones(1) for number in range(1500)}
    save_file(tensors, tmp_path / "w.safetensors")
    hub.add("org/many", {"model.safetensors": tmp_path / "w.safetensors"})
    assert pool(a="org/many").experts["a"].infos.keys() == tensors.keys()
    assert len(hub.asked("/resolve/", "GET")) == 2


def test_an_index_that_names_a_file_that_is_not_there_is_refused(hub: HubServer) -> None:
    index = json.dumps({"weight_map": {"a": "gone.safetensors"}}).encode()
    hub.add("org/half", {"model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match="does not exist, but the index names it"):
        pool(a="org/half")
