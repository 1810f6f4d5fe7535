"""Train a model that answers questions about images.

biomedclip train --config vqa_rad --model-name-or-path model --train-data VQA_RAD --output-dir answers
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor, EvalPrediction, PreTrainedModel

from biomedclip import BiomedCLIPCoAttentionConfig
from biomedclip.processing import VisualQuestionCollator, load_benchmark
from biomedclip.processing.answers import answer_vocabulary, normalize_answer
from biomedclip.processing.benchmarks import VisualQuestion, VisualQuestionBenchmark, benchmark_names
from biomedclip.processing.collator import IGNORED_LABEL, UNKNOWN_ANSWER
from biomedclip.processing.images.labeled import LabeledImages, check_readable

from ..cli.errors import UsageError
from ..cli.fields import REQUIRED, option
from ..cli.reporting import no_warnings_of_transformers, show_table
from ..hub.fingerprints import base_fingerprint
from . import runs, supervised
from .adapters import AdapterOptions, add_adapter
from .models import make_config, read_fields
from .runs import check_checkpoint, cost_rows, describe_checkpoint, run_and_save, start_run
from .supervised import HEAD, SupervisedArguments, SupervisedData, SupervisedTrainer, load_with_head
from .trackers import check_trackers


logger = logging.getLogger(__name__)

TASK = "visual-question-answering"
VISUAL_QUESTIONS = benchmark_names(TASK)
EXAMPLE = """biomedclip train --config vqa_rad --model-name-or-path model \\
      --train-data VQA_RAD --output-dir answers"""
GROUPS = {
    "data": "task train_data benchmark image_folder validation_fraction on_bad_row dataloader_num_workers",
    "model": "model_name_or_path co_attention_config max_length trust_remote_code",
    **supervised.GROUPS,
}
GROUPS["optimization"] += " head_learning_rate_factor cross_modal_learning_rate_factor"
ALTERNATIVES = runs.ALTERNATIVES
TOWERS = ("text_model", "vision_model")
# METER's names: its `token_type_embeddings` belong to neither the head nor the cross-modal group.
AT_BASE_RATE = (*TOWERS, "token_type_embeddings")
NEW_PARTS = [HEAD, "co_attention", "text_transform", "image_transform"]


@dataclass(kw_only=True)
class QuestionData(SupervisedData):
    """Questions, the model to start from, and the options of METER that `TrainingArguments` lacks."""

    train_data: str = option(REQUIRED, "Folder of the benchmark, as downloaded.")
    model_name_or_path: str = option(
        REQUIRED, "BiomedCLIP checkpoint. Its head for visual questions is used if it has one."
    )
    benchmark: str = option(REQUIRED, "Format of the folder.", VISUAL_QUESTIONS)
    task: str = option(TASK, "Training task.")
    image_folder: str | None = option(None, "Folder of the images (default: next to the questions).")
    validation_fraction: float = option(
        0.0,
        "Fraction of training images to hold out for validation, with all their questions (default: 0). "
        "SLAKE has its own validation split.",
    )
    co_attention_config: dict | str | None = option(
        None, "Fields of BiomedCLIPCoAttentionConfig, as JSON (default: the published size)."
    )
    max_length: int | None = option(None, "Maximum number of tokens of a question (default: that of the tokenizer).")
    head_learning_rate_factor: float = option(
        50.0, "Factor of the learning rate for the classifier (default: 50, as in METER)."
    )
    cross_modal_learning_rate_factor: float = option(
        5.0, "Factor of the learning rate for the co-attention (default: 5, as in METER)."
    )

    def __post_init__(self):
        self.co_attention_config = read_fields("--co-attention-config", self.co_attention_config)
        if self.co_attention_config is not None:
            make_config("--co-attention-config", BiomedCLIPCoAttentionConfig, self.co_attention_config)
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"--validation-fraction {self.validation_fraction} must be at least 0 and less than 1.")
        if self.benchmark == "slake" and self.validation_fraction > 0:
            raise ValueError("--validation-fraction has no effect on slake, which has a validation split. Omit it.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"--max-length must be at least 1, not {self.max_length}.")


@dataclass
class QuestionArguments(SupervisedArguments):
    """`SupervisedArguments` without gradient clipping, as in METER."""

    max_grad_norm: float = option(0.0, "Maximum norm of the gradients (default: 0, no clipping).")


OPTION_CLASSES = [QuestionData, AdapterOptions, QuestionArguments]


def run(
    data: QuestionData, adapter: AdapterOptions, args: SupervisedArguments
) -> tuple["QuestionTrainer", dict[str, Any]]:
    """Train and save a model that answers questions, and return the trainer and the results.

    The model is evaluated on the validation questions, if there are any.
    """
    check_validation_options(data, args)
    trust = data.trust_remote_code
    check_checkpoint(data.model_name_or_path, trust_remote_code=trust)
    check_trackers(args)
    splits = question_splits(data, args.seed)
    for split, asked in splits.items():
        check_questions_readable(asked, f"--train-data {data.train_data}, {split} questions")
    answered = [question for question in splits["train"] if normalize_answer(question.answer)]
    answers = answer_vocabulary(question.answer for question in answered)
    checkpoint = start_run(args, [data, adapter], task=TASK)
    processor = AutoProcessor.from_pretrained(data.model_name_or_path, trust_remote_code=trust)
    model = load_answerer(data.model_name_or_path, answers, data.co_attention_config, trust_remote_code=trust)
    config = model.config
    collate: dict[str, Any] = {"max_length": data.max_length, "seed": args.seed, "on_error": data.on_bad_row}
    validation = [vars(question) for question in splits["validation"]]
    trainer = QuestionTrainer(
        add_adapter(model, adapter, trained_whole=NEW_PARTS),
        args,
        head_factor=data.head_learning_rate_factor,
        cross_modal_factor=data.cross_modal_learning_rate_factor,
        train_dataset=[vars(question) for question in answered],
        eval_dataset=validation or None,
        data_collator=VisualQuestionCollator(processor, config.label2id, training=True, **collate),
        eval_data_collator=VisualQuestionCollator(processor, config.label2id, **collate),
        processing_class=processor,
    )

    def measure_validation() -> dict[str, Any]:
        return {
            "questions": len(answered),
            "images": len({question.image_name for question in answered}),
            "answers": len(answers),
            "questions_without_answer": len(splits["train"]) - len(answered),
            "validation": measure(trainer, splits["validation"], validation) if validation else None,
        }

    return trainer, run_and_save(trainer, checkpoint, adapter, measure_validation, config, data=data.train_data)


def check_validation_options(data: QuestionData, args: SupervisedArguments) -> None:
    """Check that no option needs validation questions if none are held out."""
    if data.benchmark == "slake" or data.validation_fraction > 0:
        return
    default_batch = SupervisedArguments.per_device_eval_batch_size
    needs = {
        f"--eval-strategy {args.eval_strategy.value}": args.eval_strategy != "no",
        "--eval-on-start true": args.eval_on_start,
        "--per-device-eval-batch-size": args.per_device_eval_batch_size != default_batch,
    }
    for name, needed in needs.items():
        if needed:
            raise UsageError(
                f"{name} needs validation questions, but --validation-fraction 0 trains on all questions. Omit it "
                "(--eval-strategy no), or hold out images, for example with --validation-fraction 0.1."
            )


class QuestionTrainer(SupervisedTrainer):
    """Trainer for visual question answering, with the parameter groups of METER's `set_schedule`.

    The classifier and the cross-modal layers have their own learning rates. As in METER, weight decay excludes biases
    and LayerNorms, except for the LayerNorm of the classifier, which METER's list of names does not match. The option
    `learning_rate` is that of the encoders and of the token type embeddings. The cross-modal layers are the
    co-attention layers, the poolers and the two linear maps before them.
    """

    rows = "questions"

    def __init__(
        self, model: Any, args: SupervisedArguments, *, head_factor: float, cross_modal_factor: float, **kwargs: Any
    ):
        self.head_factor, self.cross_modal_factor = head_factor, cross_modal_factor
        super().__init__(model, args, compute_metrics=accuracy, preprocess_logits_for_metrics=_best_answers, **kwargs)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Return the names of the parameters with weight decay: `Trainer`'s, and all weights of the classifier."""
        names = super().get_decay_parameter_names(model)
        of_head = [name for name, _ in model.named_parameters() if HEAD in name.split(".") and name.endswith("weight")]
        return list(dict.fromkeys([*names, *of_head]))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create `Trainer`'s optimizer and split its two groups (with and without weight decay) by learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        factor_of = {parameter: self._factor(name) for name, parameter in (model or self.model).named_parameters()}
        # The encoders come first, because Trainer logs the learning rate of the first group.
        optimizer.param_groups = [
            {**group, "params": parameters, "lr": group["lr"] * factor}
            for factor in sorted(set(factor_of.values()), key=[1.0, self.cross_modal_factor, self.head_factor].index)
            for group in optimizer.param_groups
            if (parameters := [parameter for parameter in group["params"] if factor_of[parameter] == factor])
        ]
        return optimizer

    def _factor(self, name: str) -> float:
        parts = name.split(".")
        if HEAD in parts:
            return self.head_factor
        return 1.0 if any(name in parts for name in AT_BASE_RATE) else self.cross_modal_factor


def load_questions(name: str | None, path: str, split: Any, image_folder: str | None = None) -> VisualQuestionBenchmark:
    """Load a split of a benchmark for visual question answering."""
    if name not in VISUAL_QUESTIONS:
        raise UsageError(f"--benchmark must be {' or '.join(VISUAL_QUESTIONS)} for visual questions, not {name}.")
    benchmark = load_benchmark(name, path, split=split, image_folder=image_folder)
    assert isinstance(benchmark, VisualQuestionBenchmark)
    return benchmark


def check_questions_readable(questions: Sequence[VisualQuestion], where: str) -> None:
    """Check that the image of at least one question can be read."""
    images = {question.image_name: question.image for question in questions}
    check_readable(LabeledImages(list(images.values()), ["image"] * len(images), list(images)), where)


def question_splits(data: QuestionData, seed: int) -> dict[str, list[VisualQuestion]]:
    """Read the training and validation questions.

    VQA-RAD has no validation split. A fraction of its training images is held out, with all their questions.
    """
    where = data.image_folder
    train = load_questions(data.benchmark, data.train_data, "train", where).questions
    if data.benchmark == "slake":
        return {"train": train, "validation": load_questions("slake", data.train_data, "validation", where).questions}
    if data.validation_fraction == 0:
        return {"train": train, "validation": []}
    images = sorted({question.image_name for question in train})
    if len(images) < 2:
        raise ValueError(
            f"--validation-fraction {data.validation_fraction}: {data.train_data} has only one training image, so "
            "none can be held out. Pass --validation-fraction 0."
        )
    wanted = min(len(images) - 1, max(1, round(data.validation_fraction * len(images))))
    held_out = set(np.random.default_rng(seed).permutation(images)[:wanted].tolist())
    return {
        "train": [question for question in train if question.image_name not in held_out],
        "validation": [question for question in train if question.image_name in held_out],
    }


def load_answerer(
    name: str, answers: Sequence[str], co_attention_config: Any = None, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load the encoders of a checkpoint with a head for the given answers. A missing head is initialized randomly.

    `co_attention_config` contains fields of the head (default: those of the checkpoint, or the published ones).
    """
    head = {} if co_attention_config is None else {"co_attention_config": co_attention_config}
    with no_warnings_of_transformers():  # the warning lists the tensors of the new head
        model, info = load_with_head(
            AutoModelForVisualQuestionAnswering, name, answers, trust_remote_code=trust_remote_code, **head
        )
        base_weights = base_fingerprint(name, trust_remote_code=trust_remote_code)
    drawn = {*info["missing_keys"], *(tensor for tensor, *_ in info["mismatched_keys"])}
    if of_towers := sorted(tensor for tensor in drawn if tensor.startswith(TOWERS)):
        logger.warning(f"{name} lacks {len(of_towers)} tensors of the encoders, which are random: {of_towers[0]}, ...")
    # If training continues from a model for visual questions, the original base is kept.
    model.config.base_weights = base_weights or getattr(model.config, "base_weights", None)
    return model


def _best_answers(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the indices of the best answers, so that Trainer does not store the outputs of the encoders."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.argmax(dim=-1)


def accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    """Return the accuracy on questions with readable images. An answer outside the vocabulary counts as wrong."""
    readable = evaluated.label_ids != IGNORED_LABEL
    return {"accuracy": float((evaluated.predictions == evaluated.label_ids)[readable].mean())}


def measure(trainer: QuestionTrainer, questions: Sequence[VisualQuestion], rows: Sequence[Any]) -> dict[str, Any]:
    """Evaluate the trained model on all, open, and closed validation questions.

    The attainable accuracy is the fraction of questions whose answer is in the vocabulary of the model.
    """
    found = trainer.predict(rows, metric_key_prefix="validation")
    readable, right = found.label_ids != IGNORED_LABEL, found.predictions == found.label_ids
    types = np.array([question.answer_type for question in questions])
    measured: dict[str, Any] = {}
    for prefix, of_type in {"": True, "open_": types == "open", "closed_": types == "closed"}.items():
        chosen = readable & of_type
        measured[f"{prefix}accuracy"] = float(right[chosen].mean()) if chosen.any() else None
        attainable = (found.label_ids != UNKNOWN_ANSWER)[chosen]
        measured[f"{prefix}attainable_accuracy"] = float(attainable.mean()) if chosen.any() else None
    return {
        **measured,
        "questions": len(questions),
        "images": len({question.image_name for question in questions}),
        "answers_never_seen": int((found.label_ids == UNKNOWN_ANSWER).sum()),
        "unreadable_questions": int((~readable).sum()),
    }


def show_results(results: Mapping[str, Any]) -> None:
    """Print the validation metrics, if there are any, the saved checkpoint, and the cost of the training."""
    rows = [(name.replace("_", " "), results[name]) for name in ("questions", "images", "questions_without_answer")]
    validation = results["validation"] or {}
    rows += [(f"validation {name.replace('_', ' ')}", value) for name, value in validation.items()]
    rows += [("saved checkpoint", describe_checkpoint(results["saved_checkpoint"]))]
    show_table(f"Visual question answering, {results['answers']} answers", rows + cost_rows(results), ["", "value"])
