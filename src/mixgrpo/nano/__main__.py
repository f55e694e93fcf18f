"""Pretrain flux-nano: `python -m mixgrpo.nano [STAGE] --output RUN`; the stage `prompts` writes its prompt files."""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from mixgrpo.errors import MixGRPOError
from mixgrpo.nano.stage import run_stage

STAGES = ("vae", "text", "flow", "flaw")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mixgrpo.nano",
        description="Pretrain flux-nano, the bundled model. A stage that was interrupted goes on where it stopped.",
    )
    parser.add_argument("stage", choices=[*STAGES, "all", "prompts"], nargs="?", default="all", help="stage (all)")
    parser.add_argument("--output", type=Path, default=Path("runs/nano"), help="folder of states, logs and model")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights (0)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    parser.add_argument("--compile", action="store_true", help="compile the flow stage: 1.7 times faster, needs g++")
    parser.add_argument("--stop-after", type=int, default=None, help="stop the stage after this step")
    return parser


def use_plain_attention() -> None:
    """Let torch compute attention as two matrix products, for this process.

    The backward pass of its fused CPU kernel takes a third of the step's time on sequences of 96 tokens.
    """
    torch.backends.cuda.enable_flash_sdp(False)  # despite the name, the CPU kernel obeys it too
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


def run(arguments: argparse.Namespace) -> None:
    """Run the stages that were asked for, one after the other."""
    # Imported here so that --help does not wait for diffusers.
    from mixgrpo.nano.curve import write_curves  # noqa: PLC0415
    from mixgrpo.nano.flow import make_flaw_stage, make_flow_stage  # noqa: PLC0415
    from mixgrpo.nano.prompts import write_prompt_files  # noqa: PLC0415
    from mixgrpo.nano.text import make_text_stage  # noqa: PLC0415
    from mixgrpo.nano.vae import make_vae_stage  # noqa: PLC0415

    if arguments.stage == "prompts":
        write_prompt_files(arguments.output)
        return
    use_plain_attention()
    # Under autocast the transformer's norms get bfloat16 numbers and float32 weights, as they should.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    makers = {
        "vae": make_vae_stage,
        "text": make_text_stage,
        "flow": partial(make_flow_stage, compiled=arguments.compile),
        "flaw": make_flaw_stage,
    }
    for name in STAGES if arguments.stage == "all" else (arguments.stage,):
        stage = makers[name](arguments.output, arguments.seed)
        run_stage(stage, arguments.output, stop_after=arguments.stop_after)
        if name == "flow":
            write_curves(arguments.output / "flow.jsonl", arguments.output / "flow.svg")
    print(f"done: {arguments.output}", flush=True)


def main() -> int:
    """Run the command; a mistake of the user's ends in one message and exit code 2."""
    arguments = make_parser().parse_args()
    try:
        run(arguments)
    except MixGRPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last saved state", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
