"""The stream of exact batches, and `load_pmc15m`."""

import errno
import itertools
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from helpers.pair_shards import LICENSES, pair_row, write_shards
from torch.utils.data import DataLoader

from biomedclip.processing import PairStream, load_pmc15m, shard_reader
from biomedclip.processing.integrity import TruncatedFile
from biomedclip.processing.pmc.articles import COMMERCIAL_LICENSES, NONCOMMERCIAL_LICENSES
from biomedclip.processing.shard_reader import ShardReader, column_names, shard_paths
from biomedclip.processing.streaming import epoch_order


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """150 pairs in 6 shards of three row groups each, with licenses and mentions."""
    return write_shards(tmp_path_factory.mktemp("pairs"))


def ids(rows):
    return [row["pair_id"] for row in rows]


def first_batches(stream, count, *, world_size=1, workers=0, samples_seen=0):
    """The pairs, epochs and texts of the first batches of 16 pairs, with the parts of all ranks joined."""
    batches = [[] for _ in range(count)]
    for rank in range(world_size):
        pairs = stream.batches(16, rank=rank, world_size=world_size, samples_seen=samples_seen)
        loader = iter(DataLoader(pairs, batch_size=None, num_workers=workers))
        for batch in batches:
            batch += [(row["pair_id"], row["epoch"], row["caption"]) for row in next(loader)]
    return batches


@pytest.mark.parametrize("options", [{}, {"licenses": "commercial", "text": "mentions", "seed": 1}])
@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 0), (1, 3), (2, 2)])
def test_batches_are_the_same_for_every_number_of_ranks_and_workers(pairs, world_size, workers, options):
    stream = PairStream(pairs, **options)
    batches = first_batches(stream, 24)
    assert first_batches(stream, 24, world_size=world_size, workers=workers) == batches
    assert batches[-1][0][1] >= 2, "more than two epochs"


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2)])
def test_resuming_continues_with_the_next_batch(pairs, world_size, workers):
    stream = PairStream(pairs)
    resumed = first_batches(stream, 6, world_size=world_size, workers=workers, samples_seen=9 * 16)
    assert resumed == first_batches(stream, 15)[9:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must"),
        ({"batch_size": -16}, "batch_size must"),
        ({"batch_size": 16, "world_size": 0}, "world_size must"),
        ({"batch_size": 16, "world_size": -2}, "world_size must"),
        ({"batch_size": 16, "world_size": 2, "rank": 2}, "rank must"),
        ({"batch_size": 16, "world_size": 2, "rank": -1}, "rank must"),
        ({"batch_size": 16, "samples_seen": -16}, "samples_seen must"),
        ({"batch_size": 1000}, "batch_size=1000 is larger than the train split"),
        ({"batch_size": 16, "world_size": 3}, "batch_size=16 is not a multiple of world_size=3"),
    ],
)
def test_batches_refuse_invalid_arguments(pairs, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        PairStream(pairs).batches(**arguments)


def test_a_stream_can_be_pickled(pairs):
    stream = PairStream(pairs)
    stream.rows(0, 0, 3)
    assert pickle.loads(pickle.dumps(stream)).rows(1, 5, 20) == stream.rows(1, 5, 20)


def test_a_folder_without_shards_is_a_clear_error(pairs, tmp_path):
    with pytest.raises(FileNotFoundError, match="biomedclip build"):
        PairStream(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: the folder does not exist"):
        load_pmc15m(tmp_path / "nowhere")
    shutil.copytree(pairs, tmp_path / "copy")
    (tmp_path / "copy" / "data" / "train-00000-of-00006.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="one of 6 shards, but only 5 were found"):
        PairStream(tmp_path / "copy")


def test_the_dataset_is_found_from_its_folder_of_shards(pairs):
    stream = PairStream(pairs / "data")
    assert len(stream) == len({row["pair_id"] for row in stream.rows(0, 0, 150)}) == 150
    assert column_names(pairs, "train")[:3] == ["pair_id", "image", "caption"]


@pytest.mark.parametrize("text", ["caption", "mentions", "caption_and_mentions"])
@pytest.mark.parametrize("licenses", [None, "commercial"])
def test_load_pmc15m_with_a_seed_returns_the_rows_of_the_stream(pairs, licenses, text):
    stream = PairStream(pairs, seed=3, licenses=licenses, text=text)
    orders = set()
    assert ids(load_pmc15m(pairs)) == [pair_row(number)["pair_id"] for number in range(150)], "without a seed"
    for epoch in range(4):
        options = {"licenses": licenses, "text": text, "seed": 3, "epoch": epoch}
        theirs = list(load_pmc15m(pairs, columns=shard_reader.TRAINING_COLUMNS, decode=False, **options))
        assert [row | {"epoch": epoch} for row in theirs] == stream.rows(epoch, 0, len(stream))
        orders.add(tuple(ids(theirs)))
    assert len(orders) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1


@pytest.mark.parametrize(
    ("choice", "codes"),
    [
        ("commercial", COMMERCIAL_LICENSES),
        ("noncommercial", NONCOMMERCIAL_LICENSES),
        ("all", set(LICENSES)),
        ("CC BY-NC,CC0", {"CC BY-NC", "CC0"}),
        (["CC BY-NC-SA"], {"CC BY-NC-SA"}),
    ],
)
def test_only_pairs_under_the_chosen_licenses_are_returned(pairs, choice, codes):
    expected = [row["pair_id"] for row in map(pair_row, range(150)) if row["license"] in codes]
    assert ids(load_pmc15m(pairs, columns=["pair_id"], licenses=choice)) == expected
    stream = PairStream(pairs, columns=["pair_id"], licenses=choice)
    rows = stream.rows(0, 0, 150)
    assert len(stream) == len(expected) and sorted(ids(rows)) == sorted(expected)
    assert set(rows[0]) == {"pair_id", "epoch"}, "the license is read and not returned"


def test_a_license_that_the_first_shard_lacks_is_found_in_others(tmp_path):
    write_shards(tmp_path, shards=10, rows=1)
    expected = [row["pair_id"] for row in map(pair_row, range(10)) if row["license"] == "CC BY-NC-SA"]
    assert pair_row(0)["license"] != "CC BY-NC-SA"
    assert ids(load_pmc15m(tmp_path, licenses="CC BY-NC-SA")) == expected != []


def test_licenses_without_pairs_are_a_clear_error(pairs):
    with pytest.raises(ValueError, match=r"no pair under TDM. The licenses are: .*CC BY \(\d+ pairs\)"):
        PairStream(pairs, licenses="TDM")
    with pytest.raises(ValueError, match="'CC-BY' is not a license code of PMC. Did you mean 'CC BY'"):
        PairStream(pairs, licenses="CC-BY")
    for streaming_set in (True, False):
        with pytest.raises(ValueError, match="no pair under TDM"):
            load_pmc15m(pairs, licenses="TDM", streaming=streaming_set)
    with pytest.raises(ValueError, match="No license is selected. Pass commercial"):
        load_pmc15m(pairs, licenses=[])


def test_a_mention_is_chosen_by_seed_epoch_and_pair(pairs):
    mentions = {row["pair_id"]: row["mentions"] for row in map(pair_row, range(150))}
    drawn = [{row["pair_id"]: row["caption"] for row in load_pmc15m(pairs, text="mentions", epoch=e)} for e in range(8)]
    alike = 0
    for pair_id, paragraphs in mentions.items():
        texts = {epoch[pair_id] for epoch in drawn}
        if paragraphs:
            assert texts <= set(paragraphs)
            # Eight choices among two paragraphs are all the same once in 128 pairs.
            alike += len(paragraphs) > 1 and len(texts) == 1
        else:
            assert texts == {f"Caption {pair_id[3:].split('.')[0]}."}, "the caption if no paragraph cites the figure"
    assert alike <= 2
    cited = [pair_id for pair_id, paragraphs in mentions.items() if paragraphs]
    firsts = Counter(epoch[pair_id] == mentions[pair_id][0] for epoch in drawn for pair_id in cited)
    # The first of one, two or three paragraphs is chosen in 11 of 18 cases.
    assert 0.5 < firsts[True] / firsts.total() < 0.7
    other_seed = [row["caption"] for row in load_pmc15m(pairs, text="mentions", seed=1, epoch=0)]
    assert sorted(other_seed) != sorted(drawn[0].values())
    for row in load_pmc15m(pairs, text="caption_and_mentions", epoch=1):
        caption = pair_row(int(row["pmcid"][3:]))["caption"]
        assert row["caption"] in ([f"{caption} {mention}" for mention in row["mentions"] or ()] or [caption])


@pytest.mark.parametrize("licenses", [None, "commercial"])
def test_a_dataset_can_start_in_the_middle_of_an_epoch(pairs, licenses):
    options = {"columns": ["pair_id"], "licenses": licenses, "seed": 5, "epoch": 1}
    whole = ids(load_pmc15m(pairs, **options))
    for start in (1, 9, 10, 24, 25, 26, len(whole) - 1, len(whole)):
        assert ids(load_pmc15m(pairs, start=start, **options)) == whole[start:]
    assert ids(load_pmc15m(pairs, start=len(whole), streaming=False, **options)) == []
    for start, stream in itertools.product((-1, len(whole) + 1), (True, False)):
        with pytest.raises(ValueError, match=rf"start must be in 0\.\.{len(whole)}"):
            load_pmc15m(pairs, start=start, streaming=stream, **options)


@pytest.mark.parametrize("start", [0, 17])
def test_a_loaded_state_continues_with_the_next_row(pairs, start):
    def opened():
        return load_pmc15m(pairs, columns=["pair_id", "caption"], licenses="noncommercial", seed=2, start=start)

    whole = ids(opened())
    for position in (1, 10, 25, len(whole) - 1):
        data_set = opened()
        rows = iter(data_set)
        taken = [next(rows)["pair_id"] for _ in range(position)]
        state = pickle.loads(pickle.dumps(data_set.state_dict()))
        resumed = opened()
        resumed.load_state_dict(state)
        assert taken + ids(resumed) == whole


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 0), (3, 2), (1, 7)])
def test_every_row_is_returned_once_for_any_number_of_processes_and_workers(pairs, world_size, workers):
    taken = []
    for rank in range(world_size):
        share = split_dataset_by_node(load_pmc15m(pairs, columns=["pair_id"], seed=0), rank, world_size)
        taken += ids(DataLoader(share, batch_size=None, num_workers=workers))
    assert sorted(taken) == sorted(pair_row(number)["pair_id"] for number in range(150))


@pytest.mark.parametrize("text", ["caption", "mentions"])
def test_random_access_returns_the_rows_of_the_stream(pairs, text):
    options = {"licenses": "commercial", "text": text, "seed": 4, "epoch": 1, "start": 7, "decode": False}
    options["columns"] = ["image", "caption", "pair_id"]
    assert list(load_pmc15m(pairs, streaming=False, **options)) == list(load_pmc15m(pairs, **options))


def test_a_missing_column_is_named(pairs, tmp_path):
    for view in (PairStream, load_pmc15m):
        with pytest.raises(ValueError, match=r"no column 'color'. The columns are pair_id, image"):
            view(pairs, columns=["pair_id", "color"])
    old = tmp_path / "data" / "train-00000-of-00001.parquet"
    old.parent.mkdir()
    pq.write_table(pq.read_table(pairs / "data").drop_columns(["mentions"]), old)
    with pytest.raises(ValueError, match="no column 'mentions'"):
        PairStream(tmp_path, text="mentions")


def test_an_invalid_text_is_refused(pairs):
    for view in (PairStream, load_pmc15m):
        with pytest.raises(ValueError, match="text must be one of caption, mentions, caption_and_mentions"):
            view(pairs, text="abstract")
        with pytest.raises(ValueError, match="'caption', which is not in columns="):
            view(pairs, text="mentions", columns=["image", "pair_id"])


@pytest.fixture
def copy(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_reader, "FIRST_PAUSE", 0.001)
    return shutil.copytree(pairs, tmp_path / "copy")


def epochs(path):
    """Iterators over an epoch of the stream and of `load_pmc15m`, which have opened the dataset."""
    stream = PairStream(path, columns=["pair_id"])
    return {
        "set": iter(load_pmc15m(path, columns=["pair_id"], seed=0)),
        "stream": (row for n in range(150) for row in stream.rows(0, n, n + 1)),
    }


@pytest.mark.parametrize("view", ["set", "stream"])
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: path.rename(path.with_name("elsewhere")), FileNotFoundError, "the shard no longer exists"),
        (lambda path: path.write_bytes(b"PAR1 nothing else"), OSError, "the shard could not be read in 5 attempts"),
    ],
)
def test_a_shard_that_vanishes_or_is_damaged_is_named(copy, view, damage, error, message):
    rows = epochs(copy)[view]
    next(rows)
    path = shard_paths(copy, "train")[epoch_order(6, 0, 0)[3]].removeprefix("file://")
    damage(Path(path))
    with pytest.raises(error, match=f"{path}: {message}"):
        list(rows)


def test_a_file_is_opened_again_after_its_connection_is_lost(copy):
    stream = PairStream(copy)
    expected = stream.rows(0, 0, 25)
    stream = PairStream(copy)
    stream.rows(0, 0, 1)
    first = shard_paths(copy, "train")[epoch_order(6, 0, 0)[0]]
    stream._reader._file(os.getpid(), first).close(force=True)
    assert stream.rows(0, 0, 25) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pa.ArrowInvalid("content"), True),
        (OSError("content"), True),
        (OSError(errno.EIO, "disk"), False),
        (ValueError("other"), False),
        (TruncatedFile("short"), False),
    ],
)
def test_errors_about_content_are_damage_and_errors_of_the_system_are_not(error, expected):
    assert shard_reader._is_damage(error) == expected


@pytest.mark.parametrize(("licenses", "shown"), [(None, "Opening shards"), ("commercial", "Selecting pairs")])
def test_the_progress_bar_states_what_is_read_of_the_shards(pairs, monkeypatch, licenses, shown):
    bars = []
    monkeypatch.setattr(shard_reader, "tqdm", lambda items, *, desc, **options: bars.append(desc) or items)
    PairStream(pairs, licenses=licenses)
    assert bars == [shown]


@pytest.mark.parametrize(
    ("seed", "epoch", "order"),
    [
        (0, 0, [2, 4, 3, 6, 5, 0, 1, 7]),
        (0, 1, [1, 3, 7, 6, 0, 4, 2, 5]),
        (1, 0, [5, 0, 1, 4, 2, 6, 3, 7]),
        (1, 1, [6, 1, 4, 0, 3, 2, 5, 7]),
        (0, 2, [5, 2, 6, 0, 7, 1, 4, 3]),
        (2, 0, [6, 5, 7, 2, 3, 4, 0, 1]),
        (7, 3, [3, 5, 0, 4, 2, 7, 1, 6]),
        (3, 7, [1, 2, 7, 4, 0, 3, 5, 6]),
    ],
)
def test_the_order_of_shards_is_the_one_of_earlier_versions(tmp_path, seed, epoch, order):
    # Later versions must resume a run with the same pairs. Seed and epoch must not be exchangeable.
    write_shards(tmp_path, shards=8, rows=1)
    names = [f"PMC{shard}.1/F1/g1" for shard in order]
    stream = PairStream(tmp_path, seed=seed, columns=["pair_id"])
    assert ids(stream.rows(epoch, 0, 8)) == names
    assert [int(url.split("train-")[1][:5]) for url, _ in stream.shards(epoch)] == order
    assert ids(load_pmc15m(tmp_path, columns=["pair_id"], seed=seed, epoch=epoch)) == names


@pytest.mark.parametrize(
    ("seed", "drawn"),
    [(0, ["aeeb", "fhdc", "ccah"]), (1, ["gdgc", "dabc", "cdfb"]), (2, ["hfda", "cbeh", "dcce"])],
)
def test_the_chosen_mentions_are_those_of_earlier_versions(seed, drawn):
    reader = ShardReader([], text="mentions", seed=seed)
    for epoch, letters in enumerate(drawn):
        rows = [{"caption": "", "mentions": list("abcdefgh"), "pair_id": f"PMC{n}.1/F1/g"} for n in range(4)]
        assert "".join(reader.text_of(row, epoch) for row in rows) == letters
