"""Compare training steps with PyTorch's and with ffd's gradients of depthwise convolutions.

    python benchmarks/depthwise.py [--batch 32] [--side 192] [--steps 8]

Prints CSV: images per second of EfficientNet-Lite0 in bfloat16 on this CPU, and the ratio. Both
networks take their steps alternately.
"""

from __future__ import annotations

import argparse
import time

import torch
from machine import describe

from ffd_train.depthwise import use_fast_depthwise
from ffd_train.networks import FaceNet, build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    images = torch.randint(
        0, 256, (options.batch, options.side, options.side, 3), dtype=torch.uint8
    )
    plain, fast = (
        build("tf_efficientnet_lite0").to(memory_format=torch.channels_last) for _ in range(2)
    )
    use_fast_depthwise(fast)
    seconds = {plain: 0.0, fast: 0.0}
    for step in range(options.steps + 1):
        for network in seconds:
            start = time.perf_counter()
            take_step(network, images)
            if step:  # The first step allocates and compiles kernels.
                seconds[network] += time.perf_counter() - start
    rates = [options.batch * options.steps / seconds[network] for network in (plain, fast)]
    print(f"# {describe()}, torch {torch.__version__}")
    print("side,batch,plain_images_per_s,fast_images_per_s,ratio")
    ratio = rates[1] / rates[0]
    print(f"{options.side},{options.batch},{rates[0]:.1f},{rates[1]:.1f},{ratio:.2f}")


def take_step(network: FaceNet, images: torch.Tensor) -> None:
    """Compute the gradients of one batch."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(images).float().square().mean()
    loss.backward()


if __name__ == "__main__":
    main()
