"""The page: self-contained, complete, escaped, the same each time."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from varlab.report import find_runs, write_report
from varlab.report.page.html import ReportFiles

from . import make_runs


class Links(HTMLParser):
    """What a browser would fetch, and the elements that were opened but not closed."""

    VOID = frozenset({"meta", "img", "link", "br", "path", "use"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")
        ]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parse(page: str) -> Links:
    links = Links()
    links.feed(page)
    return links


def test_page_fetches_nothing(page: str) -> None:
    links = parse(page)
    assert links.scripts == 0
    assert links.fetched, "pictures and figures refer to something"
    assert all(target.startswith(("data:image/", "#")) for target in links.fetched)
    assert not re.search(r"url\((?!#)|@import", page)


def test_page_is_well_formed_and_its_figures_do_not_share_clip_paths(page: str) -> None:
    links = parse(page)
    assert links.open == []
    clips = re.findall(r'<clipPath id="([^"]+)"', page)
    assert len(clips) == len(set(clips)) > 0
    assert {target[1:] for target in links.fetched if target.startswith("#")} <= set(links.ids)


def test_every_run_is_listed_with_its_state(page: str, study: Path) -> None:
    listed = re.findall(r'<tr class="run"><th scope="row"><code>([^<]+)</code></th>.*?</tr>', page)
    assert sorted(listed) == sorted(path.parent.as_posix() for path in study.rglob("run.json"))
    assert '<span class="state failed">failed</span>' in page
    assert '<span class="state running">not finished</span>' in page


def test_failed_trainings_are_a_footnote(page: str) -> None:
    tables, record = page.split("<h2>For the record</h2>")
    (footnote,) = re.findall(r'<p class="note failed">.*?</p>', record)
    assert "order=random+seed=2" in footnote and "three times" in footnote
    assert "order=random+seed=1" in tables and "order=random+seed=2" not in tables


def test_samples_are_those_of_the_sampler_that_was_scored(tmp_path: Path) -> None:
    run = make_runs.generator(tmp_path / "run", order="raster", pictures=True)
    (scored,) = (run / "scores").glob("*.json")
    picture = run / "pictures" / "scored" / f"{scored.stem}.png"
    make_runs.grid(10, 10, noise=3, seed=5, path=picture)
    page = write_report([run], tmp_path / "page", title="x").html.read_text()
    assert base64.b64encode(picture.read_bytes()).decode() in page
    assert base64.b64encode((run / "pictures" / "samples.png").read_bytes()).decode() not in page


def test_text_from_runs_is_escaped(page: str) -> None:
    assert "<h1>Orders &lt;on&gt; digits &amp; more</h1>" in page
    assert "Loss &lt;NaN&gt; three times &amp; more." in page
    assert "<NaN>" not in page


def test_page_shows_pictures_and_figures_of_each_kind(page: str) -> None:
    # samples of three orders and their common real images, growth of three orders, reconstructions of two tokenizers
    assert page.count('src="data:image/png;base64,') == 3 + 1 + 3 + 2
    for title in ("FID against training compute", "Scores of samples during training", "Loss", "Loss per level",
                  "Reconstruction", "Codebook",
                  "Adversarial health", "How an image grows", "Samples beside real images"):  # fmt: skip
        assert f"<h3>{title}</h3>" in page
    assert page.count('<svg class="figure"') == 8


def test_each_table_explains_its_columns(page: str) -> None:
    assert page.count("What these columns mean") == page.count('<section class="chapter') == 3
    assert "<dt>FID ratio</dt><dd>FID of samples ÷ FID of val images" in page and "docs/scores.md" in page


def test_page_shows_differences_and_protocols(page: str) -> None:
    assert '<th scope="row"><code>tokenizer_run</code></th><td>multi</td>' in page
    assert "classifier-3f2a_n1797_cfg1.0_seed0" in page
    assert "<dt>extractor_hash</dt><dd>3f2a77</dd>" in page
    assert "varlab train order=raster seed=1" in page


def test_figures_follow_the_page_in_light_and_dark(page: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    for variable in ("--c0", "--ink", "--ink-soft", "--line", "--card"):
        assert f"var({variable})" in figures and f"{variable}:" in page
    assert not re.search(r"(fill|stroke|color): *#", figures), "a fixed colour would vanish in light or in dark"
    assert page.count("prefers-color-scheme") == 2


def test_the_same_runs_give_the_same_bytes(study: Path, report: ReportFiles, tmp_path: Path) -> None:
    again = write_report([study], tmp_path, title="Orders <on> digits & more")
    assert again.html.read_bytes() == report.html.read_bytes()
    assert again.csv.read_bytes() == report.csv.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.csv"]


def test_page_stays_small(report: ReportFiles) -> None:
    assert report.html.stat().st_size < 1_000_000


def test_a_single_run_without_any_metric_has_a_page(tmp_path: Path) -> None:
    make_runs.write_run(tmp_path / "a", {"command": "train", "name": "x"}, [])
    text = write_report([tmp_path], tmp_path, title="t").html.read_text()
    assert parse(text).open == []
    assert "<svg" not in text
    assert "not finished" in text


def test_only_a_packing_has_a_page(tmp_path: Path) -> None:
    make_runs.write_run(tmp_path / "data", {"command": "pack", "outcome": {"state": "finished"}}, [])
    result = write_report([tmp_path], tmp_path, title="t")
    assert "No training among these runs." in result.html.read_text()
    assert len(result.csv.read_text().splitlines()) == 1


def test_large_pictures_are_reduced_and_broken_ones_left_out(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    run = make_runs.generator(tmp_path / "a", order="raster", pictures=True)
    noise = np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(run / "pictures" / "samples.png")
    (run / "pictures" / "growth.png").write_bytes(b"\x89PNG broken")
    result = write_report([run], tmp_path, title="t")
    assert result.html.stat().st_size < 3_500_000 < (run / "pictures" / "samples.png").stat().st_size
    assert "How an image grows" not in result.html.read_text()


def test_room_that_one_gallery_does_not_need_is_left_to_others(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for seed, order in enumerate(("raster", "next_scale")):
        run = make_runs.generator(tmp_path / order, order=order, pictures=True)
        noise = np.random.default_rng(seed).integers(0, 255, (400, 400, 3), dtype=np.uint8)  # 640 KB in the page
        Image.fromarray(noise).save(run / "pictures" / "samples.png")
    text = write_report([tmp_path], tmp_path, title="t").html.read_text()
    assert sum(len(uri) > 500_000 for uri in re.findall(r'src="([^"]+)"', text)) == 2


def test_report_imports_no_torch(study: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from varlab.report import write_report\n"
        f"write_report([Path({str(study / 'judge')!r})], Path({str(tmp_path)!r}), title='t')\n"
        "assert not {'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_variant_has_one_colour_for_all_its_seeds(study: Path) -> None:
    from varlab.report.variants import group_variants

    variants = group_variants(find_runs([study]))
    assert [variant.colour for variant in variants] == list(range(len(variants)))
    assert [run.seed for run in variants[0].runs] == [0, 1]
