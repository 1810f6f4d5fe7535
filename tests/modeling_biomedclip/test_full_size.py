"""The published size, not only small ones: one step of training, saved, loaded, and asked through the pipeline."""

import torch
from PIL import Image
from transformers import AutoModel, BertTokenizer, pipeline

from modeling_biomedclip import BiomedCLIPConfig, BiomedCLIPModel, ContrastiveTrainer, ContrastiveTrainingArguments
from processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor, ContrastiveCollator


def test_the_full_model_trains_saves_loads_and_answers(tmp_path):
    torch.manual_seed(0)
    model = BiomedCLIPModel(BiomedCLIPConfig())
    tokenizer = BertTokenizer().train_new_from_iterator(
        ["a chest x-ray and a brain mri"], vocab_size=80, show_progress=False
    )
    processor = BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)
    rows = [
        {"pair_id": str(n), "image": Image.new("RGB", (300, 250), (60 * n, 0, 0)), "caption": text}
        for n, text in enumerate(["a chest x-ray", "a brain mri"])
    ]
    before = model.vision_model.layers[11].mlp.fc1.weight.detach().clone()
    trainer = ContrastiveTrainer(
        model,
        ContrastiveTrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, save_strategy="no"
        ),
        train_dataset=rows,
        data_collator=ContrastiveCollator(processor, training=True),
        processing_class=processor,
    )
    output = trainer.train()
    assert 0 < output.training_loss < 20
    assert not torch.equal(before, model.vision_model.layers[11].mlp.fc1.weight)

    trainer.save_model(str(tmp_path / "model"))
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert loaded.num_parameters() == 195_902_721
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True))
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "model"), device="cpu")
    answers = classify(rows[0]["image"], candidate_labels=["chest x-ray", "brain mri"])
    assert {answer["label"] for answer in answers} == {"chest x-ray", "brain mri"}
