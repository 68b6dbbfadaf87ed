"""How fast clips are read and embedded, beside plain decoding in the same run.

    python benchmarks/video.py
    python benchmarks/video.py --video CLIP.mp4 --frames 32

Without --video, a clip of 300 frames of 320 x 240 is made, as MSRVTT's are. Measured are clips per
second of

* plain: PyAV decodes the file up to the last frame that is needed, and nothing else;
* frames: T frames of it as encoded pictures, by `clips.frames_of`;
* batches: the same by a stream, decoded, resized and in parallel;
* tubes: the tokens of a batch of clips, by the encoder's embedding alone, compiled.

Other processes on the machine make figures useless. Needs the extra "video".
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import jax
import numpy as np

from twelve_in_one.data.images import clips
from twelve_in_one.data.images.image_set import ImageExample
from twelve_in_one.data.images.pipeline import Preprocess
from twelve_in_one.data.images.sources import open_image_stream
from twelve_in_one.models import vit
from twelve_in_one.models.tubes import ClipConfig
from twelve_in_one.models.vit import ViT, named_vit

_BATCH, _MADE, _QUESTIONS = 4, 300, 64
_SIDE = 224  # the tubes are the paper's


def make_video(path: Path) -> None:
    """A square that moves over noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (240, 320, 3), np.uint8) // 4
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(_MADE):
            pixels = noise.copy()
            pixels[100:140, number : number + 20] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


def rate(work: Callable[[], int], seconds: float) -> float:
    """Clips per second of a function that returns how many it made."""
    work()
    made, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        made += work()
    return made / (time.perf_counter() - start)


def _plain(path: Path, last: int) -> int:
    with av.open(str(path)) as file:
        for number, _ in enumerate(file.decode(video=0)):
            if number == last:
                break
    return 1


def _stream(path: Path, folder: Path, recipe: Preprocess) -> Callable[[], int]:
    (folder / "video0.mp4").write_bytes(path.read_bytes())
    record = {"video_id": 0, "question": "what moves?", "answer": "square"}
    records = [record | {"id": number} for number in range(_QUESTIONS)]
    (folder / "train_qa.json").write_text(json.dumps(records))
    stream = open_image_stream(
        f"msrvtt_qa:{folder}[train]",
        size=recipe.size,
        batch_size=_BATCH,
        training=True,
        preprocess=recipe,
    )
    batches = iter(stream.as_dataset())
    return lambda: len(next(batches)["_mask"])


def main() -> None:
    """Prints the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", type=Path, help="a video file; default: one that is made")
    parser.add_argument("--frames", type=int, default=32, help="T; default %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each; default %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = args.video or folder / "made.mp4"
        if args.video is None:
            make_video(path)
        with av.open(str(path)) as file:
            total = file.streams.video[0].frames or _MADE
        last = int(clips.pick(total, args.frames, 0, None)[-1])
        plain = rate(lambda: _plain(path, last), args.seconds)
        example = ImageExample(b"", "clip", clip=path)
        encoded = rate(lambda: bool(clips.frames_of(example, args.frames)), args.seconds)
        clips_of = folder / "set"
        clips_of.mkdir()
        recipe = Preprocess(_SIDE, frames=args.frames, random_frames=True)
        batches = rate(_stream(path, clips_of, recipe), args.seconds)
    config = named_vit("B/16", clip=ClipConfig(frames=args.frames))
    params = vit.init_params(config, jax.random.key(0))
    images = np.zeros((_BATCH, *config.input_shape), np.float32)
    # What nothing needs, the blocks, is not computed.
    embed = jax.jit(lambda params, x: ViT(config).apply({"params": params}, x)[1]["embedded"])
    tokens = rate(lambda: len(embed(params, images).block_until_ready()), args.seconds)
    print(f"plain    {plain:8.1f} clips/s")
    print(f"frames   {encoded:8.1f} clips/s, {encoded / plain:.2f} of plain")
    print(f"batches  {batches:8.1f} clips/s, {batches / plain:.2f} of plain")
    print(f"tubes    {tokens:8.1f} clips/s, {config.num_tokens} tokens each")


if __name__ == "__main__":
    main()
