"""What comes from anywhere and means harm: refused by name, soon, in little memory.

Every case is a whole `fuse run` in a process of its own, so that a signal, a hang and memory are
seen for what they are. The processes are forked from one that has loaded everything.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import socket
import struct
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from fusion_core.contracts.report import Published, Report
from fusion_core.errors import CheckpointError
from fusion_core.report.table import print_reports
from fusion_core.weights import CheckpointSource
from fusion_core.weights.reading.untrusted_json import LARGEST_HEADER
from pools_checkpoints.files import collect_side_files

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.plugins

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: What a refusal may cost, above the process that has loaded everything.
MOST_MEMORY = 256 * 2**20
MOST_CPU_SECONDS = 4  # the promise is 2; processors differ, and the limit is enforced by a signal

Build = "Callable[[Path], list[str] | None]"


@dataclass(frozen=True)
class Case:
    """Something hostile: how it is laid out, and what must come of it."""

    build: Callable[[Path], list[str] | None]
    code: int
    says: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int
    out: str
    err: str
    memory: int


CASES: dict[str, Case] = {}


def case(name: str, build: Build, *, code: int = 4, says: str = "") -> None:
    """Register a case; `build` fills a directory, and returns arguments of `fuse` or None.

    None means to merge what it made with a good model.
    """
    assert name not in CASES, name
    CASES[name] = Case(build, code, says)


# --- files, in short ----------------------------------------------------------------------------

GOOD = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}


def pack(header: bytes | dict[str, Any], data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def describe(
    *, dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def with_file(content: bytes, *, file: str = SINGLE) -> Build:
    """Build a directory with one file."""
    return lambda path: (path / file).write_bytes(content) and None


def sharded(path: Path, files: dict[str, str] | None = None) -> None:
    """Write the good model in two files, with an index that says `files`."""
    save_file({"a": GOOD["a"]}, path / "one.safetensors")
    save_file({"b": GOOD["b"]}, path / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors", **(files or {})}
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def with_index(files: dict[str, str]) -> Build:
    return lambda path: sharded(path, files)


def linked(target: str, *, file: str = SINGLE) -> Build:
    """Build a directory whose file is a link; beside the directory lies a good secret."""

    def build(path: Path) -> None:
        save_file(GOOD, path.parent / "secret.safetensors")
        (path.parent / "secret.json").write_text('{"secret": "hunter2"}')
        save_file(GOOD, path / SINGLE)
        (path / file).unlink(missing_ok=True)
        (path / file).symlink_to(target)

    return build


# --- names of tensors ---------------------------------------------------------------------------

for label, name in {
    "empty": "",
    "a newline": "a\nb",
    "a carriage return": "a\rb",
    "NUL": "a\0b",
    "a tab": "a\tb",
    "an escape": "\x1b[31mred",
    "an eight-bit escape": "\x9b31mred",
    "a bell": "\a",
    "delete": "a\x7f",
    "text turned around": "\u202egpj.exe",
    "an invisible space": "a\u200bb",
    "a line separator": "a\u2028b",
    "half a character": "\ud800",
    "513 bytes": "a" * 513,
    "10 KB": "a" * 10_240,
    "too many bytes in few characters": "\u00e9" * 257,
}.items():
    case(
        f"tensor name: {label}",
        with_file(pack({name: describe()}, bytes(8))),
        says="empty, too long or unprintable",
    )

# --- headers ------------------------------------------------------------------------------------


def with_length(length: int, *, size: int | None = None) -> Build:
    def build(path: Path) -> None:
        with (path / SINGLE).open("wb") as stream:
            stream.write(struct.pack("<Q", length) + b"{}")
            stream.truncate(size or 10)  # sparse

    return build


for length in (3, LARGEST_HEADER + 1, 10**8 + 1, 2**31, 2**32, 2**63, 2**64 - 1):
    case(f"header length: {length} of 10 bytes", with_length(length), says="of a file of 10")
case("header length: 0", with_length(0), says="not a JSON object")
case("header length: 1", with_length(1), says="not a JSON object")
for length in (LARGEST_HEADER + 1, 10**8, 2**33):
    case(
        f"header length: {length}, all there",
        with_length(length, size=2 * length),
        says="more than 25000000",
    )
case(
    "header: 25 MB of zeros",
    with_length(LARGEST_HEADER, size=2 * LARGEST_HEADER),
    says="not a JSON",
)

DEEP = {
    "lists": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "closed": b"[" * 50_000 + b"]" * 50_000,
}
for label, deep in DEEP.items():
    case(
        f"deep JSON in a header: {label}", with_file(pack(b'{"a":' + deep + b"}")), says="malformed"
    )
    case(
        f"deep JSON in an index: {label}",
        with_file(b'{"weight_map":' + deep + b"}", file=INDEX),
        says="malformed",
    )
LONG = b"9" * 5000
case(
    "5000 digits in a shape", with_file(pack(b'{"a":{"shape":[' + LONG + b"]}}")), says="malformed"
)
case(
    "5000 digits in an index",
    with_file(b'{"weight_map":' + LONG + b"}", file=INDEX),
    says="malformed",
)
case(
    "20 MB of digits",
    with_file(pack(b'{"a":' + b"1" * 20_000_000 + b".5}")),
    says="not described",
)


def crowded(value: str, count: int, *, mapping: bool = False) -> Build:
    """Build a header of `count` values; `#` stands for the number of a value."""

    def build(path: Path) -> None:
        begin, *end = value.split("#")
        numbered = [f"{begin}{n}{end[0]}" for n in range(count)] if end else [value] * count
        values = ",".join(numbered)
        text = f"{{{values}}}" if mapping else f'{{"a":[{values}]}}'
        (path / SINGLE).write_bytes(pack(text.encode()))

    return build


for label, build in {
    "8 million lists": crowded("[]", 8_000_000),
    "3 million strings": crowded('"\U0001f600a"', 2_500_000),
    "2 million keys": crowded('"#":0', 1_500_000, mapping=True),
    "a million tensors": crowded(
        '"#":{"dtype":"F32","shape":[],"data_offsets":[0,0]}', 330_000, mapping=True
    ),
}.items():
    case(f"crowded header: {label}", build, says="values in")
for label, build in {
    "lists": crowded("[]", 310_000),
    "wide strings": crowded('"\U0001f600' + "a" * 32 + '"', 620_000),
    "numbers": crowded("1234567890", 620_000),
    "keys": crowded('"\U0001f600#":0', 310_000, mapping=True),
}.items():
    case(f"header just below the limit: {label}", build, says="not described")
case(
    "one wide string of 25 MB",
    with_file(pack('{"\U0001f600":"'.encode() + b"a" * 24_999_000 + b'"}')),
    says="not described",
)
for label, header in {
    "repeated": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
    "overlapping": json.dumps({"a": describe(), "b": describe(offsets=[4, 12])}).encode(),
    "overflowing": json.dumps({"a": describe(shape=[2**62, 8], offsets=[0, 0])}).encode(),
    "100,000 dimensions": json.dumps({"a": describe(shape=[1] * 100_000)}).encode(),
}.items():
    case(f"tensors: {label}", with_file(pack(header, bytes(8))), says=SINGLE)

# --- indexes ------------------------------------------------------------------------------------

for file in (
    "../secret.safetensors", "../../secret.safetensors", "/etc/passwd", "/etc/x.safetensors",
    "sub/x.safetensors", "./one.safetensors", "one.safetensors/", "one.safetensors/.", "..", ".",
    "", "one.bin", "pytorch_model.bin", "one.SAFETENSORS", "one.safetensors\0",
    "one.safetensors\0.bin", "one\n.safetensors", "\x1b[2J.safetensors", "\u202e.safetensors",
    "file:///etc/x.safetensors", "x.safetensors.exe", "a" * 600 + ".safetensors",
):  # fmt: skip
    case(
        f"index leads to {file[:40]!r}",
        with_index({"b": file}),
        says="not a plain .safetensors file name",
    )
case(
    "index leads to nothing",
    with_index({"b": "three.safetensors"}),
    says="three.safetensors does not exist",
)
case("index lies: a tensor nobody has", with_index({"c": "one.safetensors"}), says="'c' is not in")
case("index lies: the other file", with_index({"b": "one.safetensors"}), says="'b' is not in 'one")
case("index: no mapping", with_file(b'{"weight_map":["a"]}', file=INDEX), says="does not map")
case(
    "index: repeated key",
    with_file(b'{"weight_map":{"a":"a.safetensors","a":"b.safetensors"}}', file=INDEX),
    says="repeated",
)
case(
    "index: crowded",
    with_file(b'{"weight_map":[' + b"[]," * 3_000_000 + b"0]}", file=INDEX),
    says="values in",
)


def sparse_index(path: Path) -> None:
    with (path / INDEX).open("wb") as stream:
        stream.truncate(2**40)


def write_both(path: Path) -> None:
    sharded(path)
    save_file({name: value + 1 for name, value in GOOD.items()}, path / SINGLE)


case("index: a terabyte", sparse_index, says="index.json is too large")
case("one file and an index beside it", write_both, says=f"holds {SINGLE} and {INDEX}")

# --- links and special files --------------------------------------------------------------------

OUT = "is a link that leads out of its directory"
for label, target in {
    "a private file": "/etc/passwd",
    "a good model elsewhere": "../secret.safetensors",
    "a device": "/dev/zero",
    "this process's memory": "/proc/self/mem",
}.items():
    case(f"weights are a link to {label}", linked(target), says=OUT)
for file in ("config.json", "tokenizer.json", "chat_template.jinja", INDEX):
    case(f"{file} is a link out", linked("../secret.json", file=file), says=OUT)
case("link to nothing", linked("gone.safetensors"), says="a link to nothing")
case("index is a link to nothing", linked("gone.json", file=INDEX), says="a link to nothing")
case("link to itself", linked(SINGLE), says="cannot be read")
case("link to its own directory", linked("."), says="not a regular file")


def loop(path: Path) -> None:
    (path / SINGLE).symlink_to("other")
    (path / "other").symlink_to(SINGLE)


def chain(path: Path) -> None:
    linked("inside")(path)
    (path / "inside").symlink_to(path.parent / "secret.safetensors")


def through_a_directory(path: Path) -> None:
    linked("up/secret.safetensors")(path)
    (path / "up").symlink_to("..")


case("links in a loop", loop, says="cannot be read")
case("a chain of links", chain, says=OUT)
case("a link through a link to a directory", through_a_directory, says=OUT)


def shard_link(path: Path) -> None:
    sharded(path)
    (path / "two.safetensors").rename(path.parent / "secret.safetensors")
    (path / "two.safetensors").symlink_to("../secret.safetensors")


def false_snapshot(path: Path) -> list[str]:
    """Lay a hub cache out whose blobs are a link to another place."""
    secrets = path / "secrets"
    secrets.mkdir()
    save_file(GOOD, secrets / "model")
    repository = path / "cache" / "models--a--b"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").symlink_to(secrets)
    (snapshot / SINGLE).symlink_to("../../blobs/model")
    return merge(snapshot)


def neighbours_blob(path: Path) -> list[str]:
    snapshot = hub_snapshot(path)
    other = path / "cache" / "models--private--model" / "blobs"
    other.mkdir(parents=True)
    save_file(GOOD, other / "f00d")
    (snapshot / SINGLE).unlink()
    (snapshot / SINGLE).symlink_to("../../../models--private--model/blobs/f00d")
    return merge(snapshot)


def no_snapshot(path: Path) -> list[str]:
    """A directory called snapshots in no repository of a hub cache."""
    snapshot = path / "repository" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (path / "repository" / "blobs").mkdir()
    save_file(GOOD, path / "repository" / "blobs" / "model")
    (snapshot / SINGLE).symlink_to("../../blobs/model")
    return merge(snapshot)


case("a shard is a link out", shard_link, says=OUT)
case("blobs that are a link", false_snapshot, says=OUT)
case("a blob of another repository", neighbours_blob, says=OUT)
case("snapshots outside a hub cache", no_snapshot, says=OUT)


def write_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path)  # the path of a socket may have a hundred characters
        try:
            server.bind(SINGLE)
        finally:
            os.chdir(here)


def pipe_link(path: Path) -> list[str]:
    os.mkfifo(path / "pipe")
    (path / "x.safetensors").symlink_to("pipe")
    return merge(path / "x.safetensors")


def device_link(path: Path) -> list[str]:
    (path / "x.safetensors").symlink_to("/dev/zero")
    return merge(path / "x.safetensors")


def pipe_shard(path: Path) -> None:
    sharded(path)
    (path / "two.safetensors").unlink()
    os.mkfifo(path / "two.safetensors")


case("weights are a pipe", lambda path: os.mkfifo(path / SINGLE), says="not a regular file")
case("a shard is a pipe", pipe_shard, says="not a regular file")
case("the index is a pipe", lambda path: os.mkfifo(path / INDEX), says="not a regular file")
case("a named link to a pipe", pipe_link, says="not a regular file")
case("a named link to a device", device_link, says="not a regular file")
case("weights are a directory", lambda path: (path / SINGLE).mkdir(), says="not a regular file")
case("weights are a socket", write_socket, says="not a regular file")
case("a path with NUL", lambda path: merge(f"{path}\0x"), code=2, says="expected a path")

# --- patterns -----------------------------------------------------------------------------------


def with_patterns(**patterns: dict[str, int]) -> Build:
    """Build an adapter whose ranks are given by patterns, and a base for it."""

    def build(path: Path) -> list[str]:
        module = "a" * 400
        base = path.parent / "base.safetensors"
        save_file({f"{module}.weight": torch.ones(2, 2)}, base)
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **patterns}
        (path / "adapter_config.json").write_text(json.dumps(config))
        factors = {"A": torch.ones(1, 2), "B": torch.ones(2, 1)}
        named = {f"base_model.model.{module}.lora_{k}.weight": v for k, v in factors.items()}
        save_file(named, path / "adapter_model.safetensors")
        return [*merge(path), "--set", f"model_pool.base={base}"]

    return build


case(
    "a pattern without an end",
    with_patterns(rank_pattern={"(.*.*)*(.*.*)*b": 1}),
    says="matching its patterns took more than 1 seconds",
)
case(
    "a pattern of a million groups",
    with_patterns(alpha_pattern={"(a|b)" * 1_000_000: 1}),
    says="alpha_pattern in adapter_config.json: matching its patterns took more",
)
case("a broken pattern", with_patterns(rank_pattern={"(" * 5000: 1}), says="is invalid")

# --- code ---------------------------------------------------------------------------------------


class Bomb:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path, call: str) -> None:
        self.canary, self.call = str(canary), call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        match self.call:
            case "mkdir":
                return os.mkdir, (self.canary,)
            case "system":
                return os.system, (f"mkdir {self.canary}",)
            case "exec":
                return exec, (f"import os; os.mkdir({self.canary!r})",)
            case _:
                return subprocess.call, (["mkdir", self.canary],)


def canary(path: Path) -> Path:
    return path.parent / "canary"


def with_pickle(file: str, call: str, *, protocol: int = 2) -> Build:
    """Build a directory whose file makes the canary when it is unpickled, and name the file."""

    def build(path: Path) -> list[str]:
        (path / file).write_bytes(pickle.dumps(Bomb(canary(path), call), protocol=protocol))
        return merge(path / file)

    return build


def with_zip(file: str, *, content: bytes | None = None) -> Build:
    """Build a torch file: a zip with a pickle in it, or with another `content`."""

    def build(path: Path) -> list[str]:
        bomb = pickle.dumps(Bomb(canary(path), "mkdir"), protocol=2)
        with zipfile.ZipFile(path / file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bomb if content is None else content)
        return merge(path / file)

    return build


for file in ("pytorch_model.bin", "model.pt", "model.pth", "x.ckpt", "x.pkl"):
    case(f"a pickle: {file}", with_pickle(file, "mkdir"), says=r"not a \.safetensors file")
for call in ("mkdir", "system", "exec", "call"):
    case(
        f"a pickle called safetensors: {call}",
        with_pickle("x.safetensors", call),
        says="header claims",
    )
case(
    "a pickle of the first protocol",
    with_pickle("x.safetensors", "mkdir", protocol=0),
    says="header",
)
for file in ("model.pt", "pytorch_model.bin"):
    case(f"a zip: {file}", with_zip(file), says=r"not a \.safetensors file")
    case(
        f"a zip bomb: {file}", with_zip(file, content=bytes(50_000_000)), says="not a .safetensors"
    )
case("a zip called safetensors", with_zip("x.safetensors"), says="header claims")
case(
    "only pickles in the directory",
    lambda path: with_pickle("pytorch_model.bin", "system")(path) and None,
    says="holds neither",
)

# --- recipes ------------------------------------------------------------------------------------


def recipe(text: str | bytes) -> Build:
    def build(path: Path) -> list[str]:
        content = (
            text.replace("CANARY", str(canary(path))).encode() if isinstance(text, str) else text
        )
        (path / "recipe.yaml").write_bytes(content)
        return ["run", str(path / "recipe.yaml"), "-o", str(path / "out"), "-q"]

    return build


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
for label, text in {
    "a call": "algorithm: !!python/object/apply:os.system ['mkdir CANARY']",
    "an object": "algorithm: !!python/object/new:os.mkdir ['CANARY']",
    "a name": "algorithm: !!python/name:os.system",
    "a module": "algorithm: !!python/module:os",
    "a tag of its own": "algorithm: !mkdir CANARY",
    "a set of tags": "%TAG ! tag:yaml.org,2002:python/\n---\nseed: !object/apply:os.mkdir [CANARY]",
    "billion laughs": LAUGHS,
    "merged laughs": LAUGHS.replace("[x, x]", "{x: 1}").replace("[", "{<<: [").replace("]", "]}"),
    "an alias of itself": "algorithm: &a [*a]",
    "deep lists": "algorithm: " + "[" * 5000,
    "deep mappings": "algorithm: " + "{a: " * 5000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(300)),
    "10 MB": "algorithm: ties\n" + "# nothing\n" * 1_000_000,
    "a repeated key": "algorithm: ties\nalgorithm: slerp",
    "5000 digits": "seed: " + "9" * 5000,
    "no UTF-8": b"algorithm: \xff\xfe",
    "a control character": "algorithm: \x1b[31m",
    "a list": "- algorithm",
    "an unknown section": "extends: /etc/passwd",
}.items():
    case(f"recipe: {label}", recipe(text), code=2, says="error: ")


# --- what is printed ----------------------------------------------------------------------------


def with_name(name: str) -> Build:
    """Merge a good model with one of other shapes that has a hostile name."""

    def build(path: Path) -> list[str]:
        save_file(GOOD, path / "good.safetensors")
        save_file({**GOOD, "[red]x[/red][/]": torch.ones(1)}, path / "odd.safetensors")
        models = {"good": str(path / "good.safetensors"), name: str(path / "odd.safetensors")}
        setting = f"model_pool.models={json.dumps(models)}"
        return ["run", "--algo", "simple-average", "--pool", "checkpoints", "--set", setting, "-q"]

    return build


def path_called(name: str) -> Build:
    def build(path: Path) -> list[str]:
        (path / name).mkdir()
        return merge(path / name)

    return build


case(
    "markup in names",
    with_name("[bold]b[/bold]"),
    says=r"\[red\]x\[/red\]\[/\]  \[bold\]b\[/bold\]: extra",
)
case("an escape in an expert's name", with_name("\x1b[31mb"), says=r"\\x1b\[31mb: extra")
case(
    "an escape in a path",
    path_called("\x1b]0;owned\x07"),
    says=r"\\x1b\]0;owned\\x07 holds neither",
)
case("a line turned around in a path", path_called("\u202egpj"), says=r"\\u202egpj holds neither")
case("markup in a path", path_called("[link=x][red]y"), says=r"\[link=x\]\[red\]y holds neither")


# --- every case, in a process of its own --------------------------------------------------------


def merge(*models: Path | str) -> list[str]:
    """Return the arguments of a run that merges models."""
    setting = f"model_pool.models={json.dumps([str(model) for model in models])}"
    algorithm = ["--algo", "simple-average", "--pool", "checkpoints"]
    return ["run", *algorithm, "--set", setting, "-q"]


ZYGOTE = textwrap.dedent(
    """
    import json, os, resource, sys
    from fusion_core.cli.app import main

    def status(field):
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    def run(arguments):
        sys.argv = ["fuse", *arguments]
        try:
            main()
        except SystemExit as ended:
            return ended.code or 0
        return 0

    warm, most_cpu, jobs = json.load(sys.stdin)
    assert run(warm) == 0, "a good model cannot be merged"
    for number, arguments in enumerate(jobs):
        child = os.fork()
        if not child:
            os.dup2(os.open(f"{number}.out", os.O_CREAT | os.O_WRONLY), 1)
            os.dup2(os.open(f"{number}.err", os.O_CREAT | os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_CPU, (most_cpu, most_cpu))
            open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
            before = status("VmRSS")
            code = 99
            try:
                code = run(arguments)
            finally:
                open(f"{number}.memory", "w").write(str(status("VmHWM") - before))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)
    """
)


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """Lay every case that is selected out and run it."""
    tests = (item for item in request.session.items if isinstance(item, pytest.Function))
    named = [test for test in tests if test.originalname == "test_hostile_input_is_refused"]
    cases = [test.callspec.params["name"] for test in named]
    root = tmp_path_factory.mktemp("hostile")
    good = root / "good"
    good.mkdir()
    save_file(GOOD, good / SINGLE)
    jobs = []
    for number, case_ in enumerate(CASES[name] for name in cases):
        directory = root / f"case{number}" / "x"
        directory.mkdir(parents=True)
        arguments = case_.build(directory) or merge(directory, good)
        output = [] if "-o" in arguments else ["-o", str(directory.parent / "out")]
        jobs.append([*arguments, *output])
    warm = [*merge(good, good / SINGLE), "-o", str(root / "warm")]
    request = json.dumps([warm, MOST_CPU_SECONDS, jobs])
    command = [sys.executable, "-c", ZYGOTE]
    done = subprocess.run(
        command, input=request, cwd=root, capture_output=True, text=True, check=False, timeout=1800
    )
    codes = [line for line in done.stdout.splitlines() if line.lstrip("-").isdecimal()]
    assert len(codes) == len(jobs), done.stderr
    return {
        name: Outcome(
            int(code),
            (root / f"{number}.out").read_text(),
            (root / f"{number}.err").read_text(),
            int((root / f"{number}.memory").read_text()) if int(code) >= 0 else 0,
        )
        for number, (name, code) in enumerate(zip(cases, codes, strict=True))
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_hostile_input_is_refused(outcomes: dict[str, Outcome], name: str) -> None:
    outcome, expected = outcomes[name], CASES[name]
    assert outcome.code == expected.code, outcome.err
    assert re.search(expected.says, outcome.err), outcome.err
    assert outcome.out == ""
    assert outcome.err.replace("\n", "").isprintable()
    assert "Traceback" not in outcome.err
    assert "hunter2" not in outcome.err
    assert len(outcome.err) < 5000
    assert outcome.memory < MOST_MEMORY


def test_nothing_was_executed_and_nothing_written(
    outcomes: dict[str, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> None:
    roots = [path for path in tmp_path_factory.getbasetemp().glob("hostile*") if path.is_dir()]
    assert len(CASES) >= 120
    assert roots
    assert not [path for root in roots for path in root.glob("case*/canary")]
    assert not [path for root in roots for path in root.glob("case*/*out*")]


def test_an_executed_pickle_leaves_a_canary(tmp_path: Path) -> None:
    directory = tmp_path / "x"
    directory.mkdir()
    for call in ("mkdir", "system", "exec", "call"):
        with_pickle("x.pkl", call)(directory)
        pickle.loads((directory / "x.pkl").read_bytes())
        canary(directory).rmdir()


# --- what looks alike and is good ---------------------------------------------------------------


def hub_snapshot(path: Path, *, shared: bool = False) -> Path:
    """Lay a model out as the hub's cache does; `shared`: with the blobs of all repositories."""
    repository = path / "cache" / "models--org--name"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    buffer = io.BytesIO(b'{"model_type": "x"}')
    for name in (SINGLE, "config.json"):
        blob = repository / "blobs" / f"etag-{name}"
        if shared:
            store = path / "cache" / "blobs" / "ab"
            store.mkdir(parents=True, exist_ok=True)
            blob.symlink_to(f"../../blobs/ab/ab-{name}")
            blob = store / f"ab-{name}"
        if name == SINGLE:
            save_file(GOOD, blob)
        else:
            blob.write_bytes(buffer.getvalue())
        (snapshot / name).symlink_to(f"../../blobs/etag-{name}")
    return snapshot


@pytest.mark.parametrize("shared", [False, True], ids=["blobs of the repository", "shared blobs"])
@pytest.mark.parametrize("through", ["itself", "a link"])
def test_a_snapshot_in_a_hub_cache_is_read(tmp_path: Path, *, shared: bool, through: str) -> None:
    snapshot = hub_snapshot(tmp_path, shared=shared)
    if through == "a link":
        (tmp_path / "link").symlink_to(snapshot)
        snapshot = tmp_path / "link"
    assert torch.equal(CheckpointSource(snapshot).tensor("a"), GOOD["a"])
    assert json.loads(collect_side_files(snapshot)["config.json"]) == {"model_type": "x"}  # type: ignore[arg-type]


def test_a_folder_of_a_snapshot_is_read(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path)
    (snapshot / "text_encoder").mkdir()
    (snapshot / "text_encoder" / SINGLE).symlink_to(f"../../../blobs/etag-{SINGLE}")
    assert CheckpointSource(snapshot / "text_encoder").infos.keys() == GOOD.keys()


def test_links_inside_a_directory_are_followed(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    save_file(GOOD, tmp_path / "x" / "weights")
    (tmp_path / "x" / SINGLE).symlink_to("weights")
    assert CheckpointSource(tmp_path / "x").infos.keys() == GOOD.keys()


def test_a_path_given_by_the_user_may_be_a_link(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "secret")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "x.safetensors").symlink_to("../secret")
    assert CheckpointSource(tmp_path / "y" / "x.safetensors").infos.keys() == GOOD.keys()


def test_an_index_may_name_the_single_file(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / SINGLE)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(GOOD, SINGLE)}))
    assert CheckpointSource(tmp_path).infos.keys() == GOOD.keys()


def test_the_named_copy_of_two_is_read(tmp_path: Path) -> None:
    write_both(tmp_path)
    with pytest.raises(CheckpointError, match="holds"):
        CheckpointSource(tmp_path)
    assert torch.equal(CheckpointSource(tmp_path / SINGLE).tensor("a"), GOOD["a"] + 1)


def test_a_pipe_among_the_side_files_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.json").mkdir()
    assert collect_side_files(tmp_path) == {}


def test_a_report_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    published = Published("\x1b]0;f\a", "\x1b[2J", {"\x1b[31m": {"[/]\x1b[2Jt": 0.5}})
    tasks = {"[/]\x1b[2Jt": {"accuracy": 0.5}, "[red]mnist[/]": {"accuracy": 0.5}}
    report = Report(tasks, measured_on="\x1b[5m", published=published)
    print_reports({"[bold]\x1b[31mm[/bold]": report})
    printed = capsys.readouterr().out
    assert "[/]\\x1b[2Jt" in printed
    assert "[red]mnist[/]" in printed
    assert "[bold]\\x1b[31mm[/bold]" in printed
    assert "\x1b" not in printed


# --- truncated files ----------------------------------------------------------------------------

SIZE = 256 * 1024
STEP = 4096
CUTS = int(os.environ.get("FUSION_CUTS", "200"))

TRUNCATED = textwrap.dedent(
    """
    import json, os, sys
    from fusion_core.errors import CheckpointError, IntegrityError
    from fusion_core.weights import CheckpointSource, check_unchanged

    def read(path):
        source = CheckpointSource(path)
        for name in source.infos:
            source.tensor(name)

    def code(call):
        try:
            call()
        except (CheckpointError, IntegrityError) as error:
            assert "model.safetensors" in error.message, error.message
            return error.exit_code
        return 0

    directory, cuts = json.load(sys.stdin)
    file = os.path.join(directory, "model.safetensors")
    content = open(file, "rb").read()
    codes = {}
    for cut in cuts:
        open(file, "wb").write(content[:cut])
        before = code(lambda: read(directory))
        open(file, "wb").write(content)
        source = CheckpointSource(directory)
        os.truncate(file, cut)
        during = code(lambda: [source.tensor(name) for name in source.infos])
        codes[cut] = before, during, code(lambda: check_unchanged(source))
    print(json.dumps(codes))
    """
)


def test_a_truncated_file_is_an_error_not_a_signal(tmp_path: Path) -> None:
    tensors = {f"t{n}": torch.rand(2048) for n in range(SIZE // 8192)}
    save_file(tensors, tmp_path / SINGLE)
    size = (tmp_path / SINGLE).stat().st_size
    rng = random.Random(0)
    cuts = [*range(0, size, STEP), *(rng.randrange(size) for _ in range(CUTS)), size - 1]
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATED],
        input=json.dumps([str(tmp_path), cuts]),
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr  # a map would have died: SIGBUS is -7
    codes = json.loads(done.stdout)
    assert set(map(int, codes)) == set(cuts)
    # Cut before it is opened: refused. Cut afterwards: noticed by the read, and by the check.
    assert {tuple(outcomes) for outcomes in codes.values()} == {(4, 8, 8)}
