"""BioViL and BioViL-T with random weights give the results of the package hi-ml-multimodal."""

import json

import numpy as np
import pytest
import torch
from helpers.benchmark_files import drawn_pixels, write_rsna
from helpers.model_results import read_results
from PIL import Image
from sklearn.metrics import roc_auc_score

from biomedclip import embed_images, embed_texts
from biomedclip.processing import load_benchmark, read_image
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.main import main


pytest.importorskip(
    "health_multimodal", reason="the package is not installed: pip install hi-ml-multimodal, or biomedclip[biovil]"
)
pytest.importorskip("health_multimodal.vlp", reason="a package that hi-ml-multimodal needs is not installed")

from health_multimodal.image import ImageInferenceEngine
from health_multimodal.image.data.transforms import create_chest_xray_transform_for_inference
from health_multimodal.image.model import pretrained
from health_multimodal.image.model.model import ImageModel
from health_multimodal.text import TextInferenceEngine
from health_multimodal.text import utils as text_utils
from health_multimodal.text.model import CXRBertConfig, CXRBertModel, CXRBertTokenizer
from health_multimodal.vlp import ImageTextInferenceEngine


pytestmark = pytest.mark.slow


# CXR-BERT as published, with fewer layers. Its vocabulary is not in the package.
CXR_BERT = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "projection_size": 128} | {
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
}
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] . , ? ! no evidence of pneumonia findings suggesting the lungs are clear a photo"
)
# The first ends in punctuation, which the package removes; the last is longer than the positions.
TEXTS = ["No evidence of pneumonia.", "Findings suggesting pneumonia", "The lungs are clear. Clear", "clear " * 600]
# Image encoder and size of the images.
KINDS = {"biovil": ("resnet50", 480), "biovil-t": ("resnet50_multi_image", 448)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write the files that the package downloads, with random weights."""
    root = tmp_path_factory.mktemp("biovil")
    torch.manual_seed(0)
    for kind, (encoder, _) in KINDS.items():
        model = ImageModel(encoder, joint_feature_size=128)
        for name, tensor in model.state_dict().items():  # statistics and biases that are not zeros and ones
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * 0.2 + ("bias" not in name and "mean" not in name))
        torch.save(model.state_dict(), root / f"{kind}.pt")
    words = WORDS.split()
    CXRBertModel(CXRBertConfig(**CXR_BERT, vocab_size=len(words))).save_pretrained(root / "bert")
    (root / "bert" / "vocab.txt").write_text("\n".join(words))
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (root / "bert" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return root


@pytest.fixture
def downloads(files, monkeypatch):
    """Replace the downloads of the package by the files."""
    monkeypatch.setattr(pretrained, "_download_biovil_image_model_weights", lambda: files / "biovil.pt")
    monkeypatch.setattr(pretrained, "_download_biovil_t_image_model_weights", lambda: files / "biovil-t.pt")
    for name in ("BIOMED_VLP_CXR_BERT_SPECIALIZED", "BIOMED_VLP_BIOVIL_T"):
        monkeypatch.setattr(text_utils, name, str(files / "bert"))
    # The package calls a method that transformers 5 has removed. Ours does not need it.
    monkeypatch.setattr(
        CXRBertTokenizer,
        "batch_encode_plus",
        lambda self, batch_text_or_text_pairs, **options: self(batch_text_or_text_pairs, **options),
        raising=False,
    )


def engine_of(encoder) -> ImageTextInferenceEngine:
    """Return the inference of the package with our models. It reads and prepares images and texts itself."""
    transform = create_chest_xray_transform_for_inference(resize=512, center_crop_size=KINDS[encoder.type][1])
    return ImageTextInferenceEngine(
        ImageInferenceEngine(encoder.model.image_model, transform),
        TextInferenceEngine(encoder.processor.tokenizer, encoder.model.text_model),
    )


def save_images(folder) -> list:
    """Save gray and color radiographs. Two of them do not use all values."""
    folder.mkdir()
    gray = Image.fromarray(drawn_pixels(0, 600, True)).convert("L")
    narrow = Image.fromarray((np.asarray(gray) * 0.4 + 30).astype(np.uint8))
    gray.save(folder / "gray.png")
    narrow.resize((700, 520)).save(folder / "narrow.png")
    narrow.convert("RGB").save(folder / "color.jpg")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_equal_those_of_the_package(kind, downloads, tmp_path):
    encoder = load_dual_encoder(kind)
    engine = engine_of(encoder)
    assert encoder.type == kind and not encoder.model.training
    paths = save_images(tmp_path / "images")
    theirs = torch.stack([engine.image_inference_engine.get_projected_global_embedding(path) for path in paths])
    ours = embed_images(encoder.model, encoder.processor, [read_image(path) for path in paths])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    assert (ours[1:] - ours[0]).abs().amax(dim=1).min() > 1e-4, "images differ by more than the tolerance"
    theirs = engine.text_inference_engine.get_embeddings_from_prompt(TEXTS[:-1])
    ours = embed_texts(encoder.model, encoder.processor, TEXTS)
    torch.testing.assert_close(ours[:-1], theirs, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="longer than the maximum"):
        engine.text_inference_engine.get_embeddings_from_prompt(TEXTS[-1:])
    assert ours[-1].isfinite().all(), "long texts are cut at 512 tokens"


def test_rsna_is_classified_with_the_prompts_of_the_biovil_paper(downloads, tmp_path):
    write_rsna(tmp_path / "rsna", {f"patient-{number}": [number % 2] for number in range(12)}, size=80)
    arguments = ["zero-shot", "--benchmark", "rsna", "--data", str(tmp_path / "rsna"), "--model", "biovil"]
    assert main(["evaluate", *arguments, "--prompts", "biovil", "--output-dir", str(tmp_path / "out")]) == 0
    results = read_results(tmp_path / "out")
    assert results["settings"]["template_set"] == "biovil"
    prompts = {"normal": "No evidence of pneumonia", "pneumonia": "Findings suggesting pneumonia"}
    assert results["settings"]["class_names"] == prompts

    engine, benchmark = engine_of(load_dual_encoder("biovil")), load_benchmark("rsna", tmp_path / "rsna")
    correct, margins = [], []
    for name, label in zip(benchmark.images.names, benchmark.images.labels, strict=True):
        path = tmp_path / "rsna" / "stage_2_train_images" / f"{name}.dcm"
        scores = {which: engine.get_similarity_score_from_raw_data(path, prompt) for which, prompt in prompts.items()}
        correct.append(max(scores, key=scores.__getitem__) == label)
        margins.append(scores["pneumonia"] - scores["normal"])
    assert results["metrics"]["accuracy"] == pytest.approx(np.mean(correct))
    truth = [label == "pneumonia" for label in benchmark.images.labels]
    assert len(set(truth)) == 2 and results["metrics"]["auroc"] == pytest.approx(roc_auc_score(truth, margins))
