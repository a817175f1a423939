"""Train and evaluate the networks that ffd exports and runs."""
