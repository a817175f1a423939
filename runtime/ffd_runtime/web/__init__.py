"""One page for a box without a screen: live pictures, verdicts, health and metrics, over HTTP."""
