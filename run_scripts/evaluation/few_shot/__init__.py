"""Few-shot learning: draws, methods, the task of `biomedclip evaluate`, and its table and plot."""
