"""The files of a data set's split, from a hub on 127.0.0.1."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fusion_core.errors import HubError
from fusion_core.hub import FileRequest, download_requests, parse
from pools_checkpoints import find_split

if TYPE_CHECKING:
    from hub_server import HubServer

SHARDS = {
    **{f"cola/validation-0000{n}-of-00002.parquet": b"cola%d" % n for n in (0, 1)},
    "mnli/validation_matched-00000-of-00001.parquet": b"mnli",
    "wnli/validation/0000.parquet": b"wnli",
}
CONVERTED = "refs/convert/parquet"


def test_the_files_of_a_split_are_found_by_their_names(hub: HubServer) -> None:
    commit = hub.add("org/name", SHARDS, kind="dataset")
    data = parse("org/name", kind="dataset")
    cola = find_split(data, "validation", "cola")
    assert cola == FileRequest(data.at(commit), tuple(list(SHARDS)[:2]))
    both = [cola, find_split(data, "validation", "wnli")]
    contents = [Path(path).read_bytes() for path in download_requests(both)]
    assert contents == [b"cola0", b"cola1", b"wnli"]
    assert find_split(data, "validation_matched").paths == (list(SHARDS)[2],)
    with pytest.raises(HubError, match="in several configurations: cola, wnli"):
        find_split(data, "validation")
    hub.add("org/name", {"default/validation/0.parquet": b""}, kind="dataset", branch=CONVERTED)
    with pytest.raises(HubError, match="split 'validation' in the configuration 'sst2'"):
        find_split(data, "validation", "sst2")


def test_files_without_a_folder_belong_to_the_default_configuration(hub: HubServer) -> None:
    hub.add("org/name", {"test.parquet": b"a", "data/train-0-of-1.parquet": b"b"}, kind="dataset")
    data = parse("org/name", kind="dataset")
    assert find_split(data, "test") == find_split(data, "test", "default")
    for config in (None, "default", "data"):
        assert find_split(data, "train", config).paths == ("data/train-0-of-1.parquet",)
    with pytest.raises(HubError, match="no revision 'refs/convert/parquet'") as raised:
        find_split(data, "validation")
    assert "default: train, test." in str(raised.value)


def test_the_card_states_which_files_belong_to_a_split(hub: HubServer) -> None:
    card = """---
license: mit
configs:
- config_name: small
  default: true
  data_files:
  - split: test
    path: eval/*.parquet
  - split: validation
    path: ["a/**", "b/1.parquet"]
- config_name: large
  data_dir: big
- config_name: text
  data_files: words.csv
tags: [x]
---
"""
    names = ["eval/2.parquet", "eval/test.csv.parquet", "a/c/0.parquet", "b/1.parquet"]
    others = ["b/2.parquet", "test.parquet", "big/test-0-of-1.parquet", "words.csv"]
    files = {name: name.encode() for name in [*names, *others]}
    hub.add("org/name", {"README.md": card.encode(), **files}, kind="dataset")
    data = parse("org/name", kind="dataset")
    assert find_split(data, "test").paths == tuple(names[:2])
    assert find_split(data, "validation", "small").paths == tuple(names[2:])
    assert find_split(data, "test", "large").paths == ("big/test-0-of-1.parquet",)
    hub.add("org/name", {"text/train/0000.parquet": b""}, kind="dataset", branch=CONVERTED)
    assert find_split(data, "train", "text").paths == ("text/train/0000.parquet",)
