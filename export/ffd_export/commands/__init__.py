"""The command of export."""
