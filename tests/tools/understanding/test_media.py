import struct
from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image

from psa_triton.tools.understanding import read_media
from psa_triton.tools.video import encode_video


def write_gif(path, frames):
    images = [Image.new("RGB", (16, 8), (40 * i, 0, 0)) for i in range(frames)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=100)


def turn(path, degrees):
    """Writes a rotation into an mp4, as a telephone does: into the matrix of its track header."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    cos, sin = {90: (0, 1), 180: (-1, 0)}[degrees]
    one = 1 << 16
    data[matrix : matrix + 20] = struct.pack(">5i", cos * one, sin * one, 0, -sin * one, cos * one)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("num_frames", "places"),
    [(1, [0]), (2, [0, 119]), (5, [0, 30, 60, 89, 119]), (None, [0, 17, 34, 51, 68, 85, 102, 119])],
    ids=["one", "ends", "five", "two-a-second"],
)
def test_frames_of_a_real_clip_are_evenly_spread(clips, num_frames, places):
    with av.open(clips / "carphone_pristine.mp4") as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        fps = float(container.streams.video[0].average_rate)
    media = read_media(clips / "carphone_pristine.mp4", "video", num_frames=num_frames)
    assert np.array_equal(media.frames, [everything[place] for place in places])
    assert media.total_frames == 120
    assert media.fps == pytest.approx(len(places) / 120 * fps)


def test_a_clip_with_fewer_frames_than_asked_for_gives_all(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    (tmp_path / "short.mp4").write_bytes(encode_video(pixels, fps=10))
    media = read_media(tmp_path / "short.mp4", "video", num_frames=64)
    assert (len(media.frames), media.total_frames, media.fps) == (3, 3, 10)


def test_a_clip_that_was_filmed_on_its_side_is_put_upright(tmp_path):
    pixels = np.zeros((2, 16, 32, 3), dtype=np.uint8)
    pixels[:, :, :16] = 255  # the left half is white
    (tmp_path / "turned.mp4").write_bytes(encode_video(pixels, fps=10))
    turn(tmp_path / "turned.mp4", 90)
    frames = read_media(tmp_path / "turned.mp4", "video").frames
    assert frames.shape == (2, 32, 16, 3)
    # Turned a quarter clockwise, left is on top.
    assert frames[:, :14].mean() > 240
    assert frames[:, 18:].mean() < 15


def test_a_video_that_changes_its_size_keeps_the_first(tmp_path):
    def part(width, height):
        file = BytesIO()
        with av.open(file, "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
            container.mux(stream.encode())
        return file.getvalue()

    (tmp_path / "call.ts").write_bytes(part(64, 48) + part(32, 32))
    frames = read_media(tmp_path / "call.ts", "video").frames
    assert len(frames) > 2 and frames.shape[1:] == (48, 64, 3)


def test_more_frames_than_fit_into_memory_are_refused(clips, monkeypatch):
    monkeypatch.setattr("psa_triton.tools.understanding.media.host_memory", lambda: 2.0**20)
    with pytest.raises(ValueError, match=r"num_frames: expected frames that fit .* ask for fewer"):
        read_media(clips / "carphone_pristine.mp4", "video", num_frames=60)


def test_an_animation_is_a_video(tmp_path):
    write_gif(tmp_path / "a.gif", 5)
    media = read_media(tmp_path / "a.gif", "video", num_frames=3)
    assert [round(frame[0, 0, 0] / 40) for frame in media.frames] == [0, 2, 4]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_an_image_of_any_kind_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (20, 10), "white").convert(mode).save(tmp_path / "image.png")
    media = read_media(tmp_path / "image.png", "image")
    assert media.frames.shape == (1, 10, 20, 3)
    assert media.frames.dtype == np.uint8
    assert (media.frames == 255).all()


def test_an_image_is_put_upright(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert read_media(tmp_path / "photo.jpg", "image").frames.shape == (1, 20, 10, 3)


def test_files_with_nothing_in_them(tmp_path):
    with av.open(str(tmp_path / "empty.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(ValueError, match="which has no frames"):
        read_media(tmp_path / "empty.avi", "video")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match="which has none"):
        read_media(tmp_path / "sound.wav", "video")


def test_damaged_files(clips, tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "image.png")
    for name, source, kind in (("a.png", tmp_path / "image.png", "image"), ("a.mp4", clips / "bikes.mp4", "video")):
        data = source.read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="cannot be read"):
            read_media(tmp_path / name, kind)


@pytest.mark.parametrize(
    ("name", "kind", "num_frames", "message"),
    [
        ("nothing.mp4", "video", None, r"input: there is no file .*nothing\.mp4"),
        ("notes.txt", "image", None, r"input: .*notes\.txt"),
        ("notes.txt", "video", None, r"input: .*notes\.txt"),
        ("image.png", "video", None, r"got the image .*image\.png; it needs type image"),
        ("bikes.mp4", "image", None, r"got .*bikes\.mp4, which is none; a video needs type video"),
        ("bikes.mp4", "video", 0, "num_frames: expected at least 1, got 0"),
        ("image.png", "image", 4, "num_frames: expected it with a video"),
        ("bikes.mp4", "sound", None, "type: expected one of image, video, got 'sound'"),
    ],
)
def test_other_files_and_bad_arguments(name, kind, num_frames, message, clips, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    Image.new("RGB", (20, 10)).save(tmp_path / "image.png")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_media((clips if name == "bikes.mp4" else tmp_path) / name, kind, num_frames=num_frames)
