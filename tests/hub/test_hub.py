"""The hub's own client, against a hub on 127.0.0.1 that can fail in every way."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusion_core import hub as hf
from fusion_core.errors import DiskError, FusionError, HubError, RecipeError
from fusion_core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hub_server import HubServer

WEIGHTS = bytes(range(256)) * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "onnx/model.safetensors": b"other",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
}
MODEL = hf.parse("org/name")
BOTH = hf.FileRequest(MODEL, ("config.json", "model.safetensors"))
ALL = ["*.safetensors", "*.json", "*.py", "*.bin"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits between its attempts; tests need not."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def contents(directory: Path) -> set[str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix() for path in files}


def failure(call: Callable[[], object]) -> FusionError:
    """Return what a call raises, one line and one remedy."""
    with pytest.raises(FusionError) as caught:
        call()
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", "org/name", "main"),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name@refs/pr/5", "org/name", "refs/pr/5"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B", "main"),
        ("a/b@" + "0" * 40, "a/b", "0" * 40),
    ],
)
def test_an_id_names_a_repository_and_a_revision(text: str, repo: str, revision: str) -> None:
    assert hf.looks_like_id(text)
    assert hf.parse(text) == hf.Reference(repo, revision)
    assert hf.parse(text).is_pinned == (len(revision) == 40)


@pytest.mark.parametrize(
    "text",
    [
        *("name", "", "/abs/path", "./org/name", "../name", "a/b/c", "~/x", "org/", "/name"),
        *("org/na me", "org/name@", "org/name@../x", "org--x/name", "org/a..b", "örg/name"),
        *("dir/model.safetensors", "org/name.git", "-org/name", "org/name-", "org/name\n"),
    ],
)
def test_invalid_ids_are_refused(text: str) -> None:
    assert not hf.looks_like_id(text)
    with pytest.raises(RecipeError, match="does not name a repository"):
        hf.parse(text)


# --- downloads ----------------------------------------------------------------------------------


def test_matching_files_are_downloaded_but_never_programs(hub: HubServer) -> None:
    commit = hub.add("org/name", FILES)
    directory = hf.download(MODEL, ALL)
    assert directory.name == commit
    assert contents(directory) == {"config.json", "model.safetensors"}
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert not [path for _, path, _ in hub.requests if path.endswith((".py", ".bin"))]


def test_a_declared_file_of_any_kind_is_downloaded(hub: HubServer) -> None:
    hub.add("org/name", FILES)
    directory = hf.download_paths(MODEL, ["pytorch_model.bin", "onnx/model.safetensors"])
    assert contents(directory) == {"pytorch_model.bin", "onnx/model.safetensors"}
    assert (
        "has no file 'other.bin'"
        in failure(lambda: hf.download_paths(MODEL, ["other.bin"])).message
    )


def test_data_sets_are_repositories_too(hub: HubServer) -> None:
    files = {
        f"data/{split}-0000{n}.parquet": b"rows" for split in ("test", "train") for n in (0, 1)
    }
    hub.add("org/name", files, kind="dataset")
    images = hf.parse("org/name", kind="dataset")
    directory = hf.download(images, ["data/test-*.parquet"])
    assert contents(directory) == {"data/test-00000.parquet", "data/test-00001.parquet"}
    assert dict(hf.list_files(images)) == dict.fromkeys(files, 4)
    assert "has no model org/name" in failure(lambda: hf.resolve(MODEL)).message


def test_everything_comes_from_the_commit_that_was_resolved(hub: HubServer) -> None:
    first = hub.add("org/name", {"a.json": b"old", "b.json": b"old"})
    with hf.session():
        assert hf.resolve(MODEL).revision == first
        second = hub.add("org/name", {"a.json": b"new", "b.json": b"new"})
        directory = hf.download(MODEL, ["*.json"])
        assert (directory / "a.json").read_bytes() == (directory / "b.json").read_bytes() == b"old"
        assert len(hub.asked("/revision/")) == 1
    with hf.session(again=True):
        assert hf.resolve(MODEL).revision == second != first
        assert hf.resolve(MODEL.at(first)).revision == first


def test_a_revision_is_looked_up_once_and_again_on_request(hub: HubServer) -> None:
    first = hub.add("org/name", {"a.json": b"old"})
    assert hf.resolve(MODEL).revision == first
    second = hub.add("org/name", {"a.json": b"new"})
    reference = Path(os.environ["HF_HOME"]) / "hub/models--org--name/refs/main"
    os.utime(reference, (1e9, 1e9))
    with hf.session():
        assert hf.resolve(MODEL).revision == first
        assert "revisions as of 2001-09-" in hf.check_space(hf.DownloadSize(0, 0))
        assert "revisions as of 2001-09-" in hf.check_space(hf.DownloadSize(9, 9))
    assert len(hub.asked("/revision/")) == 1
    with hf.session(again=True):
        assert hf.resolve(MODEL).revision == second
        assert "revisions" not in hf.check_space(hf.DownloadSize(0, 0))
    assert hf.resolve(MODEL).revision == second
    assert len(hub.asked("/revision/")) == 2


@pytest.mark.parametrize("written", ["", "0123abc", "\xff" * 40])
def test_a_half_written_revision_is_looked_up_again(hub: HubServer, written: str) -> None:
    commit = hub.add("org/name", FILES)
    hf.resolve(MODEL)
    reference = Path(os.environ["HF_HOME"]) / "hub/models--org--name/refs/main"
    reference.write_text(written, encoding="latin-1")
    assert hf.resolve(MODEL).revision == commit
    assert reference.read_text() == commit


def test_branches_and_tags_are_revisions(hub: HubServer) -> None:
    hub.add("org/name", {"a.json": b"main"})
    commit = hub.add("org/name", {"a.json": b"pull"}, branch="refs/pr/1")
    directory = hf.download(hf.parse("org/name@refs/pr/1"), ["*"])
    assert directory.name == commit
    assert (directory / "a.json").read_bytes() == b"pull"


def test_cached_files_need_no_request(hub: HubServer) -> None:
    hub.add("org/name", FILES)
    pinned = hf.resolve(MODEL)
    assert hf.measure_download([BOTH]) == hf.DownloadSize(len(WEIGHTS) + 2, len(WEIGHTS) + 2)
    hf.download(pinned, ["config.json"])
    assert hf.measure_download([BOTH]) == hf.DownloadSize(len(WEIGHTS) + 2, len(WEIGHTS))
    hf.download(pinned, ALL)
    hub.requests.clear()
    assert contents(hf.download(pinned, ALL)) == {"config.json", "model.safetensors"}
    assert hf.measure_download([BOTH]).missing == 0
    assert hub.requests == []


def test_a_second_download_resumes_where_the_first_stopped(hub: HubServer) -> None:
    files = {f"{n}.json": bytes([n]) for n in range(6)}
    hub.add("org/name", {**files, "model.safetensors": WEIGHTS})
    gone = {"X-Error-Code": "EntryNotFound"}  # late: a failure ends what is still under way
    fault = hub.fail("model.safetensors", status=404, headers=gone, delay=2)
    failure(lambda: hf.download(MODEL, ["*"]))
    hub.faults.remove(fault)
    hub.requests.clear()
    hf.download(MODEL, ["*.safetensors", "0.json"])
    assert not hub.asked("0.json")
    assert hub.asked("model.safetensors", "GET")


@pytest.mark.usefixtures("impatient")
def test_a_broken_connection_resumes_inside_the_file(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add("org/name", {"a.json": b"{}", "model.safetensors": WEIGHTS})
    hub.fail("model.safetensors", cut=5000, methods=("GET",), times=1)
    directory = hf.download(MODEL, ["*"])
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [request[2] for request in hub.asked("model.safetensors", "GET")]
    assert ranges == [None, "bytes=5000-"]


def test_progress_counts_the_bytes(hub: HubServer) -> None:
    hub.add("org/name", FILES)
    recorder = Recorder()
    with hf.session(recorder):
        hf.download(MODEL, ALL)
        hf.download(MODEL, ALL)
    [(label, total, unit)] = recorder.tracks
    assert label.startswith("download org/name (10.2 kB, ")
    assert label.endswith(" are free)")
    assert (total, unit) == (len(WEIGHTS) + 2, "B")
    assert recorder.done == len(WEIGHTS) + 2


class Recorder(Progress):
    def __init__(self) -> None:
        self.tracks: list[tuple[str, int, str]] = []
        self.done = 0

    @contextmanager
    def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Any]:
        self.tracks.append((label, total, unit))

        def advance(count: int = 1, *, note: str = "") -> None:
            self.done += count

        yield advance


# --- what may go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_a_flipped_bit_is_refused_and_removed(hub: HubServer, name: str) -> None:
    hub.add("org/name", {"config.json": b'{"x": 12345678}', "model.safetensors": WEIGHTS})
    fault = hub.fail(name, flip=True, methods=("GET",))
    error = failure(lambda: hf.download(MODEL, ALL))
    assert isinstance(error, HubError)
    assert name in error.message
    assert "checksum mismatch" in error.message
    cache = Path(os.environ["HF_HOME"])
    left = [path for path in cache.rglob("*") if path.is_file() and "snapshots" in path.parts]
    assert [path.name for path in left if path.name == name] == []
    hub.faults.remove(fault)
    assert (hf.download(MODEL, ALL) / name).read_bytes() != b""


def gated(hub: HubServer) -> None:
    hub.add("org/name", FILES, gated=True)


def private(hub: HubServer) -> None:
    hub.add("org/name", FILES, token="hf_other")


def bad_token(hub: HubServer) -> None:
    hub.add("org/name", FILES)
    hub.valid_tokens = {"hf_other"}


def fails(pattern: str, status: int, **fault: Any) -> Callable[[HubServer], None]:
    def prepare(hub: HubServer) -> None:
        hub.add("org/name", FILES)
        hub.fail(pattern, status=status, **fault)

    return prepare


@pytest.mark.parametrize(
    ("prepare", "says", "advises"),
    [
        (lambda hub: None, "the hub has no model org/name, or it is private", "HF_TOKEN"),
        (private, "the hub has no model org/name, or it is private", "HF_TOKEN"),
        (gated, "org/name is gated", "Accept them at https://huggingface.co/org/name"),
        (bad_token, "does not accept your token", "hf auth login"),
        (fails("/revision/", 401), "or it is private", "HF_TOKEN"),
        (fails("/revision/", 403), "does not let you read this (403)", "Ask its owner"),
        (fails("model.safetensors", 403), "does not let you read this (403)", "Ask its owner"),
        (fails("/revision/", 429), "limits your requests (429)", "Wait"),
        (fails("/tree/", 429), "limits your requests (429)", "Wait"),
        (fails("model.safetensors", 429), "limits your requests (429)", "Wait"),
        (fails("/revision/", 500), "failing (500)", "later"),
        (fails("/tree/", 502), "failing (502)", "later"),
        (fails("model.safetensors", 503), "failing (503)", "later"),
        (fails("model.safetensors", 504, methods=("GET",)), "failing (504)", "later"),
        (fails("/revision/", 200), "the download of org/name@main failed", "HF_ENDPOINT"),
        (fails("/tree/", 418), "refuses the request (418)", ""),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_refusal_of_the_hub_is_one_line_with_a_remedy(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[HubServer], None],
    says: str,
    advises: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    prepare(hub)
    with pytest.raises(HubError) as caught:
        hf.download(MODEL, ALL)
    error = caught.value
    assert error.exit_code == 5
    assert says in error.message
    assert advises in (error.hint or "")
    assert "\n" not in error.message
    assert "hf_verysecret" not in str(error)
    assert "Bearer hf_verysecret" in hub.authorizations


def test_a_missing_revision_is_named(hub: HubServer) -> None:
    hub.add("org/name", FILES)
    assert "no revision 'v9'" in failure(lambda: hf.resolve(hf.parse("org/name@v9"))).message


@pytest.mark.usefixtures("impatient")
def test_without_a_network_the_remedies_are_named(hub: HubServer) -> None:
    hub.stop()
    error = failure(lambda: hf.download(MODEL, ALL))
    assert error.exit_code == 5
    assert error.message == f"the hub at {hub.url} cannot be reached; request: org/name@main"
    assert "HF_HUB_OFFLINE=1" in (error.hint or "")


@pytest.mark.usefixtures("impatient")
def test_a_body_that_is_always_cut_is_an_error(hub: HubServer) -> None:
    hub.add("org/name", {"a.json": b"{}", "model.safetensors": WEIGHTS})
    hub.fail("model.safetensors", cut=0, methods=("GET",))
    error = failure(lambda: hf.download(MODEL, ALL))
    assert error.exit_code == 5
    assert "was interrupted" in error.message
    assert "complete files are kept" in (error.hint or "")


def test_a_full_disk_is_found_before_anything_is_downloaded(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", FILES)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5000))
    error = failure(lambda: hf.download(MODEL, ALL))
    assert isinstance(error, DiskError)
    assert error.exit_code == 6
    assert "needs 10.2 kB, and 5.0 kB are free" in error.message
    assert not hub.asked("/resolve/")


def test_a_disk_that_fills_up_meanwhile_is_a_disk_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", FILES)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    error = failure(lambda: hf.download(MODEL, ALL))
    assert isinstance(error, DiskError)
    assert "No space left" in error.message


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (ConnectionError("request failed"), HubError, "cannot be reached"),
        (TimeoutError("deadline has elapsed"), HubError, "cannot be reached"),
        (RuntimeError("error sending request for url (x)"), HubError, "cannot be reached"),
        (
            ConnectionResetError(errno.ECONNRESET, "reset by peer"),
            HubError,
            "failed: ConnectionReset",
        ),
        (OSError("IO error: No space left on device (os error 28)"), DiskError, "No space left"),
        (RuntimeError("Data processing error: os error 28"), DiskError, "No space left"),
        (RuntimeError("os error 281"), HubError, "failed: RuntimeError: os error 281"),
    ],
)
def test_errors_of_xet_are_recognised_by_their_text(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    kind: type[FusionError],
    says: str,
) -> None:
    hub.add("org/name", FILES)

    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    error = failure(lambda: hf.download(MODEL, ALL))
    assert type(error) is kind
    assert says in error.message


def test_the_full_disk_of_a_server_is_a_hub_error(hub: HubServer) -> None:
    fails("/revision/", 507, headers={"X-Error-Message": "No space left on device"})(hub)
    error = failure(lambda: hf.resolve(MODEL))
    assert isinstance(error, HubError)
    assert "failing (507)" in error.message


@pytest.mark.parametrize(
    "address",
    [
        *("hub.example", "localhost:80", "http://a:b:c", "http://[::1", "http://", "ftp://hub"),
        *("user:PASSWORD@hub", "http://user:PASS/WORD@hub", "http://hub:99999"),
    ],
)
def test_an_endpoint_must_be_a_url(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    error = failure(lambda: hf.resolve(MODEL))
    assert isinstance(error, HubError)
    assert error.message == "HF_ENDPOINT is not a URL"
    assert "https://huggingface.co" in (error.hint or "")
    assert hub.requests == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "prepare", [private, fails("/revision/", 403), fails("/tree/", 500), lambda hub: hub.stop()]
)
def test_credentials_in_the_endpoint_are_shown_nowhere(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[HubServer], None],
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("://", "://user:PASSWORD@"))
    prepare(hub)
    error = failure(lambda: hf.download(MODEL, ALL))
    assert "PASSWORD" not in "".join(traceback.format_exception(error))
    plain = FusionError(
        "see https://user:PASSWORD@hub/x", hint="or user:PASSWORD@hub, hf_" + 34 * "A"
    )
    assert str(plain) == "see https://[...]@hub/x\nor [...]@hub, [...]"


# --- offline ------------------------------------------------------------------------------------


def test_offline_the_cache_serves_and_nothing_is_asked(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("org/name", FILES)
    hf.download(MODEL, ALL)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hf.resolve(MODEL).revision == commit
    assert contents(hf.download(MODEL, ALL)) == {"config.json", "model.safetensors"}
    assert hf.measure_download([BOTH]).missing == 0
    assert hub.requests == []


def test_offline_a_missing_repository_is_an_error(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", FILES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pinned = MODEL.at("0" * 40)
    for wanted in (MODEL, pinned):
        error = failure(lambda wanted=wanted: hf.download(wanted, ALL))  # type: ignore[misc]
        assert f"{wanted} is not in the cache" in error.message
        assert error.exit_code == 5
        assert "unset HF_HUB_OFFLINE" in (error.hint or "")
    assert hub.requests == []


def test_offline_a_partial_download_is_incomplete(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", {f"test-{n}.parquet": bytes(n + 1) for n in range(3)})
    hf.download(MODEL, ["test-0.parquet"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert contents(hf.download(MODEL, ["test-0.parquet"])) == {"test-0.parquet"}
    error = failure(lambda: hf.download(MODEL, ["test-*.parquet"]))
    assert "test-1.parquet of org/name" in error.message


def test_offline_a_listing_without_downloads_is_known(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks for a file there, and then elsewhere, does so without a network too."""
    hub.add("org/name", FILES)
    listed = dict(hf.list_files(MODEL))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert dict(hf.list_files(MODEL)) == listed
    error = failure(lambda: hf.download(MODEL, ["config.json"]))
    assert "config.json of org/name" in error.message


def test_a_cache_that_cannot_be_written_serves_what_it_has(hub: HubServer) -> None:
    hub.add("org/name", FILES)
    directory = hf.download(MODEL, ALL)
    refs = directory.parents[1] / "refs"
    shutil.rmtree(refs)
    refs.touch()  # a file: nothing can be put there, not even by root
    assert hf.download(MODEL, ALL) == directory


def test_a_cache_that_another_program_filled_serves_too(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    hub.add("org/name", FILES)
    huggingface_hub.hf_hub_download(
        "org/name",
        "config.json",
        endpoint=hub.url,
        cache_dir=Path(os.environ["HF_HOME"]) / "hub",
        tqdm_class=None,
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert contents(hf.download(MODEL, ["*.json"])) == {"config.json"}


def test_an_interrupt_ends_a_download_at_once_and_leaves_no_partial_file(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user interrupts while one file is on its way and others wait."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.add("org/name", {f"{n}.safetensors": bytes([n]) * 100_000 for n in range(8)})

    class Interrupted(Recorder):
        @contextmanager
        def track(self, label: str, *, total: int, unit: str = "") -> Iterator[Any]:
            def advance(count: int = 1, *, note: str = "") -> None:
                if count:
                    raise KeyboardInterrupt

            yield advance

    with pytest.raises(KeyboardInterrupt), hf.session(Interrupted()):
        hf.download(MODEL, ["*"])
    cache = Path(os.environ["HF_HOME"])
    assert not list(cache.rglob("*.safetensors"))
    assert not list(cache.rglob("*.incomplete"))
    assert len(contents(hf.download(MODEL, ["*"]))) == 8


@pytest.mark.parametrize("waits_for", ["reconstructions", "0.safetensors"])
def test_an_interrupt_ends_a_transfer_that_waits(hub: HubServer, waits_for: str) -> None:
    """The server says nothing for a long time: to the threads of Xet itself, or to HTTP."""
    if waits_for == "reconstructions":
        pytest.importorskip("hf_xet")
        hub.xet = True
    hub.add("org/name", {f"{n}.safetensors": bytes([n]) * 100_000 for n in range(6)})
    hub.fail(waits_for, delay=600, methods=("GET", "POST"))
    program = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs behind a shell ignores it
from fusion_core import hub
hub.download(hub.parse("org/name"), ["*"])
"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as running:
        try:
            while not hub.asked(waits_for, "GET"):
                assert running.poll() is None
                time.sleep(0.05)
            running.send_signal(signal.SIGINT)
            _, stderr = running.communicate(timeout=300)
        finally:
            running.kill()
    *_, error, note = stderr.decode().splitlines()
    assert (error, note) == (
        "KeyboardInterrupt",
        "Complete files are kept: the same command fetches the others.",
    )
    assert running.returncode == -signal.SIGINT
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.incomplete"))
