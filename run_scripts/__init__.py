"""What a person runs: one file for each verb of the `biomedclip` command, and recipes in YAML."""
