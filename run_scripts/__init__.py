"""Entry points: one module for each verb of the `biomedclip` command, and the YAML recipes."""
