"""Cached gradients equal those of a plain backward pass. For several processes see test_contrastive_loss.py."""

from contextlib import contextmanager

import pytest
import torch
from helpers.gradient_processes import assert_same_gradients, some_batch, tiny_model, transformers_model

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.cached_gradients import cached_backward, copy_to_device, mini_batch_rows, take_rows
from biomedclip.contrastive_loss import LOSSES, contrastive_loss


PAIRS = 10


@pytest.fixture
def trainer_of(tmp_path):
    """Create a trainer whose model is prepared as in `train`."""

    def build(model, **options):
        args = ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
        trainer = ContrastiveTrainer(model, args)
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
        trainer.model_wrapped = trainer.accelerator.prepare_model(model)
        return trainer

    return build


def cached_step(trainer):
    """Return the loss and the gradients of a step."""
    torch.manual_seed(0)
    loss = trainer.training_step(trainer.model_wrapped, some_batch(PAIRS))
    return loss, gradients_of(trainer.model)


def plain_step(trainer, size):
    """Return the loss and the gradients of one backward pass through all mini-batches."""
    torch.manual_seed(0)
    model, inputs = trainer.model_wrapped.train(), some_batch(PAIRS)
    outputs = [model(**take_rows(inputs, rows)) for rows in mini_batch_rows(inputs, size)]
    image_embeds, text_embeds = (torch.cat([o[name] for o in outputs]) for name in ("image_embeds", "text_embeds"))
    whole = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
    scale, bias = whole.logit_scale.exp(), whole.logit_bias
    loss = contrastive_loss(image_embeds, text_embeds, scale, bias, loss=trainer.args.loss)
    loss.backward()
    return loss.detach(), gradients_of(trainer.model)


def gradients_of(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def assert_equal_to_rounding(ours, theirs):
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-6)
    assert_same_gradients(ours[1], theirs[1])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_cached_loss_and_gradients_equal_those_of_the_whole_batch(trainer_of, loss, size):
    ours = cached_step(trainer_of(tiny_model(), mini_batch_size=size, loss=loss))
    assert_equal_to_rounding(ours, cached_step(trainer_of(tiny_model(), loss=loss)))


def with_adapter(model):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"], lora_dropout=0.1))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted


def freeze(*names):
    def apply(model):
        for name in names:
            getattr(model, name).requires_grad_(False)
        return model

    return apply


CHECKPOINTING = [
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    for reentrant in (True, False)
]


@pytest.mark.parametrize(
    "change",
    [freeze(), with_adapter, freeze("logit_scale"), freeze("vision_model", "visual_projection")],
    ids=["whole", "adapter", "frozen scale", "frozen image encoder"],
)
@pytest.mark.parametrize("options", [{}, {"bf16": True}, *CHECKPOINTING, {"bf16": True} | CHECKPOINTING[0]], ids=str)
def test_gradients_with_dropout_autocast_and_frozen_parts_equal_those_of_a_plain_backward_pass(
    trainer_of, change, options
):
    steps = []
    for step in (cached_step, lambda trainer: plain_step(trainer, 3)):
        model = tiny_model(dropout=0.3)
        steps.append(step(trainer_of(change(model), mini_batch_size=3, **options)))
    assert_equal_to_rounding(*steps)


def test_dropout_differs_between_steps(trainer_of):
    trainer = trainer_of(tiny_model(dropout=0.3), mini_batch_size=3)
    batch = {name: value[:1].repeat_interleave(PAIRS, 0) for name, value in some_batch(PAIRS).items()}
    torch.manual_seed(0)
    first, second = (trainer.training_step(trainer.model_wrapped, batch).item() for _ in range(2))
    assert first != second


def test_a_step_ends_with_the_random_state_of_a_plain_one(trainer_of):
    after = []
    for step in (cached_step, lambda trainer: plain_step(trainer, 3)):
        step(trainer_of(tiny_model(dropout=0.3), mini_batch_size=3))
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_gradients_are_synchronized_only_in_the_last_mini_batch():
    weight, scale = torch.ones(3, 2, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    inputs, events = torch.eye(3), []

    @contextmanager
    def no_sync():
        events.append("no_sync")
        yield
        events.append("end")

    def backward(products):
        products.backward()
        events.append("backward" if scale.grad is None else "backward with scalars")

    cached_backward(
        lambda rows: (inputs[rows] @ weight, inputs[rows] @ weight),
        torch.arange(3).split(1),
        lambda images, texts: scale * (images * texts).sum(),
        [scale],
        backward=backward,
        no_sync=no_sync,
    )
    alone = ["no_sync", "backward", "end"]
    assert events == [*alone, *alone, "backward with scalars"]
    assert scale.grad == 6 and torch.equal(weight.grad, torch.full((3, 2), 4.0))


def seen_by(trainer):
    """Return the shapes of the texts that the model receives in a step."""
    shapes = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    cached_step(trainer)
    return shapes


def test_mini_batches_are_padded_to_their_longest_text_and_the_longest_come_first(trainer_of):
    lengths = sorted(some_batch(PAIRS)["attention_mask"].sum(1).tolist(), reverse=True)
    expected = [(len(lengths[start : start + 4]), lengths[start]) for start in range(0, PAIRS, 4)]
    assert seen_by(trainer_of(tiny_model(), mini_batch_size=4)) == 2 * expected
    assert expected[0][1] > expected[-1][1]


@pytest.mark.parametrize("size", [None, PAIRS, PAIRS + 1])
def test_a_batch_of_one_mini_batch_is_embedded_once(trainer_of, size):
    assert seen_by(trainer_of(tiny_model(), mini_batch_size=size)) == [(PAIRS, 12)]


def test_removing_padding_does_not_change_the_embeddings():
    model, batch = tiny_model().eval(), some_batch(PAIRS)
    shortest = mini_batch_rows(batch, 2)[-1]
    cut, whole = take_rows(batch, shortest), take_rows(batch, shortest, cut_text=False)
    assert cut["input_ids"].shape[1] < 12 == whole["input_ids"].shape[1]
    # Masked positions add zeros. Products of other shapes round differently.
    torch.testing.assert_close(model(**cut).text_embeds, model(**whole).text_embeds, rtol=0, atol=1e-6)


def test_only_padding_on_the_right_is_removed():
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]])
    batch = {"input_ids": mask * 7, "attention_mask": mask, "pixel_values": torch.zeros(2, 3, 5, 5)}
    taken = take_rows(batch, torch.tensor([1, 0]))
    assert taken["input_ids"].tolist() == [[0, 0, 7, 7], [0, 7, 7, 0]]
    assert taken["pixel_values"].shape == (2, 3, 5, 5)


def test_only_tensors_on_the_cpu_are_copied_from_pinned_memory_without_waiting(monkeypatch):
    pinned, waits = [], []
    copy = torch.Tensor.to

    def to(self, *args, non_blocking=False, **options):
        waits.append(not non_blocking)
        return copy(self, *args, non_blocking=non_blocking, **options)

    # There is no pinned memory without an accelerator. The meta device replaces it.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    monkeypatch.setattr(torch.Tensor, "to", to)
    there = torch.zeros(2, device="meta")
    copied = copy_to_device({"pixel_values": torch.ones(2, 3), "there": there, "interpolate": True}, "meta")
    assert copied["pixel_values"].device.type == "meta" and copied["pixel_values"].shape == (2, 3)
    assert copied["there"] is there and copied["interpolate"] is True
    assert len(pinned) == 1 and waits == [False]


def test_mini_batches_contain_each_row_once_in_a_stable_order():
    rows = mini_batch_rows(some_batch(PAIRS), 4)
    assert sorted(torch.cat(rows).tolist()) == list(range(PAIRS))
    equals = {"attention_mask": torch.ones(5, 3), "pixel_values": torch.zeros(5)}
    assert [part.tolist() for part in mini_batch_rows(equals, 2)] == [[0, 1], [2, 3], [4]]
    assert [part.tolist() for part in mini_batch_rows({"pixel_values": torch.zeros(3)}, 2)] == [[0, 1], [2]]


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_dual_encoders_of_transformers_have_cached_gradients(trainer_of, name):
    loss = "siglip" if name == "Siglip" else "infonce"
    steps = [
        cached_step(trainer_of(transformers_model(name, 16), mini_batch_size=size, loss=loss)) for size in (3, None)
    ]
    assert_equal_to_rounding(*steps)
