"""Train each contrastive recipe for one step, convert the model to open_clip, and compare embeddings there."""

import json
import shutil
import string
from pathlib import Path

import open_clip
import pytest
import torch
from helpers.fake_detectors import Halves
from helpers.mirror_writer import MirrorWriter, build_set
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTokenizer,
    ViTConfig,
    ViTModel,
)

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, to_open_clip
from biomedclip.conversion import from_vision_text_pretrained
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor
from biomedclip.run_scripts.cli.options import read_recipe, recipe_names
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.models import ModelOptions, load_model


pytestmark = pytest.mark.slow
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
# The smallest plain ViT that timm has a name for.
TINY = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
# One step on two pairs, in the precision that open_clip is compared in.
ONE_STEP = "--max-steps 1 --batch-size 2 --bf16 false --eval-strategy no --save-strategy no --report-to none "
ONE_STEP += "--dataloader-num-workers 0 --warmup-steps 0 --use-cpu true"
TEXTS = ["a chest x-ray", "caption &amp; figure", "chart " * 300]


def recipes_of_biomedclip() -> list[str]:
    """Return the contrastive recipes that train a BiomedCLIPModel for images of the published size or larger."""
    found = []
    for name in recipe_names():
        options = read_recipe(name, ["train"])
        is_clip = "clip-vit" in (options.get("model_name_or_path") or "")
        if options.get("task", "contrastive") == "contrastive" and not is_clip and name != "quickstart":
            found.append(name)
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Write small checkpoints in the place of those that the recipes name, with the same epsilons."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY), add_pooling_layer=False).save_pretrained(root / "vit")
    assert ViTConfig.from_pretrained(root / "vit").layer_norm_eps == 1e-12, "as google/vit-base-patch16-224"
    words = ["caption of article figure chest x-ray line chart & " + " ".join(map(str, range(100)))] * 9
    tokenizer = BertTokenizer(model_max_length=512).train_new_from_iterator(words, vocab_size=128, show_progress=False)
    tokenizer.save_pretrained(root / "bert")
    letters = [" ".join([*string.printable, *words])] * 2
    CLIPTokenizer().train_new_from_iterator(letters, 500, show_progress=False).save_pretrained(root / "clip")
    BertModel(BertConfig(**TEXT, vocab_size=128), add_pooling_layer=False).save_pretrained(root / "bert")
    from_vision_text_pretrained(root / "vit", root / "bert").save_pretrained(root / "base")
    BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer).save_pretrained(root / "base")
    return root


@pytest.fixture(scope="module")
def with_panels(tmp_path_factory) -> Path:
    """A built dataset of 20 figures, half of them compound, with their panels."""
    root = tmp_path_factory.mktemp("with_panels")
    MirrorWriter(root / "mirror").plain_articles(20)
    build_set(root / "mirror", root / "set", detector=Halves(), panels="also")
    return root / "set"


def train_one_step(name: str, checkpoints: Path, built: Path, folder: Path) -> Path:
    """Run a recipe as shipped, except for its checkpoints, the shape of a random image tower, and its length."""
    options = read_recipe(name, ["train"])
    arguments = ["train", "--config", name, "--train-data", str(built), "--output-dir", str(folder), *ONE_STEP.split()]
    if options.get("model_name_or_path"):
        arguments += ["--model-name-or-path", str(checkpoints / "base")]
    else:
        if options.get("text_model"):
            arguments += ["--text-model", str(checkpoints / "bert")]
        else:
            text_config = options["model_config"]["text_config"] | TEXT
            arguments += ["--tokenizer", str(checkpoints / "clip")]
            arguments += ["--model-config", json.dumps({"text_config": text_config | {"vocab_size": 500}})]
        if options.get("vision_model"):
            arguments += ["--vision-model", str(checkpoints / "vit")]
        else:
            arguments += ["--model-config", json.dumps({"vision_config": TINY})]
    if options.get("mini_batch_size"):
        arguments += ["--mini-batch-size", "1"]
    if options.get("lora_rank"):
        arguments += ["--merge-adapter", "true"]
    assert main(arguments) == 0
    return folder / "merged" if options.get("lora_rank") else folder


@pytest.mark.parametrize("name", recipes_of_biomedclip())
def test_a_recipe_trains_a_model_that_open_clip_runs_with_equal_embeddings(
    name, checkpoints, built, with_panels, tmp_path
):
    data = with_panels if read_recipe(name, ["train"]).get("panels") else built
    trained = train_one_step(name, checkpoints, data, tmp_path / "run")
    model, processor = AutoModel.from_pretrained(trained).eval(), AutoProcessor.from_pretrained(trained)
    assert model.config.vision_config.layer_norm_eps == 1e-6
    is_clip = model.config.text_config.model_type == "clip_text_model"
    assert is_clip == (name == "gpt_77_8_epochs")
    assert model.config.text_config.layer_norm_eps == (1e-5 if is_clip else 1e-12)
    assert processor.tokenizer.model_max_length == (read_recipe(name, ["train"]).get("max_length") or 512)
    assert main(["convert", str(trained), str(tmp_path / "open_clip"), "--to", "open_clip"]) == 0
    theirs, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'open_clip'}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'open_clip'}")
    assert theirs.visual.trunk.norm.eps == 1e-6
    images = [Image.effect_noise((260, 230), 90).convert("RGB") for _ in range(2)]
    inputs = processor(text=TEXTS, images=images, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        ours = model(**inputs)
        pixels, ids = torch.stack([preprocess(image) for image in images]), tokenize(TEXTS)
        image_embeds, text_embeds = theirs.eval()(pixels, ids)[:2]
    assert torch.equal(inputs["pixel_values"], pixels) and torch.equal(inputs["input_ids"], ids)
    torch.testing.assert_close(ours.image_embeds, image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.text_embeds, text_embeds, rtol=0, atol=1e-6)


def test_a_start_from_a_biomedclip_folder_keeps_the_epsilon_of_the_folder(small_checkpoint, tmp_path):
    shutil.copytree(small_checkpoint, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["layer_norm_eps"] = 1e-5
    path.write_text(json.dumps(config))
    options = ModelOptions(model_name_or_path=str(tmp_path / "base"))
    model = load_model(options, AutoProcessor.from_pretrained(tmp_path / "base"))
    assert model.config.vision_config.layer_norm_eps == model.vision_model.post_layernorm.eps == 1e-5


@pytest.mark.parametrize(("name", "message"), [("vit_m", "12 layers of width 512 with 8 heads"), ("quickstart", "128")])
def test_the_shape_of_a_recipe_that_timm_has_no_name_for_is_named(name, message, small_processor, tmp_path):
    fields = read_recipe(name, ["train"])["model_config"] | {"text_config": TEXT | {"vocab_size": 128}}
    with torch.device("meta"):
        model = BiomedCLIPModel(BiomedCLIPConfig(**fields))
    size = model.config.vision_config.image_size
    image_processor = BiomedCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    processor = BiomedCLIPProcessor(image_processor, small_processor.tokenizer)
    with pytest.raises(ValueError, match=f"timm has none for .*{message}.*base \\(12, 768, 12\\).*with transformers"):
        to_open_clip(model, processor, tmp_path / "open_clip")
    assert not (tmp_path / "open_clip").exists()
