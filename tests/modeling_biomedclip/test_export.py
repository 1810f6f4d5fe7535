"""Exported graphs compared with the model."""

import copy
import json

import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from biomedclip import ExportedModel, ZeroShotClassifier, embed_images, embed_texts, export_model
from biomedclip import export as export_module


pytestmark = pytest.mark.slow
TEXTS = ["chest x-ray", "a", "caption of article figure " * 4, "brain mri"]
PICTURES = [Image.effect_noise((40 + n, 36), 99) for n in range(5)]
SUFFIXES = ("", "_fp16", "_int8", "_quantized")
# float32: sums in another order. The others have 8 bits or less, and the small model few products to average over.
SMALLEST_COSINE = {"float32": 1 - 1e-6, "float16": 0.9999, "bfloat16": 0.999, "int8": 0.99}


@pytest.fixture(
    scope="module",
    params=[(format, precision) for format, precisions in export_module.FORMATS.items() for precision in precisions],
    ids="-".join,
)
def exported(request, wide_model, tmp_path_factory):
    format, precision = request.param
    folder = tmp_path_factory.mktemp("exported")
    export_model(wide_model, folder, format=format, precision=precision)
    return folder, precision


def test_every_batch_and_length_gives_the_embeddings_of_the_model(exported, wide_model, small_processor):
    folder, precision = exported
    model = ExportedModel(folder)
    for count in (1, 5):
        for embed, inputs in ((embed_images, PICTURES), (embed_texts, TEXTS)):
            ours, exact = (embed(each, small_processor, inputs[:count]) for each in (model, wide_model))
            assert ours.shape == exact.shape
            assert cosine_similarity(ours, exact).min() > SMALLEST_COSINE[precision]


def test_padding_is_masked(exported, small_processor):
    model = ExportedModel(exported[0])
    inputs = small_processor(text=["brain mri", "caption of article figure"], return_tensors="pt")
    alone = small_processor(text=["brain mri"], return_tensors="pt")
    together, single = (model.get_text_features(**each).pooler_output[0] for each in (inputs, alone))
    assert cosine_similarity(together, single, dim=0) > SMALLEST_COSINE[exported[1]]


def test_an_exported_model_works_in_the_classifier(exported, wide_model, small_processor):
    folder, precision = exported
    names = ["chest", "brain", "chart"]
    ours = ZeroShotClassifier(ExportedModel(folder), small_processor, names).logits(PICTURES)
    exact = ZeroShotClassifier(wide_model, small_processor, names).logits(PICTURES)
    torch.testing.assert_close(
        ours, exact, rtol=0, atol={"float32": 1e-4, "float16": 0.05, "bfloat16": 0.5, "int8": 1.0}[precision]
    )


def test_8_bits_take_about_a_quarter_of_the_space(wide_model, tmp_path):
    for format in export_module.FORMATS:
        sizes = {}
        for precision in ("float32", "int8"):
            folder = tmp_path / f"{format}_{precision}"
            export_model(wide_model, folder, format=format, precision=precision)
            files = [file for file in folder.rglob("*") if file.is_file() and "_quantized" not in file.name]
            sizes[precision] = sum(file.stat().st_size for file in files)
        assert sizes["int8"] < 0.6 * sizes["float32"], "half of this model's matrices are large enough"


def test_several_precisions_share_a_folder(wide_model, small_processor, tmp_path):
    precisions = ["float16", "int8", "float32"]
    export_model(wide_model, tmp_path, precision=precisions)
    names = [f"{tower}_model{suffix}.onnx" for tower in ("text", "vision") for suffix in SUFFIXES]
    assert sorted(file.name for file in (tmp_path / "onnx").iterdir()) == sorted(names)
    for tower in ("text", "vision"):
        int8, quantized = ((tmp_path / f"onnx/{tower}_model{end}.onnx").read_bytes() for end in ("_int8", "_quantized"))
        assert int8 == quantized
    first, *others = (embed_texts(model, small_processor, TEXTS) for model in of_each(tmp_path, [None, *precisions]))
    assert torch.equal(first, others[0]) and not any(torch.equal(first, other) for other in others[1:])


def of_each(folder, precisions):
    return (ExportedModel(folder, precision=precision) for precision in precisions)


def test_an_export_of_an_earlier_version_loads(small_model, small_processor, tmp_path):
    export_model(small_model, tmp_path)
    for name, tower in (("image", "vision"), ("text", "text")):
        (tmp_path / "onnx" / f"{tower}_model.onnx").rename(tmp_path / f"{name}.onnx")
    description = json.loads((tmp_path / "export.json").read_text())
    del description["precisions"], description["logit_bias"]
    (tmp_path / "export.json").write_text(json.dumps(description))
    (tmp_path / "config.json").unlink()
    embeds = embed_images(ExportedModel(tmp_path), small_processor, PICTURES)
    assert cosine_similarity(embeds, embed_images(small_model, small_processor, PICTURES)).min() > 1 - 1e-6


def test_a_precision_that_was_not_exported_is_refused(small_model, tmp_path):
    export_model(small_model, tmp_path, precision=["float32", "float16"])
    with pytest.raises(ValueError, match="contains graphs in float32, float16, but `precision` is 'int8'"):
        ExportedModel(tmp_path, precision="int8")
    for format, precisions, message in (("openvino", ["float32", "int8"], "one `precision`"), ("onnx", [], "is empty")):
        with pytest.raises(ValueError, match=message):
            export_model(small_model, tmp_path, format=format, precision=precisions)


def test_a_model_in_training_is_exported_for_inference(small_processor, wide_model, tmp_path):
    model = copy.deepcopy(wide_model).train()
    assert model.config.text_config.hidden_dropout > 0
    export_model(model, tmp_path)
    assert model.training and model.text_model.layers[0].training
    embeds = embed_texts(ExportedModel(tmp_path), small_processor, TEXTS)
    assert cosine_similarity(embeds, embed_texts(wide_model, small_processor, TEXTS)).min() > 1 - 1e-6


@pytest.mark.parametrize("format", export_module.FORMATS)
def test_8_bits_are_refused_for_small_models(small_model, tmp_path, format):
    with pytest.raises(ValueError, match="largest matrix of this model has 2,048"):
        export_model(small_model, tmp_path / "x", format=format, precision="int8")
    assert not (tmp_path / "x").exists()


def test_exporting_does_not_change_the_precision_of_the_model(small_model, tmp_path):
    export_model(small_model.bfloat16(), tmp_path)
    assert small_model.dtype == torch.bfloat16


def test_missing_files_and_packages_are_named(small_model, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="export.json is missing"):
        ExportedModel(tmp_path)
    export_model(small_model, tmp_path)
    (tmp_path / "onnx" / "text_model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="text_model.onnx is missing"):
        ExportedModel(tmp_path)
    description = json.loads((tmp_path / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps(description | {"format": "tflite"}))
    with pytest.raises(ValueError, match="`format` is 'tflite'"):
        ExportedModel(tmp_path)
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'biomedclip\[export\]'"):
        export_model(small_model, tmp_path / "other")
    assert not (tmp_path / "other").exists()
