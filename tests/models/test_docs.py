"""The pages of docs/models: there for each family, as the networks are now, with examples that run."""

from __future__ import annotations

import doctest
import re

import pytest

from docs.pages import PAGES, families, refresh

FAMILIES = list(families())


def read(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def test_each_family_has_a_page_and_each_page_a_family():
    expected = {*FAMILIES, "README"}
    assert {path.stem for path in PAGES.glob("*.md")} == expected, (
        "write docs/models/<family>.md, then run python -m docs.pages"
    )


@pytest.mark.parametrize("name", [*FAMILIES, "README"])
def test_what_is_drawn_and_counted_is_as_it_is_now(name):
    assert read(name) == refresh(name, read(name)), "the page is stale: run python -m docs.pages"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_has_all_its_parts(family):
    page = read(family)
    assert [part for part in ("paper", "figure", "networks") if f"<!-- {part}" not in page] == []
    for figure in re.findall(r"```mermaid\n(.*?)```", page, re.DOTALL):
        assert 3 < len(re.findall(r"^    n\d+[\[(]", figure, re.MULTILINE)) <= 20


@pytest.mark.parametrize("family", FAMILIES)
def test_the_example_runs(family):
    # A fence would be taken for what the line above it prints.
    text = re.sub("^```.*$", "", read(family), flags=re.MULTILINE)
    example = doctest.DocTestParser().get_doctest(text, {}, f"{family}.md", f"docs/models/{family}.md", 0)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner().run(example, out=report.append)
    assert tried > 0 and failed == 0, "".join(report)
