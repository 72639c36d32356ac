import pytest
import torch

from mattecompress.backends.onnx import Onnx, OnnxArtifact
from mattecompress.backends.onnx.runtime import InputError
from mattecompress.files import UnwritableError
from mattecompress.running.stream import Stream
from tests.backends.onnx.nets import compiled, image, program_of


@pytest.fixture(scope="module")
def artifact() -> OnnxArtifact:
    return compiled(program_of(lambda x: x * 2, (1, 3, 4, 5)))


def test_wrong_names_are_told(artifact):
    with pytest.raises(InputError, match="net takes x; it was given image"):
        artifact.run(image=image(1, 3, 4, 5))


def test_wrong_shapes_and_types_are_told(artifact):
    with pytest.raises(InputError, match="Expected: 5"):
        artifact.run(x=image(1, 3, 4, 6))
    with pytest.raises(InputError, match="tensor\\(float\\)"):
        artifact.run(x=image(1, 3, 4, 5).double())


def test_strided_inputs_are_taken(artifact):
    x = image(1, 4, 5, 3).permute(0, 3, 1, 2)
    assert torch.equal(artifact.run(x=x)["y"], x * 2)


def test_the_saved_file_is_the_model(artifact, tmp_path):
    (path,) = artifact.save(tmp_path / "new")
    assert path.name == "net.onnx"
    assert path.read_bytes() == artifact.data
    assert [entry.name for entry in path.parent.iterdir()] == ["net.onnx"]


def test_an_unwritable_folder_is_told(artifact, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError):
        artifact.save(tmp_path / "file")


def test_threads_are_set():
    artifact = Onnx(threads=2).compile(program_of(lambda x: x * 2, (1, 3, 4, 5)))
    assert artifact.session.get_session_options().intra_op_num_threads == 2


def test_clips_of_one_artifact_keep_their_own_states(tiny):
    artifact = Onnx().compile(tiny)
    clips = torch.rand(2, 3, 3, 12, 16)
    ours, truth = [Stream(tiny, artifact.over_clips()) for _ in clips], Stream(tiny)
    found = [[stream(clip[[frame]]) for stream, clip in zip(ours, clips, strict=True)] for frame in range(3)]
    for number, clip in enumerate(clips):
        for frame, expected in enumerate(truth.over(clip)):
            torch.testing.assert_close(found[frame][number]["pha"], expected["pha"], rtol=1e-5, atol=1e-5)


def test_wrong_frames_of_a_clip_are_told(tiny):
    clip = Onnx().compile(tiny).over_clips()
    with pytest.raises(InputError, match="Expected: 16"):
        clip.step(src=image(1, 3, 12, 15))
    with pytest.raises(InputError, match="frame"):
        clip.step(frame=image(1, 3, 12, 16))
