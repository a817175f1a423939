"""Limits for fetching images from web addresses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FetchPolicy:
    """Limits of a fetch, and the addresses that it may reach.

    Attributes:
        timeout: seconds for the whole fetch: names, connections, redirects and body; up to a day.
        max_bytes: limit of the body.
        max_redirects: limit of consecutive redirects.
        allow_private: whether to connect also to addresses that are not public, such as 127.0.0.1,
            10.0.0.1 or fe80::1.

    Raises:
        ValueError: a number is out of range.
    """

    timeout: float = 20.0
    max_bytes: int = 1 << 26
    max_redirects: int = 5
    allow_private: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= 86400:
            raise ValueError(f"timeout must be above 0 and at most 86400 s, not {self.timeout}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {self.max_bytes}")
        if self.max_redirects < 0:
            raise ValueError(f"max_redirects must be at least 0, not {self.max_redirects}")
