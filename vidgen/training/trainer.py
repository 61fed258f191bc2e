"""The training loop: one for tokenizers and generators, on one process or many, resumable bit by bit."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Dataset

from vidgen.training.checkpoint import Checkpoint, CheckpointFolder
from vidgen.training.config import OptimiserConfig, Run
from vidgen.training.ema import MovingAverage
from vidgen.training.load_batches import load_batches
from vidgen.training.monitor import TrainingMonitor
from vidgen.training.opponent import Opponent
from vidgen.training.optimiser import build_optimiser, rate_at
from vidgen.training.order import GLOBAL, DataOrder, MicroBatches, noise_generators, positions_of, seed_of
from vidgen.training.progress import TrainingProgress
from vidgen.training.resuming import check_frozen, check_resumable, frozen_weights
from vidgen.training.sample_videos import add_video, save_gif
from vidgen.training.step import Batch, TrainingStep

SHOWN_CLIPS = 4
MAXIMAL_SKIPS = 50  # fp16 steps in a row that the loss scaler may skip before that counts as divergence


class TrainingDiverged(ValueError):
    """Loss or gradient is no longer a number."""


class Trainer:
    """Trains `step` as `run` says.

    Args:
        items: map-style dataset of dicts that `collate` joins.
        endless: the dataset is a world that never runs out: every step takes fresh items.
        validation: items of the validation split, None for no validation.
        opponent: the discriminator's part, if there is one.
    """

    def __init__(
        self,
        run: Run,
        *,
        accelerator: Accelerator,
        step: TrainingStep,
        items: Dataset,
        endless: bool,
        collate: Callable[[list[dict]], Batch],
        validation: Dataset | None,
        opponent: Opponent | None = None,
    ) -> None:
        self.run, self.accelerator = run, accelerator
        self.items, self.collate, self.validation, self.opponent = items, collate, validation, opponent
        self.order = DataOrder(None if endless else len(items), run.batch_size, seed=run.seed)  # pyright: ignore[reportArgumentType]
        self.checkpoints = CheckpointFolder(run.output_dir / "checkpoints", keep=run.keep)
        step.to(accelerator.device)
        self.bare = step
        self.frozen = frozen_weights(step)
        self.average = MovingAverage(step, decay=run.ema_decay)
        self.optimiser = accelerator.prepare(build_optimiser(step, run.optimiser))
        self.wrapped: nn.Module = accelerator.prepare(step)
        if opponent is not None:
            self.wrapped_opponent: nn.Module = accelerator.prepare(opponent.step)
            opponent.optimiser = accelerator.prepare(opponent.optimiser)
        self.monitor = TrainingMonitor()
        self.best = math.inf
        self.skips = {"gradient_norm": 0, "discriminator_gradient_norm": 0}

    def fit(self) -> Path:
        """Train to the last step; returns the folder of the exported model.

        Raises:
            TrainingDiverged: a loss or gradient is NaN or infinite; names the step and the batch. Checkpoints stay.
            CheckpointNotWritten: no room on the disk; earlier checkpoints stay.
            ValueError: the run folder and `run` do not fit together.
        """
        run = self.run
        start = self._begin()
        model_folder = run.output_dir / "model"
        batches = self._batches(start)
        progress = TrainingProgress(
            start=start, steps=run.steps, batch_size=run.batch_size, shown=self.accelerator.is_main_process
        )
        with progress:
            if start:
                progress.say(f"resumed after step {start}")
            elif run.resume:
                progress.say(f"nothing to resume in {run.output_dir}: beginning with step 0")
            for step in range(start, run.steps):
                began = time.perf_counter()
                losses = self._train(step, batches)
                progress.advance(time.perf_counter() - began)
                done = step + 1
                if done % run.log_every == 0 or done == run.steps:
                    scalars = {name: float(value) for name, value in losses.items()}
                    clips = progress.report(done, scalars)
                    rate = run.optimiser.learning_rate * rate_at(step, run.optimiser, steps=run.steps)
                    scalars |= self.bare.measures()
                    self._log({f"train/{name}": value for name, value in scalars.items()}, step=done)
                    self._log({"train/learning_rate": rate, "train/clips_per_second": clips}, step=done)
                    for warning in self.monitor.observe(done, scalars, last=done == run.steps):
                        progress.say(warning)
                if run.sample_every and (done % run.sample_every == 0 or done == run.steps):
                    self._show(done)
                score = None
                if run.validate_every and (done % run.validate_every == 0 or done == run.steps):
                    score = self._validate(done, progress)
                improved = score is not None and score < self.best
                self.best = self.best if score is None else min(score, self.best)
                if improved or done % run.checkpoint_every == 0 or done == run.steps:
                    self._save(done, score, best=improved)
                    progress.say(f"checkpoint after step {done}")
        self.accelerator.end_training()
        return model_folder

    # one step

    def _train(self, step: int, batches: Iterator[Batch]) -> dict[str, Tensor]:
        run, accelerator = self.run, self.accelerator
        self.bare.train()
        self._set_rates(step)
        totals: dict[str, Tensor] = {}
        seen: list[str] = []
        judged: list[tuple[Tensor, Tensor]] = []
        for micro in range(run.accumulation):
            batch = next(batches)
            batch["step"] = step
            seen += batch["id"]
            self._seed_library_noise(step, micro)
            generators = noise_generators(run.seed, step, positions=self._positions(micro))
            last = micro == run.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                terms = self.wrapped(batch, generators)
                loss = torch.stack([term.float() for term in terms.values()]).sum()
                accelerator.backward(loss / run.accumulation)
            add_terms(totals, {"loss": loss, **terms}, share=1 / run.accumulation)
            pair = None if self.opponent is None else self.opponent.take_judged(step)
            judged += [] if pair is None else [pair]
        limit = run.optimiser.clip_norm or math.inf
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)
        totals["gradient_norm"] = torch.as_tensor(norm)
        self._check(step, totals, seen, losses=["loss"], norm="gradient_norm")
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if judged:
            self._train_opponent(step, judged, totals, seen)
        self.average.update()
        if run.switch_ema_every and (step + 1) % run.switch_ema_every == 0:
            self.average.switch()
        return totals

    def _train_opponent(
        self, step: int, judged: list[tuple[Tensor, Tensor]], totals: dict[str, Tensor], seen: list[str]
    ) -> None:
        """One step on the pairs of all micro-batches, after the model's: a loss scaler serves one step at a time."""
        assert self.opponent is not None
        terms: dict[str, Tensor] = {}
        for micro, (real, fake) in enumerate(judged):
            self._seed_library_noise(step, len(judged) + micro)
            last = micro == len(judged) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped_opponent):
                verdicts = self.wrapped_opponent(real, fake)
                self.accelerator.backward(torch.stack(list(verdicts.values())).sum() / len(judged))
            add_terms(terms, verdicts, share=1 / len(judged))
        limit = self.opponent.config.clip_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.wrapped_opponent.parameters(), limit)
        totals |= {**terms, "discriminator_gradient_norm": torch.as_tensor(norm)}
        self._check(step, totals, seen, losses=list(terms), norm="discriminator_gradient_norm")
        self.opponent.optimiser.step()
        self.opponent.optimiser.zero_grad(set_to_none=True)

    def _set_rates(self, step: int) -> None:
        steps = self.run.steps
        set_rate(self.optimiser, self.run.optimiser, step, steps=steps)
        if self.opponent is not None:
            assert self.opponent.critic.adversary is not None
            start = self.opponent.critic.adversary.start
            set_rate(self.opponent.optimiser, self.opponent.config, max(step - start, 0), steps=steps - start)

    def _seed_library_noise(self, step: int, micro: int) -> None:
        """Libraries draw from the global generators; a function of the step makes that resumable."""
        seed = seed_of(self.run.seed, GLOBAL, step, micro, self.accelerator.process_index)
        torch.manual_seed(seed)
        random.seed(seed)

    def _positions(self, micro: int) -> range:
        return positions_of(
            micro,
            batch_size=self.run.batch_size,
            accumulation=self.run.accumulation,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def _check(self, step: int, totals: dict[str, Tensor], seen: list[str], *, losses: list[str], norm: str) -> None:
        """TrainingDiverged if losses or the gradients' norm are no numbers, unless a loss scaler skips the step."""
        judged = torch.stack([totals[name].detach().float() for name in [norm, *losses]])
        sound, *others = [math.isfinite(value) for value in judged.tolist()]  # one wait for the device
        if sound and all(others):
            self.skips[norm] = 0
            return
        scaler_handles_it = self.run.precision == "fp16" and all(others)
        self.skips[norm] += 1
        if scaler_handles_it and self.skips[norm] <= MAXIMAL_SKIPS:
            return
        terms = ", ".join(f"{name} {float(value):.4g}" for name, value in totals.items())
        saved = self.checkpoints.steps()
        kept = f"last good checkpoint: {self.checkpoints.path(saved[-1])}" if saved else "there is no checkpoint yet"
        raise TrainingDiverged(
            f"training stopped at step {step + 1}: a loss or gradient is not a finite number ({terms}); batch: "
            f"{', '.join(seen)}; {kept}. Look at these clips, lower the learning rate or use --precision fp32"
        )

    # data

    def _batches(self, start: int) -> Iterator[Batch]:
        sampler = MicroBatches(
            self.order,
            start=start,
            stop=self.run.steps,
            accumulation=self.run.accumulation,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        batches = load_batches(
            self.items,
            sampler,
            self.collate,
            workers=self.run.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        for batch in batches:
            yield self._on_device(batch)

    def _validation_batches(self, share: int) -> Iterator[tuple[range, Batch]]:
        """Every nth batch of `share` clips, for n processes, with its positions in the split."""
        assert self.validation is not None
        count = len(self.validation)  # pyright: ignore[reportArgumentType]
        for number in range(self.accelerator.process_index, math.ceil(count / share), self.accelerator.num_processes):
            positions = range(number * share, min((number + 1) * share, count))
            batch = self._on_device(self.collate([self.validation[position] for position in positions]))
            yield positions, {**batch, "step": 0}

    def _on_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        if device.type == "cpu":
            return batch
        moved = {
            name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)
        }
        return {**batch, **moved}

    # what happens between steps

    def _validate(self, done: int, progress: TrainingProgress) -> float | None:
        """Mean loss of the averaged weights over the validation split, each process taking every nth batch."""
        if self.validation is None:
            return None
        share = max(1, self.run.batch_size // self.run.accumulation)  # the same batches for any number of processes
        sums: dict[str, Tensor] = {}
        count = 0
        self.bare.eval()
        with self.average.swapped_in(), torch.no_grad(), self.accelerator.autocast():
            for positions, batch in self._validation_batches(share):
                torch.manual_seed(seed_of(self.run.seed, GLOBAL, positions.start))
                terms = self.bare.evaluate(batch, noise_generators(self.run.seed, 0, positions=positions))
                add_terms(sums, terms, share=len(positions))
                count += len(positions)
        sums["count"] = torch.tensor(float(count), device=self.accelerator.device)
        everywhere: list[dict[str, float]] = gather_object([{name: float(value) for name, value in sums.items()}])
        clips = sum(part["count"] for part in everywhere)
        names = sorted({name for part in everywhere for name in part} - {"count"})
        means = {name: sum(part.get(name, 0.0) for part in everywhere) / clips for name in names}
        score = sum(means.values())
        if not math.isfinite(score):
            raise TrainingDiverged(f"training stopped after step {done}: the validation loss is {score} ({means})")
        self._log({"validation/loss": score}, step=done)
        self._log({f"validation/{name}": value for name, value in means.items()}, step=done)
        progress.say(f"validation after step {done}: {score:.4f}" + ("  (best)" if score < self.best else ""))
        return score

    def _show(self, done: int) -> None:
        if not self.accelerator.is_main_process:
            return
        source = self.items if self.validation is None else self.validation
        batch = self._on_device(self.collate([source[index] for index in range(min(SHOWN_CLIPS, len(source)))]))  # pyright: ignore[reportArgumentType]
        self.bare.eval()
        with self.average.swapped_in(), torch.no_grad(), self.accelerator.autocast():
            videos = self.bare.samples(
                {**batch, "step": done}, noise_generators(self.run.seed, 0, positions=range(len(batch["id"])))
            )
        save_gif(self.run.output_dir / "samples" / f"step-{done:08d}.gif", videos)
        writer: Any = self.accelerator.get_tracker("tensorboard", unwrap=True)
        add_video(writer, "samples", videos, step=done)

    def _log(self, values: dict[str, float], *, step: int) -> None:
        self.accelerator.log(values, step=step)

    # saving and resuming

    def _begin(self) -> int:
        """Prepare the run folder; returns the number of steps already done."""
        run, folder = self.run, self.run.output_dir
        described = folder / "run.json"
        saved = self.checkpoints.steps()
        if saved and not run.resume:
            raise ValueError(
                f"{folder} already holds a run of {saved[-1]} steps; go on with it (--resume) or choose "
                "another --output-dir"
            )
        if run.resume and described.is_file():
            check_resumable(type(run).load(described), run)
        if saved:
            check_frozen(self.checkpoints.header(saved[-1]), self.frozen, folder)
        if saved and saved[-1] > run.steps:
            raise ValueError(f"{folder} has done {saved[-1]} steps, more than the {run.steps} asked for; raise --steps")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            replace(run, resume=False).save(described)  # the file must be enough to repeat the run from its start
        self.accelerator.init_trackers("tensorboard")
        if not saved:
            return 0
        self._restore(self.checkpoints.load(saved[-1]))
        best = self.checkpoints.best()
        if best is not None:
            self.best = self.checkpoints.header(best)["validation"]
        self._export(best=best == saved[-1])  # the run may have been stopped between its checkpoint and this
        return saved[-1]

    def _save(self, done: int, score: float | None, *, best: bool) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            training = {"optimiser": self.optimiser.state_dict(), "updates": self.average.updates}
            if self.accelerator.scaler is not None:
                training["scaler"] = self.accelerator.scaler.state_dict()
            if self.opponent is not None:
                training["discriminator"] = self.opponent.step.state_dict()
                training["discriminator_optimiser"] = self.opponent.optimiser.state_dict()
            self.checkpoints.save(
                Checkpoint(
                    step=done,
                    weights=self.bare.state_dict(),
                    averages=self.average.state_dict(),
                    training=training,
                    header={"validation": score, "frozen_weights": self.frozen},
                )
            )
        self._export(best=best)

    def _export(self, *, best: bool) -> None:
        """The averaged weights as `model`, and as `best` where they are."""
        if self.accelerator.is_main_process:
            self.bare.eval()
            with self.average.swapped_in():
                self.bare.export(self.run.output_dir / "model")
                if best:
                    self.bare.export(self.run.output_dir / "best")
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.bare.load_state_dict(checkpoint.weights)
        self.average.load_state_dict(checkpoint.averages, updates=checkpoint.training["updates"])
        self.optimiser.load_state_dict(checkpoint.training["optimiser"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.training["scaler"])
        if self.opponent is not None:
            self.opponent.step.load_state_dict(checkpoint.training["discriminator"])
            self.opponent.optimiser.load_state_dict(checkpoint.training["discriminator_optimiser"])


def set_rate(optimiser: Any, config: OptimiserConfig, step: int, *, steps: int) -> None:
    """The learning rate of a step among so many."""
    for group in optimiser.param_groups:
        group["lr"] = config.learning_rate * rate_at(step, config, steps=steps)


def add_terms(totals: dict[str, Tensor], terms: dict[str, Tensor], *, share: float) -> None:
    """Add `share` of each term to the totals."""
    for name, term in terms.items():
        value = term.detach().float() * share
        totals[name] = value if name not in totals else totals[name] + value
