"""What tests share: real data where it lies, and a corpus, model and processor small enough to build on the spot."""

import gc
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import helpers.environment as environment  # noqa: F401  (first: what others import reads it)
import pytest
from helpers.mirror_writer import MirrorWriter, build_set
from helpers.object_store import ObjectStore, running_object_store
from helpers.unreliable_server import UnreliableServer


# Files of few tests that start many processes, the longest first: begun last, one of them would keep a single process
# busy while the others have nothing left to do. The Makefile tells pytest-xdist to keep this order.
LONGEST = (
    "test_launching.py",
    "test_commands.py",
    "test_contrastive_trajectories.py",
    "test_executors.py",
    "test_resuming.py",
    "test_exact_resume.py",
    "test_contrastive_sharding.py",
    "test_remote_code.py",
    "test_compiling.py",
    "test_push.py",
    "test_contrastive_loss.py",
)
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; within a file nothing changes."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Excludes what test modules have imported from garbage collection: each training visits all other objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that asks a question: transformers asks on stdin whether to run the code of a folder."""

    def ask(prompt: object = "") -> str:
        # pytest.fail raises no Exception, which transformers would catch.
        pytest.fail(f"input() was called: {prompt}")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real articles and images, which are never part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not at {SHARED_DATA}")
    return SHARED_DATA


class Hangs(BaseException):
    """Not an error that is caught and tried again."""


@pytest.fixture
def impatient() -> Iterator[None]:
    """Ends a test that waits forever."""

    def stop(*arguments: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def mirror(tmp_path: Path) -> MirrorWriter:
    """An empty mirror of the bucket."""
    return MirrorWriter(tmp_path / "mirror")


@pytest.fixture
def serve() -> Iterator[Callable[..., UnreliableServer]]:
    """Serves folders over HTTP for the length of a test."""
    with ExitStack() as servers:
        yield lambda *arguments, **options: servers.enter_context(UnreliableServer(*arguments, **options))


@pytest.fixture
def object_store() -> Iterator[ObjectStore]:
    """An S3 server on loopback, to which every `s3://` leads while the test runs."""
    with running_object_store() as store:
        yield store


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built data set of 100 articles with 200 pairs."""
    root = tmp_path_factory.mktemp("built")
    MirrorWriter(root / "mirror").plain_articles(100)
    build_set(root / "mirror", root / "set")
    return root / "set"


SMALL_CONFIG = {
    "projection_dim": 16,
    "vision_config": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,  # about 1 / sqrt(32): with 0.02 so narrow a model learns next to nothing
    },
    "text_config": {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.2,
    },
}


@pytest.fixture
def small_model():
    """A model of some 50,000 parameters with fixed random weights, in evaluation mode."""
    import torch

    from biomedclip import BiomedCLIPConfig, BiomedCLIPModel

    torch.manual_seed(0)
    return BiomedCLIPModel(BiomedCLIPConfig(**SMALL_CONFIG)).eval()


@pytest.fixture(scope="session")
def small_processor():
    """A processor for 32-pixel images, its vocabulary learned from a few words."""
    from transformers import BertTokenizer

    from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor

    words = ["caption of article figure chest x-ray brain mri line chart this is a photo ."] * 9
    numbers = [" ".join(map(str, range(1000, 1100)))]
    tokenizer = BertTokenizer(model_max_length=64).train_new_from_iterator(
        words + numbers, vocab_size=SMALL_CONFIG["text_config"]["vocab_size"], show_progress=False
    )
    image_processor = BiomedCLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return BiomedCLIPProcessor(image_processor, tokenizer)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory, small_processor) -> Path:
    """Folder of a small model and its processor, as a base to fine-tune."""
    import torch

    from biomedclip import BiomedCLIPConfig, BiomedCLIPModel

    folder = tmp_path_factory.mktemp("checkpoint") / "base"
    torch.manual_seed(0)
    BiomedCLIPModel(BiomedCLIPConfig(**SMALL_CONFIG)).save_pretrained(folder)
    small_processor.save_pretrained(folder)
    return folder


def _wide_model(layers: int):
    """Return a model with matrices of 256 by 2,048, which are large enough for 8 bits, and otherwise small."""
    import torch

    from biomedclip import BiomedCLIPConfig, BiomedCLIPModel

    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 4}
    return BiomedCLIPModel(
        BiomedCLIPConfig(
            projection_dim=16,
            vision_config=shape | {"image_size": 32, "patch_size": 8, "initializer_range": 0.06},
            text_config=shape | {"vocab_size": 128, "max_position_embeddings": 64, "initializer_range": 0.06},
        )
    ).eval()


@pytest.fixture(scope="session")
def wide_model():
    """A model of two layers with matrices that are large enough for 8 bits."""
    return _wide_model(2)


@pytest.fixture(scope="session")
def shallow_model():
    """A model of one layer with matrices that are large enough for 8 bits, for exports."""
    return _wide_model(1)


@pytest.fixture(scope="session")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory, small_checkpoint) -> tuple[Path, Path]:
    """A fine-tuned classifier with random weights, and the adapter of another one."""
    import torch
    from peft import LoraConfig, get_peft_model

    from biomedclip import BiomedCLIPForImageClassification, BiomedCLIPProcessor

    folder = tmp_path_factory.mktemp("fine-tuned")
    labels = dict(enumerate(["benign", "malignant", "other"]))
    names = {"id2label": labels, "label2id": {label: number for number, label in labels.items()}, "num_labels": 3}
    processor = BiomedCLIPProcessor.from_pretrained(small_checkpoint).image_processor
    torch.manual_seed(1)
    model = BiomedCLIPForImageClassification.from_pretrained(small_checkpoint, **names)
    model.save_pretrained(folder / "whole")
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"], init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(folder / "adapter")
    model.config.save_pretrained(folder / "adapter" / "config")
    for name in ("whole", "adapter"):
        processor.save_pretrained(folder / name)
    return folder / "whole", folder / "adapter"
