"""Write the card of exported ONNX graphs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .escaping import Markdown
from .formatting import PLACEHOLDER, public_name, render


# Names of the precisions in transformers.js.
_DTYPES = {"float32": "fp32", "float16": "fp16", "int8": "int8"}


def write_export_card(
    config: Mapping[str, Any], files: Sequence[tuple[str, str, str]], processing: Mapping[str, Any], source: str
) -> str:
    """Return the `README.md` of an export.

    `config` is the content of its `config.json`. `files` has the precision and the names of both graphs. `processing`
    has `context_length`, `pad_id`, `pad_token`, `mean`, `std`, `shortest_edge` (may be None) and `resample`.
    """
    vision = config["vision_config"]
    return render(
        "export_card.md",
        title=public_name(source),
        source=public_name(source),
        files=files,
        quantized=any(precision == "int8" for precision, _, _ in files),
        channels=vision["num_channels"],
        side=vision["image_size"],
        dimension=config["projection_dim"],
        positions=config["text_config"]["max_position_embeddings"],
        scale=Markdown(repr(config["logit_scale"])),
        bias=config["logit_bias"] if config["logit_bias"] is None else Markdown(repr(config["logit_bias"])),
        first_image=Markdown(files[0][1]),
        first_text=Markdown(files[0][2]),
        dtype=_DTYPES[files[0][0]],
        code_name=Markdown(PLACEHOLDER),
        **{
            name: value if value is None else Markdown(value if isinstance(value, str) else json.dumps(value))
            for name, value in processing.items()
        },
    )
