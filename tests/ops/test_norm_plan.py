"""How the GPU kernels of the norms cut a problem: sizes that have nothing to cut."""

import pytest

from lddgan_kernels.ops._norm_plan import DeviceSize, moments_plan, plan_norm

H200 = DeviceSize(132, 232448, 8)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("samples", [0, 1, 300])
@pytest.mark.parametrize("pixels", [0, 1, 63])
@pytest.mark.parametrize("channels", [1, 2, 24])
def test_empty_and_small_images_have_plans(
    channels, pixels, samples, itemsize, channels_last, backend
):
    problem = (samples, channels, 4, pixels)
    plans = plan_norm(problem, itemsize, channels_last, backend, H200)
    for plan in (*plans, moments_plan(problem, itemsize, channels_last, H200)):
        assert 4 % plan.groups == 0
        assert plan.parts >= 1
