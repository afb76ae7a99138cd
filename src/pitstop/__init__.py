"""Train image classifiers on GPUs that may be taken away at any moment. Importing this package costs nothing."""

__version__ = "0.1.0"
