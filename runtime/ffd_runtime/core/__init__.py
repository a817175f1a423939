"""Results, errors, shared helpers, and the pipeline and classifier that connect the subpackages."""
