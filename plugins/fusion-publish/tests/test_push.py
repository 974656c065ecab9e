"""Pushing to a hub: what arrives, what is refused, and what an interruption costs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
import typer
from huggingface_hub import constants
from safetensors.torch import save_file
from typer.testing import CliRunner

from fusion_core import run_fusion
from fusion_core.errors import FusionError
from fusion_publish.push.command import push as push_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hub_server import HubServer

#: huggingface_hub 2.4 sends large files in a way that its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "org/merge"
TOKEN = "hf_verysecret"
APP = typer.Typer()
APP.command()(push_command)


@pytest.fixture
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub without Xet that knows this user, and a client that does not wait between attempts."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.valid_tokens = {TOKEN}
    return hub


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a merge in two shards, which tests must not change."""
    folder = tmp_path_factory.mktemp("push")
    for name, value in (("base", 0.0), ("expert", 1.0)):
        (folder / name).mkdir()
        tensors = {"a": torch.full((64,), value), "b": torch.full((64,), 2 * value)}
        save_file(tensors, folder / name / "model.safetensors")
    run_fusion(
        algorithm="task-arithmetic",
        model_pool={
            "name": "checkpoints",
            "base": str(folder / "base"),
            "models": [str(folder / "expert")],
        },
        output={"path": str(folder / "merged"), "shard_size": 300},
    )
    return folder / "merged"


@pytest.fixture
def merged(output: Path, tmp_path: Path) -> Path:
    """Return a copy of the merge."""
    directory = tmp_path / "merged"
    directory.mkdir()
    for path in output.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def push(*arguments: object) -> tuple[int, str]:
    """Call `fuse push`; return its exit code, and its output or its error."""
    result = CliRunner().invoke(APP, [*map(str, arguments)])
    if isinstance(result.exception, FusionError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None:
        raise result.exception
    return result.exit_code, result.output


def remote(hub: HubServer, branch: str = "main") -> dict[str, bytes]:
    """Return the files of the repository."""
    repository = hub.repositories["models", REPO]
    return repository.commits[repository.refs[branch]]


def local(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_push_brings_every_file_and_a_card_that_names_the_repository(
    logged_in: HubServer, merged: Path
) -> None:
    (merged / "LICENSE").write_text("Do what you like.")
    code, text = push(merged, REPO, "--private", "--commit-message", "Two birds")
    assert (code, f"/{REPO}/commit/" in text) == (0, True)
    files = remote(logged_in)
    assert {**files, ".gitattributes": b""} == {**local(merged), ".gitattributes": b""}
    assert f"# {REPO}" in files["README.md"].decode()
    assert logged_in.cards == [files["README.md"].decode()]  # validated before anything is sent
    assert logged_in.repositories["models", REPO].private
    sent = len(logged_in.asked("/lfs/", "PUT"))
    assert push(merged, REPO)[0] == 0  # nothing changed
    assert len(logged_in.asked("/lfs/", "PUT")) == sent
    assert len(logged_in.repositories["models", REPO].commits) == 2


def test_branches_and_pull_requests(logged_in: HubServer, merged: Path) -> None:
    assert push(merged, REPO, "--revision", "candidate")[0] == 0
    assert "provenance.json" in remote(logged_in, "candidate")
    assert push(merged, REPO, "--create-pr")[0] == 0
    assert "provenance.json" in remote(logged_in, "refs/pr/1")
    assert "provenance.json" not in remote(logged_in)
    assert push(merged, REPO)[0] == 0
    code, text = push(merged, REPO, "--create-pr")  # of what is there already
    assert (code, "no pull request was opened" in text, "uploaded" in text) == (0, True, False)
    assert push(merged, REPO, "--create-pr", "--revision", "candidate")[0] == 2
    assert push(merged, f"{REPO}@candidate")[0] == 2


def test_an_edited_card_is_pushed_as_it_is(logged_in: HubServer, merged: Path) -> None:
    (merged / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert push(merged, REPO)[0] == 0
    assert remote(logged_in)["README.md"] == (merged / "README.md").read_bytes()


def test_a_signed_card_is_pushed_as_it_is(logged_in: HubServer, merged: Path) -> None:
    (merged / "model.sig").write_text("{}")
    before = local(merged)
    assert push(merged, REPO)[0] == 0
    assert {**remote(logged_in), ".gitattributes": b""} == {**before, ".gitattributes": b""}
    assert local(merged) == before


def test_what_git_and_the_hubs_client_keep_is_not_published(
    logged_in: HubServer, merged: Path
) -> None:
    for name in (".git/config", ".cache/huggingface/download/config.json.lock"):
        (merged / name).parent.mkdir(parents=True)
        (merged / name).write_text("url = https://user:secret@example.org")
    assert ".git" not in push(merged, REPO, "--dry-run")[1]
    assert push(merged, REPO)[0] == 0
    assert not [name for name in remote(logged_in) if "/" in name]


def test_a_dry_run_asks_nothing_and_changes_nothing(logged_in: HubServer, merged: Path) -> None:
    before = local(merged)
    code, text = push(merged, REPO, "--dry-run")
    assert (code, "model-00001-of-00002.safetensors" in text) == (0, True)
    assert logged_in.requests == []
    assert local(merged) == before


def test_a_public_repository_is_no_private_one(logged_in: HubServer, merged: Path) -> None:
    logged_in.add(REPO, {})
    code, text = push(merged, REPO, "--private")
    assert (code, "exists and is public" in text) == (5, True)
    assert not logged_in.asked("/commit/")


# --- what is in the repository already ------------------------------------------------------------


def test_a_push_replaces_the_merge_before(logged_in: HubServer, output: Path, merged: Path) -> None:
    """In shards, it would hide behind the single file of the merge before."""
    single = merged.parent / "single"
    run_fusion(output / "recipe.yaml", output={"path": str(single), "shard_size": 10**6})
    for name in ("LICENSE", "model.sig", "report.html"):
        (single / name).write_text("of the merge before")
    assert push(single, REPO)[0] == 0
    (merged / "LICENSE").write_text("Do what you like.")
    code, text = push(merged, REPO)
    assert code == 0
    assert "removed files of the merge before: model.safetensors, model.sig, report.html" in text
    assert {*remote(logged_in)} == {*local(merged), ".gitattributes"}
    assert push(merged, REPO, "--create-pr")[0] == 0  # nothing to upload
    assert push(merged, REPO, "--keep", "*.json")[0] == 0  # its record still says what is ours


@pytest.mark.parametrize("record", [b"{}", None])
def test_files_of_other_origin_are_not_removed(
    logged_in: HubServer, merged: Path, record: bytes | None
) -> None:
    files = {"model.safetensors": b"", "notes.md": b"", "model.gguf": b""}
    files |= {} if record is None else {"provenance.json": record}
    logged_in.add(REPO, files)
    code, text = push(merged, REPO)
    assert (code, "belong to no merge of fuse: model.gguf, model.safetensors" in text) == (5, True)
    assert push(merged, REPO, "--keep", "model.safetensors")[0] == 5
    assert remote(logged_in) == files
    keep = ("--keep", "*.safetensors", "--keep", "*.gguf", "--keep", "*.json")
    assert push(merged, REPO, *keep)[0] == 0
    assert {*remote(logged_in)} == {*local(merged), *files}


def test_another_model_of_the_same_names_is_not_replaced(
    logged_in: HubServer, merged: Path
) -> None:
    names = [*local(merged), "README.md"]
    logged_in.add(REPO, {name: b"" for name in names if name != "provenance.json"})
    code, text = push(merged, REPO, "--revision", "candidate")
    assert (code, "belong to no merge of fuse: model" in text) == (5, True)
    assert [*logged_in.repositories["models", REPO].refs] == ["main"]


# --- what does not verify -----------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"dtype", b"dtypf"))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda d: flip(d / "recipe.yaml"), "recipe.yaml (changed)"),
        (lambda d: (d / "recipe.yaml").unlink(), "recipe.yaml (missing)"),
        (lambda d: (d / "secrets.txt").write_text("x"), "secrets.txt (unexpected)"),
        (
            lambda d: shorten_header(d / "model-00002-of-00002.safetensors"),
            "model-00002-of-00002.safetensors (changed)",
        ),
        (lambda d: (d / "NOTICE").symlink_to("/etc/hostname"), "NOTICE (unexpected)"),
    ],
)
def test_a_directory_that_does_not_verify_is_refused(
    logged_in: HubServer,
    merged: Path,
    spoil: Callable[[Path], Any],
    problem: str,
) -> None:
    spoil(merged)
    code, text = push(merged, REPO)
    assert (code, problem in text) == (8, True)
    assert logged_in.requests == []


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fault", "says", "advises"),
    [
        ("/repos/create", {"status": 401}, "has no model org/merge", "hf auth login"),
        ("/repos/create", {"status": 403}, "does not let you write there (403)", "--create-pr"),
        ("/validate-yaml", {"status": 400}, "does not accept the files", "README.md"),
        ("/preupload/", {"status": 404}, "refuses the request (404)", ""),
        ("/objects/batch", {"status": 429}, "limits your requests (429)", "Wait"),
        ("/lfs/", {"status": 413}, "of this size (413)", "output.shard_size"),
        ("/lfs/", {"status": 503}, "is failing (503)", "Run the same command again"),
        ("/lfs/", {"lost": True}, "was interrupted", "sends only what"),
        ("/commit/", {"status": 409}, "changed during the upload (409)", "again"),
        ("/commit/", {"status": 412}, "changed during the upload (412)", "again"),
        ("/commit/", {"status": 402}, "store more for this account", "Free some space"),
    ],
)
def test_each_failure_has_a_remedy(  # noqa: PLR0913, PLR0917 - a table
    logged_in: HubServer,
    merged: Path,
    path: str,
    fault: dict[str, Any],
    says: str,
    advises: str,
) -> None:
    logged_in.fail(path, methods=("POST", "PUT"), **fault)
    code, text = push(merged, REPO)
    assert code == 5
    assert says in text
    assert advises in text
    assert TOKEN not in text


def test_without_a_token_nothing_is_asked(
    logged_in: HubServer,
    merged: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, text = push(merged, REPO)
    assert (code, "log in with `hf auth login`" in text) == (5, True)
    assert logged_in.requests == []


def test_a_wrong_token_is_named(
    logged_in: HubServer, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    code, text = push(merged, REPO)
    assert (code, "does not accept your token (401)" in text) == (5, True)


def test_an_absent_hub_is_named(logged_in: HubServer, merged: Path) -> None:
    logged_in.stop()
    code, text = push(merged, REPO)
    assert (code, "cannot be reached" in text) == (5, True)


def test_an_interrupted_push_does_not_send_again_what_has_arrived(
    logged_in: HubServer, merged: Path
) -> None:
    lfs = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(lfs.values())) == 2
    assert push(merged, REPO)[0] == 0  # both shards
    first, second = sorted(logged_in.large_files)
    del logged_in.large_files[second]
    logged_in.repositories.clear()
    logged_in.requests.clear()
    logged_in.fail(second, methods=("PUT",), lost=True)
    assert push(merged, REPO)[0] == 5
    logged_in.faults.clear()
    assert push(merged, REPO)[0] == 0
    assert not logged_in.asked(first, "PUT")
    assert set(logged_in.large_files) == {first, second}
    assert {*local(merged)} <= {*remote(logged_in)}
