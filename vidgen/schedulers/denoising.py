"""Driving any of diffusers' samplers: flow matching's Euler steps, or DDPM, DDIM, DPM++… with their own noise."""

import inspect
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from vidgen.nn.random import Generators
from vidgen.schedulers.objectives import shifted


def check_prediction(scheduler: Any, prediction_type: str) -> None:
    """ValueError if the scheduler takes the network's output for something that it is not."""
    expected = scheduler.config.get("prediction_type", "flow_prediction")
    if expected != prediction_type:
        raise ValueError(
            f"the transformer predicts {prediction_type}, but {type(scheduler).__name__} expects {expected}; "
            f"use a scheduler with prediction_type={prediction_type!r}, or FlowMatchEulerDiscreteScheduler for flows"
        )


def start(scheduler: Any, steps: int, *, shift: float, device: torch.device) -> Tensor:
    """The timesteps of a new run; `shift` of the noise levels is for Euler steps, on top of the scheduler's own."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        levels = shifted(torch.linspace(1.0, 1.0 / steps, steps), shift)
        scheduler.set_timesteps(sigmas=levels.tolist(), device=device)
        return torch.as_tensor(scheduler.timesteps)
    scheduler.set_timesteps(steps, device=device)
    return scheduler.timesteps


def first_noise(scheduler: Any, noise: Tensor) -> Tensor:
    """Unit noise as loud as the scheduler starts with."""
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching's schedulers have no such number


def network_input(scheduler: Any, sample: Tensor, timestep: Tensor) -> Tensor:
    """The sample as the network was trained to see it; flow matching's schedulers leave it alone."""
    return scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample


def step(scheduler: Any, prediction: Tensor, timestep: Tensor, sample: Tensor, *, generators: Generators) -> Tensor:
    """The sample at the next timestep; noise that a step adds is drawn for each sample on its own."""
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": list(generators)} if takes_generator else {}
    return scheduler.step(prediction, timestep, sample, return_dict=False, **options)[0]
