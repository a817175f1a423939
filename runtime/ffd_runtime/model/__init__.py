"""Models: card, engine manifest, devices and backends."""
