"""Train BiomedCLIP or another dual encoder on image-text pairs with a contrastive loss.

biomedclip train --config quickstart --train-data out --output-dir run
biomedclip train --config lora_contrastive --model-name-or-path published --train-data out --output-dir adapter
biomedclip train --config quickstart --train-data reports.csv --image-column image_path --text-column report
biomedclip train --config biomedclip --dry-run --processes 16
torchrun --nproc-per-node 8 --no-python biomedclip train --config quickstart --train-data out --output-dir run
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers.trainers import WordPieceTrainer
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, BertTokenizer, ProcessorMixin

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor, ContrastiveCollator
from biomedclip.processing.pairs import ACCEPTED
from biomedclip.processing.processing_biomedclip import CONTEXT_LENGTH

from ..cli.errors import UsageError, usage_errors
from ..cli.fields import option
from ..cli.reporting import say, show_table, write_json
from . import runs
from .adapters import LORA_OPTIONS, AdapterOptions, add_adapter
from .dry_run import PUBLISHED_PAIRS, DryRunOptions, plan_run, show_plan
from .models import ModelOptions, configuration, load_model, outline
from .pairs import PairHandling, open_pairs, say_selection
from .runs import check_checkpoint, cost_rows, run_and_save, start_run
from .throughput import StepClock, throughput
from .trackers import check_trackers
from .zero_shot_validation import ZeroShotOptions, ZeroShotValidation, read_zero_shot_sets


TASK = "contrastive"
EXAMPLE = "biomedclip train --config quickstart --train-data out --output-dir run"
# Options that `--help` lists, by group.
GROUPS = {
    "data": "task train_data image_column text_column image_root group_column validation_fraction licenses image_types "
    "panels text max_eval_pairs zero_shot_data on_bad_row fast_decode dataloader_num_workers",
    "model": "model_name_or_path vision_model text_model model_config image_size patch_dropout lock_image_tower "
    "tokenizer vocabulary_size max_length trust_remote_code",
    "LoRA": LORA_OPTIONS,
    "optimization": "max_steps num_train_epochs batch_size per_device_train_batch_size mini_batch_size loss "
    "learning_rate warmup_steps weight_decay bf16 torch_compile seed",
    "run": "output_dir resume_from_checkpoint use_cpu eval_strategy eval_steps per_device_eval_batch_size save_steps "
    "save_total_limit logging_steps report_to dry_run pairs processes",
}
DEFAULT_BATCH = ContrastiveTrainingArguments.per_device_train_batch_size  # for training and evaluation
# Groups of options that exclude each other: the command line overrides all of a group in a recipe.
ALTERNATIVES = (
    ("model_name_or_path", "vision_model", "text_model", "model_config"),
    ("batch_size", "per_device_train_batch_size"),
    *runs.ALTERNATIVES,
)


@dataclass
class TrainData:
    """Training data, task and batch size."""

    train_data: str | None = option(
        None,
        "Folder written by biomedclip build (also hf:// or s3://), a CSV, JSON Lines or Parquet file, a "
        "folder with a metadata.csv, a datasets folder or a Hub id.",
    )
    task: str = option(
        TASK,
        "Training task. Each has its own options, see: biomedclip train --task TASK --help.",
        [TASK, "image-classification", "visual-question-answering"],
    )
    batch_size: int | None = option(
        None, "Number of pairs per step over all processes. Replaces --per-device-train-batch-size."
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


def run(
    data: TrainData,
    handling: PairHandling,
    model_options: ModelOptions,
    adapter: AdapterOptions,
    zero_shot: ZeroShotOptions,
    dry_run: DryRunOptions,
    args: ContrastiveTrainingArguments,
) -> tuple[ContrastiveTrainer, dict[str, Any]]:
    """Train and save a model. Return the trainer, and the content of `train_results.json`."""
    if data.train_data is None:
        raise UsageError(f"--train-data is missing. Pass {ACCEPTED}; or pass --dry-run.")
    set_batch_size(args, data.batch_size, args.world_size * max(1, args.n_gpu))
    with usage_errors():
        args.check_mini_batch_size()
    if not _evaluates(args):
        set_anyway = {
            "--max-eval-pairs": handling.max_eval_pairs != PairHandling.max_eval_pairs,
            "--per-device-eval-batch-size": args.per_device_eval_batch_size != DEFAULT_BATCH,
        }
        for name in (name for name, is_set in set_anyway.items() if is_set):
            raise UsageError(f"{name} has no effect without evaluation. Set --eval-strategy, or omit it.")
    check_base(model_options, adapter)
    check_checkpoint(model_options.model_name_or_path, trust_remote_code=model_options.trust_remote_code)
    check_trackers(args)
    zero_shot_sets = read_zero_shot_sets(zero_shot, args)
    pairs = open_pairs(data.train_data, handling, args.seed, evaluates=_evaluates(args))
    checkpoint = start_run(
        args,
        [handling, model_options, adapter, zero_shot],
        batch_size=args.train_batch_size * args.world_size,
        per_device_train_batch_size=None,
    )
    if args.process_index == 0:
        say_selection(pairs)
    processor = load_processor(model_options, pairs.captions, args, learn=checkpoint is None)
    model = load_model(model_options, processor, args.loss, adapted=adapter.lora_rank is not None)
    collate = {"max_length": model_options.max_length, "seed": args.seed, "on_error": handling.on_bad_row}
    collator = ContrastiveCollator(processor, training=True, fast_decode=handling.fast_decode, **collate)
    trainer = ContrastiveTrainer(
        add_adapter(model, adapter),
        args,
        train_dataset=pairs.stream,
        eval_dataset=pairs.validation,
        data_collator=collator,
        eval_data_collator=ContrastiveCollator(processor, **collate),
        evaluators=[
            ZeroShotValidation(labeled, processor, batch_size=args.eval_batch_size, max_length=model_options.max_length)
            for labeled in zero_shot_sets
        ],
        processing_class=processor,
    )
    clock = StepClock()
    trainer.add_callback(clock)

    def measure() -> dict[str, Any]:
        return {
            **throughput(trainer, clock, collator),
            "training_pairs": len(pairs.stream),
            "validation_pairs": 0 if pairs.validation is None else len(pairs.validation),
            **({"own_pairs": pairs.facts} if pairs.facts is not None else {}),
            "substituted_rows_in_evaluation": trainer.eval_data_collator.substituted_rows,
        }

    return trainer, run_and_save(trainer, checkpoint, adapter, measure, data=data.train_data)


def plan(
    data: TrainData,
    handling: PairHandling,
    model_options: ModelOptions,
    adapter: AdapterOptions,
    dry_run: DryRunOptions,
    args: ContrastiveTrainingArguments,
    folder: str | None,
) -> None:
    """Print the plan of a run, and write it to a folder if one is given."""
    if data.train_data and dry_run.pairs != PUBLISHED_PAIRS:
        raise UsageError("--pairs has no effect with --train-data, whose pairs are counted. Omit one of the two.")
    processes = dry_run.processes or args.world_size * max(1, args.n_gpu)
    set_batch_size(args, data.batch_size, processes)
    check_base(model_options, adapter)
    model, notes = outline(model_options, args.loss, adapted=adapter.lora_rank is not None)
    pairs = dry_run.pairs
    if data.train_data:
        pairs = len(open_pairs(data.train_data, handling, args.seed, evaluates=False).stream)
    else:
        notes.append(f"--train-data is not set. {pairs:,} pairs are assumed.")
    planned = plan_run(
        add_adapter(model, adapter),
        args,
        pairs=pairs,
        processes=processes,
        text_length=model_options.max_length or CONTEXT_LENGTH,
        notes=notes,
    )
    if args.process_index == 0:
        show_plan(planned)
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_json(Path(folder) / "dry_run.json", planned)
            say(f"Plan in {Path(folder) / 'dry_run.json'}")


def load_processor(
    options: ModelOptions,
    captions: Callable[[], Iterator[str]],
    args: ContrastiveTrainingArguments,
    *,
    learn: bool,
) -> ProcessorMixin:
    """Load the processor of the checkpoint, or create one whose vocabulary is given or learned from the captions.

    `captions` yields the texts of the training pairs. A learned vocabulary is saved in `output_dir`. `learn` replaces
    it, because the run is not resumed.
    """
    size, trust = options.image_size, options.trust_remote_code
    if options.model_name_or_path:
        processor = AutoProcessor.from_pretrained(options.model_name_or_path, trust_remote_code=trust)
        if size is not None:
            processor.image_processor.size = {"shortest_edge": size}
            processor.image_processor.crop_size = {"height": size, "width": size}
        if options.max_length is not None:
            # The saved processor must truncate texts as in training. Converters read the context length from it.
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
    # The first process learns the vocabulary, and the others read it, so that all have the same ids.
    with args.main_process_first(desc="learning the vocabulary"):
        if args.should_save and (learn or not (learned / "tokenizer.json").exists()):
            learn_vocabulary(captions, options.vocabulary_size).save_pretrained(learned)
    tokenizer = BertTokenizer.from_pretrained(learned, trust_remote_code=False, **limit)
    return BiomedCLIPProcessor(image_processor, tokenizer)


def learn_vocabulary(captions: Callable[[], Iterator[str]], size: int) -> BertTokenizer:
    """Learn a lower-case WordPiece vocabulary with the special tokens of BERT. It depends only on the arguments.

    `size` is the maximum number of entries. It is exceeded if there are more characters.
    """
    tokenizer = BertTokenizer()
    backend = tokenizer.backend_tokenizer
    characters = sorted(set().union(*map(backend.normalizer.normalize_str, captions())) - set(" "))
    # Ties between equally frequent merges depend on the ids of continuing characters, which the trainer takes from a
    # hash table. As special tokens, they have fixed ids.
    continuing = [f"##{character}" for character in characters]
    trainer = WordPieceTrainer(
        vocab_size=size, special_tokens=[*tokenizer.get_vocab(), *continuing], show_progress=False
    )
    backend.train_from_iterator(captions(), trainer)
    return BertTokenizer(vocab=backend.get_vocab())


def show_results(results: Mapping[str, Any]) -> None:
    """Print the cost of the training, and what limits its speed."""
    show_table("Training", cost_rows(results), ["", "value"])
    if results["limit"]:
        say(f"{results['waiting_share']:.0%} of the time was spent waiting for data: {results['limit']}")


def set_batch_size(args: ContrastiveTrainingArguments, batch_size: int | None, devices: int) -> None:
    """Divide the batch of `--batch-size` evenly among the devices of a run."""
    if batch_size is None:
        return
    if args.per_device_train_batch_size != DEFAULT_BATCH:
        raise UsageError(
            f"--batch-size {batch_size} and --per-device-train-batch-size {args.per_device_train_batch_size} both set "
            "the batch size. Omit one of the two."
        )
    if batch_size < 1 or batch_size % devices != 0:
        raise UsageError(
            f"--batch-size {batch_size} cannot be divided evenly among {devices} devices. Choose a multiple of "
            f"{devices}, or another number of devices."
        )
    args.per_device_train_batch_size = batch_size // devices


def check_base(options: ModelOptions, adapter: AdapterOptions) -> None:
    """Check that an adapter can be loaded on the checkpoint on which it is trained."""
    if adapter.lora_rank is None:
        return
    if not options.model_name_or_path:
        raise UsageError("--lora-rank requires --model-name-or-path: an adapter is saved without its base model.")
    changes = {"--image-size": options.image_size is not None, "--lock-image-tower": options.lock_image_tower}
    for name in (name for name, is_set in changes.items() if is_set):
        raise UsageError(f"{name} cannot be combined with --lora-rank, which leaves the base model unchanged.")


def _evaluates(args: ContrastiveTrainingArguments) -> bool:
    return args.eval_strategy != "no" or args.eval_on_start
