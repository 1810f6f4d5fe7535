"""Contrastive training with `ContrastiveTrainer`."""

import copy
import json
import math

import pytest
import torch
from helpers.gradient_processes import transformers_model
from helpers.pair_shards import write_shards
from open_clip_train.scheduler import cosine_lr
from transformers import TrainerCallback, get_cosine_schedule_with_warmup, get_scheduler

from biomedclip import BiomedCLIPModel, ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.contrastive_trainer import copied_ahead, cosine_factor
from biomedclip.processing import ContrastiveCollator, PairStream


PAIRS = 90  # five batches of 16, and a rest


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = write_shards(tmp_path_factory.mktemp("shards"), shards=3, rows=PAIRS // 3, image_size=(40, 30))
    return write_shards(folder, shards=1, rows=20, split="test", image_size=(40, 30))


@pytest.fixture
def train(shards, small_model, small_processor, tmp_path):
    """Train a copy of the small model for a few steps, and return the trainer."""

    def run(model=None, *, folder="run", resume=None, callbacks=None, train_dataset=None, **options):
        options = {"max_steps": 6, "per_device_train_batch_size": 16, "logging_steps": 1} | options
        if "save_steps" not in options:
            options = {"save_strategy": "no"} | options
        args = ContrastiveTrainingArguments(output_dir=str(tmp_path / folder), disable_tqdm=True, **options)
        trainer = ContrastiveTrainer(
            model or copy.deepcopy(small_model),
            args,
            train_dataset=train_dataset or PairStream(shards),
            eval_dataset=PairStream(shards, "test").rows(0, 0, 20),
            data_collator=ContrastiveCollator(small_processor, training=True),
            eval_data_collator=ContrastiveCollator(small_processor),
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_equal_weights(ours, theirs) -> None:
    for weight, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(weight, other)


# Learning


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_training_overfits_a_few_pairs(train, shards, small_model, loss):
    small_model.config.logit_scale_init_value, small_model.config.logit_bias_init_value = math.log(10), -10.0
    model = BiomedCLIPModel(small_model.config) if loss == "siglip" else None
    options = {"loss": loss, "mini_batch_size": 6, "learning_rate": 5e-3} if loss == "siglip" else {}
    rows = PairStream(shards).rows(0, 0, 16)
    options = {"max_steps": -1, "num_train_epochs": 50, "learning_rate": 2e-3, "warmup_steps": 5} | options
    trainer = train(model, train_dataset=rows, **options)
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]
    assert loss == "infonce" or model.logit_bias.item() != -10.0


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_dual_encoders_of_transformers_can_be_trained(train, name):
    trainer = train(transformers_model(name, 32), max_steps=2)
    assert losses(trainer)[0] == pytest.approx(math.log(16), abs=0.5)
    assert 1 <= trainer.evaluate()["eval_image_to_text_median_rank"] <= 20


def test_a_peft_model_trains_only_its_adapter(train, small_model):
    peft = pytest.importorskip("peft")
    before = small_model.visual_projection.weight.detach().clone()
    adapted = peft.get_peft_model(small_model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    trainer = train(adapted, learning_rate=1e-2, max_steps=2)
    trained = {name: p for name, p in trainer.model.named_parameters() if "lora_B" in name}
    assert len(trained) == 8 and all(p.abs().sum() > 0 for p in trained.values())
    assert torch.equal(before, small_model.visual_projection.weight)


@pytest.mark.parametrize(
    ("start", "frozen", "expected"), [(10.0, False, math.log(100)), (-3.0, False, 0.0), (10.0, True, 10.0)]
)
def test_logit_scale_is_clamped_unless_it_is_frozen(train, small_model, start, frozen, expected):
    with torch.no_grad():
        small_model.logit_scale.fill_(start)
    small_model.logit_scale.requires_grad_(not frozen)
    assert train(small_model, max_steps=1).model.logit_scale.item() == pytest.approx(expected)


def test_at_most_a_mini_batch_of_pairs_is_embedded_at_a_time(train, small_model):
    embedded = []
    small_model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: embedded.append(len(kwargs["pixel_values"] if kwargs else args[0])),
        with_kwargs=True,
    )
    train(small_model, max_steps=1, mini_batch_size=6)
    assert max(embedded) == 6 and sum(embedded) >= 16


# Defaults and schedule


def test_the_published_recipe_is_the_default(tmp_path):
    args = ContrastiveTrainingArguments(output_dir=str(tmp_path))
    assert (args.learning_rate, args.weight_decay, args.adam_epsilon) == (5e-4, 0.2, 1e-6)
    assert (args.adam_beta1, args.adam_beta2, args.lr_scheduler_type) == (0.9, 0.98, "cosine")
    assert args.max_grad_norm == 0


def test_weight_decay_excludes_biases_norms_and_logit_scale(train):
    trainer = train(max_steps=1)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    assert "logit_scale" not in decayed and "text_model.layers.0.layer_norm1.weight" not in decayed
    assert "visual_projection.weight" in decayed and "vision_model.embeddings.position_embedding" in decayed
    assert not any(name.endswith("bias") for name in decayed)


def open_clip_rates(learning_rate: float, warmup_steps: int, steps: int) -> list[float]:
    """Return the learning rate of each step in open_clip's training program."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine_lr(optimizer, learning_rate, warmup_steps, steps)
    return [schedule(step) for step in range(steps)]


@pytest.mark.parametrize(("warmup_steps", "steps"), [(2000, 108_576), (10, 50), (0, 7), (7, 7), (1, 2)])
def test_the_cosine_schedule_is_that_of_open_clip_at_every_step(warmup_steps, steps):
    rates = [5e-4 * cosine_factor(step, warmup_steps=warmup_steps, steps=steps) for step in range(steps)]
    assert rates == pytest.approx(open_clip_rates(5e-4, warmup_steps, steps), rel=1e-12, abs=1e-18)


class Rates(TrainerCallback):
    """Learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        self.found.append(rate)


@pytest.mark.parametrize("cut", [None, 2, 6])  # resumed in the warmup, and after it
def test_each_step_has_the_learning_rate_of_open_clip(train, tmp_path, cut):
    rates, options = Rates(), {"max_steps": 9, "warmup_steps": 4, "save_steps": cut or 500}
    resume = None
    if cut:
        train(folder="cut", **options)
        resume = str(tmp_path / "cut" / f"checkpoint-{cut}")
    train(callbacks=[rates], resume=resume, **options)
    assert rates.found == pytest.approx(open_clip_rates(5e-4, 4, 9)[cut or 0 :], rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "constant_with_warmup"])
def test_other_schedules_are_those_of_transformers(train, name):
    rates = Rates()
    train(callbacks=[rates], max_steps=5, warmup_steps=2, lr_scheduler_type=name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=5)
    assert rates.found == pytest.approx([5e-4 * schedule.lr_lambdas[0](step) for step in range(5)])


def test_num_cycles_has_the_effect_of_transformers(train):
    trainer = train(max_steps=2, warmup_steps=1, lr_scheduler_kwargs={"num_cycles": 0.25})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    theirs = get_cosine_schedule_with_warmup(optimizer, 1, 40, num_cycles=0.25).lr_lambdas[0]
    trainer.lr_scheduler = None
    ours = trainer.create_scheduler(40).lr_lambdas[0]
    assert [ours(step) for step in range(1, 40)] == pytest.approx([theirs(step) for step in range(1, 40)])


# Epochs and evaluation


def test_evaluation_does_not_depend_on_the_batch_size(train):
    results = [train(folder=str(size), max_steps=1, per_device_eval_batch_size=size).evaluate() for size in (3, 100)]
    names = ["eval_loss", *(f"eval_image_to_text_recall_at_{k}" for k in (1, 5, 10))]
    assert [results[0][name] for name in names] == pytest.approx([results[1][name] for name in names], abs=1e-5)
    assert 1 <= results[0]["eval_text_to_image_median_rank"] <= 20


def test_epochs_of_a_stream_are_counted_in_pairs(train, tmp_path):
    trainer = train(max_steps=-1, num_train_epochs=1)
    trainer.save_state()
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == PAIRS // 16
    assert state["epoch"] == pytest.approx(PAIRS // 16 * 16 / PAIRS)


def test_a_list_of_rows_is_trained_with_new_crops_each_epoch(train, shards):
    rows = PairStream(shards).rows(0, 0, 32)
    for row in rows:
        del row["epoch"]
    trainer = train(train_dataset=rows, max_steps=-1, num_train_epochs=3)
    assert trainer.state.global_step == 6
    assert trainer.data_collator.epoch == 2


def evaluated_steps(trainer) -> list[int]:
    return [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]


def test_an_epoch_of_a_stream_ends_with_its_last_whole_batch(train, tmp_path):
    per_epoch, rest = divmod(PAIRS, 16)
    assert rest * 2 >= 16, "counted in pairs, the second epoch would end a step later"
    trainer = train(max_steps=-1, num_train_epochs=2, save_strategy="epoch", eval_strategy="epoch")
    steps = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert steps[:2] == evaluated_steps(trainer)[:2] == [per_epoch, 2 * per_epoch]


def test_each_epoch_is_evaluated_once_also_after_resuming(train):
    per_epoch = PAIRS // 32
    options = {"max_steps": 3 * per_epoch, "per_device_train_batch_size": 32, "eval_strategy": "epoch"}
    whole = train(folder="whole", save_steps=per_epoch + 1, **options)
    assert evaluated_steps(whole) == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    checkpoint = f"{whole.args.output_dir}/checkpoint-{per_epoch + 1}"
    resumed = train(folder="whole", save_steps=10**6, resume=checkpoint, **options)
    assert evaluated_steps(resumed) == evaluated_steps(whole)


def test_the_best_epoch_is_loaded(train):
    per_epoch = PAIRS // 32
    options = {"max_steps": 3 * per_epoch, "per_device_train_batch_size": 32, "learning_rate": 1e-2}
    options |= {"eval_strategy": "epoch", "eval_delay": 2, "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = train(**options)
    losses_by_step = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert sorted(losses_by_step) == [2 * per_epoch, 3 * per_epoch], "eval_delay counts epochs"
    best = min(losses_by_step, key=losses_by_step.get)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses_by_step[best], abs=1e-5)


# Resuming


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(train, small_model, tmp_path):
    small_model.config.text_config.hidden_dropout = 0.1  # its random states are those of the checkpoint
    model = BiomedCLIPModel(small_model.config)
    model.load_state_dict(small_model.state_dict())
    uninterrupted = train(copy.deepcopy(model), folder="whole")
    train(copy.deepcopy(model), folder="cut", save_steps=2, callbacks=[Interrupt()])
    resumed = train(copy.deepcopy(model), folder="cut", resume=str(tmp_path / "cut" / "checkpoint-4"))
    assert losses(resumed) == losses(uninterrupted)
    assert_equal_weights(resumed, uninterrupted)


def test_workers_of_the_loader_do_not_change_the_losses(train):
    assert losses(train(folder="workers", dataloader_num_workers=2)) == losses(train(folder="alone"))


@pytest.mark.parametrize("stream", [True, False])
def test_a_finished_run_takes_no_further_step(train, shards, stream):
    rows = None if stream else [row for row in PairStream(shards).rows(0, 0, 48) if row.pop("epoch") is not None]
    finished = train(max_steps=4, save_steps=2, train_dataset=rows)
    resumed = train(max_steps=4, save_steps=2, train_dataset=rows, resume=True)
    assert resumed.state.global_step == 4 and losses(resumed) == losses(finished)
    assert_equal_weights(resumed, finished)


def test_old_checkpoints_are_removed_when_a_killed_run_is_resumed(train, tmp_path):
    train(max_steps=4, save_steps=2)
    train(max_steps=4, save_steps=2, save_total_limit=1, resume=True)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


def test_files_of_an_abandoned_checkpoint_do_not_mix_with_new_ones(train, tmp_path):
    stale = tmp_path / "run" / "checkpoint-2" / "rng_state_7.pth"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of another run")
    train(max_steps=2, save_steps=2)
    assert not stale.exists() and (stale.parent / "trainer_state.json").exists()


def test_a_resumed_run_continues_with_the_next_pairs_for_any_batch_size(train, tmp_path, monkeypatch, caplog):
    read, rows = [], PairStream.rows

    def recorded(stream, epoch, low, high):
        read.append((epoch, low, high))
        return rows(stream, epoch, low, high)

    monkeypatch.setattr(PairStream, "rows", recorded)
    runs = [(8, 4, 4), (4, 8, 4), (8, 10, 2)]  # batch size, steps of the schedule, steps of the run
    resume, seen = None, 0
    for size, steps, own in runs:
        read.clear()
        options = {"max_steps": steps, "save_steps": steps, "per_device_train_batch_size": size}
        trainer = train(folder="cut", resume=resume, **options)
        trained = [rows for rows in read if rows[2] - rows[1] == size]
        assert trained[:own] == [(0, seen + step * size, seen + (step + 1) * size) for step in range(own)]
        seen += own * size
        resume = str(tmp_path / "cut" / f"checkpoint-{steps}")
        state = json.loads((tmp_path / "cut" / f"checkpoint-{steps}" / "trainer_state.json").read_text())
        assert state["stateful_callbacks"]["_ContrastiveCallback"]["attributes"] == {"samples_seen": seen}
        assert state["epoch"] == pytest.approx(seen / len(trainer.pair_stream))
    assert "another batch size" in caplog.text


def test_a_checkpoint_without_a_position_is_assumed_to_have_the_same_batch_size(train, tmp_path):
    train(folder="cut", max_steps=2, save_steps=2)
    path = tmp_path / "cut" / "checkpoint-2" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["_ContrastiveCallback"]
    path.write_text(json.dumps(state))
    trainer = train(folder="cut", max_steps=3, resume=str(path.parent))
    assert trainer.train_dataset.samples_seen == 2 * 16


def test_random_states_of_another_number_of_processes_are_replaced_by_a_new_seed(train, tmp_path, caplog):
    trainer = train(max_steps=1, save_steps=1, seed=11)
    checkpoint = tmp_path / "run" / "checkpoint-1"
    state = torch.get_rng_state()
    trainer._load_rng_state(None)
    assert torch.equal(torch.get_rng_state(), state)
    trainer.state.global_step = 5
    (checkpoint / "rng_state_1.pth").write_bytes((checkpoint / "rng_state.pth").read_bytes())
    trainer._load_rng_state(str(checkpoint))
    assert torch.initial_seed() == 11 + 5 and "random states of 2 processes, but this run has 1." in caplog.text
    for path in checkpoint.glob("rng_state*"):
        path.unlink()
    torch.manual_seed(0)
    trainer._load_rng_state(str(checkpoint))
    assert torch.initial_seed() == 11 + 5 and "only weights: the optimizer" in caplog.text


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "triplet"}, "infonce, siglip"),
        ({"mini_batch_size": 0}, "mini_batch_size=0"),
        ({"loss": "siglip"}, "logit_bias_init_value"),
        ({"max_steps": -1, "per_device_train_batch_size": PAIRS + 1}, "results in no step"),
    ],
)
def test_invalid_arguments_are_errors(train, options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


def test_a_model_without_logit_scale_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no parameter `logit_scale`"):
        ContrastiveTrainer(torch.nn.Linear(2, 2), ContrastiveTrainingArguments(output_dir=str(tmp_path)))


def test_batches_are_copied_to_an_accelerator_without_waiting(monkeypatch):
    waits = []
    copy = torch.Tensor.to

    def to(self, *args, non_blocking=False, **options):
        waits.append(not non_blocking)
        return copy(self, *args, non_blocking=non_blocking, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    batches = [{"pixel_values": torch.ones(2, 3), "max_length_q": 7} for _ in range(2)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    assert copied_ahead(loader, torch.device("cpu")) is loader
    # The meta device is one that has no memory.
    found = list(copied_ahead(loader, torch.device("meta")))
    assert [batch["pixel_values"].device.type for batch in found] == ["meta", "meta"]
    assert found[0]["max_length_q"] == 7 and waits == [False, False]
