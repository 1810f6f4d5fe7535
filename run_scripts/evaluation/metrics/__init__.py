"""The metrics of the evaluation as modules of the library `evaluate`: `evaluate.load("<this folder>/classification")`."""
