"""The model of the published size is trained for a step, saved, loaded, used in a pipeline, and converted."""

import json
import sys

import pytest
import torch
from helpers.commands import run_python
from PIL import Image
from transformers import AutoModel, BertTokenizer, pipeline

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, ContrastiveTrainer, ContrastiveTrainingArguments, to_open_clip
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor, ContrastiveCollator


pytestmark = pytest.mark.slow


PARAMETERS = 195_902_721


@pytest.fixture(scope="module")
def full_size() -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    """Return the model of the published size, and a processor with a small vocabulary."""
    torch.manual_seed(0)
    texts = ["a chest x-ray and a brain mri"]
    tokenizer = BertTokenizer().train_new_from_iterator(texts, vocab_size=80, show_progress=False)
    return BiomedCLIPModel(BiomedCLIPConfig()), BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)


def equal_parameters(ours: BiomedCLIPModel, theirs: BiomedCLIPModel) -> bool:
    return all(torch.equal(our, their) for our, their in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_full_model_trains_saves_and_loads(full_size, tmp_path):
    model, processor = full_size
    rows = [
        {"pair_id": str(n), "image": Image.new("RGB", (300, 250), (60 * n, 0, 0)), "caption": text}
        for n, text in enumerate(["a chest x-ray", "a brain mri"])
    ]
    before = model.vision_model.layers[11].mlp.fc1.weight.detach().clone()
    options = {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no"}
    trainer = ContrastiveTrainer(
        model,
        ContrastiveTrainingArguments(output_dir=str(tmp_path / "run"), **options),
        train_dataset=rows,
        data_collator=ContrastiveCollator(processor, training=True),
        processing_class=processor,
    )
    output = trainer.train()
    assert 0 < output.training_loss < 20
    assert not torch.equal(before, model.vision_model.layers[11].mlp.fc1.weight)

    trainer.save_model(str(tmp_path / "model"))
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "model"), device="cpu")
    assert classify.model.num_parameters() == PARAMETERS and equal_parameters(model, classify.model)
    answers = classify(rows[0]["image"], candidate_labels=["chest x-ray", "brain mri"])
    assert {answer["label"] for answer in answers} == {"chest x-ray", "brain mri"}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory is read from /proc")
def test_the_full_model_is_converted_in_less_than_3_gib(full_size, tmp_path):
    model, processor = full_size
    to_open_clip(model, processor, tmp_path / "open_clip")
    code = (
        "import sys\n"
        "from biomedclip.run_scripts.main import main\n"
        "status = main(['convert', *sys.argv[1:]])\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
        "sys.exit(status)\n"
    )
    run = run_python("-c", code, tmp_path / "open_clip", tmp_path / "converted")
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.splitlines()[-1]) < 3 * 2**20, "peak in KiB"
    assert json.loads((tmp_path / "converted" / "conversion.json").read_text())["parameters"] == PARAMETERS
    assert equal_parameters(model, AutoModel.from_pretrained(tmp_path / "converted"))
