"""The pipeline and what it passes on: results, errors, classifier."""
