"""The one `torch.optim.Optimizer` behind the public classes: state, groups, checkpoints."""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import execution, proximal, rounding, validation
from .proximal import ProximalMap
from .update import Form, ratio_bound

_MOMENTS = ("exp_avg", "exp_avg_sq", "exp_avg_sq_root", "max_exp_avg_sq", "max_exp_avg_sq_root", "start")
# How a step is executed: a state dict says what was computed.
_EXECUTION = ("foreach", "fused", "compile")
# What makes the update, and no schedule changes.
_UPDATE = ("eps", "direction", "proximal", "l1_ratio", "decay_schedule", "amsgrad", "maximize", "rounding")


class AdamFamily(Optimizer):
    """What ProxAdam, ScaleFreeAdamW and AdamL2 share; they are its public faces and document the options.

    State of a parameter, created at its first step with a gradient:

    - `step`: number of steps, a 0-d float32 tensor (float64 where that is torch's default dtype) on the CPU, or, with
      `capturable`, on the parameter's device;
    - `exp_avg`: first moment, of the parameter's shape and layout, float32 for bf16 and fp16 parameters and the
      parameter's own dtype otherwise (a DTensor for a DTensor);
    - `exp_avg_sq`: second moment, likewise; with eps = 0 instead `exp_avg_sq_root`, its root;
    - `max_exp_avg_sq` (or `max_exp_avg_sq_root`): with amsgrad;
    - `start`: the starting weights, with proximal="l2_start".

    Bytes per parameter beside the parameter and its gradient: 8 in float32, bf16 and fp16, 16 in float64; 4 (8) more
    each for amsgrad and l2_start. Stochastic rounding stores nothing.
    """

    rule: ClassVar[str]
    _proximal_maps: dict[str, ProximalMap]  # maps of the user's own, by name: state dicts hold plain values only
    _given_starts: dict[int, list[Tensor]]  # starting weights given as tensors, by the group's number

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._proximal_maps, self._given_starts = {}, {}
        starts = self._plain(defaults)
        validation.check(defaults, type(self).__name__)
        _read_tensors(defaults, defaults["differentiable"])
        super().__init__(params, defaults)
        if starts is not None:
            if len(self.param_groups) != 1:
                raise ValueError("start as tensors goes with one parameter group; give each group a start of its own")
            self._given_starts[0] = proximal.check_starts(starts, self.param_groups[0]["params"])

    def _plain(self, options: dict[str, Any]) -> list[Tensor] | None:
        """Replace a proximal map by its name, and starting weights by "given"; returns those."""
        if "proximal" in options and options["proximal"] not in self._proximal_maps:
            chosen = proximal.resolve(options["proximal"], options.get("l1_ratio"))
            if chosen.name not in proximal.PROXIMAL_MAPS:
                self._proximal_maps[chosen.name] = chosen
            options["proximal"] = chosen.name
            if type(chosen) is proximal.ElasticNet:
                options["l1_ratio"] = chosen.l1_ratio
        start = options.get("start")
        if start is None or isinstance(start, str):
            return None
        options["start"] = "given"
        return list(start)

    @torch._disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; what it does not set comes from the constructor, and all of it is checked first.

        Raises:
            ValueError: an option outside its range, or a combination that is not possible.
        """
        group = dict(param_group) if isinstance(param_group, dict) else param_group
        starts = None
        if isinstance(group, dict):  # anything else is refused by torch, in its words
            starts = self._plain(group)
            validation.check({**self.defaults, **group}, type(self).__name__)
            _read_tensors(group, self.defaults["differentiable"])
            group.setdefault("initial_lr", float(group.get("lr", self.defaults["lr"])))
        super().add_param_group(group)
        if starts is not None:
            number = len(self.param_groups) - 1
            self._given_starts[number] = proximal.check_starts(starts, self.param_groups[number]["params"])

    # --- one step ---------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again, calls `backward` and returns the loss; optional.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a sparse gradient; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_groups()
        return loss

    @torch._disable_dynamo
    def _step_groups(self) -> None:
        work = []
        for group in self.param_groups:
            found = [(p, g) for p in group["params"] if (g := p.grad) is not None]
            params, grads = map(list, zip(*found, strict=True)) if found else ([], [])
            for g in grads:
                if g.layout != torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} does not support sparse gradients (got one for a parameter of shape "
                        f"{tuple(g.shape)}); set sparse=False in its layer, or give it to torch.optim.SparseAdam"
                    )
            work.append((params, grads))
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for number, (group, (params, grads)) in enumerate(zip(self.param_groups, work, strict=True)):
                if params:
                    form = self._form(group)
                    state = self._state(params, number, group, form)
                    generators = self._generators(params, state["step"], number, group)
                    execution.step_group(params, grads, state, group, form, generators)

    def _form(self, group: dict[str, Any]) -> Form:
        decays, chosen = bool(group["weight_decay"] != 0), None
        if decays and group.get("proximal", "l2") != "l2":
            name = group["proximal"]
            chosen = self._proximal_maps.get(name) or proximal.resolve(name, group["l1_ratio"])
        return Form(
            rule=self.rule,
            scale_free=group["eps"] == 0,
            atan2=group.get("direction") == "atan2",
            bounded=math.isfinite(ratio_bound(*(float(beta) for beta in group["betas"]))),
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
            decays=decays,
            proximal=chosen,
            functional=group["differentiable"] or group["compile"],
            differentiable=group["differentiable"],
        )

    def _state(self, params: list[Tensor], number: int, group: dict[str, Any], form: Form) -> dict[str, list[Tensor]]:
        """The state of each parameter, a list for each key; what is lacking is created."""
        keys = execution.state_keys(form)
        states = [self.state[p] for p in params]
        try:
            return {key: [state[key] for state in states] for key in keys}
        except KeyError:
            for param, state in zip(params, states, strict=True):
                self._fill(state, keys, param, number, group, form)
            return {key: [state[key] for state in states] for key in keys}

    def _fill(
        self, state: dict[str, Any], keys: list[str], param: Tensor, number: int, group: dict[str, Any], form: Form
    ) -> None:
        """Create what a parameter's state lacks, from what it has where that says it."""
        fresh = "exp_avg" not in state
        if "step" not in state:
            state["step"] = _step_tensor(0.0, param, group)
        _adapt_second_moment(state, form.scale_free)
        if "start" in keys and "start" not in state:
            given = self._given_starts.get(number)
            if given is not None:
                index = next(i for i, p in enumerate(group["params"]) if p is param)
                state["start"] = execution.like_param(param, given[index])
            elif fresh:
                state["start"] = execution.like_param(param, None)
            else:
                raise ValueError(
                    "proximal='l2_start' with start='current' can't go on from a state that has no start: load one "
                    "that was saved with l2_start, or give start as tensors"
                )
        for key in keys:
            if key not in state:
                state[key] = torch.zeros_like(
                    param, dtype=rounding.moment_dtype(param), memory_format=torch.preserve_format, requires_grad=False
                )

    def _generators(
        self, params: list[Tensor], steps: list[Tensor], number: int, group: dict[str, Any]
    ) -> dict[torch.device, torch.Generator] | None:
        """Random bits that depend on seed, step and group alone, so that a resumed run draws the same ones."""
        if group["rounding"] == "nearest" or not any(rounding.is_low_precision(p.dtype) for p in params):
            return None
        text = f"{group['seed']} {max(float(step) for step in steps)} {number}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
        return {device: torch.Generator(device).manual_seed(seed) for device in {p.device for p in params}}

    # --- checkpoints ------------------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, of an older version, or of `torch.optim.AdamW` or `Adam`.

        Moments keep the dtype that they were saved in (torch would cast them to a bf16 parameter's own). Options are
        the state dict's, as in torch, and where that changes the update, as another `eps` or `proximal` does, a warning
        says so. Three things stay as the constructor set them: how a step is executed (`foreach`, `fused`, `compile`),
        options that the state dict lacks, `initial_lr` among them, and with `direction="atan2"` eps = 0. A second
        moment is turned into its root, or back, at the next step, as `eps` asks.

        Raises:
            ValueError: another number of groups or parameters, or an option outside its range.
        """
        loaded: list[dict[str, Any]] = []
        told: list[str] = []

        def check(_: Optimizer, final: dict[str, Any]) -> dict[str, Any]:
            found, wanted = len(final["param_groups"]), len(self.param_groups)
            if found != wanted:
                raise ValueError(
                    f"loaded state dict has a different number of parameter groups: {found}, and this optimizer has "
                    f"{wanted}; make the groups as they were made when it was saved"
                )
            groups = [self._take_over(*pair) for pair in zip(self.param_groups, final["param_groups"], strict=True)]
            told.extend(self._another_update(final["param_groups"], groups))
            loaded.append({**final, "param_groups": groups})
            return loaded[0]

        handle = self.register_load_state_dict_pre_hook(check)  # the last to run, so it sees what is really loaded
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        if told:
            warnings.warn(
                f"{type(self).__name__}: of the loaded state dict, {', '.join(dict.fromkeys(told))}. To go on with "
                "other options, set them in param_groups after loading, or start anew from the weights alone.",
                stacklevel=4,  # past the two calls that `_disable_dynamo` adds
            )
        ids = [i for group in loaded[0]["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, param in zip(ids, params, strict=True):
            for key, value in loaded[0]["state"].get(i, {}).items():
                if key in _MOMENTS and isinstance(value, Tensor) and rounding.is_low_precision(param.dtype):
                    self.state[param][key] = value.to(device=param.device, dtype=rounding.moment_dtype(param))

    def _take_over(self, own: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
        """The group of a state dict as it is loaded into a group of this optimizer."""
        group = {**saved, **{key: own[key] for key in _EXECUTION}}
        if own.get("direction") == "atan2" and "direction" not in saved:
            group["eps"] = own["eps"]
        self._check_group({**own, **group})
        return group

    def _another_update(self, saved: list[dict[str, Any]], groups: list[dict[str, Any]]) -> Iterator[str]:
        """What a state dict changes in the update, and what of it is not taken over."""
        for own, group, theirs in zip(self.param_groups, groups, saved, strict=True):
            for key in _UPDATE:
                if key in own and group.get(key, own[key]) != own[key]:
                    yield f"{key}={group[key]!r} replaces {key}={own[key]!r}"
                elif key in own and theirs.get(key, own[key]) != own[key]:
                    yield f"{key}={theirs[key]!r} is left out, for which direction='atan2' has no use"

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy keep."""
        own = {"_proximal_maps": self._proximal_maps, "_given_starts": self._given_starts}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled or loaded state over; what it lacks comes from the groups as they were, or the defaults."""
        before = self.__dict__.get("param_groups")
        super().__setstate__(state)
        self.__dict__.setdefault("_proximal_maps", {})
        self.__dict__.setdefault("_given_starts", {})
        for number, group in enumerate(self.param_groups):
            old = before[number] if before else self.defaults
            for key in (*self.defaults, "initial_lr"):
                group.setdefault(key, old.get(key, group["lr"]))
            for param in group["params"]:
                own = self.state.get(param, {})
                if "step" in own and not isinstance(own["step"], Tensor):  # from an old torch
                    own["step"] = _step_tensor(own["step"], param, group)

    def _check_group(self, group: dict[str, Any]) -> None:
        validation.check(group, type(self).__name__)
        name = group.get("proximal", "l2")
        if name not in proximal.PROXIMAL_MAPS and name not in self._proximal_maps:
            raise ValueError(
                f"The state dict was saved with a proximal map named {name!r}, which this optimizer does not have: "
                "construct it with that map"
            )


def _read_tensors(options: dict[str, Any], differentiable: bool) -> None:
    """Tensor betas and weight decay: read once, or, where the step is differentiable, kept as 0-d tensors."""
    if isinstance(options.get("weight_decay"), Tensor):
        decay = options["weight_decay"]
        options["weight_decay"] = decay.reshape(()) if differentiable else decay.item()
    betas = options.get("betas")
    if betas is not None and isinstance(betas[0], Tensor):
        options["betas"] = tuple(b.reshape(()) if differentiable else b.item() for b in betas)


def _step_tensor(count: float, param: Tensor, group: dict[str, Any]) -> Tensor:
    """The count of steps as the state holds it, in the dtype that torch's optimizers give it."""
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(float(count), dtype=dtype, device=param.device if group["capturable"] else "cpu")


def _adapt_second_moment(state: dict[str, Any], scale_free: bool) -> None:
    """Turn a second moment that was kept the other way (torch's, or from before `eps` was changed) into this one."""
    for name in ("exp_avg_sq", "max_exp_avg_sq"):
        root = f"{name}_root"
        if scale_free and name in state:
            state[root] = state.pop(name).sqrt().clone()  # autograd keeps what sqrt returned, and steps overwrite it
        elif not scale_free and root in state:
            state[name] = state.pop(root).square()


def to_torch_state_dict(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict that `torch.optim.AdamW` and `Adam` load, from one of this package; the given one is not changed.

    With eps > 0 ours is one already. With eps = 0 each `exp_avg_sq_root` is squared into `exp_avg_sq`: roots below
    1e-23 underflow to 0 and roots above 1.8e19 overflow to inf, as they do in torch from the start.

    Example:
        >>> import torch
        >>> from hf_proxadam.optim import ScaleFreeAdamW, to_torch_state_dict
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> ours = ScaleFreeAdamW([weight])
        >>> weight.grad = torch.ones(2)
        >>> ours.step()
        >>> theirs = torch.optim.AdamW([weight])
        >>> theirs.load_state_dict(to_torch_state_dict(ours.state_dict()))
        >>> sorted(theirs.state[weight])
        ['exp_avg', 'exp_avg_sq', 'step']
    """
    states = {key: dict(state) for key, state in state_dict["state"].items()}
    for state in states.values():
        _adapt_second_moment(state, scale_free=False)
    return {**state_dict, "state": states}
