"""Trains BiomedCLIP, or any other dual encoder, with the contrastive loss.

biomedclip train --config quickstart --train-data out --output-dir run
biomedclip train --config lora_contrastive --model-name-or-path biomedclip --train-data out --output-dir adapter
biomedclip train --config lora_classification --train-data folder_of_classes --output-dir classifier
biomedclip train --config biomedclip --dry-run --processes 16
torchrun --nproc-per-node 8 --no-python biomedclip train --config quickstart --train-data out --output-dir run
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from tokenizers.trainers import WordPieceTrainer
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    ProcessorMixin,
    set_seed,
)

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.contrastive_trainer import check_mini_batch_size
from biomedclip.processing import (
    BiomedCLIPImageProcessor,
    BiomedCLIPProcessor,
    ContrastiveCollator,
    PairStream,
    load_pmc15m,
)
from biomedclip.processing.pmc.articles import parse_licenses
from biomedclip.processing.processing_biomedclip import CONTEXT_LENGTH
from biomedclip.processing.shard_reader import TRAINING_COLUMNS, Text, column_names

from .cli.errors import UsageError, usage_errors
from .cli.options import is_true, option_value, parse_options, write_recipe
from .cli.progress import show_progress
from .cli.reporting import say, show_table, write_json
from .evaluation.pools import TRAINING_POOL_SEED, draw_pool
from .training import classification, runs, visual_question_answering
from .training.adapters import (
    MERGED,
    AdapterOptions,
    add_adapter,
    refuse_sharded_merge,
    save_merged,
    what_is_where,
)
from .training.dry_run import PUBLISHED_PAIRS, DryRunOptions, plan_run, show_plan
from .training.models import ModelOptions, configuration, load_model, outline
from .training.runs import (
    check_checkpoint,
    check_trackers,
    checkpoint_to_resume,
    cost_rows,
    part_processes,
    run_training,
    set_batch_size,
)
from .training.throughput import StepClock, throughput
from .training.zero_shot_validation import ZeroShotOptions, ZeroShotValidation, read_zero_shot_sets


EXAMPLE = "biomedclip train --config quickstart --train-data out --output-dir run"
SHOWN = """
    task train_data licenses text model_name_or_path vision_model text_model model_config image_size patch_dropout
    lock_image_tower tokenizer vocabulary_size max_length trust_remote_code on_bad_row fast_decode max_eval_pairs
    lora_rank lora_alpha lora_dropout lora_targets merge_adapter output_dir max_steps num_train_epochs batch_size
    mini_batch_size loss per_device_train_batch_size per_device_eval_batch_size learning_rate warmup_steps weight_decay
    bf16 torch_compile dataloader_num_workers eval_steps zero_shot_data save_steps logging_steps save_total_limit
    report_to resume_from_checkpoint seed dry_run pairs processes
""".split()
OTHER_TASKS = {module.TASK: module for module in (classification, visual_question_answering)}
TASKS = ["contrastive", *OTHER_TASKS]
PER_DEVICE_BATCH = (
    ContrastiveTrainingArguments.per_device_train_batch_size
)  # transformers' default, of training and evaluation
# Where one of a group stands on the command line, a recipe's others do not count.
ALTERNATIVES = (
    ("model_name_or_path", "vision_model", "text_model", "model_config"),
    ("batch_size", "per_device_train_batch_size"),
    *runs.ALTERNATIVES,
)


@dataclass
class PairHandling:
    """Which pairs are read, and how."""

    licenses: str | None = field(
        default=None,
        metadata={
            "help": "Train only on pairs under these: commercial, noncommercial, all, or codes such as 'CC BY,CC0'."
        },
    )
    text: Text = field(
        default="caption",
        metadata={
            "help": "Text of a training pair: its caption, a paragraph that mentions the figure (another one each "
            "epoch), or both.",
            "choices": list(get_args(Text)),
        },
    )
    on_bad_row: str = field(
        default="substitute",
        metadata={
            "help": "How to handle rows that cannot be decoded: raise, or substitute another row and count it.",
            "choices": ["raise", "substitute"],
        },
    )
    fast_decode: bool = field(
        default=False,
        metadata={
            "help": "Decode training JPEGs at a reduced size and resize them with a faster filter. Pixels differ by at "
            "most one level of 255 on average."
        },
    )
    max_eval_pairs: int = field(
        default=2000,
        metadata={
            "help": "Maximum number of validation pairs (default: 2,000). All runs sample the same pairs of a larger "
            "split."
        },
    )

    def __post_init__(self):
        if self.licenses is not None:
            parse_licenses(self.licenses)
        if self.max_eval_pairs < 1:
            raise ValueError(f"--max-eval-pairs must be 1 or more, not {self.max_eval_pairs}.")


@dataclass
class TrainData:
    """What is trained on."""

    train_data: str | None = field(
        default=None, metadata={"help": "Folder that biomedclip build wrote; local, hf:// or s3://."}
    )
    task: str = field(
        default=TASKS[0],
        metadata={"help": "What is learned. Each task has options of its own: --task T --help.", "choices": TASKS},
    )
    batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Pairs of a step over all processes, which share them evenly; instead of "
            "--per-device-train-batch-size."
        },
    )


OPTION_CLASSES = [
    TrainData,
    PairHandling,
    ModelOptions,
    AdapterOptions,
    ZeroShotOptions,
    DryRunOptions,
    ContrastiveTrainingArguments,
]


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip train`."""
    task = option_value("train", "task", arguments)
    if task in OTHER_TASKS:
        return OTHER_TASKS[task].main(arguments)
    dry = is_true(option_value("train", "dry_run", arguments))
    data, handling, model_options, adapter, zero_shot, dry_options, args = parse_options(
        "train",
        OPTION_CLASSES,
        # A dry run is for any machine: the CPU does whatever the recipe asks a GPU for, such as bf16.
        [*arguments, "--use-cpu", "true"] if dry else arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        shown=SHOWN,
        alternatives=ALTERNATIVES,
    )
    _check_batch(data, args)
    if dry:
        folder = args.output_dir if option_value("train", "output_dir", arguments) else None
        return _dry_run(data, handling, model_options, adapter, dry_options, args, folder)
    if data.train_data is None:
        raise UsageError("--train-data is missing: the folder that biomedclip build wrote. (--dry-run needs none.)")
    set_batch_size(args, data.batch_size, args.world_size * max(1, args.n_gpu))
    with usage_errors():
        check_mini_batch_size(args)
    _check_evaluation(handling, args)
    trainer, results = train(data.train_data, handling, model_options, args, adapter, zero_shot)
    if trainer.is_world_process_zero():
        show_results(results)
        say(what_is_where(args.output_dir, adapter))
    part_processes()


def _dry_run(
    data: TrainData,
    handling: PairHandling,
    model_options: ModelOptions,
    adapter: AdapterOptions,
    dry_options: DryRunOptions,
    args: ContrastiveTrainingArguments,
    folder: str | None,
) -> None:
    """Plans the run that the options describe, and writes the plan into a folder, if there is one."""
    if data.train_data and dry_options.pairs != PUBLISHED_PAIRS:
        raise UsageError("--pairs has no effect with --train-data, whose pairs are counted. Leave one of the two out.")
    _check_base(model_options, adapter)
    processes = dry_options.processes or args.world_size * max(1, args.n_gpu)
    set_batch_size(args, data.batch_size, processes)
    model, notes = outline(model_options, args.loss, adapted=adapter.lora_rank is not None)
    if adapter.lora_rank is not None:
        model = add_adapter(model, adapter)
    plan = plan_run(
        model,
        args,
        pairs=_training_pairs(data.train_data, handling, args.seed) if data.train_data else dry_options.pairs,
        processes=processes,
        text_length=model_options.max_length or CONTEXT_LENGTH,
        notes=notes,
    )
    if args.process_index == 0:
        show_plan(plan)
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_json(Path(folder) / "dry_run.json", plan)
            say(f"Plan in {Path(folder) / 'dry_run.json'}")


def train(
    train_data: str,
    handling: PairHandling,
    model_options: ModelOptions,
    args: ContrastiveTrainingArguments,
    adapter: AdapterOptions | None = None,
    zero_shot: ZeroShotOptions | None = None,
) -> tuple[ContrastiveTrainer, dict[str, Any]]:
    """Trains and saves a model.

    Args:
        train_data: Folder that `biomedclip build` wrote.
        handling: How pairs are read.
        model_options: Which model is trained.
        args: Everything else.
        adapter: LoRA; all weights are trained when left out.
        zero_shot: What is classified at each evaluation; nothing when left out.

    Returns:
        The trainer, its model trained, and the results that `train_results.json` holds.

    Raises:
        ValueError: Options that contradict each other.
        FileNotFoundError: No data set there.
        FileExistsError: Checkpoints of an earlier run in `output_dir`, and no word of resuming.
    """
    adapter = adapter or AdapterOptions()
    _check_base(model_options, adapter)
    check_checkpoint(model_options.model_name_or_path, trust_remote_code=model_options.trust_remote_code)
    check_trackers(args)
    zero_shot_sets = read_zero_shot_sets(zero_shot or ZeroShotOptions(), args)
    stream = _training_pairs(train_data, handling, args.seed)
    checkpoint = checkpoint_to_resume(args)
    if args.process_index == 0:
        batch_size = args.train_batch_size * args.world_size
        write_recipe(
            args.output_dir,
            [handling, model_options, adapter, zero_shot or ZeroShotOptions(), args],
            batch_size=batch_size,
            per_device_train_batch_size=None,
        )
    set_seed(args.seed)
    processor = load_processor(model_options, stream, handling, args, learn=checkpoint is None)
    model = load_model(model_options, processor, args.loss, adapted=adapter.lora_rank is not None)
    if adapter.lora_rank is not None:
        model = add_adapter(model, adapter)
    collate = {"max_length": model_options.max_length, "seed": args.seed, "on_error": handling.on_bad_row}
    training_collator = ContrastiveCollator(processor, training=True, fast_decode=handling.fast_decode, **collate)
    trainer = ContrastiveTrainer(
        model,
        args,
        train_dataset=stream,
        eval_dataset=_validation_pairs(train_data, handling.max_eval_pairs) if _evaluates(args) else None,
        data_collator=training_collator,
        eval_data_collator=ContrastiveCollator(processor, **collate),
        evaluators=[
            ZeroShotValidation(labeled, processor, batch_size=args.eval_batch_size, max_length=model_options.max_length)
            for labeled in zero_shot_sets
        ],
        processing_class=processor,
    )
    refuse_sharded_merge(trainer, adapter)
    show_progress(trainer)
    clock = StepClock()
    trainer.add_callback(clock)
    results = {
        **run_training(trainer, checkpoint),
        **throughput(trainer, clock, training_collator),
        "training_pairs": len(stream),
        "validation_pairs": 0 if trainer.eval_dataset is None else len(trainer.eval_dataset),
        "substituted_rows": training_collator.substituted_rows,
        "substituted_rows_in_evaluation": trainer.eval_data_collator.substituted_rows,
    }
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir) / "train_results.json", results)
        if adapter.merge_adapter:
            save_merged(model, processor, Path(args.output_dir) / MERGED)
    return trainer, results


def load_processor(
    options: ModelOptions,
    stream: PairStream,
    handling: PairHandling,
    args: ContrastiveTrainingArguments,
    *,
    learn: bool,
) -> ProcessorMixin:
    """The checkpoint's processor, or a new one whose vocabulary is given or learned from the training captions.

    Args:
        options: Which model is trained.
        stream: The training pairs.
        handling: How they are read.
        args: Where the run leaves its vocabulary.
        learn: Learn the vocabulary, if one is needed, even where the run has left one: it is not being resumed.
    """
    size, trust = options.image_size, options.trust_remote_code
    if options.model_name_or_path:
        processor = AutoProcessor.from_pretrained(options.model_name_or_path, trust_remote_code=trust)
        if size is not None:
            processor.image_processor.size = {"shortest_edge": size}
            processor.image_processor.crop_size = {"height": size, "width": size}
        if options.max_length is not None:
            # The saved processor must cut texts where training did. Converters read the context length from it.
            processor.tokenizer.model_max_length = options.max_length
        return processor
    config = configuration(options)
    if size is None:
        start = config.vision_config
        if options.vision_model:
            start = AutoConfig.from_pretrained(options.vision_model, trust_remote_code=trust)
        size = start.image_size
    image_processor = BiomedCLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    positions = CONTEXT_LENGTH if options.text_model else config.text_config.max_position_embeddings
    limit = {"model_max_length": options.max_length or min(CONTEXT_LENGTH, positions)}
    source = options.tokenizer or options.text_model
    if source:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust, **limit)
        return BiomedCLIPProcessor(image_processor, tokenizer)
    learned = Path(args.output_dir) / "tokenizer"
    # One process learns the vocabulary, the others wait and read it: all must have the same ids.
    with args.main_process_first(desc="learning the vocabulary"):
        if args.should_save and (learn or not (learned / "tokenizer.json").exists()):
            captions = _training_pairs(stream.path, handling, stream.seed, columns=["caption"])
            learn_vocabulary(captions, options.vocabulary_size).save_pretrained(learned)
    tokenizer = BertTokenizer.from_pretrained(learned, trust_remote_code=False, **limit)
    return BiomedCLIPProcessor(image_processor, tokenizer)


def learn_vocabulary(captions: PairStream, size: int) -> BertTokenizer:
    """A lower-casing WordPiece vocabulary of the captions of a stream, with BERT's special tokens in their places.

    Args:
        captions: A stream of the column `caption`.
        size: Entries at most, unless the characters alone are more.

    Returns:
        A tokenizer that is the same for the same captions.
    """

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


def show_results(results: dict[str, Any]) -> None:
    """Prints what the training took, and what limited it."""
    show_table("Training", cost_rows(results), ["", "value"])
    if results["limit"]:
        say(f"{results['waiting_share']:.0%} of the time went into waiting for data: {results['limit']}")


def _check_batch(data: TrainData, args: ContrastiveTrainingArguments) -> None:
    """Raises:
    UsageError: If the batch is given twice.
    """
    if data.batch_size is not None and args.per_device_train_batch_size != PER_DEVICE_BATCH:
        raise UsageError(
            f"--batch-size {data.batch_size} and --per-device-train-batch-size {args.per_device_train_batch_size} both "
            "set the batch. Leave one of the two out."
        )


def _check_evaluation(handling: PairHandling, args: ContrastiveTrainingArguments) -> None:
    """Raises:
    UsageError: If options of the evaluation are set and nothing is evaluated.
    """
    if _evaluates(args):
        return
    set_anyway = {
        "--max-eval-pairs": handling.max_eval_pairs != PairHandling.max_eval_pairs,
        "--per-device-eval-batch-size": args.per_device_eval_batch_size != PER_DEVICE_BATCH,
    }
    for option, is_set in set_anyway.items():
        if is_set:
            raise UsageError(f"{option} has no effect without evaluation. Set --eval-strategy, or leave it out.")


def _check_base(options: ModelOptions, adapter: AdapterOptions) -> None:
    """Raises:
    UsageError: If the adapter could not be loaded on the checkpoint that it is trained on.
    """
    if adapter.lora_rank is None:
        return
    if not options.model_name_or_path:
        raise UsageError(
            "--lora-rank needs --model-name-or-path: an adapter is saved without its base model, which must be a "
            "checkpoint that it can be loaded upon."
        )
    if options.image_size is not None:
        raise UsageError(
            "--image-size changes the base of an adapter, which is saved without it. Leave one of --image-size and "
            "--lora-rank out."
        )
    if options.lock_image_tower:
        raise UsageError("--lock-image-tower: with --lora-rank all of the base is frozen; leave one of the two out.")


def _training_pairs(
    path: str, handling: PairHandling, seed: int, columns: Sequence[str] = TRAINING_COLUMNS
) -> PairStream:
    # A set of another source need not have a `pair_id`.
    there = column_names(path, "train")
    columns = [name for name in columns if name in there or name != "pair_id"]
    return PairStream(path, "train", seed=seed, columns=columns, licenses=handling.licenses, text=handling.text)


def _validation_pairs(path: str, most: int) -> Any:
    # A set of another source need not have a `pair_id`.
    columns = [name for name in column_names(path, "validation") if name in TRAINING_COLUMNS]
    # Not decoded here: the collator does that, with its own limits and errors.
    pairs = load_pmc15m(path, "validation", streaming=False, columns=columns, decode=False)
    return pairs if most >= len(pairs) else pairs.select(draw_pool(len(pairs), most, seed=TRAINING_POOL_SEED))


def _evaluates(args: ContrastiveTrainingArguments) -> bool:
    return args.eval_strategy != "no" or args.eval_on_start
