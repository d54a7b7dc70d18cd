#!/usr/bin/env python3
"""Check a running service end to end with one prompt: ready, models, an image of the size and seed that were asked.

python scripts/test_image_gen.py "A cute cat on a windowsill" [--model NAME] [--size WxH] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from PIL import Image

from bridge.client import ClientError, ImageGenClient
from bridge.commands import generate

SEED = 20_240_801


def check(passed: bool, what: str) -> bool:
    """Print one line for one check."""
    print(f"{'ok  ' if passed else 'FAIL'}  {what}")
    return passed


def run(client: ImageGenClient, args: argparse.Namespace) -> bool:
    """All checks; False if one fails."""
    client.wait_ready(args.wait)
    print(f"ok    {client.url} is ready")
    info = client.model_info()
    model = info.find(args.model or info.default_model)
    if not check(model is not None, f"model {args.model or info.default_model} is known ({info.device_name})"):
        return False
    assert model is not None
    width, height = args.size or (model.defaults.width, model.defaults.height)
    answer = client.generate(args.prompt, model=model.name, width=width, height=height, seed=SEED)
    data = client.images(answer)[0]
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    passed = [
        check(image.size == (width, height), f"the image is {image.size[0]}x{image.size[1]}"),
        check(answer.seed == SEED, f"the seed is {answer.seed}"),
        check("workflow" in image.info, "dropped on ComfyUI's editor, the image reopens its graph"),
        check(
            any(SEED in node["inputs"].values() for node in json.loads(image.info.get("prompt", "{}")).values()),
            "the image's metadata hold the seed",
        ),
    ]
    path = args.out / f"test-image-gen-{answer.job_id[:8]}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(f"      {answer.generation_time_ms / 1000:.1f} s on {info.device_name}: {path}")
    return all(passed)


def main() -> int:
    """Parse the arguments, run, and return the exit code."""
    parser = argparse.ArgumentParser(description="Check a running image generation service with one prompt.")
    parser.add_argument("prompt", nargs="?", default="A cute cat on a windowsill")
    parser.add_argument("--model")
    parser.add_argument("--size", type=generate.size, metavar="WxH")
    parser.add_argument("--out", type=Path, default=Path("output"))
    parser.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="for the service to be ready")
    generate.add_connection(parser)
    args = parser.parse_args()
    try:
        with generate.connect(args) as client:
            return 0 if run(client, args) else 1
    except ClientError as error:
        print(f"FAIL  {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
