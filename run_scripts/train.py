"""Trains BiomedCLIP, or any other dual encoder, with the contrastive loss.

biomedclip train --config quickstart --train-data out --output-dir run
torchrun --nproc-per-node 8 --no-python biomedclip train --config quickstart --train-data out --output-dir run
"""

import json
import logging
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

from .options import parse_options
from .progress import show_progress
from .reporting import say, show_table, versions, write_json


logger = logging.getLogger(__name__)

EXAMPLE = "biomedclip train --config quickstart --train-data out --output-dir run"
SHOWN = """
    train_data model_name_or_path vision_model text_model model_config tokenizer vocabulary_size max_length on_bad_row
    max_eval_pairs output_dir max_steps num_train_epochs per_device_train_batch_size per_device_eval_batch_size
    learning_rate warmup_steps weight_decay bf16 torch_compile dataloader_num_workers eval_steps
    save_steps logging_steps save_total_limit report_to resume_from_checkpoint seed
""".split()
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


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip train`."""
    data, handling, model_options, args = parse_options(
        "train",
        [TrainData, PairHandling, ModelOptions, ContrastiveTrainingArguments],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        shown=SHOWN,
        alternatives=MODEL_CHOICES,
    )
    trainer, results = train(data.train_data, handling, model_options, args)
    if trainer.is_world_process_zero():
        show_results(results)
        say(f"Model in {args.output_dir}, curves in trainer_state.json, figures in train_results.json")


def train(
    train_data: str, handling: PairHandling, model_options: ModelOptions, args: ContrastiveTrainingArguments
) -> tuple[ContrastiveTrainer, dict[str, Any]]:
    """
    Trains and saves a model.

    Args:
        train_data: Folder that `biomedclip build` wrote.
        handling: How pairs are read.
        model_options: Which model is trained.
        args: Everything else.

    Returns:
        The trainer, its model trained, and the results that `train_results.json` holds.

    Raises:
        ValueError: Options that contradict each other.
        FileNotFoundError: No data set there.
        FileExistsError: Checkpoints of an earlier run in `output_dir`, and no word of resuming.
    """
    stream = PairStream(train_data, "train", seed=args.seed)
    checkpoint = _checkpoint_to_resume(args)
    set_seed(args.seed)
    processor = load_processor(model_options, stream, args, learn=checkpoint is None)
    model = load_model(model_options, processor)
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
    show_progress(trainer)
    first_step = _step_of(checkpoint)
    if first_step is not None and 0 < args.max_steps <= first_step:
        raise ValueError(
            f"{checkpoint} has done {first_step} of {args.max_steps} steps: nothing is left to do. "
            "Raise --max-steps to go on."
        )
    output = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    batch_size = args.train_batch_size * args.world_size
    seconds = round(max(output.metrics["train_runtime"], 0.1), 1)
    results = {
        "steps": trainer.state.global_step,
        "samples": trainer.state.global_step * batch_size,
        "seconds": seconds,
        "samples_per_second": round((trainer.state.global_step - (first_step or 0)) * batch_size / seconds, 1),
        "loss": output.training_loss,
        "batch_size": batch_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "substituted_rows": training_collator.substituted_rows,
        "substituted_rows_in_evaluation": trainer.eval_data_collator.substituted_rows,
        "resumed_from_step": first_step,
        "versions": versions(),
    }
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir) / "train_results.json", results)
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
        return AutoModel.from_pretrained(options.model_name_or_path, dtype=torch.float32)
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
    names = [
        "steps",
        "samples",
        "batch_size",
        "seconds",
        "samples_per_second",
        "loss",
        "parameters",
        "substituted_rows",
    ]
    show_table("Training", [(name.replace("_", " "), results[name]) for name in names], ["", "value"])


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
    # Not decoded here: the collator does that, with its own limits and errors.
    pairs = load_pmc15m(path, "validation", streaming=False, columns=["pair_id", "image", "caption"], decode=False)
    return pairs.select(range(min(most, len(pairs))))


def _evaluates(args: ContrastiveTrainingArguments) -> bool:
    return args.eval_strategy != "no"


def _checkpoint_to_resume(args: ContrastiveTrainingArguments) -> str | None:
    """The checkpoint that `--resume-from-checkpoint` means: a path, or with `true` the last of the output folder."""
    wanted = str(args.resume_from_checkpoint or "false")
    # A kill while a checkpoint is written leaves a folder without this file, which is written last.
    whole = [path.parent for path in Path(args.output_dir).glob("checkpoint-*/trainer_state.json")]
    last = str(max(whole, key=lambda path: int(path.name.rsplit("-", 1)[-1]))) if whole else None
    if wanted.lower() == "false":
        if last is not None:
            raise FileExistsError(
                f"{args.output_dir} holds checkpoints of an earlier run. Go on with --resume-from-checkpoint true, or "
                "choose another --output-dir."
            )
        return None
    if wanted.lower() == "true":
        if last is None:
            logger.warning("%s holds no checkpoint yet: training starts from the beginning.", args.output_dir)
        return last
    if not Path(wanted).is_dir():
        raise FileNotFoundError(f"--resume-from-checkpoint {wanted}: there is no such folder.")
    return wanted


def _step_of(checkpoint: str | None) -> int | None:
    if checkpoint is None:
        return None
    return json.loads((Path(checkpoint) / "trainer_state.json").read_text())["global_step"]
