"""What training scripts of many libraries wrap around the weights of a network: functions of a state dict."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def under(prefix: str, state: State) -> State:
    """The network as a part of a module."""
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """The same network with other weights, which must not be taken."""
    return {key: value * 0.5 for key, value in state.items()}


def modules_of(state: State) -> set[str]:
    """Return the names of all modules, each with a dot behind it, and the empty one of the whole."""
    names = {key.rpartition(".")[0] for key in state}
    return {
        "",
        *(".".join(name.split(".")[:end]) + "." for name in names for end in range(1, name.count(".") + 2) if name),
    }


def views_of_one(state: State) -> State:
    """The same weights, all in one storage as optimizers with flat parameters keep them."""
    flat = torch.cat([value.reshape(-1) for value in state.values()])
    parts = flat.split([value.numel() for value in state.values()])
    return {key: part.view(value.shape) for (key, value), part in zip(state.items(), parts, strict=True)}


OPTIMIZER = {
    "state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(3)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
WRAPPERS: dict[str, Callable[[State], Any]] = {
    "flat": lambda s: s,
    "DataParallel": lambda s: under("module.", s),
    "torch.compile": lambda s: {"model": under("_orig_mod.", s), "epoch": 3},
    "DataParallel of torch.compile": lambda s: {"state_dict": under("module._orig_mod.", s)},
    "Lightning": lambda s: {"state_dict": under("model.", s), "hyper_parameters": {"lr": 0.1}, "global_step": 5},
    "Lightning with a loss": lambda s: {"state_dict": {**under("net.", s), "criterion.weight": torch.ones(7)}},
    "Lightning with metrics": lambda s: {"state_dict": {**under("encoder.", s), "val_acc.tp": torch.ones(3), "n": torch.ones(1)}},
    "distillation": lambda s: {"state_dict": {**under("teacher.", other(s)), **under("student.", s)}},
    "distillation of modules": lambda s: {"model": {**under("module.student.", s), **under("module.teacher.", other(s))}},
    "average beside": lambda s: {"state_dict": {**under("model.", other(s)), **under("ema_model.", s)}},
    "torchvision's average": lambda s: {"model": other(s), "model_ema": {"n_averaged": torch.ones(1), **under("module.", s)}},
    "ema": lambda s: {"model": other(s), "ema": s, "updates": 100},
    "ema in a table": lambda s: {"ema": {"state_dict": s, "decay": 0.99}, "net": other(s)},
    "empty average": lambda s: {"state_dict": s, "state_dict_ema": {}},
    "no average": lambda s: {"model": s, "model_ema": None},
    "PyTorch's tutorials": lambda s: {"epoch": 1, "model_state_dict": s, "optimizer_state_dict": OPTIMIZER, "loss": 0.3},
    "net": lambda s: {"net": s, "acc": 93.1, "epoch": 3},
    "DeepSpeed": lambda s: {"module": s, "dp_world_size": 8, "ds_version": "0.15"},
    "FSDP": lambda s: under("_fsdp_wrapped_module._orig_mod.", s),
    "a module in a module": lambda s: {"state_dict": under("backbone.model.", s)},
    "networks as tables": lambda s: {"models": {"student": s, "teacher": other(s)}, "optimizer": OPTIMIZER},
    "generations": lambda s: {"model": {"module": {"net": under("0.", s)}}},
    "AveragedModel alone": lambda s: {"n_averaged": torch.ones(1), **under("module.", s)},
    "AveragedModel of DataParallel": lambda s: {"n_averaged": torch.ones(1), **under("module.module.", s)},
    "timm's train.py": lambda s: {"arch": "convnext", "state_dict": other(s), "state_dict_ema": s, "metric": 81.2, "version": 2},
    "timm of torch.compile": lambda s: {"state_dict": under("_orig_mod.", other(s)), "state_dict_ema": under("_orig_mod.", s)},
    "BasicSR": lambda s: {"params": other(s), "params_ema": s},
    "pycls": lambda s: {"epoch": 3, "model_state": other(s), "ema_state": s, "optimizer_state": OPTIMIZER, "cfg": "MODEL: {}"},
    "ema_pytorch": lambda s: {"ema": {"initted": torch.ones(1), **under("online_model.", other(s)), **under("ema_model.", s)}},
    "torch_ema beside": lambda s: {"model": s, "ema": {"decay": 0.99, "shadow_params": list(other(s).values())}},
    "Ignite": lambda s: {"trainer": {"iteration": 3}, "model": s, "optimizer": OPTIMIZER, "lr_scheduler": {"last_epoch": 1}},
    "Composer": lambda s: {"state": {"model": under("module.", s), "optimizers": {"AdamW": OPTIMIZER}}, "rng": []},
    "Lightning's WeightAveraging": lambda s: {"state_dict": under("model.", s), "current_model_state": under("model.", other(s)),
                                              "averaging_state": {"n_averaged": torch.ones(1)}},
    "ClassyVision": lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": s, "heads": {}}}}},
    "Detectron2": lambda s: {"model": under("backbone.bottom_up.", s), "iteration": 9, "scheduler": {"last_epoch": 9}},
    "Opacus": lambda s: {"module": under("_module.", s), "accountant": {"history": []}},
    "DINO": lambda s: {"student": {**under("module.backbone.", s), "module.head.mlp.0.weight": torch.ones(4, 4)},
                       "teacher": under("backbone.", other(s)), "epoch": 3},
    "MoCo": lambda s: {"state_dict": {**under("module.encoder_q.", s), **under("module.encoder_k.", other(s)),
                                      "module.queue": torch.ones(4, 8), "module.queue_ptr": torch.zeros(1).long()}},
    "SimSiam": lambda s: {"state_dict": {**under("module.encoder.", s), "module.predictor.0.weight": torch.ones(4, 4)}},
    "robustness": lambda s: {"model": {"module.normalizer.new_mean": torch.ones(3, 1, 1), **under("module.model.", s),
                                       **under("module.attacker.model.", s)}, "epoch": 3},
    "RobustBench": lambda s: {"mu": torch.ones(1, 3, 1, 1), "sigma": torch.ones(1, 3, 1, 1), **under("model.", s)},
    "Sequential behind a normalization": lambda s: {"0.mean": torch.ones(3), "0.std": torch.ones(3), **under("1.", s)},
    "ensemble": lambda s: {"state_dict": {**under("models.0.", s), **under("models.1.", other(s))}},
    "generator state beside": lambda s: {"weights": s, "rng_state": torch.get_rng_state(), "scaler": {"scale": 65536.0}},
    "counts of thop": lambda s: {**s, **{f"{name}{count}": torch.zeros(1, dtype=torch.float64) for name in modules_of(s)
                                         for count in ("total_ops", "total_params")}},
    "stages compiled": lambda s: {key.replace("stages.", "stages._orig_mod."): value for key, value in s.items()},
    "a stage compiled": lambda s: {"model": {key.replace("stages.2.", "stages.2._orig_mod."): v for key, v in s.items()}},
    "parameters": lambda s: {"model": {key: nn.Parameter(value) for key, value in s.items()}},
    "OrderedDict": lambda s: OrderedDict(s),
    "float64": lambda s: {"state_dict": {key: value.double() for key, value in s.items()}},
    "channels_last": lambda s: {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in s.items()},
    "SWA": lambda s: {"state_dict": other(s), "swa_state_dict": s, "swa_n": 3},
    "an average in capitals": lambda s: {"model": other(s), "EMAModel": under("module.", s)},
    "an average that was cut": lambda s: {"model": s, "ema": {k: v for k, v in s.items() if not re.search(r"stages\.3|head", k)}},
    "a tuple": lambda s: (s, 3),
    "a list of networks": lambda s: {"models": [s, other(s)]},
    "folds by number": lambda s: {0: s, 1: other(s)},
    "ten tables deep": lambda s: {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": s}}}}}}}}}},
    "Sequential of a network and a head": lambda s: {("1.1." + k.rpartition(".")[2] if k.startswith(("head.fc.", "classifier."))
                                                      else "0." + k): v for k, v in s.items()},
    "views of one buffer": lambda s: {"model": views_of_one(s)},
}  # fmt: skip
