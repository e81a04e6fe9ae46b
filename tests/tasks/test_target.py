"""What a classifier learns, and how its answers are counted."""

from __future__ import annotations

import pytest
import torch
from tiny_tasks import batch_at, classifier_task
from torch import Tensor, nn

from varlab.tasks.target import Labels, Rotation

IMG = torch.arange(2 * 3 * 4 * 6, dtype=torch.uint8).view(2, 3, 4, 6)


def test_labels_are_the_shards_own() -> None:
    labels, target = torch.tensor([2, 0]), Labels()
    img, answers = target(IMG, labels)
    assert img is IMG and answers is labels
    assert (target.predicts, target.baseline, target.views) == ("labels", "majority class", 1)
    assert target.size((4, 6)) == (4, 6) and target.answers(7) == 7
    assert target.majority(torch.tensor([1, 1, 0, 2, 1])) == 0.6 and target.majority(torch.tensor([], dtype=int)) == 1.0


def turned(square: list[list[int]]) -> list[list[int]]:
    """Anticlockwise: the last column becomes the first row."""
    return [list(row) for row in zip(*square, strict=True)][::-1]


@pytest.mark.parametrize("tall", [False, True])
def test_each_image_is_turned_four_times(tall: bool) -> None:
    """Of a rectangle the central square is turned: columns 1 to 4 of six."""
    target, img = Rotation(), IMG.transpose(2, 3) if tall else IMG
    views, answers = target(img, torch.tensor([5, 5]))
    assert views.shape == (8, 3, 4, 4) and answers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = (img[:, :, 1:5] if tall else img[:, :, :, 1:5]).tolist()
    for turns in range(4):
        for b in range(2):
            assert views[2 * turns + b].tolist() == expected[b]
            expected[b] = [turned(channel) for channel in expected[b]]
    assert (target.predicts, target.baseline, target.views) == ("rotation", "chance", 4)
    assert target.size((4, 6)) == target.size((6, 4)) == (4, 4) and target.answers(10) == 4
    assert target.majority(torch.tensor([1])) == 0.25


@pytest.mark.parametrize(("micro_batch", "sizes"), [(8, [2, 2, 2, 2]), (3, [1] * 8), (None, [8]), (16, [4, 4])])
def test_micro_batches_count_every_view(micro_batch: int | None, sizes: list[int]) -> None:
    task = classifier_task(target=Rotation(), micro_batch=micro_batch)
    assert [len(chunk) for chunk in task.chunks(batch_at(list(range(8))))] == sizes


class Fixed(nn.Module):
    """The same logits for every image."""

    def forward(self, img_B3HW: Tensor) -> Tensor:
        return torch.tensor([2.0, 0.0, -1.0]).expand(len(img_B3HW), -1)


def test_loss_and_accuracy_by_hand() -> None:
    """Logits 2, 0, -1: smoothing counts in training, not in validation."""
    task, batch = classifier_task(label_smoothing=0.3), batch_at(list(range(8)))
    task.model = Fixed()
    nll = torch.tensor([2.0, 0.0, -1.0]).exp().sum().log() - torch.tensor([2.0, 0.0, -1.0])
    plain = nll[batch.label_B].mean()
    loss, values = task.loss(batch)
    torch.testing.assert_close(loss, 0.7 * plain + 0.3 * nll.mean())
    share = float((batch.label_B == 0).float().mean())
    assert 0 < share < 1 and float(values["train/accuracy"]) == pytest.approx(share)
    scores = task.validate([batch])
    assert scores["val/accuracy"] == pytest.approx(share) and scores["val/loss"] == pytest.approx(float(plain))
