"""Checks of `report.html`: as text, and in headless Chromium."""

import os
import re
import shutil
from pathlib import Path

import pytest


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>window.hacked = 1</script>"
QUOTED = "\"it's\" <b onload='window.hacked=1'>"
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (on Debian: apt-get install chromium)"
)


def figures_in(page: str) -> list[str]:
    """Return the first line of the caption of each thumbnail of a page."""
    return re.findall(r"<figcaption>(.*?)<br>", page)


def words_of(page: str) -> str:
    """Return the text of a page, in one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("<body>")[1]).split())


def check_page(page: str) -> None:
    """Check that no text became markup, that nothing is loaded, and that images have a text."""
    assert "<script" not in page and "<b onload" not in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:image/)""", page)
    assert "http://" not in page and "https://" not in page and len(page) < 3_000_000
    assert all(re.search(r' alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", page))


def check_in_chromium(path: Path, home: Path) -> None:
    """Open a page without a network on a phone, and print it. `home` is a folder for the browser's files."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as driver:
        environment = os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], env=environment
        )
        page = browser.new_page(viewport={"width": 390, "height": 844})
        requests, problems = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.as_uri())
        assert all(url.startswith(("file:", "data:")) for url in requests) and problems == []
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.evaluate(
            "document.querySelectorAll('table').length === document.querySelectorAll('caption').length"
        )
        pdf = page.pdf(format="A4")
        assert pdf.startswith(b"%PDF") and 2 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 40
        browser.close()
