"""`EmbeddingIndex` gives the results of a plain loop in float64, and notices when its cache no longer fits."""

import json
import os

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from helpers.embedding_shards import random_embeddings, write_embedding_shards
from scipy.cluster.hierarchy import fcluster, linkage

from biomedclip import EmbeddingIndex
from biomedclip import embedding_index as module


def loop(embeds, ids, query, top_k, allowed=None):
    """Return the ids and similarities of the best rows with a loop over all rows in float64."""
    scored = []
    for row, (name, embedding) in enumerate(zip(ids, embeds, strict=True)):
        if allowed is None or allowed[row]:
            product = sum((embedding.astype(np.float64) * query.astype(np.float64)).tolist())
            scored.append((-np.float32(product), name))
    return [(name, -negative) for negative, name in sorted(scored)[:top_k]]


def pairs_of(hits):
    return [(hit["id"], np.float32(hit["similarity"])) for hit in hits]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("top_k", [1, 10, 700])
def test_the_results_equal_those_of_a_loop_in_float64(tmp_path, monkeypatch, dtype, top_k):
    monkeypatch.setattr(module, "_BLOCK", 64)
    embeds = random_embeddings(650, dtype=dtype)
    ids = [f"image-{number * 7919 % 650}" for number in range(650)]
    index = EmbeddingIndex(write_embedding_shards(tmp_path, embeds, ids, rows_per_shard=200, rows_per_group=70))
    queries = random_embeddings(5, seed=1, dtype=np.float32)
    results = index.search(torch.from_numpy(queries), top_k=top_k)
    assert len(index) == 650
    for query, hits in zip(queries, results, strict=True):
        found, expected = pairs_of(hits), loop(embeds, ids, query, top_k)
        assert [name for name, _ in found] == [name for name, _ in expected]
        # The order of the sum in float64 can change the last bit in float32.
        np.testing.assert_allclose([s for _, s in found], [s for _, s in expected], rtol=2**-23)
        assert [hit["rank"] for hit in hits] == list(range(1, len(hits) + 1))


def test_equal_similarities_are_sorted_by_id_wherever_their_rows_are(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 64)
    embeds = random_embeddings(500, dimension=512)
    copies = [3, 70, 130, 131, 257, 400, 499]
    embeds[copies] = embeds[3]
    ids = [f"{number * 7919 % 500:03}" for number in range(500)]
    index = EmbeddingIndex(write_embedding_shards(tmp_path, embeds, ids))
    query = embeds[3].astype(np.float32)
    hits = index.search(query, top_k=4)[0]
    assert [hit["id"] for hit in hits] == sorted(ids[row] for row in copies)[:4]
    assert len({hit["similarity"] for hit in hits}) == 1


def test_one_row_more_or_less_does_not_change_the_similarity_of_the_others(tmp_path):
    embeds = random_embeddings(300, dimension=512)
    ids = [str(number) for number in range(300)]
    query = random_embeddings(1, dimension=512, seed=1, dtype=np.float32)
    whole = EmbeddingIndex(write_embedding_shards(tmp_path / "a", embeds, ids)).search(query, top_k=300)[0]
    part = EmbeddingIndex(write_embedding_shards(tmp_path / "b", embeds[5:], ids[5:])).search(query, top_k=300)[0]
    assert [pair for pair in pairs_of(whole) if int(pair[0]) >= 5] == pairs_of(part)


def test_rows_have_their_own_columns_and_unreadable_images_are_left_out(tmp_path):
    embeds = random_embeddings(40)
    embeds[9] = np.nan
    columns = {"year": list(range(40)), "rank": ["a"] * 40, "license": [["CC0", None][n % 2] for n in range(40)]}
    paths = [f"scans/{number}.png" for number in range(40)]
    ids = [f"id-{number}" for number in range(40)]
    write_embedding_shards(tmp_path, embeds, ids, paths=paths, columns=columns, unreadable=[4, 5], rows_per_shard=7)
    hits = EmbeddingIndex(tmp_path).search(random_embeddings(1, seed=3), top_k=100)[0]
    assert {hit["id"] for hit in hits} == set(ids) - {"id-4", "id-5", "id-9"}
    assert [*hits[0]] == ["rank", "id", "path", "similarity", "year", "input_rank", "license"]
    for hit in hits:
        number = int(hit["id"].removeprefix("id-"))
        assert (hit["path"], hit["year"], hit["license"]) == (paths[number], number, ["CC0", None][number % 2])


def test_a_filter_is_applied_before_ranking(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 16)
    embeds, ids = random_embeddings(200), [f"{number:03}" for number in range(200)]
    years = [None if number % 11 == 0 else 2000 + number % 25 for number in range(200)]
    write_embedding_shards(tmp_path, embeds, ids, columns={"year": years}, rows_per_shard=60, unreadable=[7, 32])
    index, query = EmbeddingIndex(tmp_path), random_embeddings(1, seed=2, dtype=np.float32)[0]
    allowed = [year is not None and year > 2020 and row not in (7, 32) for row, year in enumerate(years)]
    hits = index.search(query, top_k=8, where=ds.field("year") > 2020)[0]
    assert [hit["id"] for hit in hits] == [name for name, _ in loop(embeds, ids, query, 8, allowed)]
    assert index.search(query, where=ds.field("year") > 3000) == [[]]


def test_excluded_ids_make_room_for_others(tmp_path):
    ids = [f"{number // 2}" for number in range(60)]  # each id twice
    index = EmbeddingIndex(write_embedding_shards(tmp_path, random_embeddings(60), ids))
    query = index.embedding("7")
    everything = [hit["id"] for hit in index.search(query, top_k=12)[0]]
    assert everything[0] == "7"
    expected = [hit["id"] for hit in index.search(query, top_k=60)[0] if hit["id"] != "7"][:12]
    assert [hit["id"] for hit in index.search(query, top_k=12, exclude=["7"])[0]] == expected


def test_embeddings_are_found_by_id(tmp_path):
    embeds = random_embeddings(30)
    index = EmbeddingIndex(write_embedding_shards(tmp_path, embeds, [f"a{n}" for n in range(30)], unreadable=[3]))
    assert np.array_equal(index.embedding("a17"), embeds[17].astype(np.float32))
    with pytest.raises(KeyError, match="'b' is not in the shards"):
        index.embedding("b")
    with pytest.raises(KeyError, match="could not be read"):
        index.embedding("a3")


def test_images_are_searched_unless_texts_are_named(tmp_path):
    write_embedding_shards(tmp_path, random_embeddings(5), list("abcde"))
    write_embedding_shards(tmp_path, random_embeddings(3, seed=1), list("xyz"), modality="text")
    assert (EmbeddingIndex(tmp_path).modality, len(EmbeddingIndex(tmp_path))) == ("image", 5)
    texts = EmbeddingIndex(tmp_path, modality="text")
    assert [hit["id"] for hit in texts.search(texts.embedding("y"), top_k=1)[0]] == ["y"]


@pytest.mark.parametrize("name", ["images_embeds.npy", "images_rows.npy", "images.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "other"])
def test_a_damaged_cache_is_written_again(tmp_path, name, damage):
    embeds, ids = random_embeddings(100), [f"{number:02}" for number in range(100)]
    write_embedding_shards(tmp_path, embeds, ids, unreadable=[3])
    query = random_embeddings(1, seed=1)
    before = EmbeddingIndex(tmp_path).search(query)
    path = tmp_path / ".index" / name
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 0x41]) + content[-8:])
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "other":
        path.write_bytes(b"[]")
    else:
        path.unlink()
    assert EmbeddingIndex(tmp_path).search(query) == before
    assert (path.read_bytes() == content) or name == "images.json"


def test_the_cache_follows_the_shards(tmp_path):
    query = random_embeddings(1, seed=1)
    write_embedding_shards(tmp_path, random_embeddings(50), [f"a{n}" for n in range(50)])
    EmbeddingIndex(tmp_path)
    write_embedding_shards(tmp_path, query, ["new"], first_shard=1)  # what --update does
    assert EmbeddingIndex(tmp_path).search(query, top_k=1)[0][0]["id"] == "new"
    write_embedding_shards(tmp_path, random_embeddings(50, seed=5), [f"b{n}" for n in range(50)])
    assert len(EmbeddingIndex(tmp_path)) == 51
    assert EmbeddingIndex(tmp_path).search(query, top_k=2)[0][1]["id"].startswith("b")
    (tmp_path / "data" / "images-00001.parquet").unlink()
    assert "new" not in [hit["id"] for hit in EmbeddingIndex(tmp_path).search(query)[0]]


def test_a_cache_that_fits_is_not_written_again(tmp_path):
    write_embedding_shards(tmp_path, random_embeddings(50), [f"a{n}" for n in range(50)])
    EmbeddingIndex(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".index").iterdir()}
    EmbeddingIndex(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".index").iterdir()} == before
    assert set(before) == {"images_embeds.npy", "images_rows.npy", "images.json"}
    array = np.load(tmp_path / ".index" / "images_embeds.npy")
    assert (array.shape, array.dtype) == ((50, 16), np.float16)


def test_a_cache_whose_time_changed_is_verified_by_its_checksum(tmp_path, monkeypatch):
    write_embedding_shards(tmp_path, random_embeddings(50), [f"a{n}" for n in range(50)])
    query = random_embeddings(1, seed=1)
    before = EmbeddingIndex(tmp_path).search(query)
    os.utime(tmp_path / ".index" / "images_embeds.npy", ns=(1, 1))
    monkeypatch.setattr("biomedclip.embedding_shards._write_cache", lambda *arguments: pytest.fail("written again"))
    assert EmbeddingIndex(tmp_path).search(query) == before


def test_a_folder_that_cannot_be_written_is_searched_too(tmp_path, caplog):
    embeds = random_embeddings(50)
    write_embedding_shards(tmp_path, embeds, [f"a{n}" for n in range(50)])
    (tmp_path / ".index").write_text("in the way", encoding="utf-8")  # the tests may run as root
    index = EmbeddingIndex(tmp_path)
    assert "cannot be written" in caplog.text
    assert index.search(embeds[8].astype(np.float32), top_k=1)[0][0]["id"] == "a8"


def test_near_duplicates_are_the_connected_components(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAIR_BLOCK", 32)
    monkeypatch.setattr(module, "_MOST_PAIRS", 20)
    generator = np.random.default_rng(0)
    centers = random_embeddings(60, dimension=8, dtype=np.float32)
    embeds = centers[generator.integers(0, 60, 150)] + 0.04 * generator.standard_normal((150, 8), dtype=np.float32)
    embeds = (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float32)
    ids = [f"{number * 7919 % 150:03}" for number in range(150)]
    index = EmbeddingIndex(write_embedding_shards(tmp_path, embeds, ids))
    groups = index.near_duplicates(0.97)
    # Single linkage joins clusters while their closest members are within a distance.
    distances = 1 - embeds.astype(np.float64) @ embeds.T.astype(np.float64)
    labels = fcluster(linkage(distances[np.triu_indices(150, 1)], "single"), 1 - 0.97, "distance")
    expected = [{ids[row] for row in np.flatnonzero(labels == label)} for label in set(labels)]
    assert {frozenset(row["id"] for row in group) for group in groups} == {frozenset(e) for e in expected if len(e) > 1}
    assert len(groups) > 10 and [len(group) for group in groups] == sorted((len(g) for g in groups), reverse=True)
    np.fill_diagonal(distances, 2)
    for row in groups[0]:
        assert row["similarity"] == pytest.approx(1 - distances[ids.index(row["id"])].min(), abs=1e-6)
        assert row["similarity"] >= 0.97


def test_near_duplicates_respect_a_filter(tmp_path):
    embeds = np.repeat(random_embeddings(3, dtype=np.float32), 4, axis=0)
    columns = {"year": [2000 + number % 4 for number in range(12)]}
    index = EmbeddingIndex(write_embedding_shards(tmp_path, embeds, [f"{n:02}" for n in range(12)], columns=columns))
    groups = index.near_duplicates(0.99, where=ds.field("year") >= 2002)
    assert [[row["id"] for row in group] for group in groups] == [["02", "03"], ["06", "07"], ["10", "11"]]
    assert index.near_duplicates(0.99, where=ds.field("year") > 2002) == []


def test_a_folder_without_readable_images_has_no_results(tmp_path):
    index = EmbeddingIndex(write_embedding_shards(tmp_path, random_embeddings(2), ["a", "b"], unreadable=[0, 1]))
    assert (len(index), index.search(random_embeddings(2, seed=1)), index.near_duplicates(0.9)) == (0, [[], []], [])


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones((2, 5)), r"shape \(2, 5\), and must have shape \(queries, 16\)"),
        (np.ones((2, 2, 16)), r"shape \(2, 2, 16\)"),
        (np.full(16, np.nan), "contain NaN"),
    ],
)
def test_queries_that_do_not_fit_are_refused(tmp_path, queries, message):
    index = EmbeddingIndex(write_embedding_shards(tmp_path, random_embeddings(4), list("abcd")))
    with pytest.raises(ValueError, match=message):
        index.search(queries)
    with pytest.raises(ValueError, match="`top_k` must be at least 1"):
        index.search(np.ones(16), top_k=0)


def test_folders_without_embeddings_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        EmbeddingIndex(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="Write them with biomedclip embed"):
        EmbeddingIndex(tmp_path)
    write_embedding_shards(tmp_path, random_embeddings(4), list("abcd"))
    with pytest.raises(FileNotFoundError, match="no embeddings of texts, only of images"):
        EmbeddingIndex(tmp_path, modality="text")
    with pytest.raises(ValueError, match="`modality` must be one of image, text"):
        EmbeddingIndex(tmp_path, modality="video")
    with pytest.raises(ValueError, match="`method` must be one of exact, hnsw"):
        EmbeddingIndex(tmp_path, method="ivf")


def test_shards_of_different_models_are_refused(tmp_path):
    write_embedding_shards(tmp_path, random_embeddings(4), list("abcd"))
    write_embedding_shards(tmp_path, random_embeddings(4), list("efgh"), first_shard=1, weights="other")
    with pytest.raises(ValueError, match=r"images-00001.parquet and images-00000.parquet .* different models"):
        EmbeddingIndex(tmp_path)


def test_damaged_shards_are_named(tmp_path):
    write_embedding_shards(tmp_path, random_embeddings(4), list("abcd"))
    path = tmp_path / "data" / "images-00000.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="images-00000.parquet: damaged"):
        EmbeddingIndex(tmp_path)


def test_hnsw_finds_what_faiss_finds_and_is_built_again_when_the_embeddings_change(tmp_path):
    faiss = pytest.importorskip("faiss")
    embeds, ids = random_embeddings(400, dtype=np.float32), [f"{number:03}" for number in range(400)]
    write_embedding_shards(tmp_path, embeds, ids, unreadable=[1])
    queries = random_embeddings(6, seed=1, dtype=np.float32)
    index = EmbeddingIndex(tmp_path, method="hnsw")
    exact = faiss.IndexFlatIP(16)
    exact.add(np.delete(embeds, 1, axis=0))
    similarities, _ = exact.search(queries, 10)
    for hits, expected in zip(index.search(queries), similarities, strict=True):
        np.testing.assert_allclose([hit["similarity"] for hit in hits], expected, atol=1e-6)
    written = (tmp_path / ".index" / "images.hnsw").stat().st_mtime_ns
    EmbeddingIndex(tmp_path, method="hnsw")
    assert (tmp_path / ".index" / "images.hnsw").stat().st_mtime_ns == written
    write_embedding_shards(tmp_path, queries[:1], ["new"], first_shard=1)
    assert EmbeddingIndex(tmp_path, method="hnsw").search(queries[0])[0][0]["id"] == "new"
    with pytest.raises(ValueError, match="hnsw does not support `where`"):
        index.search(queries, where=ds.field("id") == "000")


def test_the_description_of_the_cache_names_its_shards(tmp_path):
    write_embedding_shards(tmp_path, random_embeddings(40), [str(n) for n in range(40)], rows_per_shard=20)
    EmbeddingIndex(tmp_path)
    content = json.loads((tmp_path / ".index" / "images.json").read_text(encoding="utf-8"))
    assert [entry[0] for entry in content["shards"]] == ["images-00000.parquet", "images-00001.parquet"]
    assert 0.99 < content["largest_norm"] < 1.01 and len(content["embeds"]["checksum"]) == 32
