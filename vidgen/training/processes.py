"""Accelerate: one process or many, number format, device."""

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from vidgen.eval.ranks import check_launch
from vidgen.training.amx import check_amx
from vidgen.training.config import Run


def build_accelerator(run: Run, *, finds_unused_parameters: bool) -> Accelerator:
    """Accelerate, set up for a run.

    Raises:
        ValueError: there is no such device, the precision does not fit it, or the launcher started fewer processes than
            it was told.
    """
    check_launch()
    # An earlier run of this process may have had another precision, which accelerate would hold on to.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=run.device == "cpu",
        mixed_precision="no" if run.precision == "fp32" else run.precision,
        log_with="tensorboard",
        project_dir=run.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=finds_unused_parameters)],
    )
    if run.device == "cuda" and accelerator.device.type != "cuda":
        raise ValueError(
            f"--device cuda needs a CUDA device, and accelerate gives this run the {accelerator.device.type} (it "
            "finds no GPU, or was told to leave it alone); use --device cpu or auto"
        )
    if run.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU, and this run is on the CPU; use --precision bf16 or fp32")
    if run.precision == "bf16" and accelerator.device.type == "cpu":
        check_amx()
    return accelerator
