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
    hub.add("org/name", {"default/validation/0.parquet": b""}, kind="dataset", branch=CONVERTED)
    assert find_split(data, "validation").paths == ("default/validation/0.parquet",)
    with pytest.raises(HubError, match="no parquet files of the split 'validation'"):
        find_split(data, "validation", "sst2")
