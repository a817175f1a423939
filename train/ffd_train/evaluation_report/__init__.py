"""The results of ffd-eval as JSON, HTML page and model card table."""
