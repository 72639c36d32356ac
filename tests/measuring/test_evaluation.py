from dataclasses import replace

import pytest
import torch

from mattecompress.data.sources import SourceClip, load_clips
from mattecompress.data.trimaps import make_trimap
from mattecompress.measuring.evaluation import METRICS, Evaluation, NoTruthError, evaluate, predict
from mattecompress.pipeline import PreconditionError
from mattecompress.preparation import ResolutionError, fix_size, nearest_size
from mattecompress.program import Program
from tests.reconstruction.nets import Trimapped, captured


@pytest.fixture(scope="module")
def clip() -> SourceClip:
    (made,) = load_clips("procedural:2", (16, 24), clips=1, frames=3)
    return made


def test_a_program_agrees_with_itself(tiny_open: Program, clip: SourceClip) -> None:
    result = evaluate(tiny_open, tiny_open.run, [clip, clip], tiny_open)
    assert result == Evaluation(6, dict.fromkeys(METRICS, 0.0))


def test_the_clip_is_the_truth(tiny_open: Program, clip: SourceClip) -> None:
    alpha, foreground = predict(tiny_open, tiny_open.run, clip)
    perfect = replace(clip, alpha=alpha, foreground=foreground)
    assert evaluate(tiny_open, tiny_open.run, [perfect]).metrics["mad"] == 0
    off = replace(clip, alpha=(alpha + 0.25).clamp(max=1), foreground=foreground)
    mad = evaluate(tiny_open, tiny_open.run, [off]).metrics["mad"]
    assert mad == pytest.approx(1e3 * float((off.alpha - alpha).mean()), rel=1e-4)


def test_frames_are_averaged_over_clips_first(tiny_open: Program, clip: SourceClip) -> None:
    short = SourceClip("short", clip.frames[:1], clip.alpha[:1], clip.foreground[:1])
    off = replace(short, alpha=1 - short.alpha)
    whole, part, both = (
        evaluate(tiny_open, tiny_open.run, clips).metrics["mse"] for clips in ([clip], [off], [clip, off])
    )
    first = evaluate(tiny_open, tiny_open.run, [short]).metrics["mse"]
    assert first != part
    assert both == pytest.approx(whole + (part - first) / 6)


def test_large_frames_have_rules_of_their_own(tiny_open: Program, clip: SourceClip) -> None:
    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return tiny_open.run(**inputs) | {"pha": inputs["src"][:, :1]}

    dim = replace(clip, alpha=clip.frames[:, :1] / 2)
    small, large = (evaluate(tiny_open, run, [dim], high_resolution=rule) for rule in (False, True))
    assert small.metrics["grad"] < 1e-9
    assert large.metrics["grad"] > 1e-3
    assert large.metrics.keys() == small.metrics.keys() - {"conn"}
    assert large.as_json()["metrics"]["conn"] is None


def test_predict_carries_states_at_the_clip_size(tiny_open: Program, clip: SourceClip) -> None:
    given: list[torch.Tensor] = []
    yielded: list[torch.Tensor] = [torch.zeros(1, 4, 8, 12)]

    def run(src: torch.Tensor, r1i: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = tiny_open.run(src=src, r1i=r1i)
        given.append(r1i)
        yielded.append(outputs["r1o"])
        return outputs

    alpha, foreground = predict(tiny_open, run, clip)
    assert alpha.shape == (3, 1, 16, 24)
    assert foreground is not None and foreground.shape == (3, 3, 16, 24)
    assert all(map(torch.equal, given, yielded))
    fixed = fix_size(tiny_open, (16, 24))
    assert torch.equal(alpha, predict(fixed, fixed.run, clip)[0])


def test_with_a_trimap_what_it_leaves_unknown_is_measured(clip: SourceClip) -> None:
    program, alpha = captured(Trimapped), torch.zeros(2, 1, 16, 24)
    alpha[0, :, :, 12:] = 1
    alpha[1] = 1
    half = SourceClip("half", clip.frames[:2], alpha)
    trimap = make_trimap(alpha)
    unknown = (trimap[0] == 0.5).sum()
    assert 0 < unknown < trimap[0].numel() and not (trimap[1] == 0.5).any()

    def run(image: torch.Tensor, trimap: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"alpha": torch.where(trimap == 0.5, 0.2, 0.0)}

    right = int((alpha[0] == 0)[trimap[0] == 0.5].sum())
    wrong = int(unknown) - right
    result = evaluate(program, run, [half])
    assert result.unknown["sad"] == pytest.approx((right * 51 + wrong * 204) / 255 / 1000)
    assert result.unknown["mse"] == pytest.approx((right * 0.2**2 + wrong * 0.8**2) / int(unknown))
    assert result.unknown.keys() == {"sad", "mse", "grad", "conn"}
    assert result.as_json()["unknown"] == result.unknown


def test_without_a_trimap_nothing_is_unknown(tiny_open: Program, clip: SourceClip) -> None:
    result = evaluate(tiny_open, tiny_open.run, [clip])
    assert result.unknown == {} and "unknown" not in result.as_json()


def test_a_foreground_that_one_side_lacks(tiny_open: Program, clip: SourceClip) -> None:
    result = evaluate(tiny_open, tiny_open.run, [replace(clip, foreground=None)])
    assert result.as_json()["metrics"]["fgr_mse"] is None
    assert result.as_json()["metrics"].keys() == set(METRICS)


def test_what_is_not_finite_is_null() -> None:
    document = Evaluation(1, {"mad": float("nan"), "mse": 2.0}).as_json()
    assert document["metrics"]["mad"] is None
    assert document["metrics"]["mse"] == 2.0


def test_clips_without_truth_are_refused_at_once(tiny_open: Program, clip: SourceClip) -> None:
    def never(**_: object) -> dict[str, torch.Tensor]:
        raise AssertionError

    with pytest.raises(NoTruthError, match="procedural-2-0 has no known alpha: add --reference"):
        evaluate(tiny_open, never, [replace(clip, alpha=None)])


def test_sizes_that_do_not_fit(tiny: Program, tiny_open: Program, clip: SourceClip) -> None:
    with pytest.raises(ResolutionError, match="takes frames of 12x16, not 16x24"):
        evaluate(tiny, tiny.run, [clip])
    with pytest.raises(PreconditionError, match="height 15 is not a multiple of 2"):
        predict(tiny_open, tiny_open.run, SourceClip("odd", clip.frames[:, :, :15]))


def test_nearest_size(tiny: Program, tiny_open: Program) -> None:
    assert nearest_size(tiny_open, (271, 480)) == (272, 480)
    assert nearest_size(tiny_open, (1, 1)) == (2, 2)
    assert nearest_size(tiny, (271, 480)) == (12, 16)
