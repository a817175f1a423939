"""The command of export. Its modules import only click until the command runs."""
