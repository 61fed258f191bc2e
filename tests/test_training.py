"""Training keeps its promises: loss falls, any cut of a batch is the same, resuming is exact, failures lose nothing."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

import vidgen
from vidgen.data import VideoError, write_video
from vidgen.data.digits import MovingDigits
from vidgen.data.shapes import ShapesWorld
from vidgen.eval.ranks import join_launch
from vidgen.tokenizers import CausalConvTokenizer, WrappingTokenizer
from vidgen.tokenizers.discriminator import DiscriminatorPanel, PatchDiscriminator
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.training import (
    CheckpointNotWritten,
    DataConfig,
    GeneratorRun,
    MatcherRun,
    OptimiserConfig,
    TokenizerRun,
    TrainingDiverged,
    amx,
    train_tokenizer,
)
from vidgen.training.checkpoint import Checkpoint, CheckpointFolder, write_folder
from vidgen.training.clips import collate, held_out_share, training_clips, validation_clips
from vidgen.training.critic import Adversary, DiscriminatorStep, FaithfulTerms, ReconstructionCritic
from vidgen.training.earlier_weights import take_weights
from vidgen.training.ema import MovingAverage
from vidgen.training.models import fresh_tokenizer
from vidgen.training.optimiser import rate_at
from vidgen.training.order import DataOrder, MicroBatches, noise_generators
from vidgen.training.processes import build_accelerator
from vidgen.training.resuming import check_resumable
from vidgen.training.tokenizer_step import TokenizerStep
from vidgen.training.tokenizer_training import build_critic, build_opponent
from vidgen.training.trainer import MAXIMAL_SKIPS, Trainer


def tiny_tokenizer(bottleneck: str = "fsq", *, seed: int = 0) -> CausalConvTokenizer:
    torch.manual_seed(seed)
    return CausalConvTokenizer(bottleneck, stride=(2, 4, 4), widths=(8, 8), depth=1, decoder_depth=1)


def tiny_run(folder: Path, **changes) -> TokenizerRun:
    run = TokenizerRun(
        preset="tiny",
        output_dir=folder,
        data=DataConfig(num_frames=3, height=16, width=16, validation_clips=4),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=2),
        steps=6,
        batch_size=4,
        checkpoint_every=3,
        validate_every=3,
        sample_every=0,
        log_every=100,
        statistics_clips=2,
        device="cpu",
    )
    return replace(run, **changes)


def adversarial(run: TokenizerRun) -> TokenizerRun:
    return replace(
        run,
        data=replace(run.data, height=24, width=24),
        adversarial_weight=0.1,
        discriminator_start=2,
        discriminator_width=4,
    )


def state_of(folder: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by a name that says where it is."""
    checkpoint = CheckpointFolder(folder / "checkpoints", keep=9).load(step)
    tensors = {f"weights.{name}": value for name, value in checkpoint.weights.items()}
    tensors |= {f"averages.{name}": value for name, value in checkpoint.averages.items()}
    pending: list[tuple[str, object]] = [("training", checkpoint.training)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            pending += [(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(f"{name}.{key}", item) for key, item in enumerate(value)]
    return tensors


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert len(one) > 20
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), f"{name} differs by {(tensor - other[name]).abs().max()}"


class Clips(Dataset):
    """Random clips; those in `broken` are NaN."""

    def __init__(self, count: int, *, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, object]:
        video = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(index)) * 2 - 1
        return {"video": video * (float("nan") if index in self.broken else 1.0), "caption": "", "id": f"clip-{index}"}


def trainer_on(clips: Dataset, run: TokenizerRun) -> Trainer:
    step = TokenizerStep(tiny_tokenizer(), critic=None, statistics=None)
    accelerator = build_accelerator(run, finds_unused_parameters=False)
    return Trainer(
        run, accelerator=accelerator, step=step, items=clips, endless=False, collate=collate, validation=None
    )


# what training does


@pytest.mark.parametrize("bottleneck", ["kl", "vq", "fsq"])
def test_loss_falls(bottleneck, tmp_path):
    tokenizer = tiny_tokenizer(bottleneck)
    run = tiny_run(tmp_path, steps=40, checkpoint_every=40, validate_every=1000, ema_decay=0.5)
    run = replace(run, data=replace(run.data, objects=(1,)))
    batch = next(iter(trainer_on(validation_clips(run.data), tiny_run(tmp_path / "untrained"))._batches(0)))
    untrained = sum(
        tokenizer.training_losses(batch["video"], generators=noise_generators(0, 0, positions=range(4))).values()
    ).item()
    model = train_tokenizer(run, tokenizer=tokenizer)
    assert CheckpointFolder(tmp_path / "checkpoints", keep=9).header(40)["validation"] < 0.75 * untrained
    loaded = CausalConvTokenizer.from_pretrained(model)
    assert not torch.equal(loaded.latent_std, torch.ones_like(loaded.latent_std)), "statistics were not measured"


def test_export_holds_the_averaged_weights(tmp_path):
    train_tokenizer(tiny_run(tmp_path, ema_decay=0.9), tokenizer=tiny_tokenizer())
    exported = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    checkpoint = CheckpointFolder(tmp_path / "checkpoints", keep=2).load(6)
    name = "decoder.conv_out.conv.weight"
    assert torch.equal(exported[name], checkpoint.averages[f"tokenizer.{name}"])
    assert not torch.equal(exported[name], checkpoint.weights[f"tokenizer.{name}"])


def test_accumulated_micro_batches_are_one_big_batch(tmp_path):
    for name, accumulation in (("whole", 1), ("cut", 4)):
        run = tiny_run(tmp_path / name, accumulation=accumulation, steps=3)
        train_tokenizer(run, tokenizer=tiny_tokenizer("kl"))
    whole, cut = state_of(tmp_path / "whole", 3), state_of(tmp_path / "cut", 3)
    for name in whole:
        if "exp_avg" in name:  # the gradients' averages; weights would amplify rounding where a gradient is near zero
            torch.testing.assert_close(whole[name], cut[name], rtol=1e-3, atol=1e-5)


def test_frozen_parts_stay_and_the_rest_trains(tmp_path):
    tokenizer = tiny_tokenizer("vq")
    before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    train_tokenizer(tiny_run(tmp_path, freeze=("encoder", "bottleneck"), fit_statistics=False), tokenizer=tokenizer)
    after = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (not name.startswith("decoder")), name


def test_freezing_a_name_that_does_not_exist_says_which_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.encodr.*tokenizer\.decoder"):
        train_tokenizer(tiny_run(tmp_path, freeze=("encodr",)), tokenizer=tiny_tokenizer())


def test_starting_from_another_model_takes_its_weights_and_refuses_other_shapes():
    source, target = tiny_tokenizer(seed=1), tiny_tokenizer(seed=2)
    take_weights(target, source, source="somewhere")
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())
    other = CausalConvTokenizer("fsq", stride=(2, 4, 4), widths=(8, 8), depth=1, decoder_depth=1, block_frames=8)
    with pytest.raises(ValueError, match="block_frames is"):
        take_weights(other, source, source="somewhere")


def test_larger_tokens_of_the_same_trunk_take_its_weights_and_another_stride_does_not():
    source = tiny_tokenizer(seed=1)
    product = {"inner": "fsq", "options": {"levels": (8, 5, 5, 5)}, "count": 4}
    config = {"widths": (8, 8), "depth": 1, "decoder_depth": 1}
    target = CausalConvTokenizer("product", product, stride=(2, 8, 8), token_patch=2, **config)
    take_weights(target, source, source="somewhere")
    taken = target.state_dict()
    assert all(torch.equal(tensor, taken[name]) for name, tensor in source.state_dict().items() if "latent" not in name)
    other = CausalConvTokenizer("product", product, stride=(2, 8, 8), patch=4, **config)
    with pytest.raises(ValueError, match="its stride is"):
        take_weights(other, source, source="somewhere")


@pytest.mark.parametrize("preset", ["shapes-vq", "larp"])
def test_codes_that_are_learned_otherwise_are_taken_and_other_codes_are_not(preset: str, caplog):
    made = TOKENIZER_PRESETS[preset].tiny()
    options = made.config["bottleneck_options"]
    source = made.build()
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.fill_(1)
    inside = "bottleneck" if hasattr(source, "bottleneck") else "bottlenecks"
    codes = {name: tensor for name, tensor in source.state_dict().items() if name.startswith((inside, "latent_"))}

    target = replace(made, config={**made.config, "bottleneck_options": {**options, "commitment": 0.5}}).build()
    take_weights(target, source, source="somewhere")
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in codes.items())
    assert not caplog.messages

    target = replace(made, config={**made.config, "bottleneck_options": {**options, "codes": 99}}).build()
    fresh = {name: target.state_dict()[name].clone() for name in codes}
    take_weights(target, source, source="somewhere")
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in fresh.items())
    (told,) = caplog.messages
    assert told.startswith("not from somewhere, but fresh: ") and all(name in told for name in codes)


def test_another_bottleneck_takes_the_trunk_and_keeps_its_own_layers_fresh():
    source, target = tiny_tokenizer(seed=1), tiny_tokenizer("kl", seed=2)
    fresh = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    take_weights(target, source, source="somewhere")
    trunk, edge = "decoder.layers.0.conv_space.conv.weight", "encoder.conv_out.conv.weight"
    assert torch.equal(target.state_dict()[trunk], source.state_dict()[trunk])
    assert torch.equal(target.state_dict()[edge], fresh[edge])


def test_a_preset_trains_by_name_and_another_run_starts_from_it(tmp_path):
    run = tiny_run(tmp_path / "first", preset="shapes-fsq", tiny=True, steps=2)
    model = train_tokenizer(run)
    train_tokenizer(replace(run, output_dir=tmp_path / "second", init_from=str(model), steps=1))
    first = load_file(model / "diffusion_pytorch_model.safetensors")
    second = load_file(tmp_path / "second" / "model" / "diffusion_pytorch_model.safetensors")
    name = "encoder.conv_in.conv.weight"
    assert (
        (first[name] - second[name]).abs().max()
        < 0.01
        < (first[name] - fresh_tokenizer(run).state_dict()[name]).abs().max()
    )
    with pytest.raises(ValueError, match="nearest: shapes-fsq"):
        train_tokenizer(replace(run, output_dir=tmp_path / "third", preset="shape-fsq"))


@pytest.mark.parametrize(("preset", "own"), [("tooncrafter-decoder", "guide."), ("epsilon-vae", "denoiser.")])
def test_a_decoder_is_trained_around_a_tokenizer_that_stays_as_it_is(tmp_path, preset: str, own: str):
    tiny_tokenizer(seed=1).save_pretrained(tmp_path / "wrapped")
    run = tiny_run(tmp_path / "around", preset=preset, tiny=True, steps=2, around=str(tmp_path / "wrapped"))
    fresh = fresh_tokenizer(run).state_dict()
    model = train_tokenizer(run)
    before = load_file(tmp_path / "wrapped" / "diffusion_pytorch_model.safetensors")
    after = load_file(model / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(after[f"encoder.{name}"], tensor) for name, tensor in before.items())
    assert any(not torch.equal(after[name], fresh[name]) for name in after if name.startswith(own))
    loaded = vidgen.load(model)
    assert isinstance(loaded, WrappingTokenizer) and loaded.freeze_encoder
    with pytest.raises(ValueError, match="--around is for decoders of another tokenizer's tokens"):
        fresh_tokenizer(replace(run, preset="shapes-kl"))


def test_samples_are_written_for_people(tmp_path):
    train_tokenizer(tiny_run(tmp_path, sample_every=6), tokenizer=tiny_tokenizer())
    assert (tmp_path / "samples" / "step-00000006.gif").read_bytes().startswith(b"GIF89a")
    assert list((tmp_path / "tensorboard").glob("events*"))


# resuming


class Interrupted(Exception):
    pass


def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = adversarial(tiny_run(tmp_path / "whole", precision="bf16"))
    train_tokenizer(whole, tokenizer=tiny_tokenizer("vq"))
    broken = replace(whole, output_dir=tmp_path / "broken")
    real_train = Trainer._train

    def dies_at_five(self, step, batches):
        if step == 5:
            raise Interrupted
        return real_train(self, step, batches)

    monkeypatch.setattr(Trainer, "_train", dies_at_five)
    with pytest.raises(Interrupted):
        train_tokenizer(broken, tokenizer=tiny_tokenizer("vq"))
    monkeypatch.undo()
    torch.rand(7)  # whatever else happened to the global generator in between
    train_tokenizer(replace(broken, resume=True), tokenizer=tiny_tokenizer("vq", seed=5))
    assert_same_state(state_of(tmp_path / "whole", 6), state_of(tmp_path / "broken", 6))
    assert_same_state(*(exported(tmp_path / name) for name in ("whole", "broken")))


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of `model` and `best` of a run."""
    kinds = ("model", "best")
    files = {kind: load_file(folder / kind / "diffusion_pytorch_model.safetensors") for kind in kinds}
    return {f"{kind} {name}": tensor for kind in kinds for name, tensor in files[kind].items()}


def test_a_run_that_was_stopped_before_an_export_exports_when_it_is_resumed(tmp_path, monkeypatch):
    whole = tiny_run(tmp_path / "whole", steps=6, checkpoint_every=3, validate_every=3)
    train_tokenizer(whole, tokenizer=tiny_tokenizer())
    broken = replace(whole, output_dir=tmp_path / "broken")
    export, saved = TokenizerStep.export, []

    def dies_at_the_last_step(self, folder):
        saved.append(folder)
        if CheckpointFolder(tmp_path / "broken" / "checkpoints", keep=9).steps()[-1] == 6:
            raise Interrupted
        export(self, folder)

    monkeypatch.setattr(TokenizerStep, "export", dies_at_the_last_step)
    with pytest.raises(Interrupted):
        train_tokenizer(broken, tokenizer=tiny_tokenizer())
    monkeypatch.undo()
    train_tokenizer(replace(broken, resume=True), tokenizer=tiny_tokenizer())
    assert_same_state(*(exported(tmp_path / name) for name in ("whole", "broken")))


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from test_training import tiny_run, tiny_tokenizer
from dataclasses import replace
from vidgen.training import train_tokenizer
run = replace(tiny_run(Path(sys.argv[2])), steps=int(sys.argv[3]), ema_decay=0.9)
tokenizer = tiny_tokenizer("kl")
train_tokenizer(run, tokenizer=tokenizer)
rank = int(__import__("os").environ.get("RANK", "0"))
__import__("safetensors.torch").torch.save_file(tokenizer.state_dict(), sys.argv[2] + f"/rank-{rank}.safetensors")
"""


def launched(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *prefix, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_resume_after_kill_is_bit_equal_to_an_uninterrupted_run(tmp_path):
    steps = 12
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    killed = tmp_path / "killed"
    process = launched(str(script), str(Path(__file__).parent), str(killed), str(steps))
    while not (killed / "checkpoints" / "step-00000003").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output[-2000:]
    assert max(CheckpointFolder(killed / "checkpoints", keep=9).steps()) < steps, "it was not killed in time"
    run = replace(tiny_run(killed), steps=steps, ema_decay=0.9)
    train_tokenizer(replace(run, resume=True), tokenizer=tiny_tokenizer("kl", seed=3))
    train_tokenizer(replace(run, output_dir=tmp_path / "whole"), tokenizer=tiny_tokenizer("kl"))
    assert_same_state(state_of(killed, steps), state_of(tmp_path / "whole", steps))


@pytest.mark.slow
def test_two_processes_train_like_one_and_agree(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    process = launched(str(script), str(Path(__file__).parent), str(tmp_path / "two"), "3", prefix=launcher)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    train_tokenizer(replace(tiny_run(tmp_path / "one"), steps=3, ema_decay=0.9), tokenizer=tiny_tokenizer("kl"))
    one, two = state_of(tmp_path / "one", 3), state_of(tmp_path / "two", 3)
    for name in one:
        if "exp_avg" in name:
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
    first, second = (load_file(tmp_path / "two" / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_launch_that_starts_one_process_in_place_of_two_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="--multi_gpu"):
        train_tokenizer(tiny_run(tmp_path), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="--multi_gpu"):
        join_launch(torch.device("cpu"))


def test_a_run_folder_is_never_trained_over(tmp_path):
    run = tiny_run(tmp_path, steps=3)
    train_tokenizer(run, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="--resume"):
        train_tokenizer(run, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="batch_size was 4 and is now 8"):
        train_tokenizer(replace(run, batch_size=8, resume=True), tokenizer=tiny_tokenizer())


def test_a_resumed_run_may_not_become_another_one(tmp_path):
    run, other = tiny_run(tmp_path), GeneratorRun(preset="tiny", output_dir=tmp_path)
    check_resumable(run, replace(run, steps=9, learned_variance=False))
    with pytest.raises(ValueError, match="distillation_channels was 0 and is now 4"):
        check_resumable(run, replace(run, distillation_channels=4))
    changes = {"references": 1, "lora_rank": 4, "control_layers": 1, "text_encoder": "t5", "classes": True}
    for name, value in {**changes, "tasks": ("all",), "control": "half-size"}.items():
        with pytest.raises(ValueError, match=f"{name} was .* give it as before"):
            check_resumable(other, replace(other, **{name: value}))


@pytest.mark.parametrize(
    ("kind", "preset", "setting", "message"),
    [
        (GeneratorRun, "shapes-ar", "layers=3", r"layers \(--set\) was 2 and is now 3"),
        (GeneratorRun, "worlds-tasks", "time_order_share=0.5", None),
        (
            TokenizerRun,
            "shapes-kl",
            "widths=[16,24,16]",
            r"widths \(--set\) was \[16, 16, 16\] and is now \[16, 24, 16\]",
        ),
        (TokenizerRun, "shapes-kl", "squared_weight=9", None),
        (MatcherRun, "shapes-matcher", "fusion_layers=3", r"fusion_layers \(--set\) was"),
    ],
)
def test_a_resumed_run_keeps_its_network_and_may_change_what_only_training_asks(
    kind, preset, setting, message, tmp_path
):
    run = kind(preset=preset, output_dir=tmp_path, tiny=True)
    changed = replace(run, changed=(setting,))
    check_resumable(changed, changed)
    if message is None:
        check_resumable(run, changed)
        return
    for before, after in ((run, changed), (changed, run)):
        with pytest.raises(ValueError, match=rf"{setting.partition('=')[0]} \(--set\) was .* give it as before"):
            check_resumable(before, after)
    with pytest.raises(ValueError, match=message):
        check_resumable(run, changed)


def test_a_resumed_run_keeps_options_that_have_no_weights_however_they_are_written(tmp_path):
    run = GeneratorRun(preset="worlds-tasks", output_dir=tmp_path, changed=("windows=[[1,0,0]]",))
    check_resumable(run, replace(run, changed=("windows=[[1, 0, 0]]", "smallest_ratio=0.5")))
    with pytest.raises(ValueError, match=r"windows \(--set\) was \[\[1, 0, 0\]\]"):
        check_resumable(run, replace(run, changed=()))
    brought = tiny_run(tmp_path, changed=("layers=2",))  # a network that no preset describes
    with pytest.raises(ValueError, match="changed was"):
        check_resumable(brought, replace(brought, changed=()))


@pytest.mark.parametrize("name", ["known_frames", "drop_text"])
def test_a_resumed_run_may_change_a_share_but_not_from_or_to_none_or_all(name, tmp_path):
    run = GeneratorRun(preset="shapes-masked", output_dir=tmp_path)
    check_resumable(run, replace(run, **{name: 0.4}))
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"{name} was 0.1 and is now {share}"):
            check_resumable(run, replace(run, **{name: share}))
        with pytest.raises(ValueError, match=f"{name} was {share} and is now 0.1"):
            check_resumable(replace(run, **{name: share}), run)


def test_a_run_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = tiny_run(tmp_path)
    run.save(tmp_path / "run.json")
    before = (tmp_path / "run.json").read_text()

    def half(path, text):
        with path.open("w") as file:
            file.write(text[:20])
        raise Interrupted

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(Interrupted):
        replace(run, steps=9).save(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text() == before


def test_a_resume_that_is_refused_leaves_the_run_file_as_it_was(tmp_path):
    run = tiny_run(tmp_path, steps=3)
    train_tokenizer(run, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="has done 3 steps"):
        train_tokenizer(replace(run, steps=2, resume=True), tokenizer=tiny_tokenizer())
    assert TokenizerRun.load(tmp_path / "run.json") == run


def test_the_run_file_is_enough_to_repeat_the_run(tmp_path):
    run = adversarial(tiny_run(tmp_path, steps=3, freeze=("encoder",)))
    train_tokenizer(replace(run, resume=True), tokenizer=tiny_tokenizer())
    assert TokenizerRun.load(tmp_path / "run.json") == run


# failures


def test_a_loss_that_is_no_number_stops_with_step_and_clip_and_keeps_the_checkpoint(tmp_path):
    run = tiny_run(tmp_path, steps=8, checkpoint_every=1, keep=20)
    broken = DataOrder(40, 4, seed=run.seed).indices(5)[2]
    with pytest.raises(TrainingDiverged, match=rf"step 6: .*clip-{broken}.*step-00000005"):
        trainer_on(Clips(40, broken=(broken,)), run).fit()
    saved = CheckpointFolder(tmp_path / "checkpoints", keep=20)
    assert saved.steps() == [1, 2, 3, 4, 5]
    assert all(tensor.isfinite().all() for tensor in saved.load(5).weights.values())


def adversarial_trainer(run: TokenizerRun) -> Trainer:
    """On random clips, with a discriminator from `run.discriminator_start` on."""
    critic = build_critic(run)
    assert critic is not None and critic.adversary is not None
    step = TokenizerStep(tiny_tokenizer(), critic=critic, statistics=None)
    return Trainer(
        run,
        accelerator=build_accelerator(run, finds_unused_parameters=False),
        step=step,
        items=training_clips(run.data),
        endless=True,
        collate=collate,
        validation=None,
        opponent=build_opponent(run, critic, critic.adversary.panel),
    )


def test_a_discriminator_warms_up_from_its_own_start(tmp_path, monkeypatch):
    optimiser = OptimiserConfig(learning_rate=1.0, warmup_steps=4, final_rate=0.0)
    run = adversarial(tiny_run(tmp_path, steps=12, validate_every=0, discriminator_optimiser=optimiser))
    trainer = adversarial_trainer(replace(run, discriminator_start=6))
    assert trainer.opponent is not None
    rates = []
    for step in range(12):
        trainer._set_rates(step)
        rates.append(trainer.opponent.optimiser.param_groups[0]["lr"])
    assert rates[6:] == [rate_at(step, optimiser, steps=6) for step in range(6)]
    assert rates[6] == 0.25 and rates[11] == 0.5


def test_a_gradient_of_the_discriminator_that_is_no_number_stops_before_its_weights_are(tmp_path):
    trainer = adversarial_trainer(adversarial(tiny_run(tmp_path, validate_every=0)))
    assert trainer.opponent is not None
    weights = list(trainer.opponent.step.parameters())
    weights[-1].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingDiverged, match=r"step 3.*discriminator_gradient_norm nan"):
        trainer.fit()
    assert all(weight.isfinite().all() for weight in weights)


def test_the_loss_scaler_may_skip_as_many_steps_with_a_discriminator_as_without(tmp_path):
    trainer = trainer_on(Clips(4), tiny_run(tmp_path))
    trainer.run = replace(trainer.run, precision="fp16")
    finite, infinite = torch.tensor(1.0), torch.tensor(float("inf"))
    totals = {"loss": finite, "gradient_norm": infinite, "discriminator": finite, "discriminator_gradient_norm": finite}
    ours = {"losses": ["loss"], "norm": "gradient_norm"}
    theirs = {"losses": ["discriminator"], "norm": "discriminator_gradient_norm"}
    for step in range(MAXIMAL_SKIPS):
        trainer._check(step, totals, [], **ours)
        trainer._check(step, totals, [], **theirs)
    with pytest.raises(TrainingDiverged):
        trainer._check(MAXIMAL_SKIPS, totals, [], **ours)
    trainer._check(0, {**totals, "gradient_norm": finite}, [], **ours)
    with pytest.raises(TrainingDiverged):
        trainer._check(0, {**totals, "discriminator": infinite}, [], **theirs)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)

    def checkpoint(step: int) -> Checkpoint:
        weights = {"w": torch.full((64, 1024), float(step))}
        return Checkpoint(
            step=step,
            weights=weights,
            averages=weights,
            training={"m": torch.full((128, 1024), float(step))},
            header={"validation": None},
        )

    folder.save(checkpoint(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 100_000, 400_000):  # the last one stops torch's file, the others those of safetensors
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(CheckpointNotWritten, match=r"step-00000002.*--resume"):
                folder.save(checkpoint(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert folder.steps() == [1]
        assert torch.equal(folder.load(1).weights["w"], torch.ones(64, 1024))
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"], "a half-written folder was left behind"
    folder.save(checkpoint(2))
    assert folder.steps() == [2]


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    empty = Checkpoint(step=4, weights={}, averages={}, training={}, header={"validation": None})
    folder.save(empty)
    (tmp_path / ".step-00000008.unfinished").mkdir()
    (tmp_path / "step-00000009").mkdir()
    assert folder.steps() == [4]
    folder.save(replace(empty, step=8))
    assert not (tmp_path / ".step-00000008.unfinished").exists()


def test_whoever_may_read_a_new_file_may_read_the_weights(tmp_path):
    (tmp_path / "new").touch()
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    weights = {"a": torch.zeros(2)}
    folder.save(Checkpoint(step=4, weights=weights, averages=weights, training={}, header={"validation": None}))
    model = TOKENIZER_PRESETS["shapes-fsq"].tiny().build()
    write_folder(tmp_path / "model", model.save_pretrained)
    files = [*(tmp_path / "checkpoints").rglob("*.safetensors"), *(tmp_path / "model").rglob("*.safetensors")]
    assert len(files) == 3
    assert {file.stat().st_mode for file in files} == {(tmp_path / "new").stat().st_mode}


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step, score in ((1, 0.9), (2, 0.1), (3, None), (4, 0.5), (5, 0.4)):
        folder.save(Checkpoint(step=step, weights={}, averages={}, training={}, header={"validation": score}))
    assert folder.steps() == [2, 4, 5]
    assert folder.best() == 2


def test_perceptual_distance_without_weights_says_how_to_give_them(tmp_path):
    with pytest.raises(ValueError, match="--perceptual-weights FILE"):
        tiny_run(tmp_path, perceptual_weight=1.0)
    with pytest.raises(ValueError, match="no file"):
        run = tiny_run(tmp_path, perceptual_weight=1.0, perceptual_weights=tmp_path / "missing.pth")
        train_tokenizer(run, tokenizer=tiny_tokenizer())


def test_perceptual_distance_trains_from_a_file_on_some_of_the_frames(shared, tmp_path):
    weights = shared / "weights" / "squeezenet1_0_imagenet.pt"
    run = tiny_run(tmp_path, steps=2, perceptual_weight=0.5, perceptual_weights=weights, perceptual_frames=1)
    train_tokenizer(replace(run, data=replace(run.data, height=32, width=32)), tokenizer=tiny_tokenizer())
    assert (tmp_path / "model" / "config.json").is_file()


def test_favoured_words_change_the_training_clips_and_leave_validation_as_it_is():
    data = DataConfig(favour=("spinning",) * 7, objects=(1,), num_frames=1, validation_clips=4)
    train = training_clips(data)
    spinning = [train.scene(index).objects[0].motion == "spinning" for index in range(200)]  # pyright: ignore
    assert sum(spinning) > 50
    held, plain = validation_clips(data), validation_clips(replace(data, favour=()))
    assert held is not None and plain is not None
    assert [held[index]["caption"] for index in range(4)] == [plain[index]["caption"] for index in range(4)]
    with pytest.raises(ValueError, match="favour names words of the shapes world"):
        DataConfig(source="digits", favour=("star",))


def test_bf16_on_a_cpu_whose_amx_kills_processes_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(amx, "PROBE", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.delenv(amx.CAP, raising=False)
    run = TokenizerRun(preset="shapes-fsq", output_dir=tmp_path, precision="bf16", device="cpu")
    with pytest.raises(ValueError, match=r"Illegal instruction.*ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16"):
        build_accelerator(run, finds_unused_parameters=False)
    build_accelerator(replace(run, precision="fp32"), finds_unused_parameters=False)
    monkeypatch.setenv(amx.CAP, "AVX512_CORE_FP16")
    build_accelerator(run, finds_unused_parameters=False)


def test_config_mistakes_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="batch_size 4 does not divide by accumulation 3"):
        tiny_run(tmp_path, accumulation=3)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        train_tokenizer(tiny_run(tmp_path, precision="fp16"), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="steps must be above 0"):
        tiny_run(tmp_path, steps=0)


# the parts


def test_every_clip_is_seen_once_an_epoch_in_an_order_that_depends_on_seed_and_epoch():
    order = DataOrder(10, 5, seed=1)
    first, second = order.indices(0) + order.indices(1), order.indices(2) + order.indices(3)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert order.indices(0) == first[:5], "asking again gives the same"
    assert DataOrder(10, 5, seed=2).indices(0) != first[:5]


def test_an_endless_world_never_repeats_a_clip():
    order = DataOrder(None, 3, seed=0)
    assert [index for step in range(4) for index in order.indices(step)] == list(range(12))


@pytest.mark.parametrize("source", ["shapes", "digits", "shapes+digits"])
def test_a_world_goes_on_behind_a_million_clips_and_begins_as_ever(source, request):
    digits = request.getfixturevalue("shared") / "mnist" if "digits" in source else None
    data = DataConfig(source=source, num_frames=2, height=16, width=16, digits_dir=digits)
    train: Any = training_clips(data)
    late = [train[index] for index in (1_999_999, 2_000_000, 10**12)]
    assert len({item["id"] for item in late}) == 3
    assert not torch.equal(late[0]["video"], late[1]["video"])
    assert len(train.captions()) <= 4096
    worlds: dict[str, Any] = {"shapes": ShapesWorld(2, 16, width=16)}
    if digits is not None:
        worlds["digits"] = MovingDigits(digits, num_frames=2, height=16, width=16)
    finite = [worlds[name] for name in source.split("+")]
    for index in (0, 7, 999_999):
        assert torch.equal(train[index]["video"], finite[index % len(finite)][index // len(finite)]["video"])
    assert len(validation_clips(data)) == data.validation_clips  # pyright: ignore[reportArgumentType]
    with pytest.raises(IndexError):
        finite[0][1_000_000]


@pytest.mark.parametrize(("accumulation", "world_size"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_every_cut_of_a_batch_holds_the_same_clips(accumulation, world_size):
    order = DataOrder(50, 8, seed=3)
    clips = []
    for rank in range(world_size):
        batches = MicroBatches(order, start=2, stop=4, accumulation=accumulation, rank=rank, world_size=world_size)
        assert len(batches) == len(list(batches)) == 2 * accumulation
        clips += [index for batch in batches for index in batch]
    assert sorted(clips) == sorted(order.indices(2) + order.indices(3))
    with pytest.raises(ValueError, match="use a multiple of 3"):
        MicroBatches(order, start=0, stop=1, accumulation=3, rank=0, world_size=1)


def test_noise_belongs_to_a_position_whatever_the_cut():
    together = [torch.rand(3, generator=generator) for generator in noise_generators(0, 7, positions=range(4))]
    apart = [torch.rand(3, generator=generator) for generator in noise_generators(0, 7, positions=range(2, 4))]
    assert torch.equal(torch.stack(together[2:]), torch.stack(apart))
    assert len({float(row[0]) for row in together}) == 4


def test_learning_rate_warms_up_and_ends_low():
    config = OptimiserConfig(warmup_steps=10, final_rate=0.1)
    rates = [rate_at(step, config, steps=100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_averages_swap_in_and_out_without_a_trace():
    layer = torch.nn.Linear(2, 2)
    average = MovingAverage(layer, decay=0.5)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    average.update()
    with average.swapped_in():
        inside = layer.weight.detach().clone()
    assert torch.allclose(inside, before + 0.9)
    assert torch.equal(layer.weight, before + 1.0)


def test_the_adversarial_term_is_balanced_and_leaves_the_discriminator_alone():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=4)
    adversary = Adversary(DiscriminatorPanel(discriminator), weight=0.5, start=10)
    critic = ReconstructionCritic(FaithfulTerms(), adversary=adversary)
    layer = torch.nn.Conv3d(3, 3, 1)
    real = torch.rand(2, 3, 3, 24, 24)
    fake = layer(real)
    pixel_loss = (fake - real).abs().mean()
    own = lambda real, fake: {"l1": (fake - real).abs().mean()}  # noqa: E731
    assert critic.at(9)(real, fake, own=own, last_layer=layer.weight) == {"l1": pixel_loss}
    assert critic.judged is None
    term = critic.at(10)(real, fake, own=own, last_layer=layer.weight)["adversarial"]
    faithful = torch.autograd.grad(pixel_loss, layer.weight, retain_graph=True)[0].norm()
    pull = torch.autograd.grad(term, layer.weight, retain_graph=True)[0].norm()
    assert pull / faithful == pytest.approx(0.5, rel=0.05)
    term.backward()
    assert all(weight.grad is None for weight in discriminator.parameters())
    assert critic.judged is not None
    assert not critic.judged[1].requires_grad


@pytest.mark.parametrize("axes", ["frames", "video"])
def test_the_discriminator_learns_to_tell_real_from_fake(axes):
    torch.manual_seed(0)
    step = DiscriminatorStep(DiscriminatorPanel(PatchDiscriminator(width=4, axes=axes)))
    optimiser = torch.optim.Adam(step.parameters(), lr=2e-3)
    real, fake = torch.rand(2, 3, 1, 24, 24), torch.zeros(2, 3, 1, 24, 24)
    losses = []
    for _ in range(30):
        loss = step(real, fake)["discriminator"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < losses[0]


def test_a_discriminator_of_frames_never_looks_at_other_frames():
    discriminator = PatchDiscriminator(width=4, axes="frames")
    video = torch.rand(1, 3, 4, 24, 24)
    changed = video.clone()
    changed[:, :, 2:] = 0
    assert torch.equal(discriminator(video)[:, :, :2], discriminator(changed)[:, :, :2])
    with pytest.raises(ValueError, match="at least"):
        discriminator(video[..., :8])


def test_run_files_are_readable_json(tmp_path):
    tiny_run(tmp_path).save(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["data"]["num_frames"] == 3


@pytest.mark.slow
def test_recipes_run_by_path_from_tokenizer_to_pipeline_and_mistakes_are_one_line(tmp_path):
    repository = Path(__file__).parents[1]
    common = ["--tiny", "--device", "cpu", "--steps", "2", "--batch-size", "2", "--validation-clips", "2"]
    common += ["--num-frames", "5", "--height", "16", "--width", "16"]

    def recipe(path: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(repository / path), *arguments, *common]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    done = recipe("tokenizers/train.py", "shapes-fsq", "--output-dir", "tokenizer")
    assert done.returncode == 0, done.stderr[-2000:]
    again = recipe("tokenizers/train.py", "shapes-fsq", "--output-dir", "tokenizer")
    assert again.returncode == 2
    assert "--resume" in again.stderr.splitlines()[-1]
    assert "Traceback" not in again.stderr
    done = recipe("pipelines/train.py", "shapes-masked", "--tokenizer", "tokenizer/model", "--output-dir", "pipeline")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "pipeline" / "model" / "model_index.json").is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_video_that_cannot_be_read_is_one_line_whoever_reads_it(tmp_path, workers):
    for number in range(2):
        write_video(tmp_path / "clips" / f"{number}.gif", np.zeros((2, 16, 16, 3), dtype=np.uint8), fps=8)
    run = tiny_run(tmp_path / "run", steps=2, workers=workers, validate_every=0)
    data = replace(run.data, source=str(tmp_path / "clips"), validation_clips=0)
    with pytest.raises(VideoError, match=r"^expected a video that gives 3 frames; [^\n]*$"):
        trainer_on(training_clips(data), run).fit()


def test_a_folder_of_videos_trains_and_validates_on_other_videos(tmp_path):
    for number in range(4):
        frames = np.full((4, 16, 16, 3), 60 * number, dtype=np.uint8)
        write_video(tmp_path / "clips" / f"{number}.gif", frames, fps=8)
    run = tiny_run(tmp_path / "run", steps=2)
    run = replace(run, data=replace(run.data, source=str(tmp_path / "clips"), clips_per_video=3))
    training, held_out = training_clips(run.data), validation_clips(run.data)
    names = [{clips[index]["id"].split("#")[0] for index in range(len(clips))} for clips in (training, held_out)]
    assert len(training) == 9
    assert len(held_out) == 1
    assert not names[0] & names[1]
    train_tokenizer(run, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="validation-clips 0"):
        held_out_share(run.data, SimpleNamespace(videos=[1]))
