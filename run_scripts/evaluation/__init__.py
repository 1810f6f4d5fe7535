"""Parts of `biomedclip evaluate`: embeddings on disk, tasks, metrics and results."""
