"""A checkpoint that is restored from the embedded ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tools.batch_norm import measure_statistics
from tools.restore_checkpoint import restore
from torch import nn

from ffd_export.onnx_file import read_onnx
from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.backends import open_backend
from ffd_runtime.model.backends.embedded import EMBEDDED


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Draw smooth random images, which are closer to photographs than noise is."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (8, 3, 12, 12)).astype(np.float32)
    smooth = nn.functional.interpolate(torch.from_numpy(coarse), 299, mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def test_the_checkpoint_has_the_outputs_of_the_onnx(pixels: torch.Tensor) -> None:
    graph, card = read_onnx(EMBEDDED)
    net = restore(graph, card.architecture, pixels)
    with torch.inference_mode():
        logits = net(pixels) / card.temperature
    expected = open_backend(EMBEDDED, "onnxruntime", "cpu").infer(pixels.numpy()).probability
    assert np.abs(logits.softmax(1).numpy() - expected).max() < 1e-4
    # In training mode, the statistics of a batch replace the measured ones.
    before = logits[:, 0] - logits[:, 1]
    measure_statistics(net, [pixels])
    with torch.inference_mode():
        after = net(pixels) / card.temperature
    assert np.corrcoef(before, after[:, 0] - after[:, 1])[0, 1] > 0.8
    assert not net.training


def test_a_graph_without_weights_is_an_error(pixels: torch.Tensor) -> None:
    graph, card = read_onnx(EMBEDDED)
    del graph.graph.initializer[:]
    with pytest.raises(ModelError, match="give an FP32 ONNX"):
        restore(graph, card.architecture, pixels)
