"""`demo train`, `demo evaluate` and `demo look`: how the bundled model and what ships for it were made and measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from .lessons import CREATURES

STAGES = ("vae", "latents", "unet", "judge", "decoder", "export", "evaluate")
_SEED = 1


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Add `train`, `evaluate` and `look`; each sets `run`, a function of the parsed arguments."""
    train = subparsers.add_parser(
        "train",
        help="train the demo model from artwork; resumes where it stopped",
        description="All stages in order, or one. Two processor cores take about two and a half hours.",
    )
    _add_places(train)
    train.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be given several times)")
    train.add_argument("--vae-steps", type=int, default=9600)
    train.add_argument("--pictures", type=int, default=12000, help="pictures the UNet learns from")
    train.add_argument("--unet-steps", type=int, default=14500)
    train.add_argument("--widths", type=int, nargs="+", default=[64, 128, 128], help="UNet channels by resolution")
    train.add_argument("--layers", type=int, default=1, help="UNet layers a block")
    train.add_argument("--judge-steps", type=int, default=700)
    train.add_argument("--decoder-steps", type=int, default=2000)
    train.add_argument("--seed", type=int, default=_SEED)
    train.set_defaults(run=_train)
    evaluate = subparsers.add_parser("evaluate", help="measure a demo model and write its card.json")
    _add_places(evaluate)
    evaluate.set_defaults(run=_evaluate)
    look = subparsers.add_parser(
        "look",
        help="draw what the shipped dictionaries' atoms do; write labels, effects and thumbnails into them",
        description="Weights stay as they are, to the bit. Two processor cores take some minutes for each dictionary.",
    )
    look.add_argument(
        "--creature", choices=tuple(CREATURES), action="append", help="only this one (may be given several times)"
    )
    look.set_defaults(run=_look)


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--art", type=Path, help="icons.json of @iconify-json/fluent-emoji-flat")
    parser.add_argument("--work", type=Path, default=Path("out/demo-training"), help="checkpoints and caches")
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("model"), help="the diffusers folder")


def _train(args: argparse.Namespace) -> int:
    from .denoiser import cache_latents, train_denoiser
    from .export import export
    from .judge import train_judge
    from .sprites import FluentArt
    from .vae import train_vae

    art = FluentArt(args.art)
    shape = {"widths": tuple(args.widths), "layers": args.layers}
    stages = {
        "vae": lambda: train_vae(art, args.work, args.vae_steps, args.seed),
        "latents": lambda: cache_latents(art, args.work, args.pictures, args.seed),
        "unet": lambda: train_denoiser(args.work, args.unet_steps, args.seed, shape),
        "judge": lambda: train_judge(art, args.work, args.model, args.judge_steps, args.seed),
        "decoder": lambda: train_vae(art, args.work, args.decoder_steps, args.seed, decoder_only=True),
        "export": lambda: export(args.work, args.model, args.seed, shape),
        "evaluate": lambda: _evaluate(args),
    }
    args.work.mkdir(parents=True, exist_ok=True)
    for name in STAGES:
        if not args.stage or name in args.stage:
            stages[name]()
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from .evaluate import evaluate
    from .sprites import FluentArt

    print(json.dumps(evaluate(FluentArt(args.art), args.model, args.work), indent=2))
    return 0


def _look(args: argparse.Namespace) -> int:
    from .looking import STEPS, look_at_shipped

    creatures = args.creature or list(CREATURES)
    with tqdm(total=STEPS * len(creatures), unit="step") as bar:
        for creature in creatures:
            bar.set_postfix_str(creature)
            look_at_shipped(creature, bar.update)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="sparse_core.demo.cli", description=__doc__)
    add_commands(parser.add_subparsers(required=True))
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    raise SystemExit(main())
