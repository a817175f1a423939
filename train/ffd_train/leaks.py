"""The check that no image is in two splits or in both classes."""

from __future__ import annotations

from ffd_runtime.core.errors import DataError

from .face_data import FaceData, Sample


def refuse_shared_images(data: FaceData) -> None:
    """Check that identical files are in one split and one class.

    Raises:
        DataError: they are in two.
    """
    first: dict[str, Sample] = {}
    classes, splits = [], []
    for sample in data.samples:
        other = first.setdefault(sample.sha256, sample)
        if other.label != sample.label:
            classes.append((other, sample))
        elif other.split != sample.split:
            splits.append((other, sample))
    for pairs, places in ((classes, "both classes"), (splits, "two splits")):
        if pairs:
            one, two = pairs[0]
            count = f"{len(pairs)} images are" if len(pairs) > 1 else "an image is"
            raise DataError(
                f"{data.root}: {count} in {places}, for example {one.path} and {two.path}: remove "
                "one of each, or pack the folder with ffd-data prepare, which removes copies"
            )
