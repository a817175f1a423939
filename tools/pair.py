"""Join two EfficientNet-Lite0 into one network with two branches.

Usage: python -m tools.pair FIRST SECOND RUN [--share 0.3]

The logits of the pair are a weighted mean of those of FIRST and SECOND. Its weights are rounded to
FP16. SECOND is a run folder of ffd-train, from which RUN takes its settings and its manifest.
Calibrate RUN afterwards, for example with `tools.calibrate_unseen`: until then, the card has the
threshold and the unsure band of SECOND.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import click
from tools.batch_norm import set_identity
from tools.restore_checkpoint import convolutions_of
from torch import nn

from ffd_runtime.cli.command import Command, say
from ffd_runtime.core.errors import DataError, ModelError
from ffd_train.checkpoint import load_checkpoint, save_checkpoint
from ffd_train.networks import FaceNet, describe_weights, join_pair
from ffd_train.run_folder import BEST, MANIFEST, SETTINGS
from ffd_train.settings import Settings

NETWORK = "tf_efficientnet_lite0"


@click.command(cls=Command)
@click.argument("first", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("second", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Weight of FIRST's logits; SECOND's is 1 minus this.",
)
def main(first: Path, second: Path, run: Path, share: float) -> None:
    """Join checkpoint FIRST and run SECOND as the new run folder RUN."""
    files = (first, second / BEST)
    branches, cards = zip(*map(load_checkpoint, files), strict=True)
    for file, card in zip(files, cards, strict=True):
        if card.architecture != NETWORK:
            raise ModelError(f"{file} is a {card.architecture}: give two {NETWORK}")
    if cards[0].preprocess != cards[1].preprocess:
        raise ModelError(f"{first} uses another preprocessing than {second}")
    try:
        run.mkdir(parents=True)
    except FileExistsError:
        raise DataError(f"{run} exists: name a new folder") from None
    weights = " + ".join(describe_weights(str(file)) for file in files)
    card = cards[1].replace(
        name=run.name,
        architecture=f"{NETWORK}_pair",
        provenance=replace(cards[1].provenance, weights=weights),
        metrics={},
    )
    pair = join_pair(branches, (share, 1 - share)).eval()
    round_weights(pair)
    save_checkpoint(run / BEST, pair, card)
    settings = Settings.from_json((second / SETTINGS).read_text())
    (run / SETTINGS).write_text(replace(settings, network=card.architecture).to_json())
    shutil.copyfile(second / MANIFEST, run / MANIFEST)
    say(f"wrote {run}: {share:g} of {first}, {1 - share:g} of {second}")


def round_weights(net: FaceNet) -> None:
    """Fold each BatchNorm into its convolution, and round the weights to values of FP16.

    The file of the exported FP32 network can then store FP16. Training cannot continue from here.

    Args:
        net: in evaluation mode; changed in place.
    """
    for (_, convolution), norm in convolutions_of(net):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        bias = norm.bias.detach() - norm.running_mean * scale
        convolution.weight.data.mul_(scale.reshape(-1, 1, 1, 1))
        set_identity(norm, bias)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data.copy_(layer.weight.half())


if __name__ == "__main__":
    main()
