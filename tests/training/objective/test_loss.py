"""The loss in chunks is the plain one; what centres its targets keeps every prototype in use."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import CentringKind, HeadConfig
from training.model.head import DinoHead
from training.objective.centring import MeanCentring, SinkhornCentring
from training.objective.loss import PrototypeTargets, koleo, prototype_cross_entropy

PROTOTYPES, WIDTH = 300, 24


def head(seed: int) -> DinoHead:
    torch.manual_seed(seed)
    return DinoHead(WIDTH, 32, 16, PROTOTYPES)


def targets_of(teacher: DinoHead, tokens: torch.Tensor, temperature: float = 0.05, bias: torch.Tensor | None = None) -> PrototypeTargets:
    return PrototypeTargets(teacher.points(tokens).detach(), teacher.last_layer.rows().detach(), temperature, bias)


def gradients(student: DinoHead, loss: torch.Tensor) -> torch.Tensor:
    student.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten().clone() for parameter in student.parameters()])


@pytest.mark.parametrize("with_bias", [False, True])
@settings(max_examples=10, deadline=None)
@given(
    tokens=st.integers(0, 40),
    chunk=st.integers(1, 50),
    temperatures=st.tuples(*[st.sampled_from([0.04, 0.1, 1.0])] * 2),
    seed=st.integers(0, 9),
)
def test_loss_gradient_and_sums_are_the_plain_ones(
    with_bias: bool, tokens: int, chunk: int, temperatures: tuple[float, float], seed: int
) -> None:
    student, teacher = head(seed), head(seed + 1)
    x, y = torch.randn(2, tokens, WIDTH)
    bias = torch.randn(PROTOTYPES) if with_bias else None
    logs = F.log_softmax((teacher(y).detach() / temperatures[1]) + (0 if bias is None else bias), -1)
    own = F.log_softmax(student(x) / temperatures[0], -1)
    plain = -(logs.exp() * own).sum()
    wanted = gradients(student, plain)
    targets = targets_of(teacher, y, temperatures[1], bias)
    found = prototype_cross_entropy(student.points(x), student.last_layer.rows(), targets, temperatures[0], chunk)
    torch.testing.assert_close(found.loss, plain.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.target_entropy, -(logs.exp() * logs).sum().double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.usage, own.detach().exp().sum(0), rtol=1e-5, atol=1e-6)
    error = (gradients(student, found.loss) - wanted).norm()
    assert error <= 1e-5 * wanted.norm() + 1e-12


def test_under_autocast_the_products_are_bf16_and_the_sums_are_not() -> None:
    student, teacher = head(0), head(1)
    x, y = torch.randn(2, 64, WIDTH)
    targets = targets_of(teacher, y)
    exact = prototype_cross_entropy(student.points(x), student.last_layer.rows(), targets, 0.1)
    wanted = gradients(student, exact.loss)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = prototype_cross_entropy(student.points(x), student.last_layer.rows(), targets, 0.1)
    found = gradients(student, rounded.loss)
    assert rounded.loss.dtype == torch.float64
    assert 0 < abs(float(rounded.loss - exact.loss)) < 3e-3 * float(exact.loss)
    assert 1e-4 < float((found - wanted).norm() / wanted.norm()) < 0.05
    torch.testing.assert_close(rounded.usage.sum(), torch.tensor(64.0), rtol=1e-5, atol=0)


def collapsed() -> tuple[torch.Tensor, torch.Tensor]:
    """Points that all lean to the first prototypes, and prototypes."""
    torch.manual_seed(0)
    prototypes = F.normalize(torch.randn(PROTOTYPES, 16), dim=1)
    return F.normalize(prototypes[0] + 0.3 * torch.randn(200, 16), dim=1), prototypes


def use(points: torch.Tensor, prototypes: torch.Tensor, temperature: float, bias: torch.Tensor) -> torch.Tensor:
    """How much of the tokens each prototype gets, times K."""
    return F.softmax(points @ prototypes.T / temperature + bias, -1).mean(0) * PROTOTYPES


def test_sinkhorn_uses_all_prototypes_alike() -> None:
    points, prototypes = collapsed()
    plain = use(points, prototypes, 0.1, torch.zeros(PROTOTYPES))
    for iterations, within in ((3, 0.25), (30, 0.01)):
        centring = SinkhornCentring(HeadConfig(sinkhorn_iterations=iterations), lambda _: None)
        found = use(points, prototypes, 0.1, centring.bias(points, prototypes, 0.1))
        assert (found - 1).abs().max() < within < (plain - 1).abs().max()


def test_sinkhorn_is_that_of_dinov2() -> None:
    """Rows and columns of the whole matrix divided in turn, as it is written there."""
    points, prototypes = collapsed()
    Q = (points @ prototypes.T / 0.1).double().exp().T
    Q /= Q.sum()
    for _ in range(3):
        Q /= Q.sum(1, keepdim=True) * PROTOTYPES
        Q /= Q.sum(0, keepdim=True) * len(points)
    bias = SinkhornCentring(HeadConfig(), lambda _: None).bias(points, prototypes, 0.1)
    found = F.softmax(points @ prototypes.T / 0.1 + bias, -1)
    torch.testing.assert_close(found, (Q * len(points)).T.float(), rtol=1e-4, atol=1e-7)


def test_ranks_centre_by_the_tokens_of_all() -> None:
    """Two ranks with unequal shares, in threads that meet where they sum; and a third without a token."""
    points, prototypes = collapsed()
    whole = SinkhornCentring(HeadConfig(), lambda _: None).bias(points, prototypes, 0.1)
    shares = [*points.split(130), points[:0]]
    brought: dict[int, torch.Tensor] = {}
    met = threading.Barrier(len(shares))

    def rank(number: int) -> torch.Tensor:
        def total(part: torch.Tensor) -> None:
            brought[number] = part.clone()
            met.wait()
            part.copy_(torch.stack([brought[n] for n in range(len(shares))]).sum(0))
            met.wait()

        return SinkhornCentring(HeadConfig(), total).bias(shares[number], prototypes, 0.1)

    with ThreadPoolExecutor(len(shares)) as pool:
        for found in pool.map(rank, range(len(shares))):
            torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_the_mean_centre_follows_the_mean_of_the_logits() -> None:
    points, prototypes = collapsed()
    config = HeadConfig(centring=CentringKind.mean, prototypes=PROTOTYPES, bottleneck=16, centre_momentum=0.5)
    centre = MeanCentring(config, lambda _: None)
    assert not centre.bias(points[:50], prototypes, 0.1).any(), "the first step has nothing to take off"
    centre.bias(points[50:], prototypes, 0.1)
    centre.update(prototypes)
    logits = (points @ prototypes.T).mean(0)
    torch.testing.assert_close(centre.bias(points, prototypes, 0.1), -logits / 2 / 0.1, rtol=1e-4, atol=1e-5)
    plain, centred = (use(points, prototypes, 0.1, bias) for bias in (torch.zeros(PROTOTYPES), -logits / 0.1))
    entropy = lambda one: -(one / PROTOTYPES * (one / PROTOTYPES).log()).sum()  # noqa: E731
    assert entropy(centred) > entropy(plain) + 0.5
    assert list(centre.state_dict()) == ["mean"]
    empty = MeanCentring(config, lambda _: None)
    empty.update(prototypes)
    assert not empty.mean.any()


def test_koleo_is_least_where_tokens_spread() -> None:
    circle = torch.arange(8) * (2 * math.pi / 8)
    even = torch.stack([circle.cos(), circle.sin()], 1)
    torch.testing.assert_close(koleo(even), -8 * torch.tensor(2 * math.sin(math.pi / 8)).log(), rtol=1e-4, atol=1e-4)
    bunched = even.clone()
    bunched[1] = even[0] + 0.1 * (even[1] - even[0])
    bunched.requires_grad_()
    loss = koleo(bunched)
    assert loss > koleo(even)
    loss.backward()
    assert float(-bunched.grad[1] @ (bunched[1] - bunched[0]).detach()) > 0, "the step leads apart"
    assert koleo(even[:1]) == 0
