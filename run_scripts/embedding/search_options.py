"""Options of `biomedclip search`, and checks of them."""

from dataclasses import dataclass

from biomedclip.embedding_index import METHODS, TOP_K
from biomedclip.embedding_shards import MODALITIES

from ..cli.devices import DEVICE_HELP
from ..cli.fields import REQUIRED, option, trust_option
from ..cli.output import FORMAT_HELP, FORMATS
from .encoders import PRECISIONS
from .filters import EXAMPLE as FILTER


@dataclass(kw_only=True)
class SearchOptions:
    """Options of `biomedclip search`.

    Raises:
        ValueError: If an option has an invalid value or no effect.
    """

    embeddings: str = option(REQUIRED, "Folder that biomedclip embed wrote. Can be the first positional argument.")
    text: str | None = option(None, "Text to search for. Can be the second positional argument.")
    image: str | None = option(None, "Image file to search for.")
    like: str | None = option(None, "Id whose embedding is searched for. The id itself is not listed.")
    duplicates: float | None = option(None, "List groups of near-duplicates with at least this similarity, e.g. 0.97.")
    top_k: int | None = option(None, f"Number of results (default: {TOP_K}).")
    where: str | None = option(None, f'Condition on the columns, such as "{FILTER}".')
    modality: str | None = option(None, "Embeddings to search (default: image if there are any).", list(MODALITIES))
    model: str | None = option(None, "Folder or Hub id of the model (default: the one that computed the embeddings).")
    precision: str | None = option(
        None, "Precision of the model, also as fp32 or bf16 (default: float32, or that of the export).", PRECISIONS
    )
    device: str = option("auto", DEVICE_HELP)
    trust_remote_code: bool = trust_option()
    format: str | None = option(None, FORMAT_HELP, FORMATS)
    output: str | None = option(None, "File for the results (default: stdout).")
    html: str | None = option(None, "Also write a page with thumbnails to this file.")
    images: list[str] = option(
        [], "Images or datasets that were embedded, for --html (default: paths below this folder and EMBEDDINGS)."
    )
    index: str = option("exact", "hnsw is approximate, and states its recall (default: exact).", METHODS)

    @property
    def needs_model(self) -> bool:
        """Return whether the search embeds a query, or texts to measure the recall of an approximate index."""
        return self.text is not None or self.image is not None or self.index == "hnsw"

    def __post_init__(self) -> None:
        given = [name for name in ("text", "image", "like", "duplicates") if getattr(self, name) is not None]
        if len(given) != 1:
            passed = f", not {' and '.join(given)}" if given else ""
            raise ValueError(f"Pass one of a text, --image, --like and --duplicates{passed}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"--top-k must be at least 1, not {self.top_k}.")
        if self.text is not None and not self.text.strip():
            raise ValueError("The text is empty.")
        if self.duplicates is not None:
            if not 0 < self.duplicates <= 1:
                raise ValueError(f"--duplicates must be above 0 and at most 1, not {self.duplicates}.")
            if self.top_k is not None or self.index != "exact":
                raise ValueError("--duplicates lists all groups exactly. Omit --top-k and --index.")
        if self.index == "hnsw" and self.where is not None:
            raise ValueError("--index hnsw does not support --where. Omit --index: the exact search supports it.")
        if self.images and self.html is None:
            raise ValueError("--images has no effect without --html.")
        if not self.needs_model:
            defaults = {"model": None, "precision": None, "device": "auto", "trust_remote_code": False}
            for name, default in defaults.items():
                if getattr(self, name) != default:
                    option_name = name.replace("_", "-")
                    raise ValueError(f"--{option_name} has no effect with --{given[0]}, which loads no model. Omit it.")
        if self.trust_remote_code and self.model is None:
            # The embeddings may come from another person.
            raise ValueError("--trust-remote-code requires --model. The model that the embeddings name is not trusted.")
