"""Exported graphs compared with the model."""

import copy
import json
import shutil

import pytest
import torch
from conftest import SMALL_CONFIG
from PIL import Image
from torch.nn.functional import cosine_similarity

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPModel,
    ExportedModel,
    ZeroShotClassifier,
    embed_images,
    embed_texts,
    export_model,
)
from biomedclip import export as export_module


pytestmark = pytest.mark.slow
TEXTS = ["chest x-ray", "a", "caption of article figure " * 4, "brain mri"]
PICTURES = [Image.effect_noise((40 + n, 36), 99) for n in range(5)]
SUFFIXES = ("", "_fp16", "_int8", "_quantized")
# float32: sums in another order. The others have 8 bits or less, and the small model few products to average over.
SMALLEST_COSINE = {"float32": 1 - 1e-6, "float16": 0.9999, "bfloat16": 0.999, "int8": 0.99}


@pytest.fixture(scope="module")
def exports(shallow_model, tmp_path_factory):
    """Folders of exports by format and precision, and the model. All precisions of ONNX share a folder.

    The model is in training mode, as it is during a run.
    """
    model = copy.deepcopy(shallow_model).train()
    onnx = tmp_path_factory.mktemp("onnx")
    export_model(model, onnx, precision=["float16", "int8", "float32"])
    folders = {("onnx", precision): onnx for precision in export_module.FORMATS["onnx"]}
    for precision in export_module.FORMATS["openvino"]:
        folders["openvino", precision] = tmp_path_factory.mktemp(f"openvino_{precision}")
        export_model(model, folders["openvino", precision], format="openvino", precision=precision)
    return folders, model


@pytest.fixture(
    scope="module",
    params=[(format, precision) for format, precisions in export_module.FORMATS.items() for precision in precisions],
    ids="-".join,
)
def exported(request, exports):
    """An exported model and its precision."""
    format, precision = request.param
    return ExportedModel(exports[0][format, precision], precision=precision), precision


@pytest.fixture(scope="module")
def small_export(tmp_path_factory):
    """A folder with a small model in bfloat16, exported in float32 and float16, and the model."""
    torch.manual_seed(0)
    model = BiomedCLIPModel(BiomedCLIPConfig(**SMALL_CONFIG)).eval().bfloat16()
    folder = tmp_path_factory.mktemp("small")
    export_model(model, folder, precision=["float32", "float16"])
    return folder, model


def test_every_batch_and_length_gives_the_embeddings_of_the_model(exported, shallow_model, small_processor):
    model, precision = exported
    for count in (1, 5):
        for embed, inputs in ((embed_images, PICTURES), (embed_texts, TEXTS)):
            ours, exact = (embed(each, small_processor, inputs[:count]) for each in (model, shallow_model))
            assert ours.shape == exact.shape
            assert cosine_similarity(ours, exact).min() > SMALLEST_COSINE[precision]


def test_padding_is_masked(exported, small_processor):
    model, precision = exported
    inputs = small_processor(text=["brain mri", "caption of article figure"], return_tensors="pt")
    alone = small_processor(text=["brain mri"], return_tensors="pt")
    together, single = (model.get_text_features(**each).pooler_output[0] for each in (inputs, alone))
    assert cosine_similarity(together, single, dim=0) > SMALLEST_COSINE[precision]


def test_an_exported_model_works_in_the_classifier(exported, shallow_model, small_processor):
    model, precision = exported
    names = ["chest", "brain", "chart"]
    ours = ZeroShotClassifier(model, small_processor, names).logits(PICTURES)
    exact = ZeroShotClassifier(shallow_model, small_processor, names).logits(PICTURES)
    torch.testing.assert_close(
        ours, exact, rtol=0, atol={"float32": 1e-4, "float16": 0.05, "bfloat16": 0.5, "int8": 1.0}[precision]
    )


def test_8_bits_take_about_a_quarter_of_the_space(exports):
    for format in export_module.FORMATS:
        sizes = {}
        for precision in ("float32", "int8"):
            folder = exports[0][format, precision]
            graphs = [folder / export_module.graph_files(format, precision, name)[0] for name in export_module.GRAPHS]
            files = [file for graph in graphs for file in graph.parent.glob(f"{graph.stem}.*")]
            sizes[precision] = sum(file.stat().st_size for file in files)
        assert sizes["int8"] < 0.6 * sizes["float32"], "half of this model's matrices are large enough"


def test_several_precisions_share_a_folder(exports, small_processor):
    folder = exports[0]["onnx", "float32"]
    names = [f"{tower}_model{suffix}.onnx" for tower in ("text", "vision") for suffix in SUFFIXES]
    assert sorted(file.name for file in (folder / "onnx").iterdir()) == sorted(names)
    for tower in ("text", "vision"):
        int8, quantized = ((folder / f"onnx/{tower}_model{end}.onnx").read_bytes() for end in ("_int8", "_quantized"))
        assert int8 == quantized
    models = (ExportedModel(folder, precision=precision) for precision in (None, "float16", "int8", "float32"))
    first, *others = (embed_texts(model, small_processor, TEXTS) for model in models)
    assert torch.equal(first, others[0]) and not any(torch.equal(first, other) for other in others[1:])


def test_an_export_of_an_earlier_version_loads(small_export, small_processor, tmp_path):
    exported, model = small_export
    folder = shutil.copytree(exported, tmp_path / "earlier")
    for name, tower in (("image", "vision"), ("text", "text")):
        (folder / "onnx" / f"{tower}_model.onnx").rename(folder / f"{name}.onnx")
    description = json.loads((folder / "export.json").read_text())
    del description["precisions"], description["logit_bias"]
    (folder / "export.json").write_text(json.dumps(description))
    (folder / "config.json").unlink()
    exact = copy.deepcopy(model).float()
    for embed, inputs in ((embed_images, PICTURES), (embed_texts, TEXTS)):
        ours, expected = (embed(each, small_processor, inputs) for each in (ExportedModel(folder), exact))
        assert cosine_similarity(ours, expected).min() > 1 - 1e-6


def test_a_precision_that_was_not_exported_is_refused(small_export, small_model, tmp_path):
    with pytest.raises(ValueError, match="contains graphs in float32, float16, but `precision` is 'int8'"):
        ExportedModel(small_export[0], precision="int8")
    for format, precisions, message in (("openvino", ["float32", "int8"], "one `precision`"), ("onnx", [], "is empty")):
        with pytest.raises(ValueError, match=message):
            export_model(small_model, tmp_path, format=format, precision=precisions)


def test_a_model_in_training_is_exported_for_inference(exports, shallow_model, small_processor):
    folders, model = exports
    assert model.config.text_config.hidden_dropout > 0
    assert model.training and model.text_model.layers[0].training
    embeds = embed_texts(ExportedModel(folders["onnx", "float32"], precision="float32"), small_processor, TEXTS)
    assert cosine_similarity(embeds, embed_texts(shallow_model, small_processor, TEXTS)).min() > 1 - 1e-6


@pytest.mark.parametrize("format", export_module.FORMATS)
def test_8_bits_are_refused_for_small_models(small_model, tmp_path, format):
    with pytest.raises(ValueError, match="largest matrix of this model has 2,048"):
        export_model(small_model, tmp_path / "x", format=format, precision="int8")
    assert not (tmp_path / "x").exists()


def test_exporting_does_not_change_the_precision_of_the_model(small_export):
    assert small_export[1].dtype == torch.bfloat16


def test_missing_files_and_packages_are_named(small_export, small_model, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="export.json is missing"):
        ExportedModel(tmp_path)
    folder = shutil.copytree(small_export[0], tmp_path / "export")
    (folder / "onnx" / "text_model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="text_model.onnx is missing"):
        ExportedModel(folder)
    description = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(description | {"format": "tflite"}))
    with pytest.raises(ValueError, match="`format` is 'tflite'"):
        ExportedModel(folder)
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'biomedclip\[export\]'"):
        export_model(small_model, tmp_path / "other")
    assert not (tmp_path / "other").exists()
