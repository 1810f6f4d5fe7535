"""The whole line in one command: articles, pairs, training, evaluation, a saved model, fine-tuning.

biomedclip quickstart --output-dir out
biomedclip quickstart --source ../pmc_mirror --output-dir out
"""

import copy
import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import PeftModel
from transformers import AutoModel, AutoProcessor, pipeline

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.model_cards.escaping import markdown, table
from biomedclip.processing import ContrastiveCollator, PairStream, load_benchmark, load_pmc15m, read_image
from biomedclip.processing.bit_depth_biomedclip import to_8_bit
from biomedclip.processing.images.labeled import LABELS, SPLIT_NAMES
from biomedclip.processing.images.labeled_pairs import pair_ids
from biomedclip.processing.pmc.bucket import Bucket, ObjectError, ObjectMissing
from biomedclip.processing.synthetic_corpus import draw_corpus
from biomedclip.retrieval_metrics import DIRECTIONS

from . import build
from .cli.errors import UsageError
from .cli.options import parse_options
from .cli.permissions import apply_umask
from .cli.plots import plot_curves
from .cli.progress import show_progress
from .cli.reporting import UNDEFINED, peak_memory_mib, say, show_table, versions, write_json, write_text
from .evaluation.dual_encoders import load_dual_encoder
from .evaluation.examples import plot_some_answers
from .evaluation.features import FEATURES, FeatureStore
from .evaluation.retrieval import (
    RECALLS,
    count_ranks,
    embed_pairs,
    rank_as_text,
    recall_as_text,
    retrieval_of,
    show_retrieval,
)
from .evaluation.zero_shot import classify_zero_shot, show_zero_shot
from .training import contrastive as train
from .training.adapters import AdapterOptions, add_adapter


EXAMPLE = "biomedclip quickstart --output-dir out"
SHOWN = """
    source pmcids license figures lora_steps output_dir seed max_steps per_device_train_batch_size learning_rate
    overwrite workers
""".split()
KINDS = "figure_kinds.csv"
# What a quickstart writes, and replaces with --overwrite; nothing else in the folder is ever removed.
RESULTS = """
    .build corpus data model training adapter README.md articles.parquet skipped.jsonl labels.csv report.json
    report.md report.png curves.png answers.png
""".split()


@dataclass
class QuickstartOptions(build.SourceOptions):
    """Where the articles come from, and how far to go."""

    source: str | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Mirror of PMC's bucket, or s3://pmc-oa-opendata. A corpus is drawn if left out."},
    )
    figures: int = field(default=3000, metadata={"help": "Figures of the drawn corpus."})
    lora_steps: int = field(default=10, metadata={"help": "Steps of fine-tuning with LoRA at the end."})


@dataclass
class EvaluationOptions:
    """How the model is evaluated."""

    batch_size: int = field(default=128, metadata={"help": "Pairs or images at a time."})


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip quickstart`."""
    options = parse_options(
        "quickstart",
        [QuickstartOptions, EvaluationOptions, train.PairHandling, train.ModelOptions, ContrastiveTrainingArguments],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        sections=["build", "train", "evaluate", "quickstart"],
        shown=SHOWN,
        base_recipe="quickstart",
        alternatives=train.ALTERNATIVES,
    )
    # Bars for files of a few megabytes would bury those that tell something.
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    Quickstart(*options).run()


class Quickstart:
    """The stations of the line, one method each, in the order of `run`."""

    def __init__(
        self,
        source: QuickstartOptions,
        evaluation: EvaluationOptions,
        handling: train.PairHandling,
        model_options: train.ModelOptions,
        args: ContrastiveTrainingArguments,
    ):
        self.source = source
        self.evaluation = evaluation
        self.handling = handling
        self.model_options = model_options
        self.args = args
        self.output_dir = Path(args.output_dir)

    def run(self) -> dict[str, Any]:
        """Runs the whole line and leaves `model/`, `data/`, `report.json`, `report.md` and plots."""
        started = time.monotonic()
        self._claim_output()
        say("1/5  Articles and pairs")
        built = self.build()
        say("2/5  Training")
        training, log_history = self.train(built)
        say("3/5  Evaluation of the saved model on held-out articles")
        retrieval, zero_shot = self.evaluate()
        say("4/5  Loading it again as its users do")
        reloaded = self.reload()
        say("5/5  Fine-tuning with LoRA")
        lora = self.fine_tune()
        report = {
            "retrieval": retrieval,
            "zero_shot": zero_shot,
            "training": training,
            "reloaded": reloaded,
            "lora": lora,
            "build": built,
            "seed": self.args.seed,
            "seconds": round(time.monotonic() - started, 1),
            "peak_memory_mib": peak_memory_mib(),
            "versions": versions(),
        }
        plot_curves(log_history, self.output_dir / "curves.png")
        write_json(self.output_dir / "report.json", report)
        write_text(self.output_dir / "report.md", report_as_markdown(report))
        self.show(report)
        return report

    def build(self) -> dict[str, Any]:
        """Draws a corpus unless there is a source, and builds its pairs."""
        source = self.source.source
        if source is None:
            source = str(self.output_dir / "corpus")
            draw_corpus(source, figures=self.source.figures, seed=self.args.seed, progress=True)
        names = {option.name for option in dataclasses.fields(build.SourceOptions)}
        options = build.SourceOptions(**{name: getattr(self.source, name) for name in names} | {"source": source})
        output = build.OutputOptions(str(self.output_dir), self.args.seed)
        report = build.build(options, output, synthetic=self.source.source is None)
        assert report is not None, "on this machine a build ends with a report"
        self._copy_labels(source)
        return report

    def train(self, built: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Trains the small model and saves it to `model/`."""
        args = copy.copy(self.args)
        args.output_dir = str(self.output_dir / "training")
        args.per_device_train_batch_size = max(1, self._batch_that_fits(built) // max(1, args.n_gpu))
        trainer, results = train.train(str(self.output_dir), self.handling, self.model_options, args)
        trainer.save_model(str(self.output_dir / "model"))
        apply_umask(self.output_dir / "model")
        return results, trainer.state.log_history

    def evaluate(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Retrieval on the test split, and zero-shot classification where the source has labels."""
        encoder = load_dual_encoder(str(self.output_dir / "model"))
        store = FeatureStore(encoder, self.output_dir / "training" / FEATURES, batch_size=self.evaluation.batch_size)
        columns = ["pair_id", "pmcid", "license", "image", "caption"]
        pairs = load_pmc15m(self.output_dir, "test", streaming=False, columns=columns, decode=False)
        embedded = embed_pairs(pairs, store)
        counts = count_ranks(embedded, store.folder, {"weights": encoder.weights, "data": embedded.fingerprint})
        rows = embedded.rows.tolist()
        retrieval = retrieval_of(counts, [pairs["pmcid"][row] for row in rows], self.args.seed)
        if counts is not None:
            plot_some_answers(embedded, counts, pairs, 8, self.output_dir / "answers.png")
        if not (self.output_dir / LABELS).exists():
            return retrieval, None
        labeled: Any = load_benchmark("imagefolder", self.output_dir)
        features = store.images(labeled.images.images, labeled.images.names, labeled.fingerprint)
        labels = labeled.images.select(features.rows.tolist()).labels
        of_kind = Counter(labels)
        # Who knows the kind and nothing else guesses among the pairs of that kind.
        retrieval["oracle_of_kind_at_1"] = sum(1 / of_kind[label] for label in labels) / len(rows)
        return retrieval, classify_zero_shot(
            encoder,
            features.embeds,
            labels,
            labeled.classes,
            labeled.class_names,
            labeled.templates,
            seed=self.args.seed,
        )

    def reload(self) -> dict[str, Any]:
        """Loads the saved folder through the pipeline, and holds its answer against the model's own."""
        model, processor = self._load()
        classifier = pipeline(
            "zero-shot-image-classification",
            model=str(self.output_dir / "model"),
            device="cpu",
            trust_remote_code=False,
        )
        row = PairStream(self.output_dir, "test").rows(0, 0, 1)[0]
        image = to_8_bit(read_image(row["image"])).convert("RGB")
        labels = ["chest X-ray", "line chart", "gel electrophoresis"]
        answers = {
            answer["label"]: answer["score"]
            for answer in classifier(image, candidate_labels=labels, hypothesis_template="this is a photo of {}")
        }
        prompts = [f"this is a photo of {label}" for label in labels]
        with torch.no_grad():
            logits = model(**processor(text=prompts, images=image, return_tensors="pt")).logits_per_image
        scores = dict(zip(labels, logits.softmax(dim=-1)[0].tolist(), strict=True))
        difference = max(abs(scores[label] - answers[label]) for label in labels)
        if difference > 1e-5:
            raise RuntimeError(f"The pipeline and the model disagree by {difference} about one image.")
        return {"pipeline": answers, "largest_difference_to_the_model": difference}

    def fine_tune(self) -> dict[str, Any] | None:
        """A few steps of LoRA on both towers; the adapter is saved, loaded and held against the trained one."""
        if self.source.lora_steps < 1:
            return None
        model, processor = self._load()
        adapted = add_adapter(model, AdapterOptions(lora_rank=8))
        stream = PairStream(self.output_dir, "validation", seed=self.args.seed)
        batch_size = max(1, min(32, len(stream)) // max(1, self.args.n_gpu))
        args = ContrastiveTrainingArguments(
            output_dir=str(self.output_dir / "adapter"),
            max_steps=self.source.lora_steps,
            per_device_train_batch_size=batch_size,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=["none"],
            seed=self.args.seed,
        )
        collator = ContrastiveCollator(processor, training=True, seed=self.args.seed)
        trainer = ContrastiveTrainer(adapted, args, train_dataset=stream, data_collator=collator)
        show_progress(trainer)
        trainer.train()
        adapted.save_pretrained(self.output_dir / "adapter")
        apply_umask(self.output_dir / "adapter")
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

        loaded = PeftModel.from_pretrained(self._load()[0], str(self.output_dir / "adapter")).eval()
        batch = ContrastiveCollator(processor)(stream.rows(0, 0, min(8, len(stream))))
        with torch.no_grad():
            difference = (adapted.cpu().eval()(**batch).image_embeds - loaded(**batch).image_embeds).abs().max().item()
        if difference > 1e-5:
            raise RuntimeError(f"The adapter that was loaded differs from the trained one by {difference}.")
        trainable, total = adapted.get_nb_trainable_parameters()
        return {
            "steps": self.source.lora_steps,
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "trainable_parameters": trainable,
            "trainable_share": trainable / total,
            "largest_difference_after_loading": difference,
        }

    def show(self, report: dict[str, Any]) -> None:
        """Prints the closing tables."""
        show_retrieval(report["retrieval"], report["retrieval"].get("oracle_of_kind_at_1"))
        if report["zero_shot"]:
            show_zero_shot(report["zero_shot"])
        rows = [
            ("pairs built", report["build"]["pairs"]),
            ("training steps", report["training"]["steps"]),
            ("training seconds", report["training"]["seconds"]),
            ("LoRA loss, first step", report["lora"] and report["lora"]["loss_first"]),
            ("LoRA loss, last step", report["lora"] and report["lora"]["loss_last"]),
            ("seconds in all", report["seconds"]),
            ("peak memory, MiB", report["peak_memory_mib"]),
        ]
        show_table("Quickstart", rows, ["", "value"])
        say(f"In {self.output_dir}: model/, adapter/, data/, report.json, report.md, curves.png, answers.png")

    def _load(self) -> tuple[Any, Any]:
        folder = str(self.output_dir / "model")
        model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
        return model, AutoProcessor.from_pretrained(folder, trust_remote_code=False)

    def _claim_output(self) -> None:
        """The output folder must be empty, or of an earlier quickstart that may be replaced."""
        if self.output_dir.is_file():
            raise FileExistsError(f"{self.output_dir} is a file. Choose another --output-dir.")
        mark = self.output_dir / ".quickstart"
        if self.output_dir.is_dir() and any(self.output_dir.iterdir()):
            if not (self.source.overwrite and mark.exists()):
                remedy = "pass --overwrite to replace it, or choose" if mark.exists() else "choose"
                raise FileExistsError(f"{self.output_dir} is not empty: {remedy} another --output-dir.")
            if self.source.source and Path(self.source.source).resolve().is_relative_to(self.output_dir.resolve()):
                raise UsageError(f"--source {self.source.source} lies in the output folder that is to be replaced.")
            unfinished = self.output_dir.glob(".corpus-*")  # of a drawing that was killed
            for path in (*(self.output_dir / name for name in RESULTS), *unfinished):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def _batch_that_fits(self, built: dict[str, Any]) -> int:
        """The batch asked for, or the largest power of two that a small source can fill."""
        pairs, wanted = built["splits"]["train"]["pairs"], self.args.per_device_train_batch_size
        if pairs >= wanted:
            return wanted
        fitting = 1 << (pairs.bit_length() - 1)
        say(f"The source gives {pairs} training pairs: batches of {fitting} instead of {wanted}.")
        return fitting

    def _copy_labels(self, source: str) -> None:
        """Labels that a source brings along (a drawn corpus does) make zero-shot classification possible."""
        if source.startswith("http"):
            return
        try:
            content = Bucket(source).read(KINDS)
        except ObjectMissing:
            return
        except ObjectError as error:
            say(f"Without labels of the source: {error}")
            return
        # The source labels figures that options such as --licenses left out of the dataset, too.
        built = {name for split in SPLIT_NAMES for name in pair_ids(self.output_dir, split)}
        header, *rows = content.decode("utf-8").splitlines(keepends=True)
        kept = [row for row in rows if row.split(",")[0] in built]
        (self.output_dir / LABELS).write_bytes("".join([header, *kept]).encode("utf-8"))


def _decimals(value: float | None, places: int) -> str:
    return UNDEFINED if value is None else f"{value:.{places}f}"


def report_as_markdown(report: dict[str, Any]) -> str:
    """The report for people: what was measured, beside chance, with the plots."""
    retrieval, zero_shot, training = report["retrieval"], report["zero_shot"], report["training"]
    lines = [
        "# Quickstart",
        "",
        f"{training['steps']} steps on {report['build']['splits']['train']['pairs']:,} pairs in "
        f"{training['seconds']} s; the whole line in {report['seconds']} s and {report['peak_memory_mib']:,} MiB. "
        f"Seed {report['seed']}.",
        "",
        "The articles are drawn, not real."
        if report["build"]["synthetic"]
        else f"Source: {markdown(report['build']['source'])}.",
        "",
        f"## Retrieval among {retrieval['pairs']:,} held-out pairs",
        "",
        "| | image to text | text to image | chance |",
        "|---|---:|---:|---:|",
    ]
    for k in RECALLS:
        cells = [recall_as_text(retrieval[direction], k) for direction in DIRECTIONS]
        lines.append(f"| recall at {k} | {' | '.join(cells)} | {min(1.0, k * retrieval['chance_at_1']):.4f} |")
    ranks = [rank_as_text(retrieval[direction]) for direction in DIRECTIONS]
    lines.append(f"| median rank | {' | '.join(ranks)} | {(retrieval['pairs'] + 1) / 2} |")
    lines += ["", "In square brackets 95 % bootstrap intervals over articles."]
    if "oracle_of_kind_at_1" in retrieval:
        oracle = retrieval["oracle_of_kind_at_1"]
        lines += ["", f"Who knows the kind of a figure and nothing else has a recall at 1 of {oracle:.3f}."]
    lines += ["", "## Zero-shot classification", ""]
    if zero_shot:
        accuracy, balanced = (_decimals(zero_shot[name], 3) for name in ("accuracy", "balanced_accuracy"))
        recalls = [(name, _decimals(recall, 2)) for name, recall in zero_shot["recall_of_class"].items()]
        lines += [
            f"Accuracy {accuracy}, balanced {balanced}, chance {zero_shot['chance']:.3f}, {zero_shot['images']} images "
            f"of {len(zero_shot['classes'])} kinds.",
            "",
            table(["kind", "recall"], recalls),
        ]
    else:
        lines.append("Not measured: the source has no labels.")
    lines += ["", "## Pictures", "", "![Loss and recall](curves.png)", "", "![Queries and answers](answers.png)", ""]
    return "\n".join(lines)
