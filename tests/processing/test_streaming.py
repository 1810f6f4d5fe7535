"""Reading pairs back, as a data set and as a stream of exact batches."""

import pickle
import shutil

import pytest
from torch.utils.data import DataLoader

from processing import PairStream, load_pmc15m


def first_batches(stream, count, *, world_size=1, workers=0, samples_seen=0, batch_size=16):
    """Pair ids and epochs of the first batches, those of all ranks put together."""
    batches = [[] for _ in range(count)]
    for rank in range(world_size):
        pairs = stream.batches(batch_size, rank=rank, world_size=world_size, samples_seen=samples_seen)
        loader = iter(DataLoader(pairs, batch_size=None, num_workers=workers))
        for batch in batches:
            batch += [(row["pair_id"], row["epoch"]) for row in next(loader)]
    return batches


def test_both_views_give_the_same_pairs(built):
    stream = PairStream(built, columns=["pair_id", "caption", "image"])
    ours = {row["pair_id"]: row for row in stream.rows(0, 0, len(stream))}
    theirs = {row["pair_id"]: row for row in load_pmc15m(built, split="train")}
    assert set(ours) == set(theirs)
    for pair_id, row in theirs.items():
        assert row["caption"] == ours[pair_id]["caption"]
        assert row["image"].size == (40, 30)


def test_an_epoch_holds_every_pair_once_and_epochs_differ_in_order(built):
    stream = PairStream(built)
    epochs = [[row["pair_id"] for row in stream.rows(epoch, 0, len(stream))] for epoch in (0, 1)]
    assert len(set(epochs[0])) == len(stream)
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]


def test_the_seed_decides_the_order(built):
    orders = [[row["pair_id"] for row in PairStream(built, seed=seed).rows(0, 0, 50)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 0), (1, 2), (2, 2), (1, 3)])
def test_batches_are_the_same_for_every_number_of_ranks_and_workers(built, world_size, workers):
    stream = PairStream(built)
    # 24 batches of 16 are more than two epochs of some 160 pairs.
    assert first_batches(stream, 24, world_size=world_size, workers=workers) == first_batches(stream, 24)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2)])
def test_resuming_goes_on_with_the_very_next_batch(built, world_size, workers):
    stream = PairStream(built)
    resumed = first_batches(stream, 6, world_size=world_size, workers=workers, samples_seen=9 * 16)
    assert resumed == first_batches(stream, 15)[9:]


def test_a_stream_travels_to_another_process(built):
    stream = PairStream(built)
    stream.rows(0, 0, 3)
    assert pickle.loads(pickle.dumps(stream)).rows(1, 5, 20) == stream.rows(1, 5, 20)


def test_columns_can_be_chosen(built):
    row = next(iter(load_pmc15m(built, split="test", columns=["caption", "license"])))
    assert set(row) == {"caption", "license"}


def test_the_folder_of_shards_itself_will_do(built):
    assert len(PairStream(built / "data")) == len(PairStream(built))


def test_a_set_with_random_access_is_to_be_had(built):
    pairs = load_pmc15m(built, split="validation", streaming=False)
    assert pairs[0]["image"].mode == "RGB" and len(pairs) > 0


def test_a_folder_without_shards_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="biomedclip build"):
        PairStream(tmp_path)
    with pytest.raises(FileNotFoundError, match="no train-"):
        load_pmc15m(tmp_path / "nowhere")


def test_a_missing_shard_is_noticed(built, tmp_path):
    shutil.copytree(built, tmp_path / "copy")
    sorted((tmp_path / "copy" / "data").glob("train-*.parquet"))[0].unlink()
    with pytest.raises(FileNotFoundError, match="only .* are there"):
        PairStream(tmp_path / "copy")


def test_a_batch_that_cannot_be_is_refused(built):
    stream = PairStream(built)
    with pytest.raises(ValueError, match="does not fit"):
        stream.batches(1000)
    with pytest.raises(ValueError, match="shared evenly"):
        stream.batches(16, world_size=3)
