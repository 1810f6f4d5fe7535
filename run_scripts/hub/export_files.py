"""Files next to exported ONNX graphs, for programs without this package."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomedclip.export import graph_files
from biomedclip.model_cards.export_card import write_export_card

from ..cli.reporting import write_json


def write_files_for_others(folder: Path, processor: Any, precisions: Sequence[str], source: str) -> None:
    """Write the card, and the settings of the image processor under the name that transformers.js reads."""
    image_processor = processor.image_processor
    settings = image_processor.to_dict() | {"image_processor_type": "CLIPImageProcessor"}
    settings.pop("auto_map", None)
    write_json(folder / "preprocessor_config.json", settings)
    graphs = {name: [graph_files("onnx", each, name)[0] for each in precisions] for name in ("image", "text")}
    files = list(zip(precisions, graphs["image"], graphs["text"], strict=True))
    card = write_export_card(
        json.loads((folder / "config.json").read_text(encoding="utf-8")),
        files,
        {
            "context_length": processor.tokenizer.model_max_length,
            "pad_id": processor.tokenizer.pad_token_id,
            "pad_token": processor.tokenizer.pad_token,
            "mean": list(image_processor.image_mean),
            "std": list(image_processor.image_std),
            "shortest_edge": image_processor.size.get("shortest_edge"),
            "resample": int(image_processor.resample),
        },
        source,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
