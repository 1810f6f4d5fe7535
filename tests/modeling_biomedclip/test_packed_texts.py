"""Texts without padding: the same embeddings, losses and gradients as with padding, and no token more."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers.gradient_processes import transformers_model
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DataCollatorWithFlattening

from biomedclip import (
    BiomedCLIPModel,
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
    embed_texts,
    pack_texts,
)
from biomedclip.cached_gradients import take_rows
from biomedclip.packed_attention_biomedclip import _nested_attention
from biomedclip.packed_texts import PackingCollator, pack_token_ids
from biomedclip.processing import ContrastiveCollator


LENGTHS = [5, 9, 2, 9, 1, 7]


@pytest.fixture
def token_ids():
    generator = torch.Generator().manual_seed(0)
    return [[2, *torch.randint(5, 128, (length - 1,), generator=generator).tolist()] for length in LENGTHS]


def padded(token_ids, length=12):
    rows = [torch.tensor([*ids, *[0] * (length - len(ids))]) for ids in token_ids]
    masks = [torch.tensor([1] * len(ids) + [0] * (length - len(ids))) for ids in token_ids]
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks)}


@pytest.fixture
def exact(small_model):
    """The small model in float64 and without dropout, in which only the order of sums differs."""
    return copy.deepcopy(small_model).double()


def assert_equal_batches(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value, name


def test_a_packed_batch_has_the_convention_of_transformers(token_ids):
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    expected = collator([{"input_ids": ids} for ids in token_ids])
    expected.pop("labels")
    others = {"pixel_values": torch.zeros(6, 3, 4, 4), "note": "kept"}
    assert_equal_batches(pack_texts({**padded(token_ids), **others}), {**expected, **others})
    assert_equal_batches(pack_token_ids(token_ids), dict(expected))


def test_token_types_and_positions_are_packed_with_their_tokens(token_ids):
    batch = padded(token_ids)
    batch |= {"token_type_ids": batch["input_ids"] % 2, "position_ids": torch.arange(12).flip(0)[None]}
    found = pack_texts(batch)
    assert torch.equal(found["token_type_ids"], found["input_ids"] % 2)
    assert found["position_ids"][0].tolist() == [11 - place for length in LENGTHS for place in range(length)]


@pytest.mark.parametrize("missing", ["attention_mask", "input_ids", "first token"])
def test_a_batch_that_cannot_be_packed_stays_as_it_is(token_ids, missing):
    batch = padded(token_ids)
    if missing == "first token":
        batch["attention_mask"][2, 0] = 0
    else:
        batch.pop(missing)
    assert_equal_batches(pack_texts(batch), batch)


def test_rows_of_a_packed_batch_are_those_of_the_padded_one(token_ids):
    batch = {**padded(token_ids), "pixel_values": torch.arange(6.0)}
    rows = torch.tensor([3, 0, 4])
    found = take_rows(pack_texts(batch), rows)
    assert_equal_batches(found, pack_texts(take_rows(batch, rows)))
    assert found["cu_seq_lens_q"].tolist() == [0, 9, 14, 15] and found["max_length_k"] == 9


# The eager attention of transformers computes its softmax in float32.
@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-12), ("eager", 1e-6)])
@pytest.mark.parametrize("mask", ["padding", "gaps"])
def test_embeddings_and_gradients_equal_those_with_padding(exact, token_ids, attention, tolerance, mask):
    exact.set_attn_implementation(attention)
    batch = padded(token_ids)
    batch["token_type_ids"] = (batch["input_ids"] > 60).long()
    if mask == "gaps":
        batch["attention_mask"][[1, 3], 4] = 0
    weights = torch.linspace(-1, 1, 6 * 16, dtype=exact.dtype).reshape(6, 16)
    results = []
    for inputs in (batch, pack_texts(batch)):
        model = copy.deepcopy(exact)
        features = model.get_text_features(**inputs).pooler_output
        (features * weights).sum().backward()
        results.append((features.detach(), {name: p.grad for name, p in model.text_model.named_parameters()}))
    (with_padding, expected), (packed, found) = results
    torch.testing.assert_close(packed, with_padding, rtol=0, atol=tolerance)
    assert packed.shape == (6, 16)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=10 * tolerance, msg=name)


def test_nested_tensors_attend_as_texts_one_by_one(exact, token_ids):
    # It is the way on CUDA. On the CPU, it shows that shapes, boundaries and scaling are right.
    edges = pack_token_ids(token_ids)["cu_seq_lens_q"]
    states = [torch.randn(1, sum(LENGTHS), 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    with sdpa_kernel(SDPBackend.MATH):  # a build for CUDA would ask for its driver
        found = _nested_attention(*(state.transpose(1, 2) for state in states), edges, max(LENGTHS), 0.0, 0.3)
    found.square().sum().backward()
    gradients = [state.grad.clone() for state in states]
    for state in states:
        state.grad = None
    parts = []
    for query, key, value in zip(*(state.transpose(1, 2).split(LENGTHS, dim=2) for state in states), strict=True):
        parts.append((query @ key.transpose(2, 3) * 0.3).softmax(-1) @ value)
    expected = torch.cat(parts, dim=2).transpose(1, 2)
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for gradient, state in zip(gradients, states, strict=True):
        torch.testing.assert_close(gradient, state.grad, rtol=0, atol=1e-12)


def test_the_text_tower_computes_no_padding(small_model, small_processor, token_ids):
    tokens = []
    small_model.text_model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: tokens.append(output.shape[:-1].numel())
    )
    texts = ["chest x-ray " * number for number in (1, 9, 3)]
    embed_texts(small_model, small_processor, texts)
    assert tokens == [sum(len(ids) for ids in small_processor(text=texts, padding=False)["input_ids"])]
    small_model.get_text_features(**pack_texts(padded(token_ids)))
    assert tokens[1] == sum(LENGTHS)


def test_images_and_texts_of_a_packed_batch_have_the_logits_of_the_padded_one(exact, token_ids):
    batch = {**padded(token_ids), "pixel_values": torch.randn(6, 3, 32, 32, dtype=torch.float64)}
    expected, found = exact(**batch, return_loss=True), exact(**pack_texts(batch), return_loss=True)
    torch.testing.assert_close(found.logits_per_text, expected.logits_per_text, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-10)


def test_packed_texts_that_are_too_long_are_refused_as_padded_ones_are(small_model):
    with pytest.raises(ValueError, match="contains texts of 65 tokens, but the model has only 64 positions"):
        small_model.get_text_features(**pack_token_ids([[2] * 65, [2, 3]]))


def test_images_cannot_be_packed(small_model, token_ids):
    edges = pack_token_ids(token_ids)["cu_seq_lens_q"]
    with pytest.raises(ValueError, match="Only texts can be packed"):
        small_model.get_image_features(pixel_values=torch.zeros(2, 3, 32, 32), cu_seq_lens_q=edges)


@pytest.mark.parametrize("change", ["mask", "positions", "rows", "length"])
def test_packed_texts_that_are_incomplete_are_refused(small_model, token_ids, change):
    inputs = pack_token_ids(token_ids)
    if change == "mask":
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    elif change == "positions":
        inputs.pop("position_ids")
    elif change == "length":
        inputs.pop("max_length_q")
    else:
        inputs["input_ids"] = inputs["input_ids"].expand(2, -1)
    with pytest.raises(ValueError, match="Packed texts .* are one row of tokens with `position_ids`"):
        small_model.get_text_features(**inputs)


def test_a_text_tower_of_clip_refuses_packed_texts(small_model, token_ids):
    config = copy.deepcopy(small_model.config).to_dict()
    config["text_config"] = {"model_type": "clip_text_model", "hidden_size": 32, "intermediate_size": 64}
    config["text_config"] |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 128, "eos_token_id": 3}
    model = BiomedCLIPModel(type(small_model.config)(**config))
    assert not model.supports_packed_texts
    with pytest.raises(ValueError, match="needs padded texts"):
        model.get_text_features(**pack_token_ids(token_ids))


def test_a_packing_collator_has_the_attributes_of_its_collator_also_in_workers(small_processor):
    collator = pickle.loads(pickle.dumps(PackingCollator(ContrastiveCollator(small_processor, training=True))))
    collator.set_epoch(3)
    assert (collator.epoch, collator.substituted_rows, collator.training) == (3, 0, True)
    with pytest.raises(AttributeError, match="nothing"):
        _ = collator.nothing


# Training


def some_rows(count):
    """Return noise images with captions of 4 to 60 tokens."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    words = [["chest", "x", "ray", "brain", "mri", "line", "chart"][number] for number in random.integers(0, 7, count)]
    lengths = random.integers(2, 59, count)
    return [
        {"image": Image.fromarray(image), "caption": " ".join([word, str(1000 + number), *["of"] * (length - 2)])}
        for number, (image, word, length) in enumerate(zip(images, words, lengths, strict=True))
    ]


@pytest.fixture
def train(small_processor, tmp_path):
    def run(model, folder, **options):
        args = ContrastiveTrainingArguments(
            output_dir=str(tmp_path / folder),
            disable_tqdm=True,
            max_steps=4,
            per_device_train_batch_size=16,
            logging_steps=1,
            save_strategy="no",
            learning_rate=1e-3,
            adam_epsilon=1e-4,  # the default turns the rounding of a small gradient into a step
            use_cpu=True,
            **options,
        )
        trainer = ContrastiveTrainer(
            model,
            args,
            train_dataset=some_rows(64),
            eval_dataset=some_rows(20),
            data_collator=ContrastiveCollator(small_processor, training=True),
        )
        trainer.train()
        return trainer

    return run


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-5),
        ({"mini_batch_size": 5}, 1e-5),
        ({"gradient_checkpointing": True}, 1e-5),
        ({"mini_batch_size": 5, "gradient_checkpointing": True, "loss": "siglip"}, 1e-5),
        # Eight bits of a number: products of other shapes round differently, which AdamW makes larger in each step.
        ({"bf16": True}, 1e-2),
        # Without inductor, which takes minutes and changes nothing of what is traced.
        pytest.param({"torch_compile": True, "torch_compile_backend": "aot_eager"}, 1e-5, marks=pytest.mark.slow),
        ({"lora": True}, 1e-5),
    ],
)
def test_losses_and_trained_weights_equal_those_with_padding(train, small_model, options, tolerance, monkeypatch):
    options = dict(options)
    if options.get("loss") == "siglip":
        small_model.start_logit_bias(-3.0, 2.0)
    start = without_dropout(copy.deepcopy(small_model))
    if options.pop("lora", False):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        start = peft.get_peft_model(start, config)
    packed = train(copy.deepcopy(start), "packed", **options)
    assert isinstance(packed.data_collator, PackingCollator)
    found = packed.evaluate()
    monkeypatch.setattr(BiomedCLIPModel, "supports_packed_texts", False)
    with_padding = train(copy.deepcopy(start), "padded", **options)
    assert not isinstance(with_padding.data_collator, PackingCollator)
    ours, theirs = (
        [entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (packed, with_padding)
    )
    assert len(ours) == 4 and len(set(ours)) == 4
    norms = [run.state.log_history[0]["grad_norm"] for run in (packed, with_padding)]
    assert norms[0] == pytest.approx(norms[1], rel=10 * tolerance)
    assert ours == pytest.approx(theirs, rel=tolerance)
    weights = dict(with_padding.model.named_parameters())
    for name, weight in packed.model.named_parameters():
        # In bfloat16, AdamW makes the rounding of a small gradient as large as the gradient.
        if not options.get("bf16") and not name.endswith(
            "k_proj.bias"
        ):  # softmax does not depend on it: its gradient is rounding
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=3 * tolerance, msg=name)
    assert found["eval_loss"] == pytest.approx(with_padding.evaluate()["eval_loss"], rel=10 * tolerance)


def test_a_process_with_several_gpus_pads_texts_with_a_warning(
    small_model, small_processor, tmp_path, caplog, monkeypatch
):
    args = ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr(type(args), "n_gpu", 2)
    collator = ContrastiveCollator(small_processor, training=True)
    trainer = ContrastiveTrainer(small_model, args, data_collator=collator)
    assert trainer.data_collator is collator and "Start one process for each with torchrun" in caplog.text


def test_other_dual_encoders_get_padded_texts(train):
    assert not isinstance(train(transformers_model("CLIP", 32), "clip").data_collator, PackingCollator)
