"""Train a model: contrastive training, classification, few-shot heads, panel detection or visual questions.

biomedclip train --config quickstart --train-data out --output-dir run
biomedclip train --config lora_classification --train-data folder_of_classes --output-dir classifier
biomedclip train --config vqa_rad --model-name-or-path model --train-data VQA_RAD --output-dir answers
biomedclip train --config biomedclip --dry-run --processes 16
torchrun --nproc-per-node 8 --no-python biomedclip train --config quickstart --train-data out --output-dir run
"""

from collections.abc import Sequence
from typing import Any

from .cli.devices import training_arguments
from .cli.errors import UsageError, suggestion
from .cli.fields import WORKERS
from .cli.options import is_true, option_value, parse_options
from .cli.reporting import say
from .training import classification, contrastive, few_shot_head, panel_detection, visual_question_answering
from .training.adapters import AdapterOptions, describe_output
from .training.runs import end_processes


# Each task is a module with `OPTION_CLASSES`, `GROUPS`, `ALTERNATIVES`, `EXAMPLE`, `run` and `show_results`.
_MODULES = (contrastive, classification, few_shot_head, panel_detection, visual_question_answering)
TASKS = {module.TASK: module for module in _MODULES}
ALIASES = {"vqa": visual_question_answering.TASK}


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip train`."""
    arguments = training_arguments(arguments)
    task = task_of(arguments)
    is_dry = task is contrastive and is_true(option_value("train", "dry_run", arguments))
    # A dry run works on any machine, even if the recipe requires a GPU, for example with bf16.
    options = parse(task, [*arguments, "--use-cpu", "true"] if is_dry else arguments)
    if is_dry:
        data, handling, model, adapter, _, dry_run, args = options
        folder = args.output_dir if option_value("train", "output_dir", arguments) else None
        return contrastive.plan(data, handling, model, adapter, dry_run, args, folder)
    if task is few_shot_head:  # has no steps and no checkpoints
        (head,) = options
        return few_shot_head.show_results(few_shot_head.run(head), head.output_dir)
    trainer, results = task.run(*options)
    if trainer.is_world_process_zero():
        task.show_results(results)
        adapter = next(part for part in options if isinstance(part, AdapterOptions))
        say(describe_output(trainer.args.output_dir, adapter))
    end_processes()


def task_of(arguments: Sequence[str]) -> Any:
    """Return the module of the task that the command line or the recipe selects."""
    name = str(option_value("train", "task", arguments) or contrastive.TASK)
    name = ALIASES.get(name, name)
    if name not in TASKS:
        raise UsageError(f"--task {name} is unknown.{suggestion(name, TASKS)} Choose from {', '.join(TASKS)}.")
    return TASKS[name]


def parse(task: Any, arguments: Sequence[str]) -> tuple[Any, ...]:
    """Parse the options of a task."""
    return parse_options(
        "train",
        task.OPTION_CLASSES,
        arguments,
        description=task.__doc__.split("\n\n")[0],
        example=task.EXAMPLE,
        groups=task.GROUPS,
        defaults={"dataloader_num_workers": WORKERS},
        alternatives=task.ALTERNATIVES,
    )
