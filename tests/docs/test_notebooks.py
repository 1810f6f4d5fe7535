"""The notebook has the text and the commands of its page."""

import json
import runpy

import pytest
from helpers.commands import ROOT
from helpers.pages import RUN, blocks_of


MAKER = ROOT / "docs" / "notebooks" / "make.py"


@pytest.fixture(scope="module")
def maker():
    return runpy.run_path(str(MAKER))


def test_the_notebook_is_that_of_its_page(maker):
    page = maker["PAGE"]
    stored = (MAKER.parent / f"{page.stem}.ipynb").read_text(encoding="utf-8")
    assert stored == maker["written"](page), "Run python docs/notebooks/make.py"


def test_each_block_of_the_page_is_a_cell(maker):
    page = maker["PAGE"]
    stored = json.loads((MAKER.parent / f"{page.stem}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in stored["cells"] if cell["cell_type"] == "code"]
    blocks = [block for block in blocks_of(page) if block.language in RUN]
    assert [cell.removeprefix("%%bash\n") for cell in cells] == [block.code.strip() for block in blocks]


def test_links_of_the_notebook_lead_to_pages(maker):
    text = (MAKER.parent / f"{maker['PAGE'].stem}.ipynb").read_text(encoding="utf-8")
    links = set(maker["re"].findall(r"\]\(([^)#]+\.md)", text))
    assert links and all((MAKER.parent / link).is_file() for link in links)
