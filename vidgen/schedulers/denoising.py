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


def start(scheduler: Any, steps: int, *, shift: float, device: torch.device, first: float = 1.0) -> Tensor:
    """The timesteps of a new run.

    Args:
        shift: of the noise levels of Euler steps, on top of the scheduler's own.
        first: noise level to begin with, before it is shifted; of other samplers the last share of their steps,
            at least one.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        levels = shifted(torch.linspace(first, first / steps, steps), shift)
        scheduler.set_timesteps(sigmas=levels.tolist(), device=device)
        return torch.as_tensor(scheduler.timesteps)
    scheduler.set_timesteps(steps, device=device)
    skipped = min(round((1 - first) * len(scheduler.timesteps)), len(scheduler.timesteps) - 1)
    if skipped and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    return scheduler.timesteps[skipped:]


def first_sample(scheduler: Any, noise: Tensor, timesteps: Tensor, *, edited: Tensor | None) -> Tensor:
    """What a run starts from: unit noise made as loud as the scheduler wants it, or the tokens to edit in noise.

    SDEdit (arXiv 2108.01073): the tokens are as noisy as the first of the timesteps says.
    """
    if edited is None:
        return noise * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching's schedulers have no such number
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return torch.lerp(edited.to(noise), noise, torch.as_tensor(scheduler.sigmas)[0].to(noise))
    return scheduler.add_noise(edited.to(noise), noise, timesteps[:1].expand(len(noise)))


def network_input(scheduler: Any, sample: Tensor, timestep: Tensor) -> Tensor:
    """The sample as the network was trained to see it; flow matching's schedulers leave it alone."""
    return scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample


def step(scheduler: Any, prediction: Tensor, timestep: Tensor, sample: Tensor, *, generators: Generators) -> Tensor:
    """The sample at the next timestep; noise that a step adds is drawn for each sample on its own."""
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": list(generators)} if takes_generator else {}
    return scheduler.step(prediction, timestep, sample, return_dict=False, **options)[0]
