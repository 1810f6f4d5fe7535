"""The HTTP API gives the results of the engine, and refuses bad requests with a reason."""

import asyncio
import base64
import io
import json
import os
import signal
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import forked_processes
from helpers.benchmark_files import drawn_pixels
from helpers.commands import ENVIRONMENT, ROOT, free_port
from helpers.embedding_shards import random_embeddings, write_embedding_shards
from PIL import Image

from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor, ZeroShotClassifier, embed_images, embed_texts
from biomedclip.run_scripts.classification.labels import read_labels
from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.embedding.encoders import load_encoder
from biomedclip.run_scripts.serving.engine import load_engine


pytest.importorskip("fastapi")
import httpx
from fastapi.testclient import TestClient
from starlette.datastructures import FormData

from biomedclip.run_scripts.demo import _listening
from biomedclip.run_scripts.serving import guard
from biomedclip.run_scripts.serving.api import create_app


LABELS = ["chest x-ray", "brain mri", "line chart"]
ADDRESS = "http://127.0.0.1:7860"


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(drawn_pixels([number], 40, number % 2 == 0)).save(file, "PNG")
    return file.getvalue()


def in_base64(number: int) -> str:
    return base64.b64encode(png(number)).decode()


def opened(number: int) -> Image.Image:
    return Image.open(io.BytesIO(png(number)))


@pytest.fixture(scope="module")
def loaded(small_checkpoint):
    return BiomedCLIPModel.from_pretrained(small_checkpoint), BiomedCLIPProcessor.from_pretrained(small_checkpoint)


@pytest.fixture(scope="module")
def engine(small_checkpoint, tmp_path_factory):
    encoder = load_encoder(str(small_checkpoint), "float32")
    fingerprints = {"weights": encoder.weights, "processing": encoder.processing}
    names, years = [f"scan-{number}" for number in range(9)], {"year": [*range(2015, 2023), None], "size": [np.nan] * 9}
    folder = write_embedding_shards(
        tmp_path_factory.mktemp("vectors"), random_embeddings(9), names, columns=years, **fingerprints
    )
    engine = load_engine(str(small_checkpoint), index=folder, prompts=read_labels(LABELS), device="cpu")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def client(engine):
    # Without the context manager, the lifespan does not close the engine of the other tests.
    return TestClient(create_app(engine, max_request_mb=1), base_url=ADDRESS, raise_server_exceptions=False)


def answer(response, status=200):
    assert response.status_code == status, response.text
    return response.json()


def test_health_names_the_model_and_the_index(client, engine):
    health = answer(client.get("/health"))
    assert health["status"] == "ok" and health["model"] == "base" and health["fingerprint"] == engine.encoder.weights
    assert health["index"] == {"size": 9, "modality": "image"} and health["dimension"] == 16


def test_classification_of_a_form_and_of_json_equals_that_of_the_zero_shot_classifier(client, loaded):
    expected = ZeroShotClassifier(*loaded, LABELS)([opened(1), opened(2)]).tolist()
    files = [("images", (f"{number}.png", png(number))) for number in (1, 2)]
    form = answer(client.post("/classify", files=files, data={"labels": LABELS}))
    body = {"images": [in_base64(1), f"data:image/png;base64,{in_base64(2)}"]}  # and the labels of the server
    for found in (form, answer(client.post("/classify", json=body))):
        for result, probabilities in zip(found["results"], expected, strict=True):
            rows = {row["label"]: row["probability"] for row in result["predictions"]}
            assert [rows[label] for label in LABELS] == pytest.approx(probabilities, abs=1e-6)
    body |= {"top_k": 1, "template": "a {}"}
    best = [result["predictions"] for result in answer(client.post("/classify", json=body))["results"]]
    classes = ZeroShotClassifier(*loaded, LABELS, "a {}")([opened(1), opened(2)]).argmax(dim=1).tolist()
    assert [[row["label"] for row in rows] for rows in best] == [[LABELS[at]] for at in classes]


def test_embeddings_equal_those_of_the_library(client, loaded):
    texts = ["line chart", "brain mri of article 1000"]
    expected = embed_texts(*loaded, texts)
    found = answer(client.post("/embed", json={"texts": texts}))
    np.testing.assert_allclose(found["embeddings"], expected, rtol=0, atol=1e-6)
    of_images = answer(client.post("/embed", files=[("images", ("a.png", png(3)))]))
    np.testing.assert_allclose(of_images["embeddings"], embed_images(*loaded, [opened(3)]), rtol=0, atol=1e-6)


def test_the_openai_shape_has_texts_images_and_token_counts(client, loaded):
    inputs = ["line chart", f"data:image/png;base64,{in_base64(3)}", "brain mri"]
    found = answer(client.post("/v1/embeddings", json={"input": inputs, "model": "base"}))
    expected = [*embed_texts(*loaded, [inputs[0], inputs[2]]), *embed_images(*loaded, [opened(3)])]
    assert [row["index"] for row in found["data"]] == [0, 1, 2]
    values = [row["embedding"] for row in found["data"]]
    np.testing.assert_allclose(values, [expected[0], expected[2], expected[1]], rtol=0, atol=1e-6)
    ids = loaded[1](text=[inputs[0], inputs[2]], padding=False)["input_ids"]
    assert found["usage"] == dict.fromkeys(("prompt_tokens", "total_tokens"), len(ids[0]) + len(ids[1]))
    body = {"input": "line chart", "model": "base", "encoding_format": "base64"}
    (row,) = answer(client.post("/v1/embeddings", json=body))["data"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(row["embedding"]), "<f4"), values[0], rtol=0, atol=1e-6)


def test_a_text_that_starts_as_a_data_url_is_embedded_as_text(client, loaded):
    (row,) = answer(client.post("/v1/embeddings", json={"input": "data: 5 patients"}))["data"]
    np.testing.assert_allclose(row["embedding"], embed_texts(*loaded, ["data: 5 patients"])[0], rtol=0, atol=1e-6)


def test_a_search_equals_that_of_the_index(client, engine):
    found = answer(client.post("/search", json={"text": "line chart", "top_k": 3, "where": "year > 2016"}))
    expected = engine.search("line chart", 3, "year > 2016")
    assert [row["id"] for row in found["results"]] == [row["id"] for row in expected]
    assert found["results"][0]["size"] is None, "JSON has no NaN"
    of_image = answer(client.post("/search", files={"image": ("a.png", png(1))}, data={"top_k": "2"}))
    assert [row["id"] for row in of_image["results"]] == [row["id"] for row in engine.search(opened(1), 2)]


def test_concurrent_requests_share_batches_and_get_their_own_results(client, loaded):
    expected = [embed_images(*loaded, [opened(number)]).numpy()[0] for number in range(24)]
    with ThreadPoolExecutor(24) as threads:
        bodies = [{"images": [in_base64(number)]} for number in range(24)]
        found = list(threads.map(lambda body: client.post("/embed", json=body).json()["embeddings"][0], bodies))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


IMAGE = {"images": [in_base64(1)]}
DEEP = b"[" * 200_000
FORM = {"content-type": "multipart/form-data; boundary=x"}
ERRORS = {
    "no JSON": ("/classify", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "valid JSON"),
    "NaN": ("/search", {"content": b'{"text": "a", "top_k": NaN}'}, 400, "NaN"),
    "deep": ("/search", {"content": DEEP}, 400, "nested too deeply"),
    "no UTF-8": ("/embed", {"content": b'{"texts": ["\xff"]}'}, 400, "UTF-8"),
    "surrogate": ("/embed", {"content": b'{"texts": ["\\ud800"]}'}, 422, "unicode"),
    "a list": ("/embed", {"content": b"[]"}, 422, "an object"),
    "unknown field": ("/classify", {"json": IMAGE | {"label": "a"}}, 422, "`label`: unknown field"),
    "wrong type": ("/classify", {"json": IMAGE | {"labels": [1, 2]}}, 422, "`labels.0`: Input should be a valid str"),
    "text as number": ("/search", {"json": {"text": "a", "top_k": "3"}}, 422, "`top_k`"),
    "one label": ("/classify", {"json": IMAGE | {"labels": ["a"]}}, 422, "at least two labels"),
    "a label twice": ("/classify", {"json": IMAGE | {"labels": ["a", "a"]}}, 422, "twice"),
    "template": ("/classify", {"json": IMAGE | {"template": "x"}}, 422, "has no {}"),
    "long label": ("/classify", {"json": IMAGE | {"labels": ["a" * 1001, "b"]}}, 422, "at most 1000"),
    "no images": ("/classify", {"json": {"images": []}}, 422, "at least 1"),
    "too many images": ("/embed", {"json": {"images": ["a"] * 65}}, 422, "at most 64"),
    "both": ("/embed", {"json": IMAGE | {"texts": ["a"]}}, 422, "either"),
    "empty text": ("/embed", {"json": {"texts": [""]}}, 422, "at least 1"),
    "a URL": ("/embed", {"json": {"images": ["https://example.com/a.png"]}}, 422, "image 1 must be the base64"),
    "a path": ("/embed", {"json": {"images": ["/etc/passwd"]}}, 422, "Paths and other URLs are not opened"),
    "no image": ("/embed", {"files": {"images": ("../a.png", b"text")}}, 415, "a.png: not an image of a known format"),
    "truncated": ("/embed", {"files": {"images": ("a.png", png(1)[:-90])}}, 422, "a.png: damaged or truncated"),
    "condition": ("/search", {"json": {"text": "a", "where": "yaer = 1"}}, 422, "`where` yaer = 1: no column"),
    "model": ("/v1/embeddings", {"json": {"input": "a", "model": "ada"}}, 404, "'base'"),
    "token ids": ("/v1/embeddings", {"json": {"input": [[1, 2]], "model": "base"}}, 422, "Token ids are not"),
    "dimensions": ("/v1/embeddings", {"json": {"input": "a", "dimensions": 3}}, 422, "must be 16"),
    "no type": ("/embed", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, "application/json"),
    "no boundary": ("/embed", {"content": b"a", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    "damaged form": ("/embed", {"content": b"abc", "headers": FORM}, 400, "form-data: "),
    "compressed": ("/embed", {"json": IMAGE, "headers": {"content-encoding": "gzip"}}, 415, "Compressed"),
    "unknown path": ("/nothing", {"json": {}}, 404, "Not Found"),
    "unknown host": ("/embed", {"json": IMAGE, "headers": {"host": "evil.example:7860"}}, 403, "host"),
    "other site": ("/embed", {"json": IMAGE, "headers": {"origin": "http://evil.example"}}, 403, "other web sites"),
    "other port": ("/embed", {"json": IMAGE, "headers": {"origin": "http://127.0.0.1:1"}}, 403, "other web sites"),
    "fetched": ("/embed", {"json": IMAGE, "headers": {"sec-fetch-site": "cross-site"}}, 403, "other web sites"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_requests_are_refused_with_a_reason(client, case):
    path, request, status, message = ERRORS[case]
    if "content" in request and "headers" not in request:
        request = request | {"headers": {"content-type": "application/json"}}
    error = answer(client.post(path, **request), status)["error"]
    assert message in error["message"] and error["type"]
    assert "Traceback" not in error["message"] and " object at 0x" not in error["message"]


def test_a_page_of_the_same_origin_is_served_and_other_methods_are_not(client):
    headers = {"origin": ADDRESS, "sec-fetch-site": "same-origin"}
    answer(client.post("/embed", json={"texts": ["a"]}, headers=headers))
    assert answer(client.get("/embed"), 405)["error"]["type"] == "method_not_allowed"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_whether_or_not_its_size_is_declared(client, chunked):
    parts = [b"x" * 100_000] * 11
    content = iter(parts) if chunked else b"".join(parts)
    response = client.post("/embed", content=content, headers={"content-type": "application/json"})
    assert ("content-length" in response.request.headers) != chunked
    assert "1,000,000 bytes" in answer(response, 413)["error"]["message"]


@pytest.mark.parametrize("name", ["image", "search"])
def test_a_full_queue_is_an_error_to_try_again_after(client, engine, monkeypatch, name):
    batcher = engine.batcher if name == "image" else engine._searches
    monkeypatch.setitem(batcher._limits, name, 0)
    response = client.post("/embed", json=IMAGE) if name == "image" else client.post("/search", json={"text": "a"})
    assert answer(response, 503)["error"]["type"] == "busy" and response.headers["retry-after"] == "1"


def test_health_is_answered_while_many_searches_wait(engine, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(engine.index, "search", lambda *_, **__: [[]] if go_on.wait(20) else None)

    async def status_of_health() -> int:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url=ADDRESS) as client:
            searches = [asyncio.create_task(client.post("/search", json={"text": "a"})) for _ in range(50)]
            await asyncio.sleep(1)
            try:
                return (await asyncio.wait_for(client.get("/health"), 5)).status_code
            finally:
                go_on.set()
                assert {search.status_code for search in await asyncio.gather(*searches)} == {200}

    assert asyncio.run(status_of_health()) == 200


def test_a_form_is_closed(client, monkeypatch):
    closed = []
    close = FormData.close

    async def count(self):
        closed.append(self)
        await close(self)

    monkeypatch.setattr(FormData, "close", count)
    answer(client.post("/embed", files=[("images", ("a.png", png(3)))]))
    assert len(closed) == 1


def test_a_failure_of_the_server_shows_no_details(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "prepare", lambda *_: 1 / 0)
    error = answer(client.post("/embed", json=IMAGE), 500)["error"]
    assert error == {"message": "The server failed. Its log has the details.", "type": "internal_error"}


def test_an_image_that_the_processor_cannot_use_is_an_invalid_image(client, engine, monkeypatch):
    monkeypatch.setattr(engine.encoder.processor, "image_processor", lambda *_, **__: 1 / 0)
    error = answer(client.post("/embed", json=IMAGE), 422)["error"]
    assert error["type"] == "invalid_image" and "image 1: the processor of the model cannot use" in error["message"]


def statuses_of(bodies: list[list[bytes]], seconds: float) -> list[int]:
    """Send bodies at the same time, with a pause before each chunk, to a guarded application that takes a while."""

    async def app(scope, receive, send):
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200})

    guarded = guard.Guard(app, max_bytes=1000, hosts=None)

    async def post(chunks: list[bytes]) -> int:
        waiting, statuses = list(chunks), []

        async def receive():
            await asyncio.sleep(seconds)
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

        async def send(message):
            statuses.append(message.get("status"))

        await guarded({"type": "http", "method": "POST", "headers": []}, receive, send)
        return statuses[0]

    async def post_all() -> list[int]:
        return await asyncio.gather(*map(post, bodies))

    return asyncio.run(post_all())


def test_a_body_may_take_longer_the_more_of_it_arrives(monkeypatch):
    monkeypatch.setattr(guard, "_BODY_SECONDS", 0.6)
    monkeypatch.setattr(guard, "_BYTES_PER_SECOND", 200)
    assert statuses_of([[b"x" * 100] * 5, [b"x"] * 5], 0.2) == [200, 408]


def test_bodies_that_are_held_at_the_same_time_have_a_limit(monkeypatch):
    monkeypatch.setattr(guard, "_MAX_HELD_BYTES", 2500)
    assert sorted(statuses_of([[b"x" * 900]] * 3, 0)) == [200, 200, 503]


def test_a_port_is_taken_before_the_model_is_loaded():
    with _listening("127.0.0.1", 0) as listener, pytest.raises(UsageError, match="Choose another port"):
        _listening("127.0.0.1", listener.getsockname()[1])


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(small_checkpoint, tmp_path):
    port = free_port()
    files = [tmp_path / name for name in ("stdin", "stdout", "stderr")]
    for file in files:
        file.touch()
    command = ["-m", "biomedclip.run_scripts.main", "demo", "--model", str(small_checkpoint), "--port", str(port)]
    process = forked_processes.start([*command, "--device", "cpu"], ENVIRONMENT, ROOT, files)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{address}/health") as response:
                assert json.load(response)["model"] == "base"
            break
        except OSError:
            assert process.exitcode is None, files[2].read_text()
            time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    output, errors = (file.read_text() for file in files[1:])
    assert process.exitcode == 0 and output == ""
    assert f"on {address}. Stop it with Ctrl-C" in errors and "Traceback" not in errors
