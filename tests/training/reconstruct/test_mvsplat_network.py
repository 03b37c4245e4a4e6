"""The MVSplat encoder against the published one: the goldens are the original code's results with weights that any machine can make."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from configs import ConfigError
from storage import location
from tests.training.reconstruct.mvsplat_plain import plain, plain_attend, plain_attention, plain_correlate
from training.reconstruct.mvsplat.checkpoint import load_encoder, read_checkpoint, rule_weights
from training.reconstruct.mvsplat.encoder import EncodedGaussians, MVSplatEncoder
from training.reconstruct.mvsplat.gaussian_adapter import adapt, rotation_matrices, rotation_quat, sh_rotation, sh_transform
from training.reconstruct.mvsplat.plane_sweep import correlate, disparity_candidates, relative_poses
from training.reconstruct.mvsplat.transformer import Windows, attend, position_encoding
from training.splat import gaussian_covariances

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "mvsplat"
MANIFEST = json.loads((GOLDEN / "mvsplat_re10k_manifest.json").read_text())
CASES = {"a": "case_a_96x128", "b": "case_b_256x256", "c": "case_c_snd_112x160", "d": "case_d_64x64_b2"}

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def encoder() -> MVSplatEncoder:
    return load_encoder("rule")


@pytest.fixture(scope="module")
def golden_d() -> Arrays:
    return dict(np.load(GOLDEN / f"{CASES['d']}.npz"))


def assert_within(name: str, actual: Tensor, expected: np.ndarray, limit: Any) -> None:
    worst = float((np.abs(actual.cpu().numpy() - expected) / limit).max())
    print(f"{name}: {worst:.3f} of the limit")
    assert worst <= 1, f"{name}: {worst:.3g} times the limit"


def encode(encoder: MVSplatEncoder, golden: Arrays, items: slice = slice(None), device: str = "cpu") -> EncodedGaussians:
    inputs = [torch.from_numpy(golden[key][items]).to(device) for key in ("image", "extrinsics", "intrinsics", "near", "far")]
    with torch.inference_mode():
        return encoder(*inputs)


@pytest.fixture
def stages(encoder: MVSplatEncoder) -> Iterator[dict[str, Any]]:
    """What each module gave in the last run, by name; `.in` is what it was given."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, given: tuple[Any, ...], gave: Any) -> None:
            seen.update({name: gave, f"{name}.in": given[0]})

        return hook

    names = ["backbone", "depth_predictor", "depth_predictor.refine_unet", "backbone.transformer.layers.0.self_attn"]
    names += [f"backbone.transformer.layers.{i}" for i in range(6)]
    names += [f"depth_predictor.{name}" for name in ("corr_refine_net", "depth_head_lowres", "upsampler")]
    handles = [encoder.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    yield seen
    for handle in handles:
        handle.remove()


# ---- the weights -------------------------------------------------------------------------------------------------------------------------


def test_keys_shapes_and_order_are_the_checkpoints(encoder: MVSplatEncoder) -> None:
    have = {name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for name, tensor in encoder.state_dict().items()}
    assert have == MANIFEST
    assert list(have) == list(MANIFEST)
    assert len(have) == 471
    assert sum(p.numel() for p in encoder.parameters()) == 11_955_734
    assert not any(p.requires_grad for p in encoder.parameters())


def test_rule_weights_are_the_same_everywhere() -> None:
    check = json.loads((GOLDEN / "weight_fill_check.json").read_text())
    weights = {name: tensor.double() for name, tensor in rule_weights({k: tuple(shape) for k, (shape, _) in MANIFEST.items()}).items()}
    assert len(weights) == check["num_keys"]
    assert sum(t.numel() for t in weights.values()) == check["total_params"]
    assert sum(t.square().sum() for t in weights.values()).sqrt().item() == pytest.approx(check["global_l2_norm"], rel=1e-9)
    assert sum(t.sum() for t in weights.values()).item() == pytest.approx(check["sum_of_all_sums"], rel=1e-9)
    for name, sample in check["samples"].items():
        assert weights[name].flatten()[:3].tolist() == sample["first3"]
        assert weights[name].sum().item() == pytest.approx(sample["sum"], rel=1e-9, abs=1e-9)
        assert weights[name].square().sum().item() == pytest.approx(sample["sumsq"], rel=1e-9)


def lightning(state: Mapping[str, Tensor], **more: Any) -> dict[str, Any]:
    """A file as Lightning writes it: settings objects, paths and optimiser state beside the weights."""
    return {
        "epoch": 3,
        "global_step": 300_000,
        "pytorch-lightning_version": "2.2.0",
        "state_dict": {f"encoder.{name}": tensor for name, tensor in state.items()} | {"losses.0.weight": torch.zeros(2)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"dirpath": Path("checkpoints"), "best_model_score": torch.tensor(1.0)}},
        "hyper_parameters": {"cfg": OmegaConf.create({"encoder": {"name": "costvolume", "sizes": [1, 2]}}), "seed": np.float64(1)},
        **more,
    }


def test_a_lightning_checkpoint_is_read_from_a_url(encoder: MVSplatEncoder, tmp_path: Path) -> None:
    torch.save(lightning(encoder.state_dict()), tmp_path / "re10k.ckpt")
    location.write_bytes("memory://mvsplat/re10k.ckpt", (tmp_path / "re10k.ckpt").read_bytes())
    generator = torch.random.get_rng_state()
    loaded = load_encoder("memory://mvsplat/re10k.ckpt")
    assert torch.equal(torch.random.get_rng_state(), generator)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


WANTED = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2)}


class Bomb:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lightning({"a.weight": torch.ones(2, 3)}), r"encoder\.a\.bias is missing \(1 keys are\)"),
        (lightning({**WANTED, "b": torch.ones(1)}), r"encoder\.b is no part of the encoder"),
        (lightning({**WANTED, "a.bias": torch.ones(3)}), r"encoder\.a\.bias is \(3,\) torch\.float32, expected \(2,\) torch\.float32"),
        (lightning({**WANTED, "a.bias": torch.ones(2).half()}), r"encoder\.a\.bias is \(2,\) torch\.float16"),
        (lightning({**WANTED, "a.bias": 3}), r"encoder\.a\.bias is int"),
        (lightning({**WANTED, "a.bias": torch.tensor([1.0, float("nan")])}), r"encoder\.a\.bias holds values that are not finite"),
        (WANTED, "no state_dict in it"),
        (lightning(WANTED, state_dict=[1, 2]), "no state_dict in it"),
    ],
)
def test_another_checkpoint_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.ckpt")
    with pytest.raises(ConfigError, match=rf"file\.ckpt: .*{message}.*re10k\.ckpt"):
        read_checkpoint(str(tmp_path / "file.ckpt"), WANTED)


@pytest.mark.parametrize("function", [os.mkdir, eval, os.system, Path.mkdir])
def test_a_pickle_bomb_does_not_go_off(function: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    argument: Any = {os.mkdir: str(mark), eval: f"__import__('os').mkdir({str(mark)!r})", os.system: f"mkdir {mark}"}.get(function, mark)
    torch.save(lightning(WANTED, bomb=Bomb(function, argument)), tmp_path / "bomb.ckpt")
    with pytest.raises(ConfigError, match=r"bomb\.ckpt: .*re10k\.ckpt"):
        read_checkpoint(str(tmp_path / "bomb.ckpt"), WANTED)
    assert not mark.exists()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"<html>not found</html>", lambda data: b""])
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    torch.save(lightning(WANTED), tmp_path / "whole.ckpt")
    (tmp_path / "file.ckpt").write_bytes(damage((tmp_path / "whole.ckpt").read_bytes()))
    with pytest.raises(ConfigError, match=r"file\.ckpt: .*re10k\.ckpt"):
        read_checkpoint(str(tmp_path / "file.ckpt"), WANTED)


# ---- the numbers -------------------------------------------------------------------------------------------------------------------------


def check_result(result: EncodedGaussians, stages: Mapping[str, Any], golden: Arrays) -> None:
    """All that every golden case holds, within the limits that noise of correct implementations stays six times below."""
    batch, views = golden["image"].shape[:2]
    at = golden["gidx"]

    def by_view(x: Tensor) -> Tensor:
        return x.unflatten(0, (views, batch)).transpose(0, 1)

    features, cnn = (by_view(x) for x in stages["backbone"])
    maps = stages["depth_predictor"]
    raw = by_view(maps.raw).permute(0, 1, 3, 4, 2).flatten(1, 3)
    assert_within("cnn", cnn[:, :, golden["feat_channels"]], golden["cnn_features_sub"], 2e-4)
    assert_within("transformer", features[:, :, golden["feat_channels"]], golden["trans_features_sub"], 2e-4)
    assert_within("disparity", 1 / result.depths, 1 / golden["depths"], 5e-5)
    assert_within("density", by_view(maps.density).flatten(1)[:, at], golden["densities_sub"], 5e-5)
    if "densities" in golden:
        assert_within("all densities", by_view(maps.density), golden["densities"], 5e-5)
    assert_within("opacity", result.opacities[:, at], golden["opacities_sub"], 5e-5)
    assert_within("raw", raw[:, at], golden["raw_gaussians_sub"], 2e-4)
    assert_within("harmonics", result.harmonics[:, at], golden["harmonics_sub"], 2e-4)
    depth = golden["depths"].reshape(batch, -1)[:, at]
    assert_within("scales", result.scales[:, at], golden["scales_sub"], golden["scales_sub"] * (5e-5 * depth + 1e-4)[..., None])
    assert_within("means", result.means[:, at], golden["means_sub"], (5e-5 * depth**2 + 1e-4)[..., None])
    trace = np.trace(golden["covariances_sub"], axis1=-2, axis2=-1)
    limit = (trace * (1e-4 * depth + 5e-4))[..., None, None]
    assert_within("covariances", result.covariances[:, at], golden["covariances_sub"], limit)
    rebuilt = gaussian_covariances(result.quats.flatten(0, 1), result.scales.flatten(0, 1)).unflatten(0, (batch, -1))
    assert_within("covariances of quats and scales", rebuilt[:, at], golden["covariances_sub"], limit)
    assert_within("length of quats", result.quats.norm(dim=-1), np.ones(result.opacities.shape), 1e-6)
    likeliest = stages["depth_predictor.depth_head_lowres"].argmax(1).cpu().numpy()
    assert (likeliest == golden["pdf_argmax"]).mean() >= 0.995
    quats = raw[..., 5:9] / raw[..., 5:9].norm(dim=-1, keepdim=True)
    assert_within("camera quaternions", quats[:, at], golden["rotations_sub"], 2e-4)
    whole = {
        "trans_features": features, "cnn_features": cnn, "depths": result.depths, "densities": maps.density, "raw_gaussians": raw,
        "means": result.means, "covariances": result.covariances, "harmonics": result.harmonics, "opacities": result.opacities,
        "scales": result.scales,
    }  # fmt: skip
    for name, tensor in whole.items():
        mean, std = golden[f"stat_{name}"][:2]
        assert tensor.double().mean().item() == pytest.approx(mean, abs=1e-3 * std), name
        assert tensor.double().std().item() == pytest.approx(std, rel=1e-3), name


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, encoder: MVSplatEncoder, stages: dict[str, Any]) -> None:
    golden = dict(np.load(GOLDEN / f"{CASES[case]}.npz"))
    check_result(encode(encoder, golden), stages, golden)


def test_every_stage_of_golden_d(encoder: MVSplatEncoder, stages: dict[str, Any], golden_d: Arrays) -> None:
    encode(encoder, golden_d)
    h, w = np.array(golden_d["image"].shape[-2:]) // 4
    tokens = {f"layer{i}": stages[f"backbone.transformer.layers.{i}"] for i in range(6)}
    tokens["layer0_selfattn"] = stages["backbone.transformer.layers.0.self_attn"]
    for name, windows in tokens.items():
        merged = Windows(h, w, shifted=name in ("layer1", "layer3", "layer5")).merge(windows).flatten(1, 2)
        assert_within(name, merged[..., ::16], golden_d[f"i_{name}_c16"], 2e-4)
    four = golden_d["i_channels4"]
    refined = stages["depth_predictor.depth_head_lowres.in"]
    assert_within("correlation", stages["depth_predictor.corr_refine_net.in"][:, four], golden_d["i_corr_volume_c4"], 1e-3)
    assert_within("refined volume", refined[:, four], golden_d["i_corr_refined_c4"], 2e-4)
    assert_within("pdf", stages["depth_predictor.depth_head_lowres"].softmax(1)[:, four], golden_d["i_pdf_c4"], 5e-5)
    joined = stages["depth_predictor.refine_unet.in"]
    assert_within("coarse disparity", joined[:, 35], golden_d["i_fullres_disp"], 5e-5)
    assert_within("coarse confidence", joined[:, 36], golden_d["i_pdf_max_full"], 5e-5)
    assert_within("projected features", joined[:, [3, 19]], golden_d["i_proj_feature_c16"], 2e-4)
    fine = stages["depth_predictor.refine_unet"]
    assert_within("refined features", fine[:, ::8], golden_d["i_refine_out_c8"], 2e-4)
    upsampled = torch.nn.functional.interpolate(stages["depth_predictor.upsampler"], scale_factor=4, mode="bilinear", align_corners=True)
    assert_within("full-size features", torch.nn.functional.gelu(upsampled)[:, ::64], golden_d["i_proj_full_c64"], 2e-4)
    with torch.inference_mode():
        heads = encoder.depth_predictor.to_disparity(fine)
    assert_within("disparity head", heads, golden_d["i_delta_disp_and_raw_density"], 2e-4)


def test_a_batch_of_two_is_two_singles(encoder: MVSplatEncoder, golden_d: Arrays) -> None:
    together = encode(encoder, golden_d)
    for item in range(2):
        alone = encode(encoder, golden_d, slice(item, item + 1))
        torch.testing.assert_close(1 / alone.depths[0], 1 / together.depths[item], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.opacities[0], together.opacities[item], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.harmonics[0], together.harmonics[item], atol=5e-5, rtol=0)


def test_without_colours_the_rest_is_the_same(encoder: MVSplatEncoder, golden_d: Arrays) -> None:
    inputs = [torch.from_numpy(golden_d[key]) for key in ("image", "extrinsics", "intrinsics", "near", "far")]
    with torch.inference_mode():
        bare = encoder(*inputs, harmonics=False)
    full = encode(encoder, golden_d)
    assert bare.harmonics is None
    for name in ("depths", "opacities", "quats"):
        torch.testing.assert_close(getattr(bare, name), getattr(full, name), atol=1e-5, rtol=1e-5)


def test_the_smallest_image(encoder: MVSplatEncoder, golden_d: Arrays) -> None:
    small = {**golden_d, "image": golden_d["image"][..., :16, :32]}
    result = encode(encoder, small)
    assert result.means.shape == (2, 2 * 16 * 32, 3)
    assert all(x.isfinite().all() for x in (result.means, result.covariances, result.harmonics, result.opacities))
    with pytest.raises(ValueError, match="multiples of 16"):
        encode(encoder, {**golden_d, "image": golden_d["image"][..., :24, :]})


def test_the_plain_way_gives_the_same(encoder: MVSplatEncoder, stages: dict[str, Any], golden_d: Arrays) -> None:
    with plain():
        check_result(encode(encoder, golden_d), stages, golden_d)


def test_another_attention_kernel_gives_the_same(encoder: MVSplatEncoder, stages: dict[str, Any], golden_d: Arrays) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        check_result(encode(encoder, golden_d), stages, golden_d)


@pytest.mark.parametrize("size", ["_STRIP_PIXELS", "_FFN_TOKENS"])
def test_the_size_of_the_pieces_changes_nothing(
    size: str, encoder: MVSplatEncoder, stages: dict[str, Any], golden_d: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"_STRIP_PIXELS": "depth_predictor", "_FFN_TOKENS": "transformer"}[size]
    monkeypatch.setattr(f"training.reconstruct.mvsplat.{module}.{size}", 64 * 5)  # strips of 5 rows, which do not divide 64
    check_result(encode(encoder, golden_d), stages, golden_d)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["a", "d"])
def test_golden_on_cuda(case: str) -> None:
    golden = dict(np.load(GOLDEN / f"{CASES[case]}.npz"))
    with torch.backends.cudnn.flags(allow_tf32=False):  # the goldens are float32
        result = encode(load_encoder("rule", "cuda"), golden, device="cuda")
    assert_within("disparity", 1 / result.depths, 1 / golden["depths"], 5e-5)
    assert_within("harmonics", result.harmonics[:, golden["gidx"]], golden["harmonics_sub"], 2e-4)


# ---- the parts ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores_bytes", [1, 5 * 4 * 16 * 12, 1 << 40])
def test_the_sweep_is_the_warped_features_product(scores_bytes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 128, 16, 12, generator=generator)
    c2w = torch.eye(4).repeat(2, 2, 1, 1)
    c2w[:, 1, :3, 3] = torch.tensor([[0.4, 0.1, 0.0], [0.1, 0.0, 3.0]])  # the second walks past what the first sees up close
    K = torch.tensor([[10.0, 0.2, 6.0], [0, 11.0, 8.5], [0, 0, 1]]).repeat(4, 1, 1)
    disparities = disparity_candidates(torch.tensor([1.0, 0.5, 1.0, 0.5]), torch.full((4,), 100.0))
    fast = correlate(features, K, relative_poses(c2w), disparities, scores_bytes)
    expected = plain_correlate(features, K, relative_poses(c2w), disparities)
    assert (expected == 0).float().mean() > 0.05  # what lies behind or outside the other view
    torch.testing.assert_close(fast, expected, atol=2e-5, rtol=1e-5)


def queries_keys_values(size: tuple[int, int], gain: float) -> list[Tensor]:
    shape = (2, 4, size[0] * size[1] // 4, 128)
    return [torch.randn(shape, generator=torch.Generator().manual_seed(i)) * (gain if i < 2 else 1) for i in range(3)]


@pytest.mark.parametrize("size", [(4, 4), (6, 10), (16, 12), (18, 26)])
def test_fused_attention_is_the_masked_one(size: tuple[int, int]) -> None:
    labels = Windows(*size, shifted=True).labels
    q, k, v = queries_keys_values(size, gain=1)
    torch.testing.assert_close(attend(q, k, v, labels), plain_attend(q, k, v, labels), atol=1e-5, rtol=1e-4)


def test_what_beats_the_mask_is_heard() -> None:
    """The mask is finite: where scores are great, forbidden tokens do get through in the published code."""
    labels = Windows(16, 12, shifted=True).labels
    assert labels is not None
    q, k, v = queries_keys_values((16, 12), gain=10)
    heard = attend(q, k, v, labels)
    torch.testing.assert_close(heard, plain_attend(q, k, v, labels), atol=1e-4, rtol=1e-4)
    assert (plain_attention(q, k, v, (1 - labels @ labels.mT) * -1e9) - heard).abs().max() > 0.1


@pytest.mark.parametrize("size", [(4, 4), (6, 10), (76, 112)])
def test_labels_part_what_the_shift_brought_together(size: tuple[int, int]) -> None:
    h, w = size
    windows = Windows(h, w, shifted=True)
    positions = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1).float()[None]
    assert torch.equal(windows.merge(windows.split(positions)), positions)
    cut = windows.split(positions)[0]
    assert windows.labels is not None
    alike = (windows.labels @ windows.labels.mT).bool()
    near = (cut[:, :, None] - cut[:, None]).abs() < torch.tensor([h // 2, w // 2])  # neighbours in the map lie less than a window apart
    assert torch.equal(alike, near.all(-1))
    assert [int(alike[i].sum() * 100 / alike[i].numel()) for i in range(4)] == pytest.approx([100, 50, 50, 25], abs=6)


def test_position_encoding_starts_anew_in_each_window() -> None:
    code = position_encoding(8, 12)[0]
    assert torch.equal(code[:, :4, :6], code[:, 4:, 6:])
    row, column = 2 * np.pi * 3 / (4 + 1e-6), 2 * np.pi * 6 / (6 + 1e-6)
    assert code[0, 2, 5].item() == pytest.approx(np.sin(row), abs=1e-6)
    assert code[3, 2, 5].item() == pytest.approx(np.cos(row / 10000 ** (2 / 64)), abs=1e-6)
    assert code[64 + 62, 2, 5].item() == pytest.approx(np.sin(column / 10000 ** (62 / 64)), abs=1e-6)


def test_harmonics_are_rotated_as_e3nn_does() -> None:
    golden = np.load(GOLDEN / "sh_rotation.npz")
    for i, rotation in enumerate(torch.from_numpy(golden["R"])):
        blocks = [torch.ones(1, 1, dtype=torch.float64)] + [sh_rotation(rotation, degree) for degree in range(1, 5)]
        for degree in range(1, 5):
            assert_within(f"D{degree}", blocks[degree], golden[f"D{degree}"][i], 5e-5)
        assert_within("rotated", torch.block_diag(*blocks) @ torch.from_numpy(golden["sh"][i]).double(), golden["sh_rotated"][i], 5e-5)
        damped = torch.block_diag(*(block * (0.1 * 0.25**degree if degree else 1) for degree, block in enumerate(blocks)))
        torch.testing.assert_close(sh_transform(rotation), damped.float())
        assert_within("quaternion", rotation_matrices(rotation_quat(rotation)[[1, 2, 3, 0]]), golden["R"][i], 1e-6)


def test_no_quaternion_at_all_is_no_rotation() -> None:
    made = adapt(torch.zeros(9, 2, 3), torch.ones(2, 3), torch.eye(4), torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]))
    assert torch.equal(made.quats, torch.tensor([1.0, 0, 0, 0]).expand(6, -1))
    torch.testing.assert_close(made.covariances, torch.diag_embed(made.scales**2))
