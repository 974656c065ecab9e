"""Parse the page: it is valid, self-contained and complete."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
import typer
from typer.testing import CliRunner

from fusion_core import Measured, Progress
from fusion_core.commands import escape_control
from fusion_core.errors import FusionError, RecipeError
from fusion_report.command import report
from fusion_report.page import render_page
from fusion_report.runs import read_runs

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import World
    from fusion_core import Report

XHTML, SVG = "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"
VALUES = (0.4, 0.6, 0.8)


def render(*directories: Path, vectors: bool = True, intervals: bool = False) -> str:
    runs, problems = read_runs(directories, outcomes=intervals)
    assert problems == []
    return render_page(runs, progress=Progress(), with_vectors=vectors, intervals=intervals)


@pytest.fixture(scope="module")
def text(whole: Path) -> str:
    return render(whole)


def parse_page(text: str) -> ET.Element:
    """Parse a page as XML, the strictest reader."""
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>"))


def text_of(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def rows_of(tree: ET.Element) -> dict[str, list[str]]:
    (table,) = (table for table in tree.iter("table") if table.get("class") == "results")
    rows = [[text_of(cell) for cell in row] for row in table.iter("tr")]
    return {row[0]: row[1:] for row in rows}


def headings(tree: ET.Element) -> list[str]:
    return [text_of(element) for element in tree.iter() if element.tag in {"h2", "h3"}]


def test_the_page_is_valid_and_self_contained(text: str) -> None:
    tree = parse_page(text)
    assert tree.find("head/meta[@charset='utf-8']") is not None
    ids = Counter(element.get("id") for element in tree.iter() if element.get("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    for element in tree.iter():
        assert element.tag not in {"script", "link", "img", "iframe", f"{SVG}script"}
        assert not [name for name in element.attrib if name.startswith("on") or name == "src"]
        for name, value in element.attrib.items():
            if name == "href":
                assert value.startswith("#")
            for wanted in re.findall(r"url\(#([^)]*)\)", value) + re.findall("^#(.+)", value):
                assert wanted in ids
            for wanted in value.split() if name == "aria-labelledby" else ():
                assert wanted in ids
    addresses = set(re.findall(r"https?://[^\s\"'<)]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", text)


def test_every_chart_has_a_description_and_the_pages_colours(text: str) -> None:
    tree = parse_page(text)
    pictures = list(tree.iter(f"{SVG}svg"))
    assert len(pictures) == 2 * len({picture.get("aria-label") for picture in pictures}) == 18
    for picture in pictures:
        first, second, *_ = picture
        assert (first.tag, second.tag) == (f"{SVG}title", f"{SVG}desc")
        assert picture.get("role") == "img"
        assert picture.get("aria-label") == first.text
        assert second.text
        drawn = ET.tostring(picture, encoding="unicode")
        assert not re.search(r"(fill|stroke): ?#|font-family: '", drawn)
        assert list(picture.iter(f"{SVG}text"))


def test_the_table_has_every_score(world: World) -> None:
    other = world.report(
        (0.7, 0.55, 0.6),
        transductive=False,
        needs_task=False,
        remembered={"merged": world.names},
    )
    first, second = world.run("first", world.report(VALUES)), world.run("second", other)
    rows = rows_of(parse_page(render(first, second, vectors=False)))
    assert [*rows] == [
        "model",
        "base remembered",
        "first transductive needs the task",
        "second remembered",
        "experts",
    ]
    assert rows["base remembered"][:4] == ["50.0"] * 3 + ["50.0"]
    assert rows["first transductive needs the task"] == [
        "40.0 ▼ below the base",
        "60.0",
        "80.0",
        f"{100 * fmean(VALUES):.1f}",
        f"{100 * fmean(VALUES) / 0.8:.1f}",
        f"40.0{escape_control(world.names[0])}",
    ]
    assert rows["second remembered"][:5] == ["70.0", "55.0", "60.0", "61.7", "77.1"]
    assert rows["experts"][3:5] == ["80.0", "100.0"]


def test_an_expert_below_the_base_gets_a_warning_and_no_share(world: World) -> None:
    low = {**{name: {"accuracy": 0.8} for name in world.names}, world.names[0]: {"accuracy": 0.2}}
    report = world.report(VALUES)
    rotated = world.run(
        "rotated", replace(report, reference=replace(report.reference, experts=low))
    )
    tree = parse_page(render(rotated, vectors=False))
    warning = text_of(tree.find(".//p[@class='card warning']"))
    assert "scores below the base on" in warning
    assert f"{' '.join(escape_control(world.names[0]).split())} (20.0, base 50.0)" in warning
    assert "do not belong together" in text_of(tree.find(".//p[@class='lead']"))
    assert "of the experts" not in [text_of(term) for term in tree.iter("dt")]
    assert all(row[4] == "" for name, row in rows_of(tree).items() if name != "model")
    assert "200.0" not in ET.tostring(tree, encoding="unicode")


def test_intervals_are_shown_on_request(world: World) -> None:
    outcomes = {name: Measured({"accuracy": 0.5}, [1, 0] * 50) for name in world.names}
    run = world.run("sure", replace(world.report(VALUES), tasks=outcomes))
    sure, plain = (render(run, vectors=False, intervals=shown) for shown in (True, False))
    assert rows_of(parse_page(sure))["sure transductive needs the task"][1] == "50.0 ±9.6"
    assert "95 % intervals over test examples" in sure
    assert "±" not in plain
    without = world.run("unsure", world.report(VALUES))
    (without / "outcomes.json").unlink()
    page = render(without, vectors=False, intervals=True)
    assert "no intervals: no outcomes of single examples are stored" in page
    assert "±" not in page


def test_the_best_of_several_runs_is_named_and_marked(world: World) -> None:
    fair = world.report((0.7, 0.55, 0.6), transductive=False, needs_task=False)
    best = world.report((0.6, 0.7, 0.8))
    tree = parse_page(render(world.run("fair", fair), world.run("best", best), vectors=False))
    assert text_of(tree.find(".//p[@class='lead']")) == (
        "Of 2 measured runs, best is best: accuracy 70.0 % on average over 3 tasks, 87.5 % of the "
        "experts'; it needs to know the task, and the best that does not is fair with 61.7 %."
    )
    marked = [span.text for span in tree.iter("span") if "best" in (span.get("class") or "")]
    assert marked == ["70.0", "70.0", "80.0"]


def test_hostile_names_are_shown_literally(text: str, world: World) -> None:
    tree = parse_page(text)
    assert "<script" not in text
    assert "\x1b" not in text
    heads = [text_of(cell) for cell in tree.iter("th") if cell.get("scope") == "col"]
    assert heads[1:4] == [" ".join(escape_control(name).split()) for name in world.names]
    drawn = {"".join(label.itertext()) for label in tree.iter(f"{SVG}text")}
    assert {"a\"b'c&amp;$x^2$", "日本 \\x1b[31m"} <= drawn


def test_units_and_directions_are_respected(world: World, mixed: Report) -> None:
    tree = parse_page(render(world.run("mixed", mixed), vectors=False))
    rows = rows_of(tree)
    assert rows["model"][:2] == ["textperplexity, lower is better", "quizaccuracy in %"]
    assert rows["mixed"] == [
        "8.000",
        "70.0 ▼ below the baserefused 25.0",
        "",
        "68.8",
        "",
    ]  # (4 / 8 + 0.7 / 0.8) / 2
    assert rows["their method"] == ["", "75.0", "", "", ""]
    lead = text_of(tree.find(".//p[@class='lead']"))
    assert "measured on 2 tasks by different metrics; below the base on quiz." in lead
    text = text_of(tree)
    assert "Published for Tiny 1B: a paper" in text
    assert "measured on the first 100 examples of each task" in text
    assert "conditions of quizfew-shot 5" in text
    assert "options chosenby 12 trials on the other half" in text


def test_empty_sections_are_left_out(text: str, world: World) -> None:
    every = headings(parse_page(text))
    assert {"Results", "Against the experts", "Task vectors", "Coefficients", "Objective"} < {
        *every
    }
    tree = parse_page(render(world.run("plain"), vectors=False))
    assert headings(tree) == ["Provenance", "Repeat this run"]
    assert text_of(tree.find(".//p[@class='lead']")) == ("fused of 3 experts; not measured.")


def test_cost_is_shown_of_several_runs(world: World) -> None:
    measured = world.report(VALUES)
    tree = parse_page(render(world.run("a", measured), world.run("b", measured), vectors=False))
    assert "Average against time of the merge in s" in headings(tree)


def test_models_are_the_same_by_their_files_and_not_by_how_paths_are_spelled(
    world: World, tmp_path: Path
) -> None:
    other = replace(world, root=tmp_path / "other")
    runs = [world.run("first"), world.run("deeper/second"), other.run("first")]
    same, different = render(*runs[:2]), render(runs[0], runs[2])
    assert "the runs merge different models" not in same
    assert "the runs merge different models" in different


def test_missing_or_different_models_are_reported(world: World) -> None:
    first, second = world.run("first"), world.run("second")
    recipe = (second / "recipe.yaml").read_text()
    (second / "recipe.yaml").write_text(recipe.replace("/three", "/two"))
    assert "the runs merge different models" in render(first, second)
    (world.root / "one" / "model.safetensors").unlink()
    text = text_of(parse_page(render(first)))
    assert "Not shown: the merged models cannot be read here." in text


def test_nothing_is_downloaded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = world.run("found")
    recipe = (path / "recipe.yaml").read_text()
    (path / "recipe.yaml").write_text(re.sub("base: .*", "base: nobody/nothing@main", recipe))
    assert "HF_HUB_OFFLINE forbids downloading it" in render(path)
    assert "HF_HUB_OFFLINE" not in os.environ


def test_only_repeatable_runs_show_a_command(world: World) -> None:
    path = world.run("a run")  # by an algorithm that is a live object
    assert "This run used live Python objects" in render(path, vectors=False)
    text = (path / "provenance.json").read_text()
    (path / "provenance.json").write_text(text.replace('"plugin": null', '"plugin": "one"'))
    command = parse_page(render(path, vectors=False)).find(".//pre/code")
    assert command is not None
    assert command.text == f"fuse run '{path}/recipe.yaml' -o again"


def test_a_run_named_twice_is_shown_once(world: World) -> None:
    path = world.run("found")
    runs, _ = read_runs([path, path])
    assert [run.name for run in runs] == ["found"]


def test_equal_runs_give_equal_pages(text: str, whole: Path) -> None:
    assert render(whole) == text


def test_a_long_search_gives_a_small_page(world: World) -> None:
    path = world.write_search("found", steps=5000)
    assert len(render(path, vectors=False)) < 1_000_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("provenance.json", "{"),
        ("provenance.json", '{"schema": 1, "versions": {"fusion-core": "0.1.0"}, "inputs": 3}'),
        ("metrics.jsonl", '{"step": 0}\n{"ste'),
        ("metrics.jsonl", '{"entropy": 1}'),
        ("coefficients.json", '{"coefficients": {"one": 3}}'),
        ("coefficients.json", "[]"),
        ("coefficients.safetensors", "torn"),
        ("report.json", "{}"),
    ],
)
def test_damaged_files_are_named(world: World, name: str, content: str) -> None:
    path = world.write_search("found")
    (path / name).write_text(content)
    with pytest.raises(FusionError, match=re.escape(name.partition(".")[0])):
        read_runs([path])


def test_directories_without_a_run_are_skipped(world: World) -> None:
    path = world.run("found")
    runs, problems = read_runs([world.root / "base", path])
    assert [run.name for run in runs] == ["found"]
    assert [problem.message for problem in problems] == [f"no run in {world.root / 'base'}"]
    with pytest.raises(RecipeError, match="no run in"):
        read_runs([world.root / "base"])


def test_runs_of_one_name_are_named_by_their_paths(world: World) -> None:
    first, second = world.run("a/x"), world.run("b/x")
    runs, _ = read_runs([first, second])
    assert [run.name for run in runs] == [str(first), str(second)]


def test_the_command_writes_into_the_run_or_to_output(world: World) -> None:
    first, second = world.run("first", world.report(VALUES)), world.run("second")
    app = typer.Typer()
    app.command()(report)
    done = CliRunner().invoke(app, [str(first), "-q"])
    assert done.stdout == f"written: {first / 'report.html'}\n"
    assert parse_page((first / "report.html").read_text()) is not None
    both = [str(first), str(second), str(world.root / "base")]
    done = CliRunner().invoke(app, [*both, "-q", "--no-vectors", "-o", str(world.root / "x.html")])
    assert f"skipped: no run in {world.root / 'base'}" in done.stderr
    assert "2 runs" not in done.stdout
    assert (world.root / "x.html").is_file()
    done = CliRunner().invoke(app, both)
    assert isinstance(done.exception, RecipeError)
    assert "--output is required for a page about 3 runs" in str(done.exception)
