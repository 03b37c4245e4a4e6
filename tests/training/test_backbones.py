"""Every family of the registry gives timm's own tokens."""

from pathlib import Path

import pytest
import torch

from configs import ConfigError
from configs.schema import BackboneConfig
from training.model.backbone import build_backbone, load_weights, patch_tokens, preprocess, read_state_dict
from training.model.registry import find_spec

SMALL = ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch16_dinov3",
         "vit_base_patch16_siglip_224.v2_webli", "vit_base_patch16_224.mae", "vit_tiny_patch16_224"]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_tokens_are_timms_own_at_the_published_size(name: str) -> None:
    import timm

    spec = find_spec(name)
    state = load_weights(BackboneConfig(name, "random", 0))
    options = {"global_pool": ""} if "siglip" in name else {}
    model = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
    model.load_state_dict(state, strict=True)
    height, width = spec.pretrained_size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model.forward_features(preprocess(spec, image))[:, model.num_prefix_tokens :]
        got = patch_tokens(build_backbone(name, state, height, width).eval(), image)
    assert got.shape[1:3] == (height // spec.patch, width // spec.patch)
    torch.testing.assert_close(got.flatten(1, 2), wanted)


@pytest.mark.parametrize("name", [n for n in SMALL if "patch16" in n])
def test_another_size_gives_its_own_grid(name: str) -> None:
    model = build_backbone(name, load_weights(BackboneConfig(name, "random", 0)), 70, 100).eval()
    with torch.inference_mode():
        assert patch_tokens(model, torch.rand(1, 3, 70, 100)).shape[1:3] == (4, 6)


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny_patch4_window7_224", "vit_small_patch14_dinov9", "vit_base_patch16_224.nothing"])
def test_other_models_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"backbone.architecture={name}") as refused:
        find_spec(name)
    assert "\n" not in str(refused.value)


def test_weights_of_half_precision_become_float32_and_broken_ones_are_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "weights.pth")
    torch.save({"norm.weight": torch.ones(4, dtype=torch.bfloat16)}, file)
    assert read_state_dict(file)["norm.weight"].dtype == torch.float32
    torch.save({"norm.weight": torch.tensor([1.0, torch.nan])}, file)
    with pytest.raises(ConfigError, match=r"NaN or infinity in norm\.weight"):
        read_state_dict(file)
