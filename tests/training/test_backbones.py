"""Every family of the registry gives timm's own tokens."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from configs import ConfigError, load
from configs.schema import BackboneConfig, TrainConfig
from storage.location import StorageError
from training.model.backbone import StateDict, build_backbone, patch_tokens, preprocess
from training.model.registry import find_spec
from training.model.weights import hash_weights, load_weights

DEMO = BackboneConfig("vit_small_patch14_dinov2", "random", 0, 2)
SMALL = ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch16_dinov3",
         "vit_base_patch16_siglip_224.v2_webli", "vit_base_patch16_224.mae", "vit_tiny_patch16_224"]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_tokens_are_timms_own_at_the_published_size(name: str) -> None:
    import timm

    spec = find_spec(name, 2)
    state = load_weights(BackboneConfig(name, "random", 0, 2))
    model = timm.create_model(name, **spec.timm_options).eval()
    model.load_state_dict(state, strict=True)
    height, width = spec.pretrained_size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model.forward_features(preprocess(spec, image))[:, model.num_prefix_tokens :]
        got = patch_tokens(build_backbone(name, state, height, width, 2).eval(), image)
    assert got.shape[1:3] == (height // spec.patch, width // spec.patch)
    torch.testing.assert_close(got.flatten(1, 2), wanted)


@pytest.mark.parametrize("name", [n for n in SMALL if "patch16" in n])
def test_another_size_gives_its_own_grid(name: str) -> None:
    model = build_backbone(name, load_weights(BackboneConfig(name, "random", 0, 1)), 70, 100, 1).eval()
    with torch.inference_mode():
        assert patch_tokens(model, torch.rand(1, 3, 70, 100)).shape[1:3] == (4, 6)


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny_patch4_window7_224", "vit_small_patch14_dinov9", "vit_base_patch16_224.nothing"])
def test_other_models_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone.architecture={name}") as refused:
        find_spec(name)
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def weights() -> StateDict:
    return load_weights(DEMO)


def hugging_face(state: StateDict) -> StateDict:
    """The names that `Dinov2Model` gives the same tensors."""
    theirs = {}
    for name, tensor in state.items():
        name = re.sub(r"^blocks\.", "encoder.layer.", name).replace("attn.proj.", "attention.output.dense.")
        name = re.sub(r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1", re.sub(r"^norm\.", "layernorm.", name))
        name = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        name = name.replace("cls_token", "embeddings.cls_token").replace("pos_embed", "embeddings.position_embeddings")
        if "attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[name.replace("attn.qkv.", f"attention.attention.{part}.")] = third.clone()
        else:
            theirs[name] = tensor
    return theirs | {"embeddings.mask_token": torch.zeros(1, 384)}


def named(prefix: str, state: StateDict) -> StateDict:
    return {prefix + name: tensor for name, tensor in state.items()}


HEAD = {"head.mlp.0.weight": torch.zeros(2, 2)}
CONTAINERS: dict[str, Callable[[StateDict], Any]] = {
    "as it is": lambda s: s,
    "hub": lambda s: s | {"mask_token": torch.zeros(1, 384)},
    "classifier": lambda s: s | {"head.weight": torch.zeros(9, 384), "head.bias": torch.zeros(9)},
    "DDP": lambda s: named("module.", s),
    "torch.compile": lambda s: named("_orig_mod.", s),
    "DDP of a compiled part": lambda s: named("module.backbone._orig_mod.", s),
    "Lightning": lambda s: {"epoch": 3, "state_dict": named("model.backbone.", s) | named("model.", HEAD)},
    "DINO": lambda s: {"teacher": named("backbone.", s) | HEAD, "student": named("module.backbone.", noise(s)), "epoch": 3},
    "DINOv2's training": lambda s: {"model": named("teacher.backbone.", s) | named("student.", noise(s)) | named("teacher.dino_", HEAD)},
    "Hugging Face": hugging_face,
    "Hugging Face's classifier": lambda s: named("dinov2.", hugging_face(s)) | {"classifier.weight": torch.zeros(9, 768)},
    "float64": lambda s: {name: tensor.double() for name, tensor in s.items()},
}  # fmt: skip


def noise(state: StateDict) -> StateDict:
    return {name: tensor + 1 for name, tensor in state.items()}


def saved(folder: Path, content: Any, ending: str = "pth") -> BackboneConfig:
    url = str(folder / f"weights.{ending}")
    if ending == "safetensors":
        save_file(content, url)
    else:
        torch.save(content, url)
    return BackboneConfig(DEMO.architecture, url, 0, DEMO.blocks)


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_people_have_gives_the_same_weights(tmp_path: Path, weights: StateDict, container: str) -> None:
    loaded = load_weights(saved(tmp_path, CONTAINERS[container](weights)))
    assert hash_weights(loaded) == hash_weights(weights)


@pytest.mark.parametrize("ending", ["pt", "bin", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(tmp_path: Path, weights: StateDict, ending: str, dtype: torch.dtype) -> None:
    loaded = load_weights(saved(tmp_path, {name: tensor.to(dtype) for name, tensor in weights.items()}, ending))
    assert all(torch.equal(loaded[name], tensor.to(dtype).float()) for name, tensor in weights.items())


def test_registers_of_the_authors_file_are_timms(tmp_path: Path) -> None:
    """Their class token has a position; timm's has it added."""
    name = "vit_small_patch14_reg4_dinov2"
    ours = load_weights(BackboneConfig(name, "random", 0, 2))
    position = torch.rand(1, 1, 384)
    theirs = {n: t for n, t in ours.items() if n != "reg_token"} | {"register_tokens": ours["reg_token"], "mask_token": torch.zeros(1, 384)}
    theirs |= {"cls_token": ours["cls_token"] - position, "pos_embed": torch.cat([position, ours["pos_embed"]], 1)}
    loaded = load_weights(replace(saved(tmp_path, theirs), architecture=name))
    assert set(loaded) == set(ours)
    for part, tensor in ours.items():
        torch.testing.assert_close(loaded[part], tensor)


@pytest.mark.parametrize("bias", ["", "_qkvb"])
def test_dinov3_of_the_authors_file_is_timms(tmp_path: Path, bias: str) -> None:
    name = f"vit_small_patch16_dinov3{bias}"
    ours = load_weights(BackboneConfig(name, "random", 0, 2))
    theirs: StateDict = {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}
    for part, tensor in ours.items():
        part = part.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        if not part.endswith(("q_bias", "v_bias")):
            theirs[part] = tensor
    for block in range(2):
        q, v = (torch.rand(384) if bias else torch.zeros(384) for _ in range(2))
        theirs[f"blocks.{block}.attn.qkv.bias"] = torch.cat([q, torch.zeros(384), v])
        theirs[f"blocks.{block}.attn.qkv.bias_mask"] = torch.full((3 * 384,), torch.nan)
        if bias:
            ours |= {f"blocks.{block}.attn.q_bias": q, f"blocks.{block}.attn.v_bias": v}
    loaded = load_weights(replace(saved(tmp_path, theirs), architecture=name))
    assert hash_weights(loaded) == hash_weights(ours)


def without(name: str) -> Callable[[StateDict], Any]:
    return lambda state: {n: tensor for n, tensor in state.items() if n != name}


REFUSED: dict[str, tuple[Callable[[StateDict], Any], str]] = {
    "missing": (without("norm.bias"), r"1 missing: norm\.bias"),
    "unexpected": (lambda s: s | {"criterion.weight": torch.ones(1)}, r"1 unexpected: criterion\.weight"),
    "misshapen": (lambda s: s | {"norm.bias": torch.ones(9)}, r"1 of another shape: norm\.bias \(9,\) for \(384,\)"),
    "oblong positions": (lambda s: s | {"pos_embed": torch.ones(1, 13, 384)}, r"1 of another shape: pos_embed"),
    "NaN": (lambda s: s | {"norm.bias": torch.full((384,), torch.nan)}, r"NaN or infinity in norm\.bias"),
    "beyond float32": (lambda s: s | {"norm.bias": torch.full((384,), 1e300, dtype=torch.float64)}, r"NaN or infinity in norm\.bias"),
    "quantised": (lambda s: s | {"norm.bias": torch.ones(384, dtype=torch.int8)}, r"no floating-point numbers in norm\.bias"),
    "no key": (lambda s: hugging_face(s) | {"encoder.layer.1.attention.attention.key.weight": torch.ones(2)}, "attn.qkv.weight"),
    "twice": (lambda s: s | named("module.", s), "two tensors are called"),
    "optimiser": (lambda s: {"optimizer": {"lr": 1}, "epoch": 3}, r"holds optimizer \(dict\), epoch \(int\); containers tried: teacher"),
    "list": (lambda s: [1], "but a list"),
    "empty": (lambda s: {"model": {}}, "but empty"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_weights_are_refused_by_what_they_lack(tmp_path: Path, weights: StateDict, what: str) -> None:
    change, message = REFUSED[what]
    with pytest.raises(ConfigError, match=message) as refused:
        load_weights(saved(tmp_path, change(weights)))
    assert "\n" not in str(refused.value)


def test_a_store_that_nothing_reads_is_named() -> None:
    with pytest.raises(StorageError, match=r"gs://bucket/w\.pth: nothing here reads gs://"):
        load_weights(replace(DEMO, weights="gs://bucket/w.pth"))


def test_the_first_blocks_are_those_of_the_whole(tmp_path: Path, weights: StateDict) -> None:
    whole = load_weights(replace(DEMO, blocks=None))
    assert hash_weights(load_weights(saved(tmp_path, whole))) == hash_weights(weights)
    assert all(torch.equal(whole[name], tensor) for name, tensor in weights.items())
    model: Any = build_backbone(DEMO.architecture, weights, 28, 28, 2)
    assert len(model.blocks) == 2
    for blocks in (0, 13):
        with pytest.raises(ConfigError, match=rf"backbone\.blocks={blocks}: vit_small_patch14_dinov2 has 1 to 12"):
            load_weights(replace(DEMO, blocks=blocks))


def test_the_hub_is_asked_for_the_whole_model(monkeypatch: pytest.MonkeyPatch, weights: StateDict) -> None:
    """Its file holds all blocks: timm would refuse it for fewer."""
    import timm

    create = timm.create_model

    def hub(name: str, pretrained: bool = False, **options: Any) -> Any:
        assert not (pretrained and "depth" in options)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", hub)
    loaded = load_weights(replace(DEMO, weights="pretrained"))
    assert {name: t.shape for name, t in loaded.items()} == {name: t.shape for name, t in weights.items()}


@pytest.mark.parametrize("preset", sorted(path.stem for path in Path("configs/backbone").glob("*.yaml")))
def test_presets_are_of_the_registry(preset: str) -> None:
    find_spec(load(TrainConfig, ["dataset=x", "output=x", f"backbone={preset}"]).backbone.architecture)
