"""Extension of griffe, which reads the docstrings for the documentation site."""

from __future__ import annotations

from typing import Any

import griffe

# Without griffe installed, its classes have no types.
# mypy: disable-error-code="misc"


class ExampleSections(griffe.Extension):
    """Show a section `Example:` as code, as griffe shows `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of one object."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
