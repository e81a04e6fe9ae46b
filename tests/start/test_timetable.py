"""The arithmetic of a plan: images fit into the minutes, in whole batches, at equal FLOPs."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from varlab.start.pace import Pace
from varlab.start.timetable import generator_images, in_rounds, judge_images, sample_count, time_left, tokenizer_images

paces = st.builds(
    Pace,
    images_per_second=st.floats(1, 1e5),
    images=st.sampled_from([512, 1024]),
    flops=st.floats(1e6, 1e12),
    late_flops=st.floats(0, 1e12),
    sampling_flops=st.floats(1e6, 1e12),
    encoded_flops=st.floats(0, 1e9),
    overhead=st.floats(0, 30),
)
seconds = st.floats(0, 1e5)
batches = st.sampled_from([16, 32, 128])


@given(st.lists(st.integers(), max_size=7), st.integers(1, 4))
def test_rounds_hold_every_job_once(jobs: list[int], lanes: int) -> None:
    rounds = in_rounds(jobs, lanes)
    assert [job for together in rounds for job in together] == jobs
    assert len(rounds) == -(-len(jobs) // lanes)
    assert all(1 <= len(together) <= lanes for together in rounds)


@given(paces, seconds, st.floats(0, 1e6))
def test_images_in_a_time_take_this_time(pace: Pace, time: float, late_from: float) -> None:
    images = pace.images_in(time, late_from=late_from)
    assume(1 <= images < 1e9)
    spent = pace.seconds_for(images, late_from=late_from) - pace.overhead
    assert abs(spent - time) <= 1e-6 * max(time, 1)


@given(paces, seconds, batches)
def test_a_tokenizer_ends_in_its_time_or_keeps_its_trial(pace: Pace, time: float, batch: int) -> None:
    images = tokenizer_images(pace, time, batch=batch, late_from=12000)
    assert images >= pace.images and images % batch == 0
    after_trial = pace.seconds_for(images, late_from=12000) - pace.seconds_for(pace.images, late_from=12000)
    assert images == pace.images or after_trial + pace.overhead <= time * (1 + 1e-9)


@given(paces, seconds, batches, st.integers(1, 10**6), st.integers(1, 50))
def test_a_judge_reads_its_images_not_too_often(pace: Pace, time: float, batch: int, count: int, epochs: int) -> None:
    images = judge_images(pace, time, batch=batch, train_images=count, epochs=epochs)
    assert images % batch == 0
    assert pace.images <= images <= max(epochs * count, pace.images)


@given(
    st.dictionaries(st.sampled_from("abc"), paces, min_size=1), seconds, batches, st.integers(1, 3), st.floats(0.5, 2)
)
def test_generators_get_equal_flops_and_end_in_time(
    of: dict[str, Pace], time: float, batch: int, rounds: int, faster: float
) -> None:
    images = generator_images(of, time, rounds=rounds, batch=batch, faster=faster)
    longer = {name: number for name, number in images.items() if number > of[name].images}
    flops = [of[name].flops * number for name, number in longer.items()]
    widest = batch * max(pace.flops for pace in of.values())
    assert not flops or max(flops) - min(flops) <= widest * (1 + 1e-9)
    for name, number in longer.items():
        computing = (of[name].seconds_for(number) - of[name].overhead) / faster
        assert computing + of[name].overhead <= time / rounds * (1 + 1e-9)


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4), st.floats(1, 1e3))
def test_generators_always_get_some_time(total: float, spent: float, reserved: float, least: float) -> None:
    left = time_left(total, spent=spent, reserved=reserved, least=least)
    assert left == least or left + spent + reserved <= total + 1e-6


@given(st.lists(paces, min_size=1), seconds)
def test_samples_are_bounded(of: list[Pace], time: float) -> None:
    count = sample_count(of, time, least=64, most=2000)
    assert 64 <= count <= 2000
    assert count == 64 or all(count * pace.sampling_flops <= time * pace.flops_per_second * (1 + 1e-9) for pace in of)
