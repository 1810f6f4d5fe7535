"""What `biomedclip evaluate` is made of: embeddings on disk, tasks, metrics, results."""
