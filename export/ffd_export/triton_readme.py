"""The README of a model in a Triton model repository: how to serve it and how to use it."""

from __future__ import annotations

import re
from string import Template

from ffd_runtime.core.text import printable
from ffd_runtime.model.card import CARD_KEY, ModelCard, PreprocessSpec

LABELS = "labels.txt"
README = Template('''\
# $name

$model, $precision: classifies faces as made by StyleGAN-family generators or as photographs. This
folder is a model in a Triton model repository. `config.pbtxt` describes it to the server.

## Serve

    tritonserver --model-repository=REPOSITORY

REPOSITORY is the absolute path of the folder that contains this folder.
$note

| tensor | type, shape | meaning |
|---|---|---|
| in `image` | UINT8 [N, $size, $size, 3] | RGB, preprocessed as below; N at most $max_batch |
| out `probability` | FP32 [N, $count] | of the classes in `$labels`: $classes |
| out `heatmap` | FP32 [N, $height, $width] | evidence by position in the image |

## Preprocess an image

The network was trained on images that were preprocessed exactly like this. Other preprocessing
changes the scores. `ffd_runtime`, a package of `ffd-edge`, preprocesses images with the numbers of
the model card, which is the parameter `$key` of the model's configuration. The steps:

$preprocessing

The model itself normalises the image to the network's mean and deviation and moves the channels
first.

## Send requests

With `ffd-edge` installed, and `pip install "tritonclient[http]"`:

```python
"""Classify images: python client.py IMAGE..."""

import sys

import numpy as np
import tritonclient.http as triton

from ffd_runtime.model.card import CARD_KEY, ModelCard
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.preprocess import preprocess

MODEL = "$name"


def prepare(path, spec):
    """Uint8 [1, size, size, 3], RGB."""
    image = decode(read_file(path), at_least=spec.decode_side)
    return preprocess(image, spec)[np.newaxis]


def main():
    client = triton.InferenceServerClient("localhost:8000")
    parameters = client.get_model_config(MODEL)["parameters"]
    card = ModelCard.from_json(parameters[CARD_KEY]["string_value"])
    for path in sys.argv[1:]:
        pixels = prepare(path, card.preprocess)
        image = triton.InferInput("image", list(pixels.shape), "UINT8")
        image.set_data_from_numpy(pixels)
        answer = client.infer(MODEL, [image])
        score = float(answer.as_numpy("probability")[0, 0])
        print(path, round(score, 6), card.verdict(score))


if __name__ == "__main__":
    main()
```

The server combines the requests of many clients into batches. A request may contain up to
$max_batch images.

## Read the response

The score is `probability[:, 0]`, P($first), with the model's temperature applied. The verdict is

$verdicts

For a two-way decision without `unsure`, the verdict is `$first` from $threshold upwards.

`heatmap` is the evidence for `$first` in each cell of the preprocessed image, in log-odds. Positive
values are for it, negative values against it. The sigmoid of a heatmap's mean is the score, except
for rounding.
''')


def write_readme(
    name: str, card: ModelCard, note: str, heatmap: tuple[int, int], max_batch: int
) -> str:
    """Return the README of a model. `triton_files` describes the arguments."""
    return README.substitute(
        name=name,
        model=f"{_code(card.name)} ({_code(card.architecture)})",
        precision=card.precision.upper(),
        note=note,
        size=card.preprocess.size,
        max_batch=max_batch,
        count=len(card.classes),
        labels=LABELS,
        classes=", ".join(f"`{label}`" for label in card.classes),
        height=heatmap[0],
        width=heatmap[1],
        key=CARD_KEY,
        preprocessing=_preprocessing(card.preprocess),
        first=card.classes[0],
        verdicts=_verdicts(card),
        threshold=card.threshold,
    )


def _preprocessing(spec: PreprocessSpec) -> str:
    """Describe the steps of `ffd_runtime.image.preprocess` with a card's numbers."""
    size, tiles = spec.size, spec.clahe_tiles
    return f"""\
1. Decode to 8 bits a channel. Apply the EXIF orientation. Put transparent parts on white.
2. Crop the largest centre square, or a face's box made square and {spec.face_scale} times as large.
3. Resize to {size} x {size}: with `INTER_AREA` down, with `INTER_LINEAR_EXACT` up.
4. Convert to OpenCV's 8-bit LAB and change only L. First, L' = (L - mean) * gain +
   {spec.target_mean}, where gain is {spec.target_deviation} / deviation but at most
   {spec.max_gain}, and mean and deviation are those of L over the resized square. Round L' (halves
   to even) and clip it to 0..255. Then apply CLAHE with clip limit {spec.clahe_clip} and
   {tiles} x {tiles} tiles.
5. Convert to RGB: uint8, rows from the top, channels last."""


def _verdicts(card: ModelCard) -> str:
    """Describe the rule of `ModelCard.verdict`, without verdicts that no score can get."""
    low, high = card.unsure
    lines = []
    if low > 0:
        lines.append(f"- `groundtruth` below {low}")
    if high == 1:
        lines.append(f"- `unsure` from {low} upwards")
    else:
        if low < high:
            lines.append(f"- `unsure` from {low} to below {high}")
        lines.append(f"- `generated` from {high} upwards")
    return "\n".join(lines)


def _code(text: str) -> str:
    """Format any text as a code span of Markdown (CommonMark 6.1: its fence is the longest)."""
    shown = printable(text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {shown} {fence}" if longest else f"{fence}{shown}{fence}"
