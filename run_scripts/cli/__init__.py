"""Code shared by all verbs of the command: options, errors, tables, plots and progress bars."""
