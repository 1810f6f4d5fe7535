"""Contrastive training through `Trainer`."""

import json
import math

import pytest
import torch
from open_clip_train.scheduler import cosine_lr
from transformers import (
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    TrainerCallback,
    get_cosine_schedule_with_warmup,
    get_scheduler,
)

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.contrastive_trainer import cosine_factor
from biomedclip.processing import ContrastiveCollator, PairStream


@pytest.fixture
def train(built, small_model, small_processor, tmp_path):
    """Trains the small model for a few steps; returns the trainer."""

    def run(model=None, *, folder="run", resume=None, callbacks=None, train_dataset=None, **options):
        options = {"max_steps": 6, "per_device_train_batch_size": 16, "logging_steps": 1, "report_to": "none"} | options
        args = ContrastiveTrainingArguments(output_dir=str(tmp_path / folder), disable_tqdm=True, **options)
        trainer = ContrastiveTrainer(
            model or small_model,
            args,
            train_dataset=train_dataset or PairStream(built),
            eval_dataset=PairStream(built, "test").rows(0, 0, 10**6),
            data_collator=ContrastiveCollator(small_processor, training=True),
            eval_data_collator=ContrastiveCollator(small_processor),
            callbacks=callbacks,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def fresh(small_model) -> BiomedCLIPModel:
    model = BiomedCLIPModel(small_model.config)
    model.load_state_dict(small_model.state_dict())
    return model


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_training_learns_a_few_pairs_by_heart(train, built):
    rows = PairStream(built).rows(0, 0, 16)
    trainer = train(train_dataset=rows, max_steps=-1, num_train_epochs=60, learning_rate=1e-3, warmup_steps=5)
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]


def test_training_leaves_a_trainer_folder_that_counts_epochs_in_pairs(train, tmp_path):
    trainer = train(max_steps=6, per_device_train_batch_size=32)
    trainer.save_state()
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert state["epoch"] == pytest.approx(6 * 32 / len(trainer.pair_stream))


def test_the_same_seed_gives_the_same_losses(train, small_model):
    first, second = (losses(train(fresh(small_model), folder=name)) for name in "ab")
    assert first == second


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resumed_run_ends_with_the_losses_and_weights_of_an_undisturbed_one(train, small_model, tmp_path, dropout):
    small_model.config.text_config.hidden_dropout = dropout

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    undisturbed = train(fresh(small_model), folder="whole", max_steps=8)
    train(fresh(small_model), folder="cut", max_steps=8, save_steps=2, callbacks=[Interrupt()])
    resumed = train(fresh(small_model), folder="cut", max_steps=8, resume=str(tmp_path / "cut" / "checkpoint-4"))
    assert losses(resumed) == losses(undisturbed)
    for ours, theirs in zip(resumed.model.parameters(), undisturbed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_workers_of_the_loader_change_nothing(train, small_model):
    alone = losses(train(fresh(small_model), folder="alone"))
    assert losses(train(fresh(small_model), folder="workers", dataloader_num_workers=2)) == alone


def test_gradient_accumulation_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match="only negatives.*--mini-batch-size"):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), gradient_accumulation_steps=2)


@pytest.mark.parametrize(("start", "bound"), [(10.0, math.log(100)), (-3.0, 0.0)])
def test_the_temperature_is_kept_in_bounds(train, small_model, start, bound):
    with torch.no_grad():
        small_model.logit_scale.fill_(start)
    assert train(max_steps=1).model.logit_scale.item() == pytest.approx(bound)


def test_a_frozen_temperature_is_left_alone(train, small_model):
    with torch.no_grad():
        small_model.logit_scale.fill_(10.0)
    small_model.logit_scale.requires_grad_(False)
    assert train(max_steps=1).model.logit_scale.item() == 10.0


def test_weight_decay_spares_biases_norms_and_the_temperature(train):
    trainer = train(max_steps=1)
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    assert "logit_scale" not in decayed and "text_model.layers.0.layer_norm1.weight" not in decayed
    assert "visual_projection.weight" in decayed and "vision_model.embeddings.position_embedding" in decayed
    assert not any(name.endswith("bias") for name in decayed)


def test_evaluation_measures_the_whole_set_whatever_the_batch(train, small_model):
    results = []
    for folder, size in (("small", 3), ("large", 100)):
        trainer = train(fresh(small_model), folder=folder, max_steps=1, per_device_eval_batch_size=size)
        results.append(trainer.evaluate())
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], abs=1e-5)
    for k in (1, 5, 10):
        key = f"eval_image_to_text_recall_at_{k}"
        assert results[0][key] == pytest.approx(results[1][key])
    assert 1 <= results[0]["eval_text_to_image_median_rank"] <= 20


def test_a_model_learns_a_few_pairs_by_heart_with_the_siglip_loss_in_mini_batches(train, built, small_model):
    small_model.config.logit_scale_init_value, small_model.config.logit_bias_init_value = math.log(10), -10.0
    model = BiomedCLIPModel(small_model.config)
    trainer = train(
        model,
        train_dataset=PairStream(built).rows(0, 0, 16),
        max_steps=-1,
        num_train_epochs=60,
        learning_rate=5e-3,
        loss="siglip",
        mini_batch_size=6,
    )
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]
    assert model.logit_bias.item() != -10.0


def test_the_siglip_loss_is_refused_for_a_model_without_a_bias(train):
    with pytest.raises(ValueError, match="logit_bias_init_value"):
        train(loss="siglip")


def test_a_loss_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="infonce, siglip"):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), loss="triplet")


def test_a_run_killed_before_it_removed_an_old_checkpoint_removes_it_when_it_is_resumed(
    train, small_model, tmp_path, monkeypatch
):
    train(fresh(small_model), max_steps=4, save_steps=2)
    monkeypatch.setattr(ContrastiveTrainer, "get_train_dataloader", lambda self: [])  # all steps are done
    train(fresh(small_model), max_steps=4, save_steps=2, save_total_limit=1, resume=True)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.parametrize("keep_activations", [False, True])
def test_no_more_pairs_than_a_mini_batch_are_embedded_at_a_time(train, small_model, keep_activations):
    model, embedded = fresh(small_model), []
    model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: embedded.append(len(kwargs["pixel_values"] if kwargs else args[0])),
        with_kwargs=True,
    )
    train(model, max_steps=1, mini_batch_size=6, keep_activations=keep_activations)
    assert max(embedded) == 6 and sum(embedded) >= 16


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_any_dual_encoder_of_transformers_trains(train, name):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = size | {"vocab_size": 128, "max_position_embeddings": 64}
    vision = size | {"image_size": 32, "patch_size": 8}
    if name == "CLIP":
        text |= {"eos_token_id": 3}
        # At a temperature of 1 all logits are between -1 and 1, whatever the random weights.
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, logit_scale_init_value=0.0)
        model = CLIPModel(config)
    else:
        model = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
    trainer = train(model)
    assert losses(trainer)[0] == pytest.approx(math.log(16), abs=0.5)
    assert 1 <= trainer.evaluate()["eval_image_to_text_median_rank"] <= 20


def test_a_model_without_temperature_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no parameter `logit_scale`"):
        ContrastiveTrainer(torch.nn.Linear(2, 2), ContrastiveTrainingArguments(output_dir=str(tmp_path)))


def test_rows_with_random_access_train_and_get_new_crops_each_epoch(train, built):
    rows = PairStream(built).rows(0, 0, 32)
    for row in rows:
        del row["epoch"]
    trainer = train(train_dataset=rows, max_steps=-1, num_train_epochs=3)
    assert trainer.state.global_step == 6
    assert trainer.data_collator.epoch == 2


def test_epochs_are_counted_in_pairs(train, built):
    trainer = train(max_steps=-1, num_train_epochs=1)
    assert trainer.state.global_step == len(PairStream(built)) // 16


def test_a_peft_model_trains_its_adapter_alone(train, small_model):
    peft = pytest.importorskip("peft")
    before = small_model.visual_projection.weight.detach().clone()
    adapted = peft.get_peft_model(small_model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    trainer = train(adapted, learning_rate=1e-2)
    trained = {name: p for name, p in trainer.model.named_parameters() if "lora_B" in name}
    assert len(trained) == 8 and all(p.abs().sum() > 0 for p in trained.values())
    assert torch.equal(before, small_model.visual_projection.weight)


def test_the_published_recipe_is_the_default(tmp_path):
    args = ContrastiveTrainingArguments(output_dir=str(tmp_path))
    assert (args.learning_rate, args.weight_decay, args.adam_epsilon) == (5e-4, 0.2, 1e-6)
    assert (args.adam_beta1, args.adam_beta2, args.lr_scheduler_type) == (0.9, 0.98, "cosine")
    assert args.max_grad_norm == 0
    assert BiomedCLIPConfig().projection_dim == 512


def open_clip_rates(learning_rate: float, warmup_steps: int, steps: int) -> list[float]:
    """The learning rate of each step in open_clip's training program."""
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


@pytest.mark.parametrize("cut", [None, 2, 6])  # resumed in the warm-up, and after it
def test_training_takes_each_step_at_the_learning_rate_of_open_clip(train, small_model, tmp_path, cut):
    rates, options = Rates(), {"max_steps": 9, "warmup_steps": 4, "save_steps": cut or 500}
    resume = None
    if cut:
        train(fresh(small_model), folder="cut", **options)
        resume = str(tmp_path / "cut" / f"checkpoint-{cut}")
    train(fresh(small_model), callbacks=[rates], resume=resume, **options)
    assert rates.found == pytest.approx(open_clip_rates(5e-4, 4, 9)[cut or 0 :], rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "constant_with_warmup"])
def test_schedules_other_than_the_cosine_are_those_of_transformers(train, name):
    rates = Rates()
    train(callbacks=[rates], max_steps=5, warmup_steps=2, lr_scheduler_type=name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=5)
    assert rates.found == pytest.approx([5e-4 * schedule.lr_lambdas[0](step) for step in range(5)])


def test_further_settings_of_the_cosine_are_those_of_transformers(train):
    trainer = train(max_steps=2, warmup_steps=1, lr_scheduler_kwargs={"num_cycles": 0.25})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    theirs = get_cosine_schedule_with_warmup(optimizer, 1, 40, num_cycles=0.25)
    ours = ContrastiveTrainer.create_scheduler
    trainer.lr_scheduler, trainer.args.warmup_steps = None, 1
    factors = ours(trainer, 40).lr_lambdas[0]
    assert [factors(step) for step in range(1, 40)] == pytest.approx(
        [theirs.lr_lambdas[0](step) for step in range(1, 40)]
    )


def evaluated_steps(trainer) -> list[int]:
    return [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]


def test_an_epoch_of_a_stream_ends_with_its_last_whole_batch(train, built, tmp_path):
    per_epoch, rest = divmod(len(PairStream(built)), 16)
    assert rest * 3 >= 16, "counted in pairs, the third epoch would end a step later"
    trainer = train(max_steps=-1, num_train_epochs=3, save_strategy="epoch", eval_strategy="epoch")
    steps = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert steps[:2] == evaluated_steps(trainer)[:2] == [per_epoch, 2 * per_epoch]


def test_each_epoch_is_evaluated_once_also_after_a_resume(train, built, small_model):
    per_epoch = len(PairStream(built)) // 32
    options = {"max_steps": 3 * per_epoch, "per_device_train_batch_size": 32, "eval_strategy": "epoch"}
    whole = train(fresh(small_model), folder="whole", save_steps=per_epoch + 1, **options)
    assert evaluated_steps(whole) == [per_epoch, 2 * per_epoch, 3 * per_epoch]
    checkpoint = f"{whole.args.output_dir}/checkpoint-{per_epoch + 1}"
    resumed = train(fresh(small_model), folder="whole", save_steps=10**6, resume=checkpoint, **options)
    assert evaluated_steps(resumed) == evaluated_steps(whole)


def test_the_best_epoch_is_loaded(train, built, small_model):
    per_epoch = len(PairStream(built)) // 32
    trainer = train(
        fresh(small_model),
        max_steps=3 * per_epoch,
        per_device_train_batch_size=32,
        learning_rate=1e-2,
        eval_strategy="epoch",
        eval_delay=2,
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    losses_by_step = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert sorted(losses_by_step) == [2 * per_epoch, 3 * per_epoch], "eval_delay counts epochs"
    best = min(losses_by_step, key=losses_by_step.get)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses_by_step[best], abs=1e-5)


def test_resuming_with_another_batch_size_says_so_and_keeps_the_position(train, small_model, tmp_path, caplog):
    train(fresh(small_model), folder="cut", max_steps=4, save_steps=4)
    checkpoint = str(tmp_path / "cut" / "checkpoint-4")
    trainer = train(fresh(small_model), folder="cut", max_steps=8, resume=checkpoint, per_device_train_batch_size=8)
    assert "another batch size" in caplog.text
    assert trainer.train_dataset.samples_seen == 4 * 16


def test_each_batch_size_goes_on_with_the_pairs_that_are_next(train, small_model, tmp_path, monkeypatch):
    read, rows = [], PairStream.rows

    def recorded(stream, epoch, low, high):
        read.append((epoch, low, high))
        return rows(stream, epoch, low, high)

    monkeypatch.setattr(PairStream, "rows", recorded)
    runs = [(16, 4, 4), (8, 8, 4), (16, 10, 2)]  # batch size, steps of the schedule, steps of the run
    resume, seen = None, 0
    for size, steps, own in runs:
        read.clear()
        trainer = train(
            fresh(small_model),
            folder="cut",
            max_steps=steps,
            save_steps=steps,
            resume=resume,
            per_device_train_batch_size=size,
        )
        trained = [rows for rows in read if rows[2] - rows[1] == size]
        assert trained[:own] == [(0, seen + step * size, seen + (step + 1) * size) for step in range(own)]
        seen += own * size
        resume = str(tmp_path / "cut" / f"checkpoint-{steps}")
        state = json.loads((tmp_path / "cut" / f"checkpoint-{steps}" / "trainer_state.json").read_text())
        assert state["stateful_callbacks"]["_ContrastiveCallback"]["attributes"] == {"samples_seen": seen}
        assert state["epoch"] == pytest.approx(seen / len(trainer.pair_stream))


def test_a_checkpoint_without_a_position_is_assumed_to_have_the_same_batch_size(train, small_model, tmp_path):
    train(fresh(small_model), folder="cut", max_steps=2, save_steps=2)
    path = tmp_path / "cut" / "checkpoint-2" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["_ContrastiveCallback"]
    path.write_text(json.dumps(state))
    trainer = train(fresh(small_model), folder="cut", max_steps=3, resume=str(path.parent))
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
    assert torch.initial_seed() == 11 + 5 and "random states of 2 processes, and there are 1 now" in caplog.text
    for path in checkpoint.glob("rng_state*"):
        path.unlink()
    torch.manual_seed(0)
    trainer._load_rng_state(str(checkpoint))
    assert torch.initial_seed() == 11 + 5 and "optimizer and learning rate start anew" in caplog.text


def test_files_of_an_abandoned_checkpoint_do_not_mix_with_new_ones(train, tmp_path):
    stale = tmp_path / "run" / "checkpoint-2" / "rng_state_7.pth"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of another run")
    train(max_steps=2, save_steps=2)
    assert not stale.exists() and (stale.parent / "trainer_state.json").exists()
