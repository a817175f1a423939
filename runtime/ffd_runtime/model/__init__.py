"""Models: the card, the engine manifest, devices, backends."""
