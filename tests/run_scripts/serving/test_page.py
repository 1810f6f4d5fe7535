"""The page of `biomedclip demo`, used in Chromium."""

import json
import os
import shutil
import socket
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_files import save_drawn
from helpers.dicom_writer import dicom
from helpers.embedding_shards import write_embedding_shards

from biomedclip import (
    BiomedCLIPModel,
    BiomedCLIPProcessor,
    EmbeddingIndex,
    ZeroShotClassifier,
    embed_images,
    embed_texts,
    read_image,
)
from biomedclip.run_scripts.classification.labels import read_labels
from biomedclip.run_scripts.embedding.encoders import load_encoder


pytest.importorskip("gradio")
pytest.importorskip("playwright")
import uvicorn
from playwright.sync_api import sync_playwright

from biomedclip.run_scripts.embedding.thumbnails import Thumbnails
from biomedclip.run_scripts.serving.api import create_app
from biomedclip.run_scripts.serving.engine import load_engine
from biomedclip.run_scripts.serving.page import mount_page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LABELS = ["chest x-ray", "brain mri", "line chart"]
MAX_FILE = 1_000_000
HOSTILE = [
    "<img src=x onerror='window.hacked = 1'>",
    "<script>window.hacked = 1</script>",
    "${window.hacked = 1} {{window.hacked}} `window.hacked`",
    "[link](javascript:window.hacked=1) ![image](https://example.org/x.png) **bold**",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (on Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with `vectors`, the images in it, and other files to upload."""
    folder = tmp_path_factory.mktemp("place")
    for number in range(8):
        save_drawn(folder / "vectors" / "scans" / f"{number}.png", [number, 12], 40 + number, number % 2 == 0)
    (folder / "slice.dcm").write_bytes(dicom(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)))
    (folder / "broken.png").write_bytes((folder / "vectors" / "scans" / "0.png").read_bytes()[:100])
    (folder / "large.png").write_bytes(os.urandom(MAX_FILE + 1))
    return folder


@pytest.fixture(scope="module")
def loaded(small_checkpoint):
    return BiomedCLIPModel.from_pretrained(small_checkpoint), BiomedCLIPProcessor.from_pretrained(small_checkpoint)


@pytest.fixture(scope="module")
def index(place, loaded, small_checkpoint):
    encoder = load_encoder(str(small_checkpoint), "float32")
    paths = sorted((place / "vectors" / "scans").iterdir())
    embeds = embed_images(*loaded, [read_image(path) for path in paths]).numpy()
    columns = {"license": ["CC BY", "CC0"] * 4, "year": [*range(2015, 2023)], "caption": HOSTILE * 2}
    ids = [f"<b>scan</b> {number}" for number in range(8)]
    fingerprints = {"weights": encoder.weights, "processing": encoder.processing}
    paths = [str(path) for path in paths]
    write_embedding_shards(place / "vectors", embeds, ids, paths=paths, columns=columns, **fingerprints)
    return EmbeddingIndex(place / "vectors")


@pytest.fixture(scope="module")
def address(small_checkpoint, index):
    """Serve the page, and return its address."""
    engine = load_engine(str(small_checkpoint), index=index.folder, prompts=read_labels(LABELS), device="cpu")
    app = create_app(engine)
    mount_page(app, engine, Thumbnails([], [index.folder]), max_file_size=MAX_FILE)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    assert not Path(os.environ.pop("GRADIO_TEMP_DIR")).exists()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")  # the home of the user may not be writable
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=SWITCHES, env=os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home)}
        )
        yield browser
        browser.close()


@pytest.fixture
def problems():
    """Return a list of the errors that the browser reports."""
    return []


@pytest.fixture
def page(browser, address, problems):
    """Open the page in a window. The browser must not ask any other server, and not report an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda found: problems.append(f"{found.text} {found.location}") if found.type == "error" else 0)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#classify")
    yield page
    hacked = page.evaluate("window.hacked")
    context.close()
    assert {url for url in requests if not url.startswith((f"{address}/", "data:", "blob:"))} == set()
    assert problems == []
    assert hacked is None


def upload(page, path, *, readable=True):
    page.locator("#file input[type=file]").set_input_files(path)
    page.wait_for_selector("#preview img" if readable else "#preview [role=alert]")


def message(page, output):
    page.wait_for_selector(f"#{output} [role=alert]")
    return page.locator(f"#{output}").inner_text().strip()


def picture_size(page, output):
    """Return the width and height of the picture in an output, which the browser has decoded."""
    page.wait_for_function(f"document.querySelector('#{output} img')?.naturalWidth > 0")
    return page.evaluate(f"(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#{output} img'))")


def found_ids(page):
    return [text.split(". ", 1)[1] for text in page.locator("#hits .id").all_inner_texts()]


def test_an_image_is_classified_with_own_labels(page, place, loaded):
    assert "Not for clinical use" in page.locator("body").inner_text()
    path = place / "vectors" / "scans" / "3.png"
    upload(page, path)
    assert picture_size(page, "preview") == [43, 43]
    labels = ["brain mri", "<b>line</b> chart"]
    page.fill("#labels textarea", "\n".join([*labels, ""]))
    page.click("#classify")
    page.wait_for_selector("#predictions li")
    shown = zip(*(page.locator(f"#predictions .{name}").all_inner_texts() for name in ("label", "value")), strict=True)
    expected = ZeroShotClassifier(*loaded, labels)([read_image(path)])
    assert dict(shown) == {
        label: f"{probability:.1%}" for label, probability in zip(labels, expected[0].tolist(), strict=True)
    }


def test_a_dicom_file_is_read_and_explained(page, place):
    upload(page, place / "slice.dcm")
    assert picture_size(page, "preview") == [64, 48]
    page.get_by_role("tab", name="Saliency").click()
    page.click("#explain")
    assert message(page, "overlay") == "Enter a text."
    page.fill("#prompt textarea", "chest x-ray")
    page.click("#explain")
    assert picture_size(page, "overlay") == [64, 48]
    assert "They do not show that the model is right" in page.locator("#overlay").inner_text()


def test_the_index_is_searched_by_text_and_by_image(page, place, loaded, index):
    page.get_by_role("tab", name="Search").click()
    page.fill("#text textarea", "brain mri")
    page.click("#by-text")
    page.wait_for_selector("#hits article")
    (expected,) = index.search(embed_texts(*loaded, ["brain mri"]))
    assert found_ids(page) == [row["id"] for row in expected]
    first = page.locator("#hits article").first.inner_text()
    assert f"{expected[0]['similarity']:.4f}" in first and expected[0]["license"] in first
    assert picture_size(page, "hits article")[0] in range(40, 48)

    upload(page, place / "vectors" / "scans" / "5.png")
    page.fill("#where textarea", "license = 'CC0' and year > 2018")
    page.click("#by-image")
    page.wait_for_function("document.querySelectorAll('#hits article').length == 2")
    assert found_ids(page)[0] == "<b>scan</b> 5"
    page.fill("#where textarea", "licence = 'CC0'")
    page.click("#by-image")
    assert "Did you mean 'license'?" in message(page, "hits")


def test_captions_are_shown_literally(page, index):
    page.get_by_role("tab", name="Search").click()
    page.fill("#text textarea", "brain mri")
    page.click("#by-text")
    page.wait_for_selector("#hits article")
    shown = page.locator("#hits").inner_text()
    assert [caption for caption in HOSTILE if caption not in shown] == []
    assert page.locator("#hits :is(a, b, script, [onerror])").count() == 0


def test_a_file_that_cannot_be_used_is_explained_and_the_page_goes_on(page, place, problems):
    page.click("#classify")
    assert message(page, "predictions") == "Upload an image first."
    upload(page, place / "broken.png", readable=False)
    assert message(page, "preview").startswith("broken.png: damaged or truncated")
    page.click("#classify")
    page.wait_for_function("document.querySelector('#predictions').innerText.includes('broken.png')")
    assert "Traceback" not in page.content()
    page.click("#file [aria-label=Clear]")
    upload(page, place / "slice.dcm")
    page.click("#file [aria-label=Clear]")
    page.locator("#file input[type=file]").set_input_files(place / "large.png")
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    problems.clear()  # the upload that was refused


def test_a_narrow_window_shows_everything_without_scrolling_sideways(page, place):
    page.set_viewport_size({"width": 390, "height": 844})
    upload(page, place / "slice.dcm")
    page.fill("#labels textarea", "\n".join(["long" * 60, "chest x-ray " * 20]))
    page.click("#classify")
    page.wait_for_selector("#predictions li")
    page.get_by_role("tab", name="Search").click()
    page.fill("#text textarea", "brain mri")
    page.click("#by-text")
    page.wait_for_selector("#hits article")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def events_of(address, function, values, session):
    """Return what the page is told if a function is called without a browser."""
    body = {"data": values, "fn_index": function, "session_hash": session, "trigger_id": 1}
    request = urllib.request.Request(
        f"{address}/page/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).read()
    return urllib.request.urlopen(f"{address}/page/gradio_api/queue/data?session_hash={session}").read()


def test_a_text_over_the_limit_of_its_field_is_refused_by_the_server(address):
    events = events_of(address, 1, [None, "a\nb", "{}" * 5001], "long")
    assert b"(optional): 10,002 characters, and 10,000 are allowed" in events


@pytest.mark.parametrize("part", [{}, {"is_stream": True}, {"path": "https://example.org/secret.png"}])
@pytest.mark.parametrize("function, place_of_file", [(0, 0), (1, 1), (3, 0)])  # files and texts
def test_a_request_cannot_name_a_file_that_was_not_uploaded(address, place, function, place_of_file, part):
    secret = place / "secret.png"
    shutil.copy(place / "vectors" / "scans" / "0.png", secret)
    values = [None, "brain mri", 5]
    values[place_of_file] = {"path": str(secret), "meta": {"_type": "gradio.FileData"}, **part}
    events = events_of(address, function, values, f"{function}{len(part)}")
    assert b"data:image" not in events and b"file=" not in events
    assert b'"success":false' in events or b"was not uploaded" in events
    assert not list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("secret*"))
