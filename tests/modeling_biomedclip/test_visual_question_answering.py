"""The head for visual question answering, the co-attention of METER."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CONFIG
from helpers.commands import run_python
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForVisualQuestionAnswering,
    BertConfig,
    pipeline,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertLayer

from biomedclip import (
    BiomedCLIPCoAttentionConfig,
    BiomedCLIPConfig,
    BiomedCLIPForVisualQuestionAnswering,
    BiomedCLIPModel,
    VisualQuestionAnsweringPipeline,
)
from biomedclip.modeling_biomedclip import BiomedCLIPCoAttentionLayer, answer_loss


ROOT = Path(__file__).resolve().parents[2]
HEAD = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
ANSWERS = ["yes", "no", "left", "right", "3"]
NAMES = {"id2label": dict(enumerate(ANSWERS)), "label2id": {answer: number for number, answer in enumerate(ANSWERS)}}


@pytest.fixture
def model():
    """A small model with seeded random weights, in evaluation mode."""
    torch.manual_seed(0)
    head = HEAD | {"initializer_range": 0.15}
    config = BiomedCLIPConfig(**SMALL_CONFIG, co_attention_config=head, initializer_range=0.15, **NAMES)
    return BiomedCLIPForVisualQuestionAnswering(config).eval()


def questions(count: int = 3, length: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count + length)
    input_ids = torch.randint(5, 60, (count, length), generator=generator)
    input_ids[0, 5:] = 0
    return {"input_ids": input_ids, "pixel_values": torch.randn(count, 3, 32, 32, generator=generator)}


def logits(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**(inputs or questions())).logits


# The architecture


def test_the_published_head_has_the_published_shape():
    with torch.device("meta"):
        model = BiomedCLIPForVisualQuestionAnswering(BiomedCLIPConfig(num_labels=458))
    width = 768
    attention, mlp, norm = 4 * (width * width + width), 8 * width * width + 5 * width, 2 * width
    head = 12 * (2 * attention + mlp + 3 * norm) + 2 * width + 2 * (width * width + width)
    assert sum(parameter.numel() for parameter in model.co_attention.parameters()) == head
    assert len(model.co_attention.text_layers) == len(model.co_attention.image_layers) == 6
    transforms = [model.text_transform, model.image_transform]
    assert [(layer.in_features, layer.out_features) for layer in transforms] == [(768, 768)] * 2
    shapes = [tuple(parameter.shape) for parameter in model.classifier.parameters()]
    assert shapes == [(1536, 1536), (1536,), (1536,), (1536,), (458, 1536), (458,)]
    config = model.config.co_attention_config
    assert (config.num_attention_heads, config.hidden_dropout, config.attention_dropout) == (12, 0.1, 0.1)


def test_a_block_equals_the_cross_attention_block_of_bert():
    config = BiomedCLIPCoAttentionConfig(**HEAD, hidden_dropout=0.0, attention_dropout=0.0, attn_implementation="eager")
    shape = {name: HEAD[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    bert_config = BertConfig(**shape, hidden_act="gelu", hidden_dropout_prob=0.0)
    bert_config.is_decoder = bert_config.add_cross_attention = True  # the only way to its cross-attention
    bert_config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs, ours = BertLayer(bert_config).eval(), BiomedCLIPCoAttentionLayer(config).eval()
    names = [
        ("crossattention.self.query", "cross_attn.q_proj"),
        ("crossattention.self.key", "cross_attn.k_proj"),
        ("crossattention.self.value", "cross_attn.v_proj"),
        ("crossattention.output.dense", "cross_attn.out_proj"),
        ("crossattention.output.LayerNorm", "layer_norm2"),
        ("attention.self.query", "self_attn.q_proj"),
        ("attention.self.key", "self_attn.k_proj"),
        ("attention.self.value", "self_attn.v_proj"),
        ("attention.output.dense", "self_attn.out_proj"),
        ("attention.output.LayerNorm", "layer_norm1"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("output.LayerNorm", "layer_norm3"),
    ]
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in names:
            name = name.replace(old, new)
        renamed[name] = tensor
    ours.load_state_dict(renamed)
    text, image = torch.randn(2, 7, 48), torch.randn(2, 17, 48)
    mask = torch.zeros(2, 1, 1, 7)
    mask[0, ..., 4:] = torch.finfo(torch.float32).min
    with torch.no_grad():
        # Words look at patches, and patches at words.
        for states, other, own, others in [(text, image, mask, None), (image, text, None, mask)]:
            expected = theirs(states, own, encoder_hidden_states=other, encoder_attention_mask=others)
            assert torch.equal(ours(states, other, own, others), expected)


def test_each_modality_attends_to_the_other_as_it_was_before_the_block(model):
    seen = []
    for layers in (model.co_attention.text_layers, model.co_attention.image_layers):
        for layer in layers:
            layer.register_forward_hook(lambda _, inputs, output: seen.append((*inputs[:2], output)))
    logits(model)
    (text_1, image_1, text_2), (image_2, text_3, image_3), second_text, second_image = seen
    assert torch.equal(text_1, text_3) and torch.equal(image_1, image_2)
    assert torch.equal(second_text[0], text_2) and torch.equal(second_text[1], image_3)
    assert torch.equal(second_image[0], image_3) and torch.equal(second_image[1], text_2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_does_not_change_the_answer(model, attention):
    model.set_attn_implementation(attention)
    inputs = questions(1, 9)
    short = logits(model, input_ids=inputs["input_ids"][:, :5], pixel_values=inputs["pixel_values"])
    # Float32: sums of five and of nine terms, of which four are zero, in another order.
    torch.testing.assert_close(logits(model, **inputs), short, rtol=1e-5, atol=1e-6)
    other = inputs["input_ids"].clone()
    other[:, 5:] = 7
    mask = (inputs["input_ids"] != 0).long()
    masked = logits(model, input_ids=other, attention_mask=mask, pixel_values=inputs["pixel_values"])
    torch.testing.assert_close(masked, short, rtol=1e-5, atol=1e-6)
    seen = logits(model, input_ids=other, pixel_values=inputs["pixel_values"])
    assert (seen - short).abs().max() > 1e-3, "words that are not masked do"


@pytest.mark.slow
def test_every_attention_gives_the_same_answer(model, tmp_path):
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)

    AttentionInterface.register("counted", counted)
    AttentionMaskInterface.register("counted", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.save_pretrained(tmp_path)
    expected = logits(model)
    for attention in ("eager", "sdpa", "flex_attention", "counted"):
        loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path, attn_implementation=attention)
        assert loaded.co_attention.text_layers[0].cross_attn.config._attn_implementation == attention
        # Float32: softmax and sums in another order.
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2 * 2 + 4 * 2, "each layer of both towers, and twice in each layer of both sides of the head"


def test_the_answer_depends_on_the_question_and_on_the_image(model):
    inputs = questions()
    turned = {name: value.roll(1, 0) for name, value in inputs.items()}
    for name in inputs:
        assert (logits(model, **(inputs | {name: turned[name]})) - logits(model)).abs().max() > 1e-3


# Its loss


def test_the_loss_is_the_cross_entropy_of_each_answer_summed():
    scores, truth = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 3, -100, 1])
    expected = 0.0
    for row, right in zip(scores.tolist(), truth.tolist(), strict=True):
        for number, score in enumerate(row) if right >= 0 else []:
            probability = 1 / (1 + torch.tensor(-score, dtype=torch.float64).exp())
            expected -= (probability if number == right else 1 - probability).log() / 3
    torch.testing.assert_close(answer_loss(scores, truth), expected)
    soft = torch.nn.functional.one_hot(truth.clamp(min=0), 5)[truth >= 0].double()
    torch.testing.assert_close(answer_loss(scores[truth >= 0], soft), expected)
    assert answer_loss(scores, torch.full((4,), -100)).isnan(), "as torch's cross-entropy has it"
    # Soft labels raise several answers.
    scores = torch.zeros(1, 3, requires_grad=True)
    answer_loss(scores, torch.tensor([[1.0, 0.3, 0.0]])).backward()
    assert scores.grad.tolist() == [pytest.approx([-0.5, 0.2, 0.5])]


def test_gradients_are_the_same_with_checkpointing(model):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model.train()
        torch.manual_seed(0)
        model(**questions(), labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert model.co_attention.text_layers[0].cross_attn.gradient_checkpointing
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name
        assert gradient.abs().max() > 0, name


def test_questions_without_their_images_are_refused(model):
    inputs = questions()
    with pytest.raises(ValueError, match="one image, but there are 3 questions and 2 images"):
        model(inputs["input_ids"], inputs["pixel_values"][:2])


# Loading and saving


def test_a_checkpoint_without_head_gets_a_seeded_random_head(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path, co_attention_config=HEAD, **NAMES))
    first, same, other = models
    for tower in ("text_model", "vision_model"):
        for name, tensor in getattr(small_model, tower).state_dict().items():
            assert torch.equal(getattr(first, tower).state_dict()[name], tensor), name
    weights = [model.co_attention.text_layers[1].cross_attn.q_proj.weight for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(logits(first), logits(same)) and not torch.equal(logits(first), logits(other))
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.1), "METER's"
    assert first.config.id2label == dict(enumerate(ANSWERS))


def test_a_saved_model_gives_the_same_bits_and_takes_other_answers(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert type(loaded) is BiomedCLIPForVisualQuestionAnswering
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.label2id == NAMES["label2id"] and loaded.config.co_attention_config.hidden_size == 48
    whole = BiomedCLIPModel.from_pretrained(tmp_path)
    assert torch.equal(whole.text_model.layers[0].mlp.fc1.weight, model.text_model.layers[0].mlp.fc1.weight)
    # Other answers replace only the last layer.
    loaded = BiomedCLIPForVisualQuestionAnswering.from_pretrained(
        tmp_path, id2label={0: "yes", 1: "no"}, num_labels=2, ignore_mismatched_sizes=True
    )
    assert logits(loaded).shape == (3, 2)
    assert torch.equal(loaded.classifier[0].weight, model.classifier[0].weight)


def test_an_adapter_with_a_trained_head_is_loaded_with_peft(model, tmp_path):
    model.save_pretrained(tmp_path / "base")
    targets = ["q_proj", "v_proj", "fc1"]
    config = LoraConfig(target_modules=targets, modules_to_save=["classifier"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(loaded), logits(adapted))
    assert any("cross_attn" in name for name, _ in adapted.named_parameters() if "lora" in name)
    merged = adapted.merge_and_unload()
    # Float32: (W + B A) x and W x + B (A x) differ by rounding.
    torch.testing.assert_close(logits(merged), logits(loaded), rtol=1e-4, atol=1e-4)


# The pipeline


@pytest.fixture
def saved(model, small_processor, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    small_processor.save_pretrained(tmp_path / "saved")
    Image.effect_noise((60, 50), 90).convert("RGB").save(tmp_path / "saved" / "picture.png")
    return tmp_path / "saved"


def expected_scores(model, processor, question: str, picture: Image.Image) -> dict[str, float]:
    inputs = processor(text=[question], images=[picture], return_tensors="pt")
    return dict(zip(ANSWERS, logits(model, **inputs).sigmoid()[0].tolist(), strict=True))


@pytest.mark.parametrize("flag", [{}, {"trust_remote_code": True}])
def test_the_pipeline_returns_independent_scores(model, small_processor, saved, flag):
    answer = pipeline("visual-question-answering", model=str(saved), device="cpu", **flag)
    picture = Image.open(saved / "picture.png")
    expected = expected_scores(model, small_processor, "brain mri chart", picture)
    found = answer(image=str(saved / "picture.png"), question="brain mri chart")
    assert [entry["answer"] for entry in found] == sorted(ANSWERS, key=lambda name: -expected[name])
    assert {entry["answer"]: entry["score"] for entry in found} == pytest.approx(expected)
    assert answer(picture, "brain mri chart", top_k=1) == found[:1]
    assert answer({"image": picture, "question": "brain mri chart"}) == found


def test_the_pipeline_takes_many_questions_and_many_images(model, small_processor, saved):
    answer = pipeline("visual-question-answering", model=str(saved), device="cpu")
    picture = Image.open(saved / "picture.png")
    asked = ["brain", "brain mri chart of article figure"]
    for found in (
        answer(picture, asked),
        answer([picture, picture], asked, batch_size=2),
        answer([{"image": picture, "question": question} for question in asked]),
    ):
        for question, entries in zip(asked, found, strict=True):
            scores = {entry["answer"]: entry["score"] for entry in entries}
            # In a batch the shorter one is padded: rounding of float32.
            assert scores == pytest.approx(expected_scores(model, small_processor, question, picture), rel=1e-4)
    assert len(answer([picture, picture], "brain")) == 2
    with pytest.raises(ValueError, match="one image, but there are 1 questions and 2 images"):
        answer([picture, picture], ["brain"])
    with pytest.raises(ValueError, match="Pass a `question`"):
        answer(picture)


def test_a_saved_pipeline_loads_again(saved, small_processor, tmp_path):
    first = pipeline("visual-question-answering", model=str(saved), device="cpu")
    first.save_pretrained(tmp_path / "again")
    small_processor.save_pretrained(tmp_path / "again")
    picture = Image.open(saved / "picture.png")
    again = pipeline("visual-question-answering", model=str(tmp_path / "again"), device="cpu")
    assert again(picture, "brain") == first(picture, "brain")


REMOTE = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("biomedclip",): raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hidden())
from transformers import AutoModelForVisualQuestionAnswering, pipeline
folder, again = sys.argv[1:]
answer = pipeline("visual-question-answering", model=folder, device="cpu", trust_remote_code=True)
found = answer(folder + "/picture.png", "brain mri chart")
model = AutoModelForVisualQuestionAnswering.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(again)
answer.processor.save_pretrained(again)
print()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_saved_folder_works_without_the_package(model, small_processor, saved, tmp_path):
    expected = expected_scores(model, small_processor, "brain mri chart", Image.open(saved / "picture.png"))
    again = tmp_path / "again"
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = run_python("-c", REMOTE, saved, again, environment=environment, folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("[")))
    # Another process rounds products of float32 another way, as memory happens to be aligned.
    assert {entry["answer"]: entry["score"] for entry in found} == pytest.approx(expected, rel=1e-4)
    names = {path.name for path in saved.iterdir()} - {"picture.png"}
    assert {path.name for path in again.iterdir()} == names
    for name in names:
        if name.endswith((".py", ".safetensors")):
            assert (again / name).read_bytes() == (saved / name).read_bytes(), name


def test_transformers_finds_the_pipeline_by_name():
    from transformers.pipelines import PIPELINE_REGISTRY

    assert PIPELINE_REGISTRY.check_task("visual-question-answering")[1]["impl"] is VisualQuestionAnsweringPipeline
