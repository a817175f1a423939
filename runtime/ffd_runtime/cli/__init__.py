"""The commands of the runtime; importing one costs no more than click."""
