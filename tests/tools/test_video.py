from io import BytesIO

import av
import numpy as np
import pytest

from psa_triton.tools.video import encode_video, enlarge, side_by_side, to_uint8


def solid(*colours, height=32, width=48):
    """One frame a colour."""
    return np.broadcast_to(np.float32(colours)[:, None, None], (len(colours), height, width, 3)).copy()


def test_a_video_has_the_frames_in_order_with_their_size_colour_and_rate():
    frames = solid((1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0.5), (1, 1, 1))
    with av.open(BytesIO(encode_video(frames, fps=12))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12)
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    np.testing.assert_allclose(read, frames * 255, atol=6)


def test_floats_are_clipped_and_rounded():
    frames = np.float32([-0.1, 0.0, 0.501, 1.0, 1.7, 0.25]).reshape(1, 1, 2, 3)
    assert to_uint8(frames).ravel().tolist() == [0, 0, 128, 255, 255, 64]


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        pytest.param(np.zeros((2, 32, 32)), ValueError, r"\[F, H, W, 3\]", id="no-channels"),
        pytest.param(np.zeros((0, 32, 32, 3)), ValueError, "at least one frame", id="no-frames"),
        pytest.param(np.zeros((1, 33, 32, 3)), ValueError, "even height and width, got 33x32", id="odd-height"),
        pytest.param(np.full((1, 32, 32, 3), np.nan), ValueError, "finite", id="nan"),
        pytest.param(np.zeros((1, 32, 32, 3), np.int64), TypeError, "int64", id="integers"),
    ],
)
def test_frames_that_are_no_video_are_refused(frames, error, message):
    with pytest.raises(error, match=message):
        encode_video(frames, fps=8)


def test_a_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="fps"):
        encode_video(solid((0, 0, 0)), fps=0)


@pytest.mark.parametrize(("min_height", "factor"), [(1, 1), (2, 1), (3, 2), (4, 2), (7, 4)])
def test_enlarging_repeats_whole_pixels(min_height, factor):
    frames = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    large = enlarge(frames, min_height)
    assert large.shape == (1, 2 * factor, 2 * factor, 3)
    np.testing.assert_array_equal(large[:, ::factor, ::factor], frames)
    np.testing.assert_array_equal(large[:, factor - 1 :: factor, factor - 1 :: factor], frames)


def test_videos_stand_side_by_side_under_their_labels():
    left, right = solid((1, 0, 0), (1, 0, 0)), solid((0, 0, 1), (0, 0, 1))
    joined = side_by_side({"dense": left, "psa": right}, min_height=64)
    frames, height, width, _ = joined.shape
    assert frames == 2
    assert height % 2 == width % 2 == 0
    heading = height - 64
    assert (joined[:, heading:, :96] == (255, 0, 0)).all()
    assert (joined[:, heading:, -96:] == (0, 0, 255)).all()
    for column in (joined[:, :heading, :96], joined[:, :heading, -96:]):
        assert 0 < (column > 128).mean() < 0.5, "expected some text on black"


def test_side_by_side_needs_videos_of_one_shape():
    with pytest.raises(ValueError, match="one shape"):
        side_by_side({"a": solid((0, 0, 0)), "b": solid((0, 0, 0), (0, 0, 0))})
    with pytest.raises(ValueError, match="at least one"):
        side_by_side({})
