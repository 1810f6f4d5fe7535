"""Trains BiomedCLIP, or any other dual encoder, with the contrastive loss.

biomedclip train --config quickstart --train-data out --output-dir run
biomedclip train --config lora_contrastive --model-name-or-path biomedclip --train-data out --output-dir adapter
biomedclip train --config lora_classification --train-data folder_of_classes --output-dir classifier
torchrun --nproc-per-node 8 --no-python biomedclip train --config quickstart --train-data out --output-dir run
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers.trainers import WordPieceTrainer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedModel,
    ProcessorMixin,
    set_seed,
)

from modeling_biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPModel,
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
)
from processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor, ContrastiveCollator, PairStream, load_pmc15m
from processing.processing_biomedclip import CONTEXT_LENGTH
from processing.streaming import TRAINING_COLUMNS, column_names

from . import classification
from .adapters import (
    MERGED,
    AdapterOptions,
    add_adapter,
    refuse_adapter,
    refuse_sharded_merge,
    save_merged,
    what_is_where,
)
from .options import option_value, parse_options
from .progress import show_progress
from .reporting import say, show_table, write_json
from .runs import check_checkpoint, checkpoint_to_resume, cost_rows, run_training


EXAMPLE = "biomedclip train --config quickstart --train-data out --output-dir run"
SHOWN = """
    task train_data model_name_or_path vision_model text_model model_config tokenizer vocabulary_size max_length
    on_bad_row max_eval_pairs lora_rank lora_alpha lora_dropout lora_targets merge_adapter output_dir max_steps
    num_train_epochs per_device_train_batch_size per_device_eval_batch_size learning_rate warmup_steps weight_decay
    bf16 torch_compile dataloader_num_workers eval_steps save_steps logging_steps save_total_limit report_to
    resume_from_checkpoint seed
""".split()
TASKS = ["contrastive", classification.TASK]
# A model starts from one of these; `text_model` goes with `vision_model`.
MODEL_CHOICES = ("model_name_or_path", "vision_model", "text_model", "model_config")


@dataclass
class ModelOptions:
    """Which model is trained. One of: a checkpoint, two towers, a configuration."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to go on from: BiomedCLIP, CLIP or another dual encoder."}
    )
    vision_model: str | None = field(default=None, metadata={"help": "ViT checkpoint to start the image tower from."})
    text_model: str | None = field(default=None, metadata={"help": "BERT checkpoint to start the text tower from."})
    model_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Fields of BiomedCLIPConfig, as JSON, for a model drawn afresh. The published size if empty."
        },
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer to use. The checkpoint's, or one trained on the training captions."}
    )
    vocabulary_size: int = field(
        default=30522, metadata={"help": "Entries at most of a vocabulary trained on the captions."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a caption is cut at. The tokenizer's limit if left out."}
    )

    def __post_init__(self):
        if isinstance(self.model_config, str):
            try:
                self.model_config = json.loads(self.model_config)
            except json.JSONDecodeError as error:
                raise ValueError(f"--model-config is not JSON: {error}") from error
        if (self.vision_model is None) != (self.text_model is None):
            raise ValueError("--vision-model and --text-model go together.")
        chosen = [self.model_name_or_path, self.vision_model, self.model_config]
        if sum(choice is not None for choice in chosen) > 1:
            raise ValueError("Choose one of --model-name-or-path, --vision-model with --text-model, --model-config.")
        if self.model_name_or_path and self.tokenizer:
            raise ValueError("--model-name-or-path brings its own tokenizer; leave --tokenizer out.")


@dataclass
class PairHandling:
    """How pairs are read."""

    on_bad_row: str = field(
        default="substitute",
        metadata={
            "help": "What a row does that cannot be decoded: raise, or substitute another one and count it.",
            "choices": ["raise", "substitute"],
        },
    )
    max_eval_pairs: int = field(default=2000, metadata={"help": "Validation pairs used in training, at most."})


@dataclass
class TrainData:
    """What is trained on."""

    train_data: str = field(metadata={"help": "Folder that biomedclip build wrote; local, hf:// or s3://."})
    task: str = field(
        default=TASKS[0],
        metadata={"help": "What is learned. Each task has options of its own: --task T --help.", "choices": TASKS},
    )


OPTION_CLASSES = [TrainData, PairHandling, ModelOptions, AdapterOptions, ContrastiveTrainingArguments]


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip train`."""
    if option_value("train", "task", arguments) == classification.TASK:
        return classification.main(arguments)
    data, handling, model_options, adapter, args = parse_options(
        "train",
        OPTION_CLASSES,
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        shown=SHOWN,
        alternatives=MODEL_CHOICES,
    )
    trainer, results = train(data.train_data, handling, model_options, args, adapter)
    if trainer.is_world_process_zero():
        show_results(results)
        say(f"{what_is_where(args.output_dir, adapter)}, curves in trainer_state.json, figures in train_results.json")


def train(
    train_data: str,
    handling: PairHandling,
    model_options: ModelOptions,
    args: ContrastiveTrainingArguments,
    adapter: AdapterOptions | None = None,
) -> tuple[ContrastiveTrainer, dict[str, Any]]:
    """
    Trains and saves a model.

    Args:
        train_data: Folder that `biomedclip build` wrote.
        handling: How pairs are read.
        model_options: Which model is trained.
        args: Everything else.
        adapter: LoRA; all weights are trained when left out.

    Returns:
        The trainer, its model trained, and the results that `train_results.json` holds.

    Raises:
        ValueError: Options that contradict each other.
        FileNotFoundError: No data set there.
        FileExistsError: Checkpoints of an earlier run in `output_dir`, and no word of resuming.
    """
    adapter = adapter or AdapterOptions()
    if adapter.lora_rank is not None and not model_options.model_name_or_path:
        raise ValueError(
            "--lora-rank needs --model-name-or-path: an adapter is saved without its base model, which must be a "
            "checkpoint that it can be loaded upon."
        )
    check_checkpoint(model_options.model_name_or_path)
    stream = PairStream(train_data, "train", seed=args.seed)
    checkpoint = checkpoint_to_resume(args)
    set_seed(args.seed)
    processor = load_processor(model_options, stream, args, learn=checkpoint is None)
    model = load_model(model_options, processor)
    if adapter.lora_rank is not None:
        model = add_adapter(model, adapter)
    collate = {"max_length": model_options.max_length, "seed": args.seed, "on_error": handling.on_bad_row}
    training_collator = ContrastiveCollator(processor, training=True, **collate)
    trainer = ContrastiveTrainer(
        model,
        args,
        train_dataset=stream,
        eval_dataset=_validation_pairs(train_data, handling.max_eval_pairs) if _evaluates(args) else None,
        data_collator=training_collator,
        eval_data_collator=ContrastiveCollator(processor, **collate),
        processing_class=processor,
    )
    refuse_sharded_merge(trainer, adapter)
    show_progress(trainer)
    results = {
        **run_training(trainer, checkpoint),
        "substituted_rows": training_collator.substituted_rows,
        "substituted_rows_in_evaluation": trainer.eval_data_collator.substituted_rows,
    }
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir) / "train_results.json", results)
        if adapter.merge_adapter:
            save_merged(model, processor, Path(args.output_dir) / MERGED)
    return trainer, results


def load_processor(
    options: ModelOptions, stream: PairStream, args: ContrastiveTrainingArguments, *, learn: bool
) -> ProcessorMixin:
    """
    The checkpoint's processor, or a new one whose vocabulary is given or learned from the training captions.

    Args:
        options: Which model is trained.
        stream: Where the captions are.
        args: Where the run leaves its vocabulary.
        learn: Learn the vocabulary, if one is needed, even where the run has left one: it is not being resumed.
    """
    if options.model_name_or_path:
        return AutoProcessor.from_pretrained(options.model_name_or_path)
    config = _config(options)
    size = (config.vision_config if config else AutoConfig.from_pretrained(options.vision_model)).image_size
    image_processor = BiomedCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    positions = config.text_config.max_position_embeddings if config else CONTEXT_LENGTH
    limit = {"model_max_length": options.max_length or min(CONTEXT_LENGTH, positions)}
    source = options.tokenizer or options.text_model
    if source:
        return BiomedCLIPProcessor(image_processor, AutoTokenizer.from_pretrained(source, **limit))
    learned = Path(args.output_dir) / "tokenizer"
    # One process learns the vocabulary, the others wait and read it: all must have the same ids.
    with args.main_process_first(desc="learning the vocabulary"):
        if args.should_save and (learn or not (learned / "tokenizer.json").exists()):
            learn_vocabulary(stream, options.vocabulary_size).save_pretrained(learned)
    return BiomedCLIPProcessor(image_processor, BertTokenizer.from_pretrained(learned, **limit))


def learn_vocabulary(stream: PairStream, size: int) -> BertTokenizer:
    """
    A lower-casing WordPiece vocabulary of the captions of a stream, with BERT's special tokens in their places.

    Args:
        stream: Where the captions are.
        size: Entries at most, unless the characters alone are more.

    Returns:
        A tokenizer that is the same for the same captions.
    """
    captions = PairStream(stream.path, stream.split, columns=["caption"])

    def lines() -> Iterator[str]:
        for start in range(0, len(captions), 1000):
            yield from (row["caption"] for row in captions.rows(0, start, start + 1000))

    tokenizer = BertTokenizer()
    backend = tokenizer.backend_tokenizer
    characters = sorted(set().union(*map(backend.normalizer.normalize_str, lines())) - set(" "))
    # Of two merges that are equally frequent the trainer takes the one of lower ids, and it numbers the continuing
    # characters in the order of a hash table. Named beforehand they have fixed ids, and the vocabulary is the same
    # each time.
    continuing = [f"##{character}" for character in characters]
    trainer = WordPieceTrainer(
        vocab_size=size, special_tokens=[*tokenizer.get_vocab(), *continuing], show_progress=False
    )
    backend.train_from_iterator(lines(), trainer)
    return BertTokenizer(vocab=backend.get_vocab())


def load_model(options: ModelOptions, processor: ProcessorMixin) -> PreTrainedModel:
    """The model that the options name, with random weights where they name a configuration."""
    if options.model_name_or_path:
        model = AutoModel.from_pretrained(options.model_name_or_path, dtype=torch.float32)
        refuse_adapter(model)
        return model
    if options.vision_model and options.text_model:
        return BiomedCLIPModel.from_vision_text_pretrained(options.vision_model, options.text_model)
    config = _config(options)
    if "vocab_size" not in (_config_fields(options).get("text_config") or {}) and not options.tokenizer:
        config.text_config.vocab_size = len(processor.tokenizer)
    if len(processor.tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(processor.tokenizer):,} entries, more than the {config.text_config.vocab_size:,} "
            "rows of the model's table. Lower --vocabulary-size, or raise text_config.vocab_size in --model-config."
        )
    return BiomedCLIPModel(config)


def show_results(results: dict[str, Any]) -> None:
    """Prints what the training took."""
    show_table("Training", cost_rows(results), ["", "value"])


def _config(options: ModelOptions) -> Any:
    """The configuration of a model drawn afresh; none for one that starts from checkpoints."""
    if options.model_name_or_path or options.vision_model:
        return None
    fields = _config_fields(options)
    _check_fields(BiomedCLIPConfig, fields)
    for name, config_class in BiomedCLIPConfig.sub_configs.items():
        _check_fields(config_class, fields.get(name) or {})
    try:
        return BiomedCLIPConfig(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"--model-config: {error}") from error


def _check_fields(config_class: Any, fields: Mapping[str, Any]) -> None:
    """transformers takes any field without a word; here a slip of the pen is an error."""
    unknown = sorted(set(fields) - set(config_class().to_dict()))
    if unknown:
        raise ValueError(f"--model-config: {', '.join(unknown)}: not a field of {config_class.__name__}.")


def _config_fields(options: ModelOptions) -> dict[str, Any]:
    return dict(options.model_config) if isinstance(options.model_config, dict) else {}


def _validation_pairs(path: str, most: int) -> Any:
    # A set of another source need not have a `pair_id`.
    columns = [name for name in column_names(path, "validation") if name in TRAINING_COLUMNS]
    # Not decoded here: the collator does that, with its own limits and errors.
    pairs = load_pmc15m(path, "validation", streaming=False, columns=columns, decode=False)
    return pairs.select(range(min(most, len(pairs))))


def _evaluates(args: ContrastiveTrainingArguments) -> bool:
    return args.eval_strategy != "no"
