"""The commands ffd-train, ffd-eval and ffd-data."""
