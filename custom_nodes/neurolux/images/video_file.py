"""Writes frames to a video file: H.264 in MP4 with PyAV, which ComfyUI installs, or animated WebP with Pillow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

BEST_CRF, WORST_CRF = 15, 45
"""x264's constant rate factor at quality 100 and 0. Below 18, a difference is hard to see."""
BT709, LIMITED_RANGE = 1, 1
"""FFmpeg's numbers for the matrix, primaries and curve of HD video, and for levels 16 to 235."""


def write_mp4(frames: Sequence[Image.Image], path: Path, fps: float, quality: int, metadata: Mapping[str, Any]) -> None:
    """Write H.264 in 4:2:0, which every player supports. An odd side loses its last pixel. The output is deterministic.

    The colours are converted to BT.709 and the file says so. Without that, a player guesses from the image size.
    """
    width, height = (side - side % 2 for side in frames[0].size)
    crf = round(WORST_CRF - (WORST_CRF - BEST_CRF) * quality / 100)
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags+faststart"}) as container:
        for key, value in metadata.items():
            container.metadata[key] = json.dumps(value)
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": str(crf), "threads": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        coding = stream.codec_context
        coding.colorspace = coding.color_primaries = coding.color_trc = BT709
        coding.color_range = LIMITED_RANGE
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.asarray(image.crop((0, 0, width, height))), format="rgb24")
            converted = frame.reformat(
                format="yuv420p",
                src_color_range="JPEG",
                dst_color_range="MPEG",
                dst_colorspace="ITU709",
            )
            for packet in stream.encode(converted):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_webp(frames: Sequence[Image.Image], path: Path, fps: float, quality: int, exif: Image.Exif) -> None:
    """Write an animated WebP that loops forever."""
    first, *others = frames
    first.save(
        path,
        format="WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / fps),
        loop=0,
        quality=quality,
        exif=exif,
    )
