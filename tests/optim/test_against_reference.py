"""Every optimizer, on every path and in every dtype, against the float64 reference."""

import torch

from .cases import CASES, PATHS, PEAK, SCHEDULE, Case, case_path_dtype, reference_run, set_lr

# Error allowed, relative to the size of the weights (about 1): a few units in the last place of what is stored.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 5e-2, torch.float16: 8e-3}


def tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    """Shapes and layouts that an optimizer meets: small, 0-d, empty, channels-last, strided, larger than nothing."""
    generator = torch.Generator().manual_seed(7)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    transposed = new(5, 3).t()
    strided = new(4, 6)[:, ::2]
    return [
        new(3, 2),
        new(),
        new(0),
        new(7),
        new(2, 3, 2, 2).to(memory_format=torch.channels_last),
        transposed,
        strided,
    ]


def gradients(param: torch.Tensor, count: int, seed: int) -> list[torch.Tensor]:
    """Gradients of many scales, with a coordinate that never gets one."""
    generator = torch.Generator().manual_seed(seed)
    grads = []
    for _ in range(count):
        grad = torch.randn(param.shape, generator=generator) * 10.0 ** (torch.arange(param.numel()) % 5 - 3.0).reshape(
            param.shape
        )
        if param.numel() > 1:
            grad.view(-1)[-1] = 0
        grads.append(grad.to(param.dtype))
    return grads


@case_path_dtype
def test_equals_reference(case: Case, path: str, dtype: torch.dtype) -> None:
    if case.options.get("proximal") == "group_lasso":
        starts = [t for t in tensors(dtype) if t.dim() < 2]  # where a row is a coordinate; rows: test_proximal.py
    else:
        starts = tensors(dtype)
    params = [t.detach().clone(memory_format=torch.preserve_format) for t in starts]
    if path != "differentiable":
        params = [torch.nn.Parameter(p) for p in params]
    grads = [gradients(p, len(SCHEDULE), seed) for seed, p in enumerate(starts)]
    optimizer = case.make(params, lr=PEAK, **PATHS[path])
    for number, lr in enumerate(SCHEDULE):
        for param, per_step in zip(params, grads, strict=True):
            grad = per_step[number]
            param.grad = torch.stack((grad, grad), -1)[..., 0] if number % 2 else grad.clone()  # with gaps, and without
        set_lr(optimizer, lr)
        optimizer.step()
    for start, param, per_step in zip(starts, params, grads, strict=True):
        expected = reference_run(case, start, per_step, SCHEDULE)
        assert param.dtype == dtype
        torch.testing.assert_close(param.detach().double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_piece_and_a_tensor_are_the_same_thing() -> None:
    """Tensors around the sizes at which they are gathered, cut, or both: bit-equal to one tensor at a time."""
    sizes = [1, 8191, 8192, 8193, 2**17 - 1, 2**17, 2**17 + 1, 300_001]
    for case in CASES:
        results = []
        for options in (PATHS["pieces"], PATHS["single"]):
            generator = torch.Generator().manual_seed(0)
            params = [torch.randn(n, generator=generator) for n in sizes]
            params.append(torch.randn(130, 40, 30, generator=generator)[:, :, ::2])
            optimizer = case.make(params, lr=0.01, **options)
            for _ in range(2):
                for p in params:
                    p.grad = torch.randn(p.shape, generator=generator)
                optimizer.step()
            results.append(params)
        for pieces, single in zip(*results, strict=True):
            # Vector and scalar code of hypot and atan2 may differ in the last bit of u.
            torch.testing.assert_close(pieces, single, rtol=2.5e-7, atol=1e-8, msg=case.name)
